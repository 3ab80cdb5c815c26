//! After the walks: whether nodes hang where they belong, and what lies below each.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::facts::{NO_PARENT, NodeFacts, NodeKind, NodeProblem};
use super::forest::Forest;
use crate::MetaBlock;
use crate::checksum::corrupt;

/// A forest whose walks are over.
#[derive(Debug)]
pub struct Settled<'f> {
    forest: &'f Forest,
    /// What lies below each internal node.
    below: Vec<Below>,
}

/// What lies below a node, or in it.
#[derive(Clone, Copy, Debug, Default)]
struct Below {
    entries: u64,
    /// The last key; 0 without entries.
    last: u64,
    /// Levels below, where all is sound: fewer than trees may have.
    height: u32,
    /// Nothing is wrong down there.
    sound: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    /// On the way down from here.
    Open,
    Done,
}

impl Forest {
    /// Ends the walks: checks the places of all nodes, and sums up what lies below each.
    pub fn settle(&self) -> (Settled<'_>, Vec<NodeProblem>) {
        let mut problems = self.misplaced();
        let below = vec![Below::default(); self.internal.len()];
        let mut settled = Settled { forest: self, below };
        for index in 0..self.internal.len() {
            settled.descend(index, &mut problems);
        }
        problems.sort_by_key(|problem| problem.at);
        (settled, problems)
    }

    /// The nodes that hold keys of others.
    fn misplaced(&self) -> Vec<NodeProblem> {
        let mut problems = Vec::new();
        for (number, facts) in self.facts.iter() {
            if !matches!(facts.kind(), Some(NodeKind::Leaf | NodeKind::Internal)) {
                continue;
            }
            let at = MetaBlock::new(number);
            let (low, high) = self.place(at);
            let first = facts.first.load(Ordering::Relaxed);
            let last = facts.last.load(Ordering::Relaxed);
            let problem = if facts.entries.load(Ordering::Relaxed) == 0 {
                let root = facts.parent.load(Ordering::Relaxed) == NO_PARENT;
                (!root).then(|| "is an empty leaf below other nodes".to_owned())
            } else {
                let outside = first < low || last > high;
                outside.then(|| format!("has keys {first} to {last} outside its place in the tree"))
            };
            if let Some(problem) = problem {
                facts.set_faulty();
                problems.push(NodeProblem { at, error: corrupt(at, problem) });
            }
        }
        problems
    }
}

impl Settled<'_> {
    /// Entries in the tree at `root`; those that cannot be reached are not among them.
    pub fn entries(&self, root: MetaBlock) -> u64 {
        self.below(root).map_or(0, |below| below.entries)
    }

    /// Whether everything of the tree at `root` could be read and is in its place.
    pub fn is_sound(&self, root: MetaBlock) -> bool {
        self.below(root).is_some_and(|below| below.sound)
    }

    /// Which of `blocks` belong to the tree at `root`, where something is wrong with each of them.
    pub fn faulty_of(&self, root: MetaBlock, blocks: &HashSet<MetaBlock>) -> Vec<MetaBlock> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut rest = vec![root];
        while let Some(at) = rest.pop() {
            if self.is_sound(at) || !seen.insert(at) {
                continue;
            }
            if blocks.contains(&at) {
                found.push(at);
            }
            rest.extend(self.forest.children(at).rev());
        }
        found
    }

    /// What lies in and below a node that was reached.
    fn below(&self, at: MetaBlock) -> Option<Below> {
        if let Some(index) = self.forest.internal_index(at) {
            return self.below.get(index).copied();
        }
        let facts = self.forest.facts.get(at.get())?;
        let sound = facts.kind() == Some(NodeKind::Leaf) && !facts.is_faulty();
        Some(Below {
            entries: u64::from(facts.entries.load(Ordering::Relaxed)),
            last: facts.last.load(Ordering::Relaxed),
            height: 0,
            sound,
            state: State::Done,
        })
    }

    /// Sums up what lies below the internal node with this place, children first, without
    /// recursion: a hostile chain is as long as the device.
    fn descend(&mut self, index: usize, problems: &mut Vec<NodeProblem>) {
        let mut path = vec![index];
        while let Some(&index) = path.last() {
            match self.below[index].state {
                State::New => {
                    self.below[index].state = State::Open;
                    path.extend(self.new_children(index));
                }
                State::Open => {
                    path.pop();
                    self.sum_up(index, problems);
                }
                State::Done => _ = path.pop(),
            }
        }
    }

    /// The internal children of a node that were not looked at yet.
    fn new_children(&self, index: usize) -> Vec<usize> {
        let edges = self.forest.edges_of(index).iter();
        let children = edges.map(|&child| MetaBlock::new(u64::from(child)));
        let internal = children.filter_map(|child| self.forest.internal_index(child));
        internal.filter(|&child| self.below[child].state == State::New).collect()
    }

    fn sum_up(&mut self, index: usize, problems: &mut Vec<NodeProblem>) {
        let (at, _) = self.forest.internal[index];
        let faulty = self.forest.facts.get(at.get()).is_none_or(NodeFacts::is_faulty);
        let mut sum = Below { sound: !faulty, state: State::Done, ..Below::default() };
        let mut problem = None;
        for &child in self.forest.edges_of(index) {
            let child = MetaBlock::new(u64::from(child));
            let Some(below) = self.below(child) else { continue };
            if below.state == State::Open {
                problem = Some(format!("has itself below it, by block {child}"));
                continue;
            }
            sum.entries = sum.entries.saturating_add(below.entries);
            sum.last = below.last;
            sum.sound &= below.sound;
            // Of a broken child nobody knows the height.
            if below.sound {
                if sum.height != 0 && sum.height != below.height + 1 {
                    problem = Some("has children of different heights".to_owned());
                }
                sum.height = below.height + 1;
            }
        }
        let (_, high) = self.forest.place(at);
        if sum.last > high && problem.is_none() {
            problem = Some(format!("has key {} below it, outside its place", sum.last));
        }
        if let Some(problem) = problem {
            sum.sound = false;
            problems.push(NodeProblem { at, error: corrupt(at, problem) });
        }
        self.below[index] = sum;
    }
}
