//! What lies below each node of a catalogue.

use super::catalogue::{Catalogue, Class, suits};

/// What lies in and below a node, as far as it can be read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub(super) entries: u64,
    /// The latest time of a mapping.
    pub(super) newest: u32,
    /// The last key.
    pub(super) last: u64,
    /// Levels below.
    pub(super) height: u32,
    /// Nodes that are missing.
    pub(super) lost: u64,
    /// The node has itself below it.
    pub(super) looped: bool,
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

impl Catalogue {
    /// Sums up, children before their parents, and gives internal nodes their class.
    pub(super) fn sum_up(&mut self) {
        self.sums = vec![Sum::default(); self.notes.len()];
        for index in 0..self.notes.len() {
            // Without recursion: a hostile chain is as long as the device.
            let mut path = vec![index];
            while let Some(&index) = path.last() {
                match self.sums[index].state {
                    State::New => {
                        self.sums[index].state = State::Open;
                        path.extend(self.new_children(index));
                    }
                    State::Open => {
                        path.pop();
                        self.sum_node(index);
                    }
                    State::Done => _ = path.pop(),
                }
            }
        }
    }

    fn new_children(&self, index: usize) -> Vec<usize> {
        let edges = self.edges[self.notes[index].edges.clone()].iter();
        let children = edges.filter_map(|(_, child)| self.find(*child));
        children.filter(|&child| self.sums[child].state == State::New).collect()
    }

    fn sum_node(&mut self, index: usize) {
        let note = self.notes[index].clone();
        let mut sum = Sum {
            newest: note.newest,
            last: note.keys.map_or(0, |(_, last)| last),
            state: State::Done,
            ..Sum::default()
        };
        if note.leaf {
            sum.entries = note.len as u64;
            self.sums[index] = sum;
            return;
        }
        let class = self.class_below(index);
        for (child, low, high) in self.children(&note, u64::MAX) {
            let below = self.find(child).map(|child| self.sums[child]);
            match below {
                Some(below) if below.state != State::Done => sum.looped = true,
                Some(below) if self.fits(child, class, low, high) => {
                    sum.entries = sum.entries.saturating_add(below.entries);
                    sum.newest = sum.newest.max(below.newest);
                    sum.last = sum.last.max(below.last);
                    sum.height = sum.height.max(below.height.saturating_add(1));
                    sum.lost = sum.lost.saturating_add(below.lost);
                }
                _ => sum.lost = sum.lost.saturating_add(1),
            }
        }
        self.notes[index].class = class;
        self.sums[index] = sum;
    }

    /// The class of an internal node: that of its children. One leaf of mappings among leaves that
    /// may be either makes it a mapping tree.
    fn class_below(&self, index: usize) -> Class {
        let edges = self.edges[self.notes[index].edges.clone()].iter();
        let mut classes = edges.filter_map(|(_, child)| self.get(*child)).map(|note| note.class);
        let first = classes.find(|class| *class != Class::Other).unwrap_or(Class::Other);
        classes.fold(first, |class, other| if suits(class, other) { other } else { class })
    }
}
