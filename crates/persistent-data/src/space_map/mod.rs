//! Space maps: how many references every block of a device has.
//!
//! There are two: [`DiskSpaceMap`] counts the blocks of another device, and the map inside a
//! [`Transaction`](crate::Transaction) those of the metadata device. On the disk both are bitmaps
//! of two-bit counts and a B-tree of the counts from 3 on; they differ in how the bitmaps are
//! found, by a B-tree or in one index block. In memory both are flat arrays, and a commit writes
//! what changed.

mod bitmap;
mod disk;
mod layout;
mod ledger;
pub(crate) mod metadata;

pub use bitmap::{COUNTS_PER_BITMAP, EncodedBitmap, encode_bitmap};
pub use disk::DiskSpaceMap;
pub use layout::{IndexEntry, SpaceMapRoot};
