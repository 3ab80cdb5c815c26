//! On-disk structures of dm-thin metadata, version 2: the superblock and the details of a device.
//!
//! Everything is little endian. Nodes, bitmaps and the space maps' roots are `persistent-data`'s.

use persistent_data::SpaceMapRoot;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `magic` of every superblock.
pub(crate) const MAGIC: u64 = 27_022_010;
/// The version that is written. Nobody checks it: the kernel takes any, restored pools may say 1.
pub(crate) const VERSION: u32 = 2;
/// Sectors of a metadata block.
pub(crate) const METADATA_BLOCK_SECTORS: u32 = 8;
/// Bit of `flags`: the metadata may be broken; only a check clears it.
pub(crate) const NEEDS_CHECK: u32 = 1;

/// The superblock, in block 0, written last in every commit.
///
/// The kernel sees to it that it stays under 512 bytes, so that one sector's write is atomic.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SuperblockLayout {
    /// Checksum of all 4096 bytes behind it.
    pub(crate) checksum: U32,
    /// [`NEEDS_CHECK`]; every other bit unknown.
    pub(crate) flags: U32,
    /// Its own block: 0, or where the copy of a metadata snapshot lies.
    pub(crate) block: U64,
    /// Kept, never read.
    pub(crate) uuid: [u8; 16],
    /// [`MAGIC`].
    pub(crate) magic: U64,
    /// [`VERSION`].
    pub(crate) version: U32,
    /// The pool's time: 24 bits of it fit into a mapping.
    pub(crate) time: U32,
    /// Owned by the volume manager: which state of its own records this metadata belongs to.
    pub(crate) transaction: U64,
    /// Block of the metadata snapshot, or 0.
    pub(crate) held_root: U64,
    /// Root of the data space map; bytes behind the first 32 may be anything.
    pub(crate) data_map: RootField,
    /// Root of the metadata space map, likewise.
    pub(crate) metadata_map: RootField,
    /// Tree: device -> root of its mapping tree.
    pub(crate) mappings: U64,
    /// Tree: device -> [`DetailsLayout`].
    pub(crate) details: U64,
    /// Sectors of a data block; fixed at creation.
    pub(crate) data_block_sectors: U32,
    /// Always [`METADATA_BLOCK_SECTORS`].
    pub(crate) metadata_block_sectors: U32,
    /// Metadata blocks when the pool was made; growing leaves it behind.
    pub(crate) metadata_blocks: U64,
    /// Features that anybody may ignore.
    pub(crate) compat: U32,
    /// Features that forbid writing to those who do not know them.
    pub(crate) compat_ro: U32,
    /// Features that forbid opening to those who do not know them.
    pub(crate) incompat: U32,
}

/// The 128 bytes that a superblock has for a space map's root.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RootField {
    /// The root.
    pub(crate) root: SpaceMapRoot,
    /// Unused; the kernel leaves what was in its memory.
    pub(crate) rest: [u8; 96],
}

/// What is known of a device: the value of the details tree.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DetailsLayout {
    /// Blocks that are mapped.
    pub(crate) mapped: U64,
    /// The transaction in which the device was made.
    pub(crate) transaction: U64,
    /// The pool's time when it was made.
    pub(crate) created: U32,
    /// The pool's time when it last became or got a snapshot.
    pub(crate) snapshotted: U32,
}

const _: () = {
    assert!(size_of::<SuperblockLayout>() == 0x16c);
    assert!(std::mem::offset_of!(SuperblockLayout, magic) == 0x20);
    assert!(std::mem::offset_of!(SuperblockLayout, data_map) == 0x40);
    assert!(std::mem::offset_of!(SuperblockLayout, metadata_map) == 0xc0);
    assert!(std::mem::offset_of!(SuperblockLayout, mappings) == 0x140);
    assert!(std::mem::offset_of!(SuperblockLayout, incompat) == 0x168);
    assert!(size_of::<RootField>() == 128);
    assert!(size_of::<DetailsLayout>() == 24);
};
