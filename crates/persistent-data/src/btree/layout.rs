//! A node on the disk: a header, then room for `max_entries` keys, then room for as many values.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::BLOCK_SIZE;

/// The node's values are blocks of the next level down.
pub(super) const INTERNAL: u32 = 1;
/// The node's values are the tree's values.
pub(super) const LEAF: u32 = 2;

/// The head of a node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct NodeHeader {
    /// CRC-32C of everything behind it, mixed with the constant of nodes.
    pub(super) checksum: U32,
    /// [`INTERNAL`] or [`LEAF`].
    pub(super) flags: U32,
    /// The block's own number.
    pub(super) number: U64,
    /// Entries in use.
    pub(super) entries: U32,
    /// Entries that there is room for; says where the values begin.
    pub(super) max_entries: U32,
    /// Bytes of a value.
    pub(super) value_size: U32,
    /// Not used.
    pub(super) padding: U32,
}

/// Bytes of the header.
pub(super) const HEADER_SIZE: usize = size_of::<NodeHeader>();
/// Bytes of a key.
pub(super) const KEY_SIZE: usize = 8;

const _: () = assert!(HEADER_SIZE == 32);
const _: () = assert!(max_entries(8) == 252 && max_entries(24) == 126);
const _: () = assert!(max_entries(16) == 168 && max_entries(4) == 336);

/// How many entries a node has room for: as many as fit, rounded down to a multiple of three, so
/// that a third of it is a whole number.
pub const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - HEADER_SIZE) / (KEY_SIZE + value_size) / 3 * 3
}
