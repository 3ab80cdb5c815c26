//! On-disk structures of a VHD: footer, header, parent locators and XenServer's batmap.
//!
//! Everything is big endian. The format is Microsoft's Virtual Hard Disk Image Format
//! Specification, version 1.0; what XenServer adds to it is marked so.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `cookie` of every footer.
pub(super) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// `cookie` of a footer that XenServer's tools have put out of use.
pub(super) const POISONED_COOKIE: [u8; 8] = *b"v_poison";
/// `cookie` of every header.
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// `cookie` of every batmap.
pub(super) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";
/// The only version of footers and headers.
pub(super) const VERSION: u32 = 0x0001_0000;
/// The version of batmaps whose sum is taken over unsigned bytes.
pub(super) const BATMAP_VERSION: u32 = 0x0001_0002;
/// Bit of `features` that is always set.
pub(super) const FEATURE_RESERVED: u32 = 2;
/// Bit of `features`: the disk may be deleted at the next start. Nobody does.
pub(super) const FEATURE_TEMPORARY: u32 = 1;
/// `data_offset` where nothing follows.
pub(super) const NOWHERE: u64 = u64::MAX;

/// The footer, in the last 512 bytes; dynamic and differencing disks have a copy at offset 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FooterLayout {
    /// [`FOOTER_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// [`FEATURE_RESERVED`], perhaps [`FEATURE_TEMPORARY`].
    pub(super) features: U32,
    /// [`VERSION`].
    pub(super) version: U32,
    /// Where the header lies; [`NOWHERE`] for fixed disks.
    pub(super) data_offset: U64,
    /// Seconds since 2000 when the disk was made.
    pub(super) timestamp: U32,
    /// Which program made it.
    pub(super) creator_app: [u8; 4],
    /// Which version of it.
    pub(super) creator_version: U32,
    /// On which system.
    pub(super) creator_os: [u8; 4],
    /// Bytes of the disk when it was made.
    pub(super) original_size: U64,
    /// Bytes of the disk now.
    pub(super) current_size: U64,
    /// Geometry: cylinders.
    pub(super) cylinders: U16,
    /// Geometry: heads.
    pub(super) heads: u8,
    /// Geometry: sectors of a track.
    pub(super) track_sectors: u8,
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub(super) disk_type: U32,
    /// One's complement of the sum of the other bytes.
    pub(super) checksum: U32,
    /// The disk's identity, which its children name.
    pub(super) uuid: [u8; 16],
    /// Whether the disk is that of a machine in saved state.
    pub(super) saved_state: u8,
    /// XenServer: the disk is an inner node, not for users.
    pub(super) hidden: u8,
    /// Zero.
    pub(super) reserved: [u8; 426],
}

/// The header of dynamic and differencing disks.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HeaderLayout {
    /// [`HEADER_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// [`NOWHERE`].
    pub(super) data_offset: U64,
    /// Where the block allocation table lies.
    pub(super) table_offset: U64,
    /// [`VERSION`].
    pub(super) version: U32,
    /// Entries of the table.
    pub(super) max_entries: U32,
    /// Bytes of a block's data.
    pub(super) block_size: U32,
    /// One's complement of the sum of the other bytes.
    pub(super) checksum: U32,
    /// The parent's identity; zero for a raw parent (XenServer) and for a disk without one.
    pub(super) parent_uuid: [u8; 16],
    /// When the parent's file was last changed, in seconds since 2000.
    pub(super) parent_timestamp: U32,
    /// Zero.
    pub(super) reserved: U32,
    /// The parent's file name, in UTF-16.
    pub(super) parent_name: [U16; 256],
    /// Where paths to the parent lie.
    pub(super) locators: [LocatorLayout; 8],
    /// Zero.
    pub(super) reserved_end: [u8; 256],
}

/// An entry for a path to the parent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LocatorLayout {
    /// What sort of path; zero for none.
    pub(super) code: [u8; 4],
    /// Room for it: in sectors by the specification, in bytes in practice.
    pub(super) data_space: U32,
    /// Bytes of it.
    pub(super) data_len: U32,
    /// Zero.
    pub(super) reserved: U32,
    /// Where it lies.
    pub(super) data_offset: U64,
}

/// XenServer: the header of the batmap, directly behind the block allocation table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BatmapLayout {
    /// [`BATMAP_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// Where the map lies.
    pub(super) map_offset: U64,
    /// Sectors of the map.
    pub(super) map_sectors: U32,
    /// [`BATMAP_VERSION`].
    pub(super) version: U32,
    /// One's complement of the sum of the map alone.
    pub(super) checksum: U32,
    /// For whoever wants to mark the disk.
    pub(super) marker: u8,
    /// Key of an encrypted disk: set, nonce, hash. Kept as they are.
    pub(super) key_hash: [u8; 65],
    /// Zero.
    pub(super) reserved: [u8; 418],
}

const _: () = {
    assert!(size_of::<FooterLayout>() == 512);
    assert!(std::mem::offset_of!(FooterLayout, current_size) == 48);
    assert!(std::mem::offset_of!(FooterLayout, checksum) == 64);
    assert!(std::mem::offset_of!(FooterLayout, hidden) == 85);
    assert!(size_of::<HeaderLayout>() == 1024);
    assert!(std::mem::offset_of!(HeaderLayout, checksum) == 36);
    assert!(std::mem::offset_of!(HeaderLayout, parent_name) == 64);
    assert!(std::mem::offset_of!(HeaderLayout, locators) == 576);
    assert!(size_of::<LocatorLayout>() == 24);
    assert!(size_of::<BatmapLayout>() == 512);
    assert!(std::mem::offset_of!(BatmapLayout, checksum) == 24);
    assert!(std::mem::offset_of!(BatmapLayout, marker) == 28);
};

/// The format's checksum: the one's complement of the sum of all bytes.
pub(super) fn ones_complement(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)))
}

impl FooterLayout {
    /// The checksum that it should have.
    pub(super) fn sum(&self) -> u32 {
        ones_complement(Self { checksum: 0.into(), ..*self }.as_bytes())
    }
}

impl HeaderLayout {
    /// The checksum that it should have.
    pub(super) fn sum(&self) -> u32 {
        ones_complement(Self { checksum: 0.into(), ..*self }.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::ones_complement;

    #[test]
    fn sums_are_inverted() {
        assert_eq!(ones_complement(&[]), u32::MAX);
        assert_eq!(ones_complement(&[1, 2, 255]), !258);
        // What the damaged batmap among the fixtures should hold: one byte of 0xc0.
        assert_eq!(ones_complement(&[0xc0]), 0xffff_ff3f);
    }
}
