//! Taking a tree down a piece at a time.

use block_types::Result;

use super::node::{Entries, Node};
use super::update::{Applied, Child, Fill, Outcome, Update};
use super::value::{Value, ValueRefs};
use crate::checksum::corrupt;
use crate::{MetaBlock, Transaction};

/// Takes the last leaves off the tree at `root`, `most` at most and one at least: those that nobody
/// else refers to are freed, and drop the references of their values. What is left is a tree as any
/// other; of one leaf an empty tree is left.
///
/// The work is bounded by the leaves that are taken and the nodes on the way to them, however large
/// the tree is.
///
/// # Errors
/// As for [`apply`](super::apply).
pub fn cut<V: Value, R: ValueRefs<V>>(
    txn: &mut Transaction,
    root: MetaBlock,
    most: usize,
    refs: &mut R,
) -> Result<Applied> {
    let mut update = Update::new(txn, refs);
    let outcome = update.cut(root, most.max(1))?;
    let root = update.root(outcome)?;
    Ok(update.applied(root))
}

impl<V: Value, R: ValueRefs<V>> Update<'_, V, R> {
    /// Takes leaves off the right edge below the node at `at`.
    fn cut(&mut self, at: MetaBlock, most: usize) -> Result<Outcome> {
        let node = self.own(at)?;
        if node.is_leaf() {
            (0..node.len()).try_for_each(|index| self.drop_value(node.value(index)))?;
            let none = Entries::<V>::with_capacity(0);
            let nodes = self.store(&none, true, &[node.at()], Fill::Even)?;
            return Ok(Outcome { nodes, appended: false });
        }
        let mut children: Vec<Child> =
            (0..node.len()).map(|index| Child::untouched(&node, index)).collect();
        let last = node.child(node.len() - 1);
        if Node::read_of::<V>(self.txn, last)?.is_leaf() {
            let kept = children.len().saturating_sub(most);
            children.drain(kept..).try_for_each(|leaf| self.drop_leaf(leaf.at))?;
        } else {
            children.pop();
            children.extend(self.cut(last, most)?.nodes);
        }
        self.balance(&mut children)?;
        let entries = Entries::of_children(&children);
        let nodes = self.store(&entries, false, &[node.at()], Fill::Even)?;
        Ok(Outcome { nodes, appended: false })
    }

    /// Drops the reference to a leaf, and with the last one those of its values.
    fn drop_leaf(&mut self, at: MetaBlock) -> Result<()> {
        let leaf = Node::read_of::<V>(self.txn, at)?;
        if !leaf.is_leaf() {
            return Err(corrupt(at, "is no leaf where others of its level are"));
        }
        match self.txn.count(at) {
            0 => Err(corrupt(at, "is part of a tree, but free in the space map")),
            1 => {
                self.txn.dec(at);
                (0..leaf.len()).try_for_each(|index| self.drop_value(leaf.value(index)))
            }
            _ => {
                self.txn.dec(at);
                self.count_removed(leaf.len());
                Ok(())
            }
        }
    }
}
