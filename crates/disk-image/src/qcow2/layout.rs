//! The structures of the format as they stand in the file. All numbers are big-endian.
//!
//! Sections are those of QEMU's `docs/interop/qcow2.txt`.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "QFI" and 0xfb.
pub(super) const MAGIC: u32 = 0x5146_49fb;

/// The part of the header that every version has ("Header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HeaderV2 {
    pub(super) magic: U32,
    /// 2 or 3.
    pub(super) version: U32,
    /// Where the backing file's name stands in the file; 0 if there is none.
    pub(super) backing_file_offset: U64,
    /// Bytes of the name, which has no NUL at its end.
    pub(super) backing_file_size: U32,
    pub(super) cluster_bits: U32,
    /// Bytes of the disk.
    pub(super) size: U64,
    /// 0 none, 1 AES, 2 LUKS.
    pub(super) crypt_method: U32,
    /// Entries of the active L1 table.
    pub(super) l1_size: U32,
    pub(super) l1_table_offset: U64,
    pub(super) refcount_table_offset: U64,
    pub(super) refcount_table_clusters: U32,
    pub(super) nb_snapshots: U32,
    pub(super) snapshots_offset: U64,
}

/// What version 3 adds ("Header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct HeaderV3 {
    pub(super) incompatible_features: U64,
    pub(super) compatible_features: U64,
    pub(super) autoclear_features: U64,
    /// Counts have `1 << refcount_order` bits.
    pub(super) refcount_order: U32,
    /// Bytes of the header, fields that are not known here included.
    pub(super) header_length: U32,
}

/// The first additional field, present if the header is longer than 104 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CompressionField {
    /// 0 deflate, 1 zstd.
    pub(super) compression_type: u8,
    pub(super) padding: [u8; 7],
}

/// The head of a header extension ("Header extensions"); data follows, padded to 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ExtensionHead {
    pub(super) kind: U32,
    pub(super) length: U32,
}

/// An entry of the feature name table ("Feature name table").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub(super) kind: u8,
    pub(super) bit: u8,
    /// Padded with zeros.
    pub(super) name: [u8; 46],
}

/// The head of an entry of the snapshot table ("Snapshots"); extra data, id and name follow, padded
/// to 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SnapshotHead {
    pub(super) l1_table_offset: U64,
    pub(super) l1_size: U32,
    pub(super) id_size: U16,
    pub(super) name_size: U16,
    pub(super) seconds: U32,
    pub(super) nanoseconds: U32,
    /// Nanoseconds that the guest had been running.
    pub(super) vm_clock: U64,
    pub(super) vm_state_size: U32,
    pub(super) extra_size: U32,
}

/// The extra data of a snapshot as far as it is known. Shorter ones exist.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SnapshotExtra {
    /// Stands for the 32-bit one.
    pub(super) vm_state_size: U64,
    /// Bytes of the disk.
    pub(super) disk_size: U64,
    /// Instructions of a guest that is replayed; all ones if that is not used.
    pub(super) icount: U64,
}

/// The data of the bitmaps extension ("Bitmaps extension").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BitmapsField {
    pub(super) count: U32,
    pub(super) reserved: U32,
    pub(super) directory_size: U64,
    pub(super) directory_offset: U64,
}

/// The head of an entry of the bitmap directory ("Bitmap directory entry"); extra data and name
/// follow, padded to 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BitmapHead {
    pub(super) table_offset: U64,
    pub(super) table_size: U32,
    pub(super) flags: U32,
    pub(super) kind: u8,
    pub(super) granularity_bits: u8,
    pub(super) name_size: U16,
    pub(super) extra_size: U32,
}

/// The data of the levels extension, which is Firn's own: which bitmaps that are in use hold at
/// least what has changed. It holds as long as [`feature::LEVELS`] is set.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LevelsField {
    /// 1.
    pub(super) version: u8,
    /// A bitmap is too coarse by groups of `1 << region_bits` bits at most: the last consistent
    /// level.
    pub(super) region_bits: u8,
    pub(super) reserved: [u8; 6],
    /// Bit `i` stands for entry `i` of the directory.
    pub(super) kept: U64,
}

/// The data of the encryption extension ("Full disk encryption header pointer").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct EncryptionField {
    pub(super) offset: U64,
    pub(super) length: U64,
}

const _: () = assert!(size_of::<HeaderV2>() == 72);
const _: () = assert!(size_of::<HeaderV3>() == 32);
const _: () = assert!(size_of::<CompressionField>() == 8);
const _: () = assert!(size_of::<ExtensionHead>() == 8);
const _: () = assert!(size_of::<FeatureName>() == 48);
const _: () = assert!(size_of::<SnapshotHead>() == 40);
const _: () = assert!(size_of::<SnapshotExtra>() == 24);
const _: () = assert!(size_of::<BitmapsField>() == 24);
const _: () = assert!(size_of::<BitmapHead>() == 24);
const _: () = assert!(size_of::<LevelsField>() == 16);
const _: () = assert!(size_of::<EncryptionField>() == 16);

/// Types of header extensions.
pub(super) mod extension {
    pub(in super::super) const END: u32 = 0;
    pub(in super::super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(in super::super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(in super::super) const BITMAPS: u32 = 0x2385_2875;
    pub(in super::super) const ENCRYPTION: u32 = 0x0537_be77;
    pub(in super::super) const DATA_FILE: u32 = 0x4441_5441;
    /// Firn's own: "Firn" in ASCII.
    pub(in super::super) const LEVELS: u32 = 0x4669_726e;
}

/// Feature bits.
pub(super) mod feature {
    pub(in super::super) const DIRTY: u64 = 1 << 0;
    pub(in super::super) const CORRUPT: u64 = 1 << 1;
    pub(in super::super) const DATA_FILE: u64 = 1 << 2;
    pub(in super::super) const COMPRESSION: u64 = 1 << 3;
    pub(in super::super) const EXTENDED_L2: u64 = 1 << 4;
    /// Every incompatible feature that is known here.
    pub(in super::super) const INCOMPATIBLE: u64 =
        DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
    /// Compatible.
    pub(in super::super) const LAZY_REFCOUNTS: u64 = 1 << 0;
    /// Autoclear.
    pub(in super::super) const BITMAPS: u64 = 1 << 0;
    /// Autoclear.
    pub(in super::super) const RAW_DATA: u64 = 1 << 1;
    /// Autoclear, and Firn's own: whoever writes the image and does not know it clears it, and so
    /// says that bitmaps which are in use are not to be believed.
    pub(in super::super) const LEVELS: u64 = 1 << 40;
    /// Every autoclear feature that is known here.
    pub(in super::super) const AUTOCLEAR: u64 = BITMAPS | RAW_DATA | LEVELS;
}
