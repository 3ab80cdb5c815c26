//! Walking trees in bulk: level by level, in the order of the disk, every node once.

use std::sync::atomic::Ordering;

use block_types::Result;

use super::facts::{NO_PARENT, NodeFacts, NodeKind, NodeProblem};
use super::pages::Pages;
use super::read::BulkReader;
use super::view::NodeView;
use crate::btree::MAX_DEPTH;
use crate::checksum::corrupt;
use crate::{Block, MetaBlock};

/// Blocks that are known together.
const PAGE: usize = 1024;

/// A kind of tree, so that no node is taken for one of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeKind {
    /// A number of the caller's, above 0.
    pub id: u8,
    /// Bytes of a value in its leaves.
    pub value_size: usize,
}

/// All trees of a metadata device, as far as they were walked: who refers to whom, and how often.
///
/// Trees share nodes. A node is read when it is first reached, and its content shown once; every
/// reference to it is counted, and the keys that it may hold are narrowed by each.
pub struct Forest {
    pub(super) reader: BulkReader,
    pub(super) facts: Pages<NodeFacts, PAGE>,
    /// The internal nodes, each with the end of its children in `edges`.
    pub(super) internal: Vec<(MetaBlock, usize)>,
    /// The children of all internal nodes, in the order of their keys.
    pub(super) edges: Vec<u32>,
}

/// What a walk brought.
#[derive(Debug)]
pub struct Walked<S> {
    /// The states that leaves were shown to.
    pub states: Vec<S>,
    /// Nodes that cannot be read, or break a rule.
    pub problems: Vec<NodeProblem>,
}

/// What one thread finds on one level.
struct Work<S> {
    state: S,
    next: Vec<MetaBlock>,
    internal: Vec<(MetaBlock, usize)>,
    edges: Vec<u32>,
    problems: Vec<NodeProblem>,
}

impl Forest {
    /// A forest on the blocks of a device, none of them reached yet.
    pub fn new(reader: BulkReader) -> Self {
        // Blocks are kept by 32 bits, which no metadata device comes near.
        let blocks = reader.blocks().min(u64::from(NO_PARENT));
        let (internal, edges) = (Vec::new(), Vec::new());
        Self { reader, facts: Pages::new(blocks), internal, edges }
    }

    /// The device, for reading it in other ways.
    pub fn reader(&self) -> &BulkReader {
        &self.reader
    }

    /// How many blocks the device has.
    pub fn blocks(&self) -> u64 {
        self.facts.len()
    }

    /// Counts a reference to a block that is no node. Says whether the device has it.
    pub fn refer(&self, at: MetaBlock) -> bool {
        let facts = self.facts.want(at.get());
        facts.inspect(|facts| _ = facts.references.fetch_add(1, Ordering::Relaxed)).is_some()
    }

    /// References to a block that were found.
    pub fn references(&self, at: MetaBlock) -> u32 {
        self.facts.get(at.get()).map_or(0, |facts| facts.references.load(Ordering::Relaxed))
    }

    /// What a block that was reached is.
    pub fn kind(&self, at: MetaBlock) -> Option<NodeKind> {
        self.facts.get(at.get())?.kind()
    }

    /// The kind of tree in which a block was first reached, by its number; 0 for none.
    pub fn tree(&self, at: MetaBlock) -> u8 {
        self.facts.get(at.get()).map_or(0, |facts| facts.tree.load(Ordering::Relaxed))
    }

    /// The keys that a block may hold, both included, by those who refer to it.
    pub fn place(&self, at: MetaBlock) -> (u64, u64) {
        self.facts.get(at.get()).map_or((0, u64::MAX), |facts| {
            (facts.low.load(Ordering::Relaxed), facts.high.load(Ordering::Relaxed))
        })
    }

    /// The blocks from a root down to `at`, by whoever reached each first.
    pub fn path(&self, at: MetaBlock) -> Vec<MetaBlock> {
        let mut path = vec![at];
        let mut child = at;
        while let Some(facts) = self.facts.get(child.get()) {
            let parent = facts.parent.load(Ordering::Relaxed);
            // A loop leads to a node that is on the path already.
            if parent == NO_PARENT || path.len() > MAX_DEPTH {
                break;
            }
            child = MetaBlock::new(u64::from(parent));
            path.push(child);
        }
        path.reverse();
        path
    }

    /// The children of an internal node that are blocks of the device, in the order of their keys.
    pub fn children(&self, at: MetaBlock) -> impl DoubleEndedIterator<Item = MetaBlock> + '_ {
        let index = self.internal_index(at);
        let edges = index.map_or(&[][..], |index| self.edges_of(index));
        edges.iter().map(|&child| MetaBlock::new(u64::from(child)))
    }

    /// The sound leaves of the tree at `root`, in the order of their keys, each once.
    pub fn leaves(&self, root: MetaBlock) -> Vec<MetaBlock> {
        let mut seen = std::collections::HashSet::new();
        let mut leaves = Vec::new();
        let mut rest = vec![root];
        while let Some(at) = rest.pop() {
            match self.kind(at) {
                Some(_) if !seen.insert(at) => {}
                Some(NodeKind::Leaf) => leaves.push(at),
                Some(NodeKind::Internal) => rest.extend(self.children(at).rev()),
                Some(NodeKind::Broken) | None => {}
            }
        }
        leaves
    }

    /// The sound leaves of this kind, in the order of the disk.
    pub fn leaves_of(&self, kind: TreeKind) -> Vec<MetaBlock> {
        let is_one = |facts: &NodeFacts| {
            facts.kind() == Some(NodeKind::Leaf) && facts.tree.load(Ordering::Relaxed) == kind.id
        };
        let leaves = self.facts.iter().filter(|(_, facts)| is_one(facts));
        leaves.map(|(number, _)| MetaBlock::new(number)).collect()
    }

    /// The leaf of the tree at `root` in which `key` is, if it is anywhere.
    pub fn leaf_for(&self, root: MetaBlock, key: u64) -> Option<MetaBlock> {
        let mut at = root;
        for _ in 0..MAX_DEPTH {
            match self.kind(at)? {
                NodeKind::Leaf => return Some(at),
                NodeKind::Broken => return None,
                NodeKind::Internal => {}
            }
            let edges = self.edges_of(self.internal_index(at)?);
            let begins = |child: &u32| {
                let facts = self.facts.get(u64::from(*child));
                facts.is_some_and(|facts| facts.low.load(Ordering::Relaxed) <= key)
            };
            let child = edges[edges.partition_point(begins).checked_sub(1)?];
            at = MetaBlock::new(u64::from(child));
        }
        None
    }

    /// The last block that is referred to.
    pub fn last_used(&self) -> Option<MetaBlock> {
        let used = |facts: &NodeFacts| facts.references.load(Ordering::Relaxed) != 0;
        let last = self.facts.iter().filter(|(_, facts)| used(facts)).last();
        last.map(|(number, _)| MetaBlock::new(number))
    }

    /// Walks the trees at `roots`, each of which counts as a reference, and shows every leaf that
    /// was not reached before to `leaf`, on several threads and in no order.
    pub fn walk<S: Send>(
        &mut self,
        roots: impl IntoIterator<Item = MetaBlock>,
        kind: TreeKind,
        new: impl Fn() -> S + Sync,
        leaf: impl Fn(&mut S, &NodeView<'_>) + Sync,
    ) -> Walked<S> {
        let mut first = Work::new(());
        for root in roots {
            self.reach(&mut first, None, root, kind, (0, u64::MAX));
        }
        let (mut level, mut problems) = (first.next, first.problems);
        let mut states = Vec::new();
        let mut depth = 0;
        while !level.is_empty() {
            level.sort_unstable();
            if depth == MAX_DEPTH {
                problems.extend(level.drain(..).map(|at| self.too_deep(at)));
                break;
            }
            let works = self.reader.for_each(
                &level,
                || Work::new(new()),
                |work, at, block| self.visit(work, at, block, kind, &leaf),
            );
            level.clear();
            for work in works {
                states.push(work.state);
                level.extend(work.next);
                problems.extend(work.problems);
                self.keep(&work.internal, &work.edges);
            }
            depth += 1;
        }
        problems.sort_by_key(|problem| problem.at);
        Walked { states, problems }
    }

    /// Takes in a node: children are reached, leaves shown.
    fn visit<S>(
        &self,
        work: &mut Work<S>,
        at: MetaBlock,
        block: Result<&Block>,
        kind: TreeKind,
        leaf: &impl Fn(&mut S, &NodeView<'_>),
    ) {
        let Some(facts) = self.facts.get(at.get()) else { return };
        let node = match block.and_then(|block| read(block, at, kind)) {
            Ok(node) => node,
            Err(error) => {
                facts.set_kind(NodeKind::Broken);
                facts.set_faulty();
                work.problems.push(NodeProblem { at, error });
                return;
            }
        };
        if let (Some(first), Some(last)) = (node.keys().first(), node.keys().last()) {
            facts.first.store(first.get(), Ordering::Relaxed);
            facts.last.store(last.get(), Ordering::Relaxed);
        }
        // A node of 4096 bytes has fewer entries than that.
        facts.entries.store(node.len() as u16, Ordering::Relaxed);
        if node.is_leaf() {
            facts.set_kind(NodeKind::Leaf);
            leaf(&mut work.state, &node);
            return;
        }
        facts.set_kind(NodeKind::Internal);
        let mut children = node.children().peekable();
        while let Some((low, child)) = children.next() {
            // Keys ascend, so the next one is above 0.
            let high = children.peek().map_or(u64::MAX, |(next, _)| next - 1);
            self.reach(work, Some(at), child, kind, (low, high));
        }
        work.internal.push((at, work.edges.len()));
    }

    /// Counts a reference to the node `at`, and has it read if it is the first.
    fn reach<S>(
        &self,
        work: &mut Work<S>,
        parent: Option<MetaBlock>,
        at: MetaBlock,
        kind: TreeKind,
        (low, high): (u64, u64),
    ) {
        let Some(facts) = self.facts.want(at.get()) else {
            self.blame(work, parent, at, "lies past the end of the device");
            return;
        };
        facts.demand(low, high);
        // Whoever sets the kind reads the node; the blocks of other structures have none.
        let first = facts.tree.compare_exchange(0, kind.id, Ordering::Relaxed, Ordering::Relaxed);
        facts.references.fetch_add(1, Ordering::Relaxed);
        match first {
            Ok(_) => {
                if let Some(parent) = parent {
                    facts.parent.store(parent.get() as u32, Ordering::Relaxed);
                }
                work.next.push(at);
            }
            Err(other) if other != kind.id => {
                self.blame(work, parent, at, "belongs to a tree of another kind");
                return;
            }
            Err(_) => {}
        }
        work.edges.push(at.get() as u32);
    }

    /// Notes that something is wrong with a reference to `at`: it is the parent's fault.
    fn blame<S>(&self, work: &mut Work<S>, parent: Option<MetaBlock>, at: MetaBlock, what: &str) {
        let (at, problem) = match parent {
            Some(parent) => (parent, format!("refers to block {at}, which {what}")),
            None => (at, format!("is named as a root, but {what}")),
        };
        if let Some(facts) = self.facts.get(at.get()) {
            facts.set_faulty();
        }
        work.problems.push(NodeProblem { at, error: corrupt(at, problem) });
    }

    fn too_deep(&self, at: MetaBlock) -> NodeProblem {
        if let Some(facts) = self.facts.get(at.get()) {
            facts.set_kind(NodeKind::Broken);
            facts.set_faulty();
        }
        let error = corrupt(at, format!("hangs more than {MAX_DEPTH} levels below a root"));
        NodeProblem { at, error }
    }

    /// Takes over the internal nodes that a thread found.
    fn keep(&mut self, internal: &[(MetaBlock, usize)], edges: &[u32]) {
        let before = self.edges.len();
        for &(at, end) in internal {
            if let Some(facts) = self.facts.get(at.get()) {
                facts.index.store(self.internal.len() as u32, Ordering::Relaxed);
            }
            self.internal.push((at, before + end));
        }
        self.edges.extend_from_slice(edges);
    }

    /// The place of an internal node among them all.
    pub(super) fn internal_index(&self, at: MetaBlock) -> Option<usize> {
        let facts = self.facts.get(at.get())?;
        let internal = facts.kind() == Some(NodeKind::Internal);
        internal.then(|| facts.index.load(Ordering::Relaxed) as usize)
    }

    /// The children of the internal node with this place.
    pub(super) fn edges_of(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.internal[before].1);
        &self.edges[start..self.internal[index].1]
    }
}

impl<S> Work<S> {
    fn new(state: S) -> Self {
        let (next, internal, edges, problems) = Default::default();
        Self { state, next, internal, edges, problems }
    }
}

/// A node of this kind of tree.
fn read(block: &Block, at: MetaBlock, kind: TreeKind) -> Result<NodeView<'_>> {
    let node = NodeView::read(block, at)?;
    if node.is_leaf() && node.value_size() != kind.value_size {
        let (found, wanted) = (node.value_size(), kind.value_size);
        return Err(corrupt(at, format!("has values of {found} bytes, not {wanted}")));
    }
    Ok(node)
}

impl std::fmt::Debug for Forest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forest({:?}, {} internal nodes)", self.reader, self.internal.len())
    }
}
