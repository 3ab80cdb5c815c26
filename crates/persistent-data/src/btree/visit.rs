//! Visiting the nodes of a tree, for those who check and count them.

use std::cell::OnceCell;
use std::collections::HashSet;

use block_types::Result;

use super::node::Node;
use super::range::KeyRange;
use crate::checksum::corrupt;
use crate::{MetaBlock, ReadBlocks};

/// Whether to go on below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Visit its children too.
    Yes,
    /// Leave out what is below it: it is known already, or broken.
    No,
}

/// A node that was reached in a tree. It is read only when somebody looks at it.
pub struct NodeInfo<'r> {
    /// The node it was reached from; `None` for the root.
    pub parent: Option<MetaBlock>,
    /// Its depth, and the keys it may hold.
    pub place: KeyRange,
    at: MetaBlock,
    reader: &'r dyn ReadBlocks,
    loaded: OnceCell<Node>,
}

impl NodeInfo<'_> {
    /// The node itself, read and checked against its place at the first call.
    ///
    /// # Errors
    /// [`Corrupt`](block_types::ErrorKind::Corrupt) if it is broken or hangs in the wrong place;
    /// the reader's failures.
    pub fn node(&self) -> Result<&Node> {
        if let Some(node) = self.loaded.get() {
            return Ok(node);
        }
        let node = Node::read(self.reader, self.at)?;
        self.place.check(&node)?;
        Ok(self.loaded.get_or_init(|| node))
    }
}

/// Calls `each` with every node of the tree at `root`, parents before their children and children
/// in the order of their keys, and goes on below those for which it answers [`Descend::Yes`].
///
/// # Errors
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if a node is reached a second time, which in a
/// sound tree none is, or if one to descend into cannot be read; the failures of `each`.
pub fn visit_nodes(
    reader: &dyn ReadBlocks,
    root: MetaBlock,
    each: &mut dyn FnMut(MetaBlock, &NodeInfo<'_>) -> Result<Descend>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let mut rest = vec![(root, None, KeyRange::whole())];
    while let Some((at, parent, place)) = rest.pop() {
        if !seen.insert(at) {
            return Err(corrupt(at, "is reached twice in one tree"));
        }
        let info = NodeInfo { parent, place, at, reader, loaded: OnceCell::new() };
        if each(at, &info)? == Descend::No {
            continue;
        }
        let node = info.node()?;
        if !node.is_leaf() {
            let below = |index| (node.child(index), Some(at), place.child(node, index));
            rest.extend((0..node.len()).rev().map(below));
        }
    }
    Ok(())
}
