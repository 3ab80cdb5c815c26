//! Which of a batch of changes change anything.

use block_types::Result;

use super::node::Node;
use super::range::KeyRange;
use super::value::{MAX_VALUE_SIZE, Value};
use crate::{MetaBlock, ReadBlocks};

/// A key, and its new value or `None` to remove it.
pub(super) type Change<V> = (u64, Option<V>);

/// The changes of `changes` that make a difference to the tree at `root`. Checks every node on the
/// way, so that whoever applies them need not.
pub(super) fn effective<V: Value>(
    reader: &impl ReadBlocks,
    root: MetaBlock,
    changes: &[Change<V>],
) -> Result<Vec<Change<V>>> {
    let mut found = Vec::with_capacity(changes.len());
    if !changes.is_empty() {
        filter_node(reader, root, KeyRange::whole(), changes, &mut found)?;
    }
    Ok(found)
}

fn filter_node<V: Value>(
    reader: &impl ReadBlocks,
    at: MetaBlock,
    range: KeyRange,
    changes: &[Change<V>],
    found: &mut Vec<Change<V>>,
) -> Result<()> {
    let node = Node::read_of::<V>(reader, at)?;
    range.check(&node)?;
    if node.is_leaf() {
        found.extend(changes.iter().filter(|change| makes_difference(&node, change)));
        return Ok(());
    }
    for (index, mine) in partition(&node, changes) {
        filter_node(reader, node.child(index), range.child(&node, index), mine, found)?;
    }
    Ok(())
}

/// The children of `node` that keys of `changes` belong below, each with its share. Keys below the
/// first child's go to the first child.
pub(super) fn partition<'c, T>(
    node: &Node,
    changes: &'c [(u64, T)],
) -> impl Iterator<Item = (usize, &'c [(u64, T)])> {
    let mut rest = changes;
    std::iter::from_fn(move || {
        let index = node.child_for(rest.first()?.0).unwrap_or(0);
        let end = match node.get_key(index + 1) {
            Some(next) => rest.partition_point(|change| change.0 < next),
            None => rest.len(),
        };
        let (mine, later) = rest.split_at(end);
        rest = later;
        Some((index, mine))
    })
}

fn makes_difference<V: Value>(leaf: &Node, (key, new): &Change<V>) -> bool {
    const { assert!(V::SIZE > 0 && V::SIZE <= MAX_VALUE_SIZE) };
    match (leaf.search(*key), new) {
        (Ok(index), Some(new)) => {
            let mut bytes = [0; MAX_VALUE_SIZE];
            new.write(&mut bytes[..V::SIZE]);
            bytes[..V::SIZE] != *leaf.value_bytes(index)
        }
        (Ok(_), None) | (Err(_), Some(_)) => true,
        (Err(_), None) => false,
    }
}
