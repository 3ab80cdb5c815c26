//! Nodes of B-trees, written straight into the buffer that goes to the device.

use persistent_data::btree::{Value, max_entries};
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::output::Output;
use block_types::Result;

/// `flags` of a node whose values are blocks of the next level down.
pub(crate) const INTERNAL: u32 = 1;
/// `flags` of a node whose values are the tree's.
pub(crate) const LEAF: u32 = 2;

/// The head of a node; room for `max_entries` keys follows, then for as many values.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct NodeHead {
    /// CRC-32C of everything behind it, mixed with the constant of nodes.
    pub(crate) checksum: U32,
    /// [`INTERNAL`] or [`LEAF`].
    pub(crate) flags: U32,
    /// The block's own number.
    pub(crate) number: U64,
    /// Entries in use.
    pub(crate) entries: U32,
    /// Entries that there is room for.
    pub(crate) max_entries: U32,
    /// Bytes of a value.
    pub(crate) value_size: U32,
    /// Not used.
    pub(crate) padding: U32,
}

/// Bytes of the head.
pub(crate) const HEAD: usize = size_of::<NodeHead>();
/// Bytes of a key.
pub(crate) const KEY: usize = 8;

const _: () = assert!(HEAD == 32);

/// Appends a node with these entries, at most as many as fit.
pub(super) fn append<V: Value>(
    output: &mut Output,
    flags: u32,
    keys: &[u64],
    values: &[V],
) -> Result<MetaBlock> {
    let max = max_entries(V::SIZE);
    assert!(keys.len() <= max && keys.len() == values.len(), "entries were cut to a node's room");
    let head = NodeHead {
        checksum: 0.into(),
        flags: flags.into(),
        number: 0.into(),
        entries: (keys.len() as u32).into(),
        max_entries: (max as u32).into(),
        value_size: (V::SIZE as u32).into(),
        padding: 0.into(),
    };
    output.append(BlockKind::Node, |block| {
        block[..HEAD].copy_from_slice(head.as_bytes());
        let (key_area, value_area) = block[HEAD..].split_at_mut(max * KEY);
        for (bytes, key) in key_area.chunks_exact_mut(KEY).zip(keys) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        for (bytes, value) in value_area.chunks_exact_mut(V::SIZE).zip(values) {
            value.write(bytes);
        }
    })
}

const _: () = assert!(HEAD + 252 * (KEY + 8) <= BLOCK_SIZE);
