//! Nodes of B-trees, written straight into the buffer that goes to the device.

use persistent_data::btree::{HEADER_SIZE, KEY_SIZE, NodeHeader, Value, max_entries};
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock};
use zerocopy::IntoBytes;

use super::output::Output;
use block_types::Result;

/// Appends a node with these entries, at most as many as fit.
pub(super) fn append<V: Value>(
    output: &mut Output,
    flags: u32,
    keys: &[u64],
    values: &[V],
) -> Result<MetaBlock> {
    let max = max_entries(V::SIZE);
    assert!(keys.len() <= max && keys.len() == values.len(), "entries were cut to a node's room");
    let head = NodeHeader {
        checksum: 0.into(),
        flags: flags.into(),
        number: 0.into(),
        entries: (keys.len() as u32).into(),
        max_entries: (max as u32).into(),
        value_size: (V::SIZE as u32).into(),
        padding: 0.into(),
    };
    output.append(BlockKind::Node, |block| {
        block[..HEADER_SIZE].copy_from_slice(head.as_bytes());
        let (key_area, value_area) = block[HEADER_SIZE..].split_at_mut(max * KEY_SIZE);
        for (bytes, key) in key_area.chunks_exact_mut(KEY_SIZE).zip(keys) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        for (bytes, value) in value_area.chunks_exact_mut(V::SIZE).zip(values) {
            value.write(bytes);
        }
    })
}

const _: () = assert!(HEADER_SIZE + 252 * (KEY_SIZE + 8) <= BLOCK_SIZE);
