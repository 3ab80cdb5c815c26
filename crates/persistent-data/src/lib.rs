//! Copy-on-write B-trees, space maps and transactions in the kernel's persistent-data format.
//!
//! A metadata device is an array of 4 KiB [`Block`]s. Everything hangs from the superblock, which
//! belongs to the crate above; this crate knows what hangs below it:
//!
//! ```text
//!   superblock (not here)
//!      |  roots
//!      +-- B-trees ([`btree`])                   share nodes, counted in the metadata map
//!      +-- data space map ([`DiskSpaceMap`])     B-tree of bitmaps + B-tree of counts from 3 on
//!      +-- metadata space map ([`Transaction`])  index block of bitmaps + the same B-tree
//! ```
//!
//! What holds at every moment:
//! - A block of the last committed state is never written. A change writes a new block, and the
//!   blocks on the way to it, up to a new root.
//! - A block is allocated only if it is free in the committed and in the current state (FREE-LATE).
//! - The count of a block is the number of its parents: nodes, space maps, and the superblock.
//!
//! The order of a commit: [`Transaction::seal`], [`Transaction::write`], the caller flushes the
//! device, writes the superblock with the new roots, flushes again, and calls
//! [`Transaction::finish`]. A crash before the superblock is whole shows the old state, all of it.

mod address;
mod block;
pub mod btree;
pub mod bulk;
mod checksum;
mod counts;
mod fresh;
mod holds;
pub mod space_map;
mod store;
mod transaction;

pub use address::{BLOCK_SIZE, MetaBlock};
pub use block::{Block, BlockKind};
pub use checksum::{identify, seal, verify};
pub use counts::RefCounts;
pub use holds::Hold;
pub use space_map::{DiskSpaceMap, SpaceMapRoot};
pub use store::{BlockStore, ReadBlocks};
pub use transaction::Transaction;
