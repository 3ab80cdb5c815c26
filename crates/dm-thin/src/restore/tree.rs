//! B-trees from the bottom up: entries into leaves, leaves into the levels above.

use std::collections::HashMap;

use block_types::Result;
use persistent_data::MetaBlock;
use persistent_data::btree::{INTERNAL, LEAF, Value, max_entries};

use super::node::append;
use super::output::Output;

/// A node that has no parent yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// Its least key.
    pub(super) key: u64,
    /// Where it lies.
    pub(super) at: MetaBlock,
    /// How many entries it has.
    pub(super) entries: u16,
    /// Whether other trees may have it too.
    pub(super) shared: bool,
}

/// Entries on their way into leaves.
///
/// Leaves are full, but for the last two before an end: no leaf gets fewer than a third of the
/// entries that there is room for, unless it is all there is, since `thin_check` objects to those.
pub(super) struct Packer<V> {
    keys: Vec<u64>,
    values: Vec<V>,
}

impl<V: Value> Packer<V> {
    /// Entries that a leaf has room for.
    const FULL: usize = max_entries(V::SIZE);
    /// The least number of entries of a leaf that is not alone.
    pub(super) const LEAST: usize = Self::FULL / 3;

    pub(super) fn new() -> Self {
        let keys = Vec::with_capacity(2 * Self::FULL);
        Self { keys, values: Vec::with_capacity(2 * Self::FULL) }
    }

    /// How many entries wait.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Adds an entry behind the last one. Two leaves' worth is held back, so that an end can be
    /// balanced.
    #[inline]
    pub(super) fn push(
        &mut self,
        output: &mut Output,
        done: &mut Vec<Child>,
        key: u64,
        value: V,
    ) -> Result<()> {
        self.keys.push(key);
        self.values.push(value);
        if self.keys.len() == 2 * Self::FULL {
            self.write(output, done, Self::FULL)?;
        }
        Ok(())
    }

    /// Puts entries in front of those that wait: together no more than two leaves' worth.
    pub(super) fn prepend(&mut self, keys: &[u64], values: &[V]) {
        self.keys.splice(..0, keys.iter().copied());
        self.values.splice(..0, values.iter().copied());
    }

    /// Writes all that waits: one leaf if it fits, else two.
    pub(super) fn settle(&mut self, output: &mut Output, done: &mut Vec<Child>) -> Result<()> {
        if self.len() > Self::FULL {
            self.write(output, done, first_of_two(self.len(), Self::FULL))?;
        }
        if self.len() > 0 {
            self.write(output, done, self.len())?;
        }
        Ok(())
    }

    /// Writes a leaf with no entries.
    pub(super) fn settle_empty(output: &mut Output, done: &mut Vec<Child>) -> Result<()> {
        let at = append::<V>(output, LEAF, &[], &[])?;
        done.push(Child { key: 0, at, entries: 0, shared: false });
        Ok(())
    }

    fn write(&mut self, output: &mut Output, done: &mut Vec<Child>, entries: usize) -> Result<()> {
        let at = append(output, LEAF, &self.keys[..entries], &self.values[..entries])?;
        done.push(Child { key: self.keys[0], at, entries: entries as u16, shared: false });
        self.keys.drain(..entries);
        self.values.drain(..entries);
        Ok(())
    }
}

/// How many of `len` entries, more than fit one node and fewer than fill two, go to the first.
fn first_of_two(len: usize, full: usize) -> usize {
    if len - full < full / 3 { len / 2 } else { full }
}

/// The levels above leaves.
#[derive(Default)]
pub(super) struct Upper {
    /// Nodes with shared children only, by what they hold: a tree that begins with the same leaves
    /// as an earlier one shares the nodes above them as well.
    known: HashMap<Vec<(u64, MetaBlock)>, MetaBlock>,
}

impl Upper {
    /// Puts nodes above `children` until there is one left, and returns it.
    pub(super) fn build(
        &mut self,
        output: &mut Output,
        mut children: Vec<Child>,
    ) -> Result<MetaBlock> {
        let full = max_entries(MetaBlock::SIZE);
        while children.len() > 1 {
            let mut parents = Vec::with_capacity(children.len() / full + 1);
            let mut rest = &children[..];
            while !rest.is_empty() {
                let take = match rest.len() {
                    len if len <= full => len,
                    len if len < 2 * full => first_of_two(len, full),
                    _ => full,
                };
                let (now, later) = rest.split_at(take);
                parents.push(self.node(output, now)?);
                rest = later;
            }
            children = parents;
        }
        Ok(children[0].at)
    }

    fn node(&mut self, output: &mut Output, children: &[Child]) -> Result<Child> {
        let shared = children.iter().all(|child| child.shared);
        let entries: Vec<(u64, MetaBlock)> =
            children.iter().map(|child| (child.key, child.at)).collect();
        let known = if shared { self.known.get(&entries) } else { None };
        let at = match known {
            Some(&at) => at,
            None => {
                let keys: Vec<u64> = children.iter().map(|child| child.key).collect();
                let values: Vec<MetaBlock> = children.iter().map(|child| child.at).collect();
                values.iter().for_each(|&child| output.adopt(child));
                let at = append(output, INTERNAL, &keys, &values)?;
                if shared {
                    self.known.insert(entries, at);
                }
                at
            }
        };
        Ok(Child { key: children[0].key, at, entries: children.len() as u16, shared })
    }
}

/// Builds a tree of `entries`, which ascend, and returns its root. Nobody refers to the root yet.
pub(super) fn pack<V: Value>(
    output: &mut Output,
    entries: impl Iterator<Item = (u64, V)>,
) -> Result<MetaBlock> {
    let mut packer = Packer::new();
    let mut done = Vec::new();
    for (key, value) in entries {
        packer.push(output, &mut done, key, value)?;
    }
    packer.settle(output, &mut done)?;
    if done.is_empty() {
        Packer::<V>::settle_empty(output, &mut done)?;
    }
    Upper::default().build(output, done)
}
