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
mod devices;
mod diff;
mod layout;
mod pending;
mod pool;
mod read;
mod refs;
mod shared;
mod status;
mod superblock;
mod table;
mod trees;
mod volume;
mod write;

pub use address::{BlockSize, DataBlock, DeviceId, GuestBlock, Mapping, Time};
pub use change::Change;
pub use check::{CheckReport, check};
pub use diff::Difference;
pub use pending::DeviceState;
pub use pool::{OpenOptions, Pool};
pub use status::PoolStatus;
pub use volume::ThinVolume;
