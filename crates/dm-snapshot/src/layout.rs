//! On-disk structures of a persistent exception store, the kernel's version 1. Little endian.
//!
//! ```text
//!   chunk 0   1        2 .. E+1             E+2      E+3 ..
//!   header    area 0   data of area 0       area 1   data of area 1   ...
//! ```
//!
//! An area is one chunk of E exceptions, E = bytes of a chunk / 16. The exceptions of all areas are
//! one list, which ends at the first whose new chunk is 0; a full area is always followed by
//! another.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `magic` of every store: the bytes `SnAp`.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"SnAp");
/// The kernel's version, of a store that one snapshot has.
pub(crate) const VERSION: u32 = 1;
/// The version of a store that several snapshots share, whose entries are those of `key`. The
/// kernel refuses it.
pub(crate) const VERSION_SHARED: u32 = 2;
/// `in_use` while a snapshot of mode async is attached: the bytes `ASYN`.
pub(crate) const IN_USE: u32 = u32::from_le_bytes(*b"ASYN");

/// The header, at the start of chunk 0. All of it lies in one sector, so its write is atomic.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct HeaderLayout {
    /// [`MAGIC`]; 0 where no store was made yet.
    pub(crate) magic: U32,
    /// 1, or 0 when the store may lack something of the past: it is never read again then.
    pub(crate) valid: U32,
    /// [`VERSION`] or [`VERSION_SHARED`].
    pub(crate) version: U32,
    /// Sectors of a chunk, a power of two.
    pub(crate) chunk_sectors: U32,
    /// Not the kernel's, who never reads it: [`IN_USE`] tells why `valid` is 0. 0 in every store
    /// that is not in use, which is then the kernel's to the byte.
    pub(crate) in_use: U32,
}

/// One exception of an area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ExceptionLayout {
    /// The chunk of the origin.
    pub(crate) old_chunk: U64,
    /// The chunk of the store; 0 in the one behind the last.
    pub(crate) new_chunk: U64,
}

const _: () = {
    assert!(size_of::<HeaderLayout>() == 20);
    assert!(std::mem::offset_of!(HeaderLayout, chunk_sectors) == 12);
    assert!(size_of::<ExceptionLayout>() == 16);
};
