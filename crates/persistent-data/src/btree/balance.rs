//! Keeping nodes filled: joining small neighbours, and packing what grows at the right edge.
//!
//! Every node that a batch touched ends up with a third of its room in use at least, unless it is a
//! root or its parent's only child. A parent with an only child is small itself, and when it is
//! joined with its own neighbour the child gets one, too.

use std::ops::Range;

use block_types::Result;

use super::layout::max_entries;
use super::node::{Entries, Node};
use super::update::{Child, Fill, Size, Update};
use super::value::{Value, ValueRefs};
use crate::MetaBlock;
use crate::checksum::corrupt;

/// Filling up a left neighbour is worth a block written if it has room for this many entries.
const WORTH_FILLING: usize = 8;

impl<V: Value, R: ValueRefs<V>> Update<'_, V, R> {
    /// Drops the empty ones of `children`, and joins small ones with a neighbour.
    pub(super) fn balance(&mut self, children: &mut Vec<Child>) -> Result<()> {
        children.retain(|child| {
            if child.size == Size::Empty {
                self.txn.dec(child.at);
            }
            child.size != Size::Empty
        });
        let mut index = 0;
        while children.len() > 1 && index < children.len() {
            if children[index].size == Size::Small {
                // The pair becomes one node, or two that are not small: this ends.
                index = self.left_of_pair(children, index);
                self.rewrite(children, index..index + 2, Fill::Even)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Moves entries from the last `new` of `children`, which a batch at the right edge has just
    /// split, to the node before them, if that is only ours and has room: so a tree that is filled
    /// in order gets full nodes, however small the batches.
    pub(super) fn fill_left(&mut self, children: &mut Vec<Child>, new: usize) -> Result<()> {
        let Some(left) = children.len().checked_sub(new + 1) else { return Ok(()) };
        let at = children[left].at;
        if self.txn.count(at) != 1 {
            return Ok(());
        }
        let node = Node::read_of::<V>(self.txn, at)?;
        let max = if node.is_leaf() { max_entries(V::SIZE) } else { max_entries(MetaBlock::SIZE) };
        if node.len() + WORTH_FILLING > max {
            return Ok(());
        }
        self.rewrite(children, left..children.len(), Fill::Append)
    }

    /// The neighbour to join the small child at `index` with, as the index of the left one of the
    /// two: preferably the left neighbour, and preferably one that nobody else refers to.
    fn left_of_pair(&self, children: &[Child], index: usize) -> usize {
        let shared = |index: usize| self.txn.count(children[index].at) > 1;
        let last = index + 1 == children.len();
        if index == 0 || (!last && shared(index - 1) && !shared(index + 1)) {
            index
        } else {
            index - 1
        }
    }

    /// Distributes the entries of some neighbours anew.
    fn rewrite(
        &mut self,
        children: &mut Vec<Child>,
        range: Range<usize>,
        fill: Fill,
    ) -> Result<()> {
        let nodes: Vec<Node> = children[range.clone()]
            .iter()
            .map(|child| self.own(child.at))
            .collect::<Result<_>>()?;
        let own: Vec<MetaBlock> = nodes.iter().map(Node::at).collect();
        check_neighbours(&nodes)?;
        let new = if nodes[0].is_leaf() {
            let mut entries = Entries::<V>::with_capacity(nodes.iter().map(Node::len).sum());
            nodes.iter().for_each(|node| entries.copy(node, 0..node.len()));
            self.store(&entries, true, &own, fill)?
        } else {
            let mut below = self.children_of(&nodes)?;
            self.balance(&mut below)?;
            self.store(&Entries::of_children(&below), false, &own, fill)?
        };
        children.splice(range, new);
        Ok(())
    }

    /// The children of neighbouring internal nodes. One that was an only child may be small, since
    /// it had nobody to be joined with.
    fn children_of(&self, nodes: &[Node]) -> Result<Vec<Child>> {
        let mut children = Vec::with_capacity(nodes.iter().map(Node::len).sum());
        for node in nodes {
            children.extend((0..node.len()).map(|index| Child::untouched(node, index)));
            if let (1, Some(only)) = (node.len(), children.last_mut()) {
                let child = Node::read_of::<V>(self.txn, only.at)?;
                only.size = Size::of(child.len(), child.max_entries());
            }
        }
        Ok(children)
    }
}

/// Checks that `nodes` can be neighbours: the one that no change led to was not looked at before.
fn check_neighbours(nodes: &[Node]) -> Result<()> {
    for pair in nodes.windows(2) {
        let (left, right) = (&pair[0], &pair[1]);
        if left.is_leaf() != right.is_leaf() {
            return Err(corrupt(right.at(), "is not of the same level as its neighbour"));
        }
        let ends = left.keys().last().map(|key| key.get());
        if ends >= right.get_key(0) {
            return Err(corrupt(right.at(), "has keys that belong to its neighbour"));
        }
    }
    Ok(())
}
