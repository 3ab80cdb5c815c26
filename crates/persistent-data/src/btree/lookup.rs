//! Finding one value.

use block_types::Result;

use super::MAX_DEPTH;
use super::node::Node;
use super::value::Value;
use crate::checksum::corrupt;
use crate::{MetaBlock, ReadBlocks};

/// The value of `key` in the tree at `root`.
///
/// # Errors
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if a node on the way breaks the format's rules; the
/// reader's failures.
pub fn lookup<V: Value>(
    reader: &(impl ReadBlocks + ?Sized),
    root: MetaBlock,
    key: u64,
) -> Result<Option<V>> {
    let mut node = Node::read_of::<V>(reader, root)?;
    for _ in 0..MAX_DEPTH {
        if node.is_leaf() {
            return Ok(node.search(key).ok().map(|index| node.value(index)));
        }
        let Some(index) = node.child_for(key) else { return Ok(None) };
        node = Node::read_of::<V>(reader, node.child(index))?;
    }
    Err(corrupt(root, "is the root of a tree that is too deep, perhaps a loop"))
}
