//! Walking the entries of a tree in the order of their keys.

use std::ops::ControlFlow;

use block_types::Result;

use super::node::Node;
use super::range::KeyRange;
use super::value::Value;
use crate::{MetaBlock, ReadBlocks};

/// Calls `each` with the entries of the tree at `root` from key `from` on, ascending, until it
/// breaks off. Goes straight to the first leaf that matters.
///
/// # Errors
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if a node on the way breaks the format's rules, or
/// holds keys that do not belong where it hangs; the reader's failures.
pub fn walk<V: Value>(
    reader: &(impl ReadBlocks + ?Sized),
    root: MetaBlock,
    from: u64,
    each: &mut dyn FnMut(u64, V) -> ControlFlow<()>,
) -> Result<()> {
    walk_node(reader, root, from, KeyRange::whole(), each).map(|_| ())
}

fn walk_node<V: Value>(
    reader: &(impl ReadBlocks + ?Sized),
    at: MetaBlock,
    from: u64,
    range: KeyRange,
    each: &mut dyn FnMut(u64, V) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let node = Node::read_of::<V>(reader, at)?;
    range.check(&node)?;
    if node.is_leaf() {
        let start = node.search(from).unwrap_or_else(|place| place);
        for (index, key) in node.keys().iter().enumerate().skip(start) {
            if each(key.get(), node.value(index)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(ControlFlow::Continue(()));
    }
    for index in node.child_for(from).unwrap_or(0)..node.len() {
        let below = range.child(&node, index);
        if walk_node(reader, node.child(index), from, below, each)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
