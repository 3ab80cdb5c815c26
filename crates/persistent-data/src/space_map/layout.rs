//! Space maps on the disk: the root that the superblock holds, and the index of the metadata map.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::btree::Record;
use crate::{BLOCK_SIZE, Block, MetaBlock};

/// Where a space map hangs: the first 32 of the 128 bytes that the superblock has for it. What
/// follows them may be anything.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SpaceMapRoot {
    /// Blocks that are counted.
    pub nr_blocks: U64,
    /// Blocks with a count above 0. Not always right on disks that other tools wrote.
    pub nr_allocated: U64,
    /// The bitmaps: the root of the B-tree of index entries, or the index block of the metadata
    /// map.
    pub bitmap_root: U64,
    /// The root of the B-tree of counts from 3 on.
    pub ref_count_root: U64,
}

/// Where a bitmap lies, and hints for who looks for a free block in it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct IndexEntry {
    /// The block of the bitmap.
    pub bitmap: U64,
    /// Counts of 0 in it, those past the end of the map included.
    pub nr_free: U32,
    /// The first count that may be 0.
    pub none_free_before: U32,
}

/// The block that lists the bitmaps of the metadata space map.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct MetadataIndex {
    /// CRC-32C of everything behind it, mixed with the constant of index blocks.
    pub(crate) checksum: U32,
    /// Not used.
    pub(crate) padding: U32,
    /// The block's own number.
    pub(crate) number: U64,
    /// The bitmaps, in the order of what they count.
    pub(crate) entries: [IndexEntry; MAX_METADATA_BITMAPS],
}

/// How many bitmaps the metadata space map may have: as many as its one index block lists.
pub(crate) const MAX_METADATA_BITMAPS: usize = 255;

const _: () = assert!(size_of::<SpaceMapRoot>() == 32);
const _: () = assert!(size_of::<IndexEntry>() == 16);
const _: () = assert!(size_of::<MetadataIndex>() == BLOCK_SIZE);

impl Record for IndexEntry {}

impl IndexEntry {
    /// Where the bitmap lies, or `None` for one that was never written.
    pub(crate) fn at(&self) -> Option<MetaBlock> {
        // Block 0 is the superblock: no bitmap ever lies there.
        (self.bitmap.get() != 0).then(|| MetaBlock::new(self.bitmap.get()))
    }
}

impl MetadataIndex {
    /// The index of these bitmaps, complete but for its seal.
    pub(crate) fn encode(bitmaps: &[IndexEntry]) -> Block {
        let mut index = Self::new_zeroed();
        index.entries[..bitmaps.len()].copy_from_slice(bitmaps);
        let mut block = Block::zeroed();
        block.copy_from_slice(index.as_bytes());
        block
    }

    /// The index in a block.
    pub(crate) fn of(block: &Block) -> &Self {
        Self::ref_from_bytes(&block[..]).expect("an index fills a block and has no alignment")
    }
}
