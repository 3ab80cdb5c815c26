//! QEMU's copy-on-write format, versions 2 and 3.
//!
//! An [`Image`] is a block device on a file that the caller has opened, and on a backing file and
//! an external data file that the caller has opened, too: the format opens nothing that an image
//! names (GATED-OPEN). In memory:
//!
//! ```text
//!   Image --- source: one state of the disk
//!     |         tree (L1, L2 tables read without a lock) ---- resolves: places + a lease
//!     |         mapping (runs of one sort), compressed, backing
//!     | does: read, write, zero, discard
//!     v
//!   state --- alloc, counts (free clusters, reference counts)
//!     |       what changed since the last commit
//!     v
//!   commit --- steps of sorted writes with flushes between
//!   exchange -- snapshots, resize, repair: everything built beside, then one write of the header
//! ```
//!
//! What holds: DATA-FIRST, FLUSH-HOLDS, SNAPSHOT-FIXED, FREE-LATE, FAIL-STOP, FULL-IS-NOT-BROKEN,
//! KNOW-OR-REFUSE, NEVER-UNDER-REPORT and GATED-OPEN of `docs/ARCHITECTURE.md`; the code that keeps
//! one names it. A crash leaves leaks at worst.

mod alloc;
mod amend;
mod bitmap;
mod bitmap_edit;
mod bytes;
mod check;
mod commit;
mod compact;
mod compressed;
mod copy_up;
mod counts;
mod create;
mod data;
mod entry;
mod exchange;
mod extension;
mod geometry;
mod header;
mod header_bytes;
mod header_layout;
mod image;
mod layout;
mod mapping;
mod measure;
mod open;
mod own;
mod recording;
mod relink;
mod repair;
mod resize;
mod resolve;
mod snapshot;
mod snapshot_table;
mod source;
mod stage;
mod state;
mod table;
mod tree;
mod view;
mod walk;
mod write;
mod write_compressed;
mod zero;

pub use crate::luks::Secret;
pub use amend::{Amend, amend};
pub use bitmap_edit::{BitmapInfo, bitmaps};
pub use check::{CheckReport, check};
pub use compact::Compaction;
pub use copy_up::BackingZeros;
pub use create::{CreateOptions, NewEncryption, Preallocation, create};
pub use header::{Compression, Encryption, Header};
pub use image::Image;
pub use measure::{Measure, measure, measure_bitmaps};
pub use open::OpenOptions;
pub use own::{Own, OwnExtent};
pub use relink::{BackingName, set_backing};
pub use repair::{Repair, repair};
pub use snapshot::{SnapshotInfo, snapshots};
pub use view::SnapshotView;
