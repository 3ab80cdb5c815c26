//! Changing a tree, a batch of changes at a time.
//!
//! The batch goes down the tree once. Every node on the way is *owned* first: a node of this
//! transaction that nobody else refers to is edited where it lies; any other is replaced by a new
//! block, and if others go on referring to the old one, what its entries refer to gets one
//! reference more. Going from the root down, a shared root makes its children shared before they
//! are looked at, and so on, so that each node's own count says all there is to know.

use std::marker::PhantomData;
use std::sync::Arc;

use block_types::Result;

use super::filter::{Change, effective, partition};
use super::layout::max_entries;
use super::node::{Entries, Node, set_values};
use super::value::{Value, ValueRefs};
use crate::checksum::corrupt;
use crate::{BlockKind, MetaBlock, Transaction};

/// What a batch of changes did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The tree's root from now on. It takes over the reference to the old one.
    pub root: MetaBlock,
    /// Keys that the tree did not have before.
    pub inserted: u64,
    /// Keys that the tree has no more.
    pub removed: u64,
}

/// Changes the tree at `root`: each key of `changes`, ascending and without repetition, gets the
/// value beside it, or is removed. The caller's reference to `root` passes to the new root. Changes
/// that make no difference touch nothing.
///
/// A value that comes into a leaf is counted with `refs` before the one that it replaces is
/// dropped. Where values are the roots of trees that change, too, [`touch`](super::touch) comes
/// first.
///
/// # Errors
/// [`OutOfSpace`](block_types::ErrorKind::OutOfSpace) if the metadata device is full,
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if the tree is broken; the failures of `refs` and
/// of the device. Only if no change was begun can the transaction go on: callers make sure of
/// enough free blocks beforehand.
///
/// # Panics
/// If the keys do not ascend.
pub fn apply<V: Value, R: ValueRefs<V>>(
    txn: &mut Transaction,
    root: MetaBlock,
    changes: &[(u64, Option<V>)],
    refs: &mut R,
) -> Result<Applied> {
    assert!(changes.is_sorted_by(|a, b| a.0 < b.0), "changes have to ascend without repetition");
    let changes = effective(txn, root, changes)?;
    if changes.is_empty() {
        return Ok(Applied { root, inserted: 0, removed: 0 });
    }
    let mut update = Update::new(txn, refs);
    let outcome = update.node(root, &changes, true)?;
    let root = update.root(outcome)?;
    Ok(update.applied(root))
}

/// A batch on its way through a tree.
pub(super) struct Update<'u, V, R> {
    pub(super) txn: &'u mut Transaction,
    refs: &'u mut R,
    inserted: u64,
    removed: u64,
    values: PhantomData<V>,
}

/// A node as its parent will refer to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    pub(super) key: u64,
    pub(super) at: MetaBlock,
    pub(super) size: Size,
}

/// How full a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Nobody looked.
    Unknown,
    /// It has no entries and has to go.
    Empty,
    /// Less than a third: it has to be joined with a neighbour.
    Small,
    /// A third or more.
    Enough,
}

/// What became of a node.
pub(super) struct Outcome {
    /// The nodes in its place; never none, but perhaps one without entries.
    pub(super) nodes: Vec<Child>,
    /// Whether it only grew, at the right edge of the tree.
    pub(super) appended: bool,
}

/// How entries are cut into nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Into equal nodes, so that all have room.
    Even,
    /// Into full nodes, but for the last two: more will follow behind them.
    Append,
}

impl Size {
    pub(super) fn of(len: usize, max: usize) -> Self {
        match len {
            0 => Self::Empty,
            _ if len < max / 3 => Self::Small,
            _ => Self::Enough,
        }
    }
}

impl Child {
    pub(super) fn untouched(parent: &Node, index: usize) -> Self {
        Self { key: parent.key(index), at: parent.child(index), size: Size::Unknown }
    }
}

impl Fill {
    fn after(appended: bool) -> Self {
        if appended { Self::Append } else { Self::Even }
    }

    /// The numbers of entries that `len` entries are cut into. If they do not fit one node, each
    /// gets a third of `max` at least.
    pub(super) fn cut(self, len: usize, max: usize) -> Vec<usize> {
        let nodes = len.div_ceil(max).max(1);
        match self {
            Self::Even => (0..nodes).map(|i| len * (i + 1) / nodes - len * i / nodes).collect(),
            Self::Append => {
                let mut sizes = vec![max; nodes];
                sizes[nodes - 1] = len - max * (nodes - 1);
                let missing = (max / 3).saturating_sub(sizes[nodes - 1]);
                if nodes > 1 {
                    sizes[nodes - 1] += missing;
                    sizes[nodes - 2] -= missing;
                }
                sizes
            }
        }
    }
}

impl<'u, V: Value, R: ValueRefs<V>> Update<'u, V, R> {
    pub(super) fn new(txn: &'u mut Transaction, refs: &'u mut R) -> Self {
        Self { txn, refs, inserted: 0, removed: 0, values: PhantomData }
    }

    /// What was done to the tree whose root is `root` now.
    pub(super) fn applied(&self, root: MetaBlock) -> Applied {
        Applied { root, inserted: self.inserted, removed: self.removed }
    }

    /// A value is in its leaf no more.
    pub(super) fn drop_value(&mut self, value: V) -> Result<()> {
        self.removed += 1;
        self.refs.removed(self.txn, value)
    }

    /// So many values are in the tree no more, but in their leaf, which others have.
    pub(super) fn count_removed(&mut self, count: usize) {
        self.removed += count as u64;
    }

    /// Applies `changes` below the node at `at`; `edge` says whether it is the last of its level.
    pub(super) fn node(
        &mut self,
        at: MetaBlock,
        changes: &[Change<V>],
        edge: bool,
    ) -> Result<Outcome> {
        let node = self.own(at)?;
        if node.is_leaf() {
            self.leaf(node, changes, edge)
        } else {
            self.internal(&node, changes, edge)
        }
    }

    /// Makes the node at `at` one that may be edited, and returns it at its new place.
    pub(super) fn own(&mut self, at: MetaBlock) -> Result<Node> {
        let node = Node::read_of::<V>(self.txn, at)?;
        let count = self.txn.count(at);
        if count == 0 {
            return Err(corrupt(at, "is part of a tree, but free in the space map"));
        }
        if count == 1 && self.txn.is_fresh(at) {
            return Ok(node);
        }
        let new = self.txn.alloc()?;
        if count > 1 {
            self.add_references(&node)?;
        }
        self.txn.dec(at);
        self.txn.put_shared(new, BlockKind::Node, Arc::clone(node.block()))?;
        Ok(node.moved_to(new))
    }

    /// Counts everything that `node` refers to once more, for a copy of it.
    fn add_references(&mut self, node: &Node) -> Result<()> {
        if node.is_leaf() {
            (0..node.len()).try_for_each(|index| self.refs.inc(self.txn, node.value(index)))
        } else {
            node.children().for_each(|child| self.txn.inc(child));
            Ok(())
        }
    }

    fn leaf(&mut self, node: Node, changes: &[Change<V>], edge: bool) -> Result<Outcome> {
        if let Some(places) = overwritten(&node, changes) {
            return self.overwrite(node, &places);
        }
        let appended = edge && node.keys().last().is_none_or(|last| last.get() < changes[0].0);
        let entries = self.merge(&node, changes)?;
        let nodes = self.store(&entries, true, &[node.at()], Fill::after(appended))?;
        Ok(Outcome { nodes, appended })
    }

    /// Gives the entries at `places` new values, and leaves the rest of the leaf alone.
    fn overwrite(&mut self, node: Node, places: &[(usize, V)]) -> Result<Outcome> {
        for &(index, new) in places {
            self.refs.inserted(self.txn, new)?;
            self.refs.removed(self.txn, node.value(index))?;
        }
        let size = Size::of(node.len(), node.max_entries());
        let child = Child { key: node.key(0), at: node.at(), size };
        // Let go of the block first: it is copied only if the cache of committed nodes has it too.
        drop(node);
        set_values(self.txn.edit(child.at)?, places);
        Ok(Outcome { nodes: vec![child], appended: false })
    }

    /// The entries of a leaf after `changes`.
    fn merge(&mut self, node: &Node, changes: &[Change<V>]) -> Result<Entries<V>> {
        let mut merged = Entries::with_capacity(node.len() + changes.len());
        let mut next = 0;
        for &(key, new) in changes {
            let (place, old) = match node.search(key) {
                Ok(index) => (index, Some(node.value(index))),
                Err(index) => (index, None),
            };
            merged.copy(node, next..place);
            next = place + usize::from(old.is_some());
            self.inserted += u64::from(old.is_none() && new.is_some());
            self.removed += u64::from(old.is_some() && new.is_none());
            if let Some(new) = new {
                merged.push(key, new);
                self.refs.inserted(self.txn, new)?;
            }
            if let Some(old) = old {
                self.refs.removed(self.txn, old)?;
            }
        }
        merged.copy(node, next..node.len());
        Ok(merged)
    }

    fn internal(&mut self, node: &Node, changes: &[Change<V>], edge: bool) -> Result<Outcome> {
        let mut children = Vec::with_capacity(node.len() + 8);
        let mut next = 0;
        let mut appended = false;
        for (index, mine) in partition(node, changes) {
            children.extend((next..index).map(|index| Child::untouched(node, index)));
            next = index + 1;
            let outcome = self.node(node.child(index), mine, edge && next == node.len())?;
            children.extend(outcome.nodes.iter().copied());
            appended = outcome.appended;
            if appended && outcome.nodes.len() > 1 {
                self.fill_left(&mut children, outcome.nodes.len())?;
            }
        }
        children.extend((next..node.len()).map(|index| Child::untouched(node, index)));
        self.balance(&mut children)?;
        let entries = Entries::of_children(&children);
        let nodes = self.store(&entries, false, &[node.at()], Fill::after(appended))?;
        Ok(Outcome { nodes, appended })
    }

    /// Puts a root above the nodes that the old one became, or takes away what is one too many.
    pub(super) fn root(&mut self, outcome: Outcome) -> Result<MetaBlock> {
        let mut nodes = outcome.nodes;
        while nodes.len() > 1 {
            let entries = Entries::of_children(&nodes);
            nodes = self.store(&entries, false, &[], Fill::after(outcome.appended))?;
        }
        let root = nodes[0];
        if root.size == Size::Empty {
            let leaf = Entries::<V>::with_capacity(0).encode(0..0, true);
            self.txn.put(root.at, BlockKind::Node, leaf)?;
            return Ok(root.at);
        }
        self.collapse(root.at)
    }

    /// The node that a chain of only children below `root` ends in.
    fn collapse(&mut self, mut root: MetaBlock) -> Result<MetaBlock> {
        loop {
            let node = Node::read_of::<V>(self.txn, root)?;
            if node.is_leaf() || node.len() > 1 {
                return Ok(root);
            }
            let child = node.child(0);
            // The child's reference passes from the node to us, unless the node lives on elsewhere.
            if self.txn.count(root) > 1 {
                self.txn.inc(child);
            }
            self.txn.dec(root);
            root = child;
        }
    }

    /// Writes `entries` to as many nodes as they need: first to the blocks `own`, which are ours,
    /// then to new ones. Blocks too many are freed.
    pub(super) fn store<T: Value>(
        &mut self,
        entries: &Entries<T>,
        leaf: bool,
        own: &[MetaBlock],
        fill: Fill,
    ) -> Result<Vec<Child>> {
        let max = max_entries(T::SIZE);
        let sizes = fill.cut(entries.len(), max);
        let mut own = own.iter().copied();
        let mut nodes = Vec::with_capacity(sizes.len());
        let mut start = 0;
        for len in sizes {
            let at = own.next().map_or_else(|| self.txn.alloc(), Ok)?;
            self.txn.put(at, BlockKind::Node, entries.encode(start..start + len, leaf))?;
            let key = entries.keys.get(start).copied().unwrap_or(0);
            nodes.push(Child { key, at, size: Size::of(len, max) });
            start += len;
        }
        for surplus in own {
            self.txn.dec(surplus);
        }
        Ok(nodes)
    }
}

/// The places of `changes` in `leaf`, if all of them give a new value to a key that is there.
fn overwritten<V: Value>(leaf: &Node, changes: &[Change<V>]) -> Option<Vec<(usize, V)>> {
    changes.iter().map(|&(key, new)| Some((leaf.search(key).ok()?, new?))).collect()
}

impl Entries<MetaBlock> {
    /// The entries of the node above `children`.
    pub(super) fn of_children(children: &[Child]) -> Self {
        let mut entries = Self::with_capacity(children.len());
        for child in children {
            entries.push(child.key, child.at);
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::Fill;

    #[test]
    fn cuts_leave_no_small_node() {
        for max in [84, 252, 336] {
            for len in 0..5 * max {
                for fill in [Fill::Even, Fill::Append] {
                    let sizes = fill.cut(len, max);
                    assert_eq!(sizes.iter().sum::<usize>(), len);
                    assert!(sizes.iter().all(|&size| size <= max));
                    if len > max {
                        assert!(sizes.iter().all(|&size| size >= max / 3), "{fill:?} {len}");
                    } else {
                        assert_eq!(sizes, [len]);
                    }
                }
            }
        }
    }

    #[test]
    fn appending_packs_all_but_the_last_two() {
        assert_eq!(Fill::Append.cut(253, 252), [169, 84]);
        assert_eq!(Fill::Append.cut(600, 252), [252, 252, 96]);
        assert_eq!(Fill::Append.cut(504, 252), [252, 252]);
    }
}
