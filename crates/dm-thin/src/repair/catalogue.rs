//! All sound nodes of a device, whether something refers to them or not.

use std::collections::HashMap;
use std::ops::Range;

use persistent_data::MetaBlock;

use super::sums::Sum;
use crate::layout::DetailsLayout;
use crate::superblock::Superblock;

/// What a node belongs to, as far as its content tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A mapping tree.
    Mappings,
    /// A tree of devices, or a mapping tree of very few mappings.
    Devices,
    /// A tree of details.
    Details,
    /// A space map, or nothing that is known.
    Other,
}

/// A sound node.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) at: MetaBlock,
    /// Of a leaf by its own content, of an internal node by what lies below it.
    pub(super) class: Class,
    pub(super) leaf: bool,
    /// Entries of a leaf, children of an internal node.
    pub(super) len: usize,
    /// The first key and the last, if there are entries.
    pub(super) keys: Option<(u64, u64)>,
    /// The latest time of a mapping in a leaf.
    pub(super) newest: u32,
    /// The children of an internal node among all edges.
    pub(super) edges: Range<usize>,
}

/// Everything that a scan has found.
#[derive(Default)]
pub(super) struct Catalogue {
    pub(super) notes: Vec<Note>,
    /// Children with the keys of their parents.
    pub(super) edges: Vec<(u64, MetaBlock)>,
    index: HashMap<MetaBlock, usize>,
    /// The content of leaves that may belong to a tree of devices.
    pub(super) roots: HashMap<MetaBlock, Vec<(u64, MetaBlock)>>,
    /// The content of leaves of details.
    pub(super) details: HashMap<MetaBlock, Vec<(u64, DetailsLayout)>>,
    /// Superblocks, and the copies that metadata snapshots leave, by their place.
    pub(super) superblocks: Vec<(MetaBlock, Superblock)>,
    /// What lies below each note.
    pub(super) sums: Vec<Sum>,
}

/// A tree as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// The leaves, in the order of their keys.
    pub(super) leaves: Vec<MetaBlock>,
    /// Nodes that are missing, each with the first and last key that it may have held.
    pub(super) lost: Vec<(MetaBlock, u64, u64)>,
}

impl Catalogue {
    /// Adds a note; its children were added to the edges.
    pub(super) fn add(&mut self, note: Note) {
        self.index.insert(note.at, self.notes.len());
        self.notes.push(note);
    }

    /// The place of the note on a block.
    pub(super) fn find(&self, at: MetaBlock) -> Option<usize> {
        self.index.get(&at).copied()
    }

    /// The note on a block.
    pub(super) fn get(&self, at: MetaBlock) -> Option<&Note> {
        self.find(at).map(|index| &self.notes[index])
    }

    /// What lies in and below a block.
    pub(super) fn sum(&self, at: MetaBlock) -> Option<&Sum> {
        self.find(at).map(|index| &self.sums[index])
    }

    /// The children of a node, each with the first and last key that belong to it.
    pub(super) fn children(
        &self,
        note: &Note,
        high: u64,
    ) -> impl DoubleEndedIterator<Item = (MetaBlock, u64, u64)> + ExactSizeIterator + '_ {
        let edges = &self.edges[note.edges.clone()];
        let high = move |place: usize| edges.get(place + 1).map_or(high, |next| next.0 - 1);
        let child = move |(place, edge): (usize, &(u64, MetaBlock))| (edge.1, edge.0, high(place));
        edges.iter().enumerate().map(child)
    }

    /// Whether the node at `at` may hang at a place in a tree of this class: it is sound, holds
    /// keys from `low` to `high` and no others, and is of the right kind.
    pub(super) fn fits(&self, at: MetaBlock, class: Class, low: u64, high: u64) -> bool {
        let Some(index) = self.find(at) else { return false };
        let (note, sum) = (&self.notes[index], &self.sums[index]);
        let Some((first, _)) = note.keys else { return false };
        first >= low && sum.last <= high && !sum.looped && suits(note.class, class)
    }

    /// Reads the tree at `root` as far as that can be done.
    pub(super) fn read(&self, root: MetaBlock, class: Class) -> Reading {
        let mut reading = Reading::default();
        match self.get(root) {
            // The root of an empty tree.
            Some(note) if note.keys.is_none() && note.leaf && suits(note.class, class) => {
                reading.leaves.push(root);
            }
            _ => self.read_below(root, class, &mut reading),
        }
        reading
    }

    fn read_below(&self, root: MetaBlock, class: Class, reading: &mut Reading) {
        let mut rest = vec![(root, 0, u64::MAX)];
        while let Some((at, low, high)) = rest.pop() {
            match self.get(at) {
                Some(note) if self.fits(at, class, low, high) => {
                    if note.leaf {
                        reading.leaves.push(at);
                    } else {
                        rest.extend(self.children(note, high).rev());
                    }
                }
                _ => reading.lost.push((at, low, high)),
            }
        }
    }

    /// The devices of the tree of devices at `root`.
    pub(super) fn roots_of(&self, root: MetaBlock) -> Vec<(u64, MetaBlock)> {
        let leaves = self.read(root, Class::Devices).leaves.into_iter();
        leaves.filter_map(|leaf| self.roots.get(&leaf)).flatten().copied().collect()
    }

    /// The devices of the tree of details at `root`.
    pub(super) fn details_of(&self, root: MetaBlock) -> Vec<(u64, DetailsLayout)> {
        let leaves = self.read(root, Class::Details).leaves.into_iter();
        leaves.filter_map(|leaf| self.details.get(&leaf)).flatten().copied().collect()
    }

    /// Whether the block can be the root of a tree of this class.
    pub(super) fn is_root(&self, at: MetaBlock, class: Class) -> bool {
        self.get(at).is_some_and(|note| suits(note.class, class))
    }
}

/// Whether a node of class `found` may be one of a tree of class `wanted`.
pub(super) fn suits(found: Class, wanted: Class) -> bool {
    found == wanted || (found == Class::Devices && wanted == Class::Mappings)
}
