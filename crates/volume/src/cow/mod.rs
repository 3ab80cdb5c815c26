//! Classic snapshots by path: an origin, the stores that hold its past, and who belongs to whom.
//!
//! ```text
//!   disk.img             the origin, with its data where it was
//!   disk.img.snapshots   its record: which stores there are, how the origin was left
//!   past.cow             a store; its header's label leads back to the origin
//! ```
//!
//! A [`CowOrigin`] opens an origin with every store of its record, or not at all: a write that one
//! of them did not see would ruin its snapshot, and nothing would say so.

mod attach;
mod find;
mod live;
mod merging;
mod nesting;
mod new;
mod origin;
mod record;
mod report;

pub use dm_snapshot::Mode as CowMode;
pub use dm_snapshot::{ChunkSize, OnFull, SnapshotKind, SnapshotTarget, TableLine, Target};
pub use find::{CowPlace, find_snapshots, forget_snapshot, has_snapshots};
pub use merging::CowMerge;
pub use new::{NewSnapshot, StoreSource, device_path};
pub use origin::{CowOptions, CowOrigin};
pub use report::{CowReport, OriginReport};

pub(crate) use find::check_plain;
