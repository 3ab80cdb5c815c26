//! Classic snapshots: an origin that stays in place, its past in the kernel's persistent exception
//! stores.
//!
//! An [`Origin`] is any device, with its data where it was. Before a chunk of it is overwritten for
//! the first time since a [`Snapshot`] was taken, what it held is copied to the snapshot's
//! [`Store`], and the exception is listed there. On disk a store is the kernel's, byte for byte:
//! each opens the other's, and each goes on with a merge that the other began.
//!
//! ```text
//!            Origin ---------------------------- Snapshot
//!   gate ------|--- buffer (deferred)               |
//!              |       | drain                      |
//!              +--- Shared --- protect --> Core <---+
//!              |                            |--- table (exceptions), sealed (a bit per chunk)
//!              |                            |--- alloc (free chunks, exceptions under way)
//!              v                            v
//!            device below <-- merge --    commit --> the store's device
//! ```
//!
//! Several snapshots may share a store, so that one copy serves all of them: [`SharedStore`], in a
//! format of Firn's own.
//!
//! When a write goes ahead, and what a crash leaves, is the snapshot's [`Mode`]. What holds in all
//! of them, of `docs/ARCHITECTURE.md`: SNAPSHOT-FIXED, or the snapshot says durably that it is
//! invalid; FLUSH-HOLDS for what is written through the origin and to snapshots; DATA-FIRST;
//! FAIL-STOP.

mod address;
mod alloc;
mod bitmap;
mod buffer;
mod check;
mod commit;
mod copy;
mod core;
mod create;
mod depot;
mod drain;
mod gate;
mod header;
mod key;
mod label;
mod layout;
mod merge;
mod mode;
mod options;
mod origin;
mod room;
mod scatter;
mod shared;
mod snapshot;
mod status;
mod store;
mod table;
mod table_line;
mod views;
mod workers;

pub use address::{ChunkSize, Exception, OriginChunk, StoreChunk};
pub use check::{CheckReport, check};
pub use depot::SharedStore;
pub use key::ViewId;
pub use label::Label;
pub use merge::{Merge, MergeProgress};
pub use mode::Mode;
pub use options::{OnFull, OriginOptions, SnapshotOptions};
pub use origin::Origin;
pub use room::{AutoGrow, GrowPolicy, Room};
pub use snapshot::Snapshot;
pub use status::{SnapshotState, SnapshotStatus};
pub use store::Store;
pub use table_line::{SnapshotKind, SnapshotTarget, TableLine, Target};
