//! Thin pools in the kernel's dm-thin metadata format, version 2.
//!
//! A [`Pool`] hands out blocks of one data device to any number of thin devices, whose snapshots
//! share blocks until they are written. On disk it is the kernel's format byte for byte, so Linux,
//! LVM and the thin tools open a closed pool. In memory:
//!
//! ```text
//!   ThinVolume --- table (mappings, read without a lock) ---- resolves: places + a lease
//!       |                 ^ loaded from the committed tree
//!       | does: read, write, discard
//!       v                 |
//!   Shared --- allocator (free data blocks)
//!       |  --- pending (changes since the last commit, their share of the metadata)
//!       v
//!   commit --- trees (B-trees and space maps, applied in sorted batches)
//! ```
//!
//! What holds: DATA-FIRST, FLUSH-HOLDS, SNAPSHOT-FIXED, FREE-LATE, FAIL-STOP and FULL-IS-NOT-BROKEN
//! of `docs/ARCHITECTURE.md`; the code that keeps one names it.

mod address;
mod admission;
mod allocator;
mod change;
mod check;
mod commit;
mod condition;
pub mod delta;
mod details;
mod devices;
pub mod dump;
mod events;
mod extents;
mod grow;
mod held_root;
mod hold;
mod hydrate;
mod layout;
pub mod ls;
mod mappings;
mod message;
mod metadata_room;
mod mode;
mod origin;
pub mod pack;
mod pending;
mod pool;
mod read;
mod reclaim;
mod refs;
pub mod repair;
mod resolve;
pub mod restore;
pub mod rmap;
mod settings;
mod share;
mod shared;
mod space;
mod stall;
mod status;
mod status_line;
mod superblock;
mod table;
mod table_line;
mod trees;
mod trim;
mod volume;
mod words;
mod worst_case;
mod write;
mod xml;

pub use address::{BlockSize, DataBlock, DeviceId, GuestBlock, Mapping, Time};
pub use change::Change;
pub use check::{
    CheckDepth, CheckOptions, CheckReport, LeakRepair, Verdict, check, check_with,
    clear_needs_check, repair_leaks,
};
pub use events::{Event, EventKind, EventPage};
pub use hold::HeldMetadata;
pub use message::Message;
pub use mode::PoolMode;
pub use origin::ExternalOrigin;
pub use pending::DeviceState;
pub use pool::{OpenOptions, Pool};
pub use settings::PoolSettings;
pub use status::{PoolStatus, ThinStatus};
pub use status_line::Discards;
pub use table_line::{PoolFeatures, PoolTable, ThinTable};
pub use trees::ReclaimPace;
pub use trim::Trimmed;
pub use volume::ThinVolume;
