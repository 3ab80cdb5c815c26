//! Where in a tree a node hangs: at which depth, and for which keys.

use block_types::Result;

use super::MAX_DEPTH;
use super::node::Node;
use crate::checksum::corrupt;

/// The keys that a node may hold, given where it hangs, and how far below the root that is.
///
/// Checking both on the way down keeps every descent finite: a loop grows too deep, and a node that
/// hangs in two places of one tree is in the wrong range in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The least key that may occur.
    pub low: u64,
    /// The first key that belongs to the next node; `None` at the right edge of the tree.
    pub high: Option<u64>,
    /// Levels below the root.
    pub depth: usize,
}

impl KeyRange {
    /// The place of a root.
    pub const fn whole() -> Self {
        Self { low: 0, high: None, depth: 0 }
    }

    /// The place of the child at `index` of `node`, which hangs here.
    #[must_use]
    pub fn child(self, node: &Node, index: usize) -> Self {
        let high = node.get_key(index + 1).or(self.high);
        Self { low: node.key(index), high, depth: self.depth + 1 }
    }

    /// Checks that `node` may hang here.
    ///
    /// # Errors
    /// [`Corrupt`](block_types::ErrorKind::Corrupt) if it holds foreign keys, hangs too deep, or is
    /// empty without being a root.
    pub fn check(self, node: &Node) -> Result<()> {
        if self.depth >= MAX_DEPTH {
            return Err(corrupt(node.at(), "hangs too deep in its tree, perhaps in a loop"));
        }
        let (Some(first), Some(last)) = (node.get_key(0), node.keys().last()) else {
            return match self.depth {
                0 => Ok(()),
                _ => Err(corrupt(node.at(), "is an empty leaf below other nodes")),
            };
        };
        if first < self.low || self.high.is_some_and(|high| last.get() >= high) {
            let problem = format!("has keys {first} to {last} outside its place in the tree");
            return Err(corrupt(node.at(), problem));
        }
        Ok(())
    }
}
