//! A node on the disk: a header, then room for `max_entries` keys, then room for as many values.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::BLOCK_SIZE;

/// The node's values are blocks of the next level down.
pub const INTERNAL: u32 = 1;
/// The node's values are the tree's values.
pub const LEAF: u32 = 2;

/// The head of a node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NodeHeader {
    /// CRC-32C of everything behind it, mixed with the constant of nodes.
    pub checksum: U32,
    /// [`INTERNAL`] or [`LEAF`].
    pub flags: U32,
    /// The block's own number.
    pub number: U64,
    /// Entries in use.
    pub entries: U32,
    /// Entries that there is room for; says where the values begin.
    pub max_entries: U32,
    /// Bytes of a value.
    pub value_size: U32,
    /// Not used.
    pub padding: U32,
}

/// Bytes of the header.
pub const HEADER_SIZE: usize = size_of::<NodeHeader>();
/// Bytes of a key.
pub const KEY_SIZE: usize = 8;

const _: () = assert!(HEADER_SIZE == 32);
const _: () = assert!(max_entries(8) == 252 && max_entries(24) == 126);
const _: () = assert!(max_entries(16) == 168 && max_entries(4) == 336);

/// How many entries a node has room for: as many as fit, rounded down to a multiple of three, so
/// that a third of it is a whole number.
pub const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - HEADER_SIZE) / (KEY_SIZE + value_size) / 3 * 3
}
