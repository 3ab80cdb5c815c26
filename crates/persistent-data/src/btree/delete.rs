//! Letting go of a tree.

use block_types::Result;

use super::node::Node;
use super::value::{Value, ValueRefs};
use crate::checksum::corrupt;
use crate::{MetaBlock, Transaction};

/// Drops one reference to the tree at `root`. A node that nobody refers to any more is freed, and
/// drops its own references: an internal node to its children, a leaf to its values. What other
/// trees share stays.
///
/// # Errors
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if a node that has to be read is broken, or in use
/// by the tree but free in the space map; the failures of `refs` and of the device. The transaction
/// cannot go on then.
pub fn release<V: Value, R: ValueRefs<V>>(
    txn: &mut Transaction,
    root: MetaBlock,
    refs: &mut R,
) -> Result<()> {
    let mut rest = vec![root];
    while let Some(at) = rest.pop() {
        match txn.count(at) {
            0 => return Err(corrupt(at, "is part of a tree, but free in the space map")),
            // The last reference: read the node while it is there.
            1 => {
                let node = Node::read_of::<V>(txn, at)?;
                txn.dec(at);
                if node.is_leaf() {
                    (0..node.len()).try_for_each(|index| refs.dec(txn, node.value(index)))?;
                } else {
                    rest.extend(node.children());
                }
            }
            _ => {
                txn.dec(at);
            }
        }
    }
    Ok(())
}
