//! Walking everything that hangs on a superblock, and counting as it goes.

use std::collections::HashMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::bulk::{
    BulkReader, Forest, NodeProblem, NodeView, RefCounter, Referred, TreeKind, inspect,
};
use persistent_data::space_map::{COUNTS_PER_BITMAP, IndexEntry};
use persistent_data::{BlockKind, MetaBlock};

use super::report::LISTED;
use crate::layout::DetailsLayout;
use crate::superblock::{LOCATION, Roots, Superblock};
use crate::{DataBlock, GuestBlock, Mapping};

/// The trees of a pool.
pub(super) const DEVICES: TreeKind = TreeKind { id: 1, value_size: 8 };
pub(super) const DETAILS: TreeKind = TreeKind { id: 2, value_size: 24 };
pub(super) const MAPPINGS: TreeKind = TreeKind { id: 3, value_size: 8 };
pub(super) const DATA_INDEX: TreeKind = TreeKind { id: 4, value_size: 16 };
pub(super) const DATA_COUNTS: TreeKind = TreeKind { id: 5, value_size: 4 };
pub(super) const METADATA_COUNTS: TreeKind = TreeKind { id: 6, value_size: 4 };

/// Data blocks that are remembered, by each thread, as mapped from two places.
const SUSPECTS: usize = 1 << 16;

/// The trees of devices: those of the pool, or those of its metadata snapshot.
#[derive(Debug)]
pub(super) struct DeviceTrees {
    /// Whether they belong to the metadata snapshot.
    pub(super) held: bool,
    /// The tree of devices.
    pub(super) mappings: MetaBlock,
    /// The tree of details.
    pub(super) details: MetaBlock,
}

/// Everything that was found on the way.
pub(super) struct Census {
    pub(super) forest: Forest,
    /// How often each data block is mapped.
    pub(super) data: RefCounter,
    /// The pool's own trees, and those of the metadata snapshot.
    pub(super) trees: Vec<DeviceTrees>,
    /// The roots in each leaf of a tree of devices.
    pub(super) roots: HashMap<MetaBlock, Vec<(u64, MetaBlock)>>,
    /// The details in each leaf of a tree of details.
    pub(super) details: HashMap<MetaBlock, Vec<(u64, DetailsLayout)>>,
    /// Which data bitmap lies where, ascending.
    pub(super) data_bitmaps: Vec<(u64, MetaBlock)>,
    pub(super) leaves: LeafFindings,
    /// What is wrong with nodes, and with which tree.
    pub(super) problems: Vec<(TreeKind, NodeProblem)>,
}

/// What leaves of mapping trees have.
#[derive(Debug, Default)]
pub(super) struct LeafFindings {
    /// Mappings to blocks that the pool does not have: the leaf, and what maps where.
    pub(super) outside: Vec<(MetaBlock, GuestBlock, DataBlock)>,
    /// How many there are.
    pub(super) outsides: u64,
    /// Data blocks that are mapped from two places, not all of them if they are many.
    pub(super) suspects: Vec<u64>,
    /// The latest time of a mapping.
    pub(super) newest: u32,
}

impl Census {
    /// Begins at the superblock: finds the trees of devices, those of a metadata snapshot included.
    pub(super) fn new(metadata: Arc<dyn BlockDevice>, superblock: &Superblock) -> Self {
        let forest = Forest::new(BulkReader::new(metadata));
        let mut census = Self {
            forest,
            data: RefCounter::new(0),
            trees: Vec::new(),
            roots: HashMap::new(),
            details: HashMap::new(),
            data_bitmaps: Vec::new(),
            leaves: LeafFindings::default(),
            problems: Vec::new(),
        };
        census.forest.refer(LOCATION);
        census.hold(&superblock.roots(), false);
        if let Some(held) = superblock.held_root() {
            census.forest.refer(held);
            match read_held(&census.forest, held) {
                Ok(roots) => census.hold(&roots, true),
                Err(error) => census.problems.push((DEVICES, NodeProblem { at: held, error })),
            }
        }
        census
    }

    fn hold(&mut self, roots: &Roots, held: bool) {
        let (mappings, details) = (roots.mappings, roots.details);
        self.trees.push(DeviceTrees { held, mappings, details });
    }

    /// Walks the trees that say which devices there are.
    pub(super) fn devices(&mut self) {
        let tops: Vec<MetaBlock> = self.trees.iter().map(|trees| trees.mappings).collect();
        let walked = self.forest.walk(tops, DEVICES, Vec::new, |roots, leaf| {
            let entries = leaf.entries::<u64>().map(|(id, root)| (id, MetaBlock::new(root)));
            roots.push((leaf.at(), entries.collect()));
        });
        self.blame(DEVICES, walked.problems);
        self.roots.extend(walked.states.into_iter().flatten());
        let details: Vec<MetaBlock> = self.trees.iter().map(|trees| trees.details).collect();
        let walked = self.forest.walk(details, DETAILS, Vec::new, |details, leaf| {
            details.push((leaf.at(), leaf.entries::<DetailsLayout>().collect()));
        });
        self.blame(DETAILS, walked.problems);
        self.details.extend(walked.states.into_iter().flatten());
    }

    /// Walks the tree that lists the bitmaps of the data space map.
    pub(super) fn data_index(&mut self, roots: &Roots) {
        let index = MetaBlock::new(roots.data_map.bitmap_root.get());
        let walked = self.forest.walk([index], DATA_INDEX, Vec::new, |bitmaps, leaf| {
            let entries = leaf.entries::<IndexEntry>();
            bitmaps.extend(entries.map(|(key, entry)| (key, MetaBlock::new(entry.bitmap.get()))));
        });
        self.blame(DATA_INDEX, walked.problems);
        self.data_bitmaps = walked.states.into_iter().flatten().collect();
        self.data_bitmaps.sort_unstable();
        for (_, at) in &self.data_bitmaps {
            self.forest.refer(*at);
        }
    }

    /// Walks the mapping trees of all devices, and counts the data blocks that they name.
    pub(super) fn mappings(&mut self, roots: &Roots) {
        // Each bitmap takes a block, so a map cannot be larger, whatever the superblock says.
        let most = self.forest.blocks().saturating_mul(COUNTS_PER_BITMAP as u64);
        let data = RefCounter::new(roots.data_map.nr_blocks.get().min(most));
        let mut tops: Vec<MetaBlock> =
            self.roots.values().flatten().map(|(_, root)| *root).collect();
        tops.sort_unstable();
        let walked = self.forest.walk(tops, MAPPINGS, LeafFindings::default, |found, leaf| {
            found.count(leaf, &data);
        });
        self.blame(MAPPINGS, walked.problems);
        walked.states.into_iter().for_each(|found| self.leaves.merge(found));
        self.leaves.outside.sort_unstable_by_key(|(leaf, guest, _)| (*leaf, *guest));
        self.leaves.outside.truncate(LISTED);
        self.data = data;
    }

    /// Notes what is wrong with a tree.
    pub(super) fn blame(&mut self, kind: TreeKind, problems: Vec<NodeProblem>) {
        self.problems.extend(problems.into_iter().map(|problem| (kind, problem)));
    }

    /// The kind of tree that a node was reached in.
    pub(super) fn kind(&self, at: MetaBlock) -> TreeKind {
        let kinds = [DEVICES, DETAILS, MAPPINGS, DATA_INDEX, DATA_COUNTS];
        let id = self.forest.tree(at);
        kinds.into_iter().find(|kind| kind.id == id).unwrap_or(METADATA_COUNTS)
    }

    /// The devices of a tree of devices with the roots of their mappings, as far as they can be
    /// read.
    pub(super) fn roots_of(&self, trees: &DeviceTrees) -> Vec<(u64, MetaBlock)> {
        let leaves = self.forest.leaves(trees.mappings).into_iter();
        leaves.filter_map(|leaf| self.roots.get(&leaf)).flatten().copied().collect()
    }

    /// The devices of a tree of details with what it says of them.
    pub(super) fn details_of(&self, trees: &DeviceTrees) -> Vec<(u64, DetailsLayout)> {
        let leaves = self.forest.leaves(trees.details).into_iter();
        leaves.filter_map(|leaf| self.details.get(&leaf)).flatten().copied().collect()
    }
}

impl LeafFindings {
    fn count(&mut self, leaf: &NodeView<'_>, data: &RefCounter) {
        for (guest, value) in leaf.entries::<u64>() {
            let Mapping { block, time } = Mapping::unpack(value);
            self.newest = self.newest.max(time.get());
            match data.refer(block.get(), guest) {
                Referred::First | Referred::Again => {}
                Referred::Elsewhere => {
                    if self.suspects.len() < SUSPECTS {
                        self.suspects.push(block.get());
                    }
                }
                Referred::OutOfRange => {
                    self.outsides += 1;
                    if self.outside.len() < LISTED {
                        self.outside.push((leaf.at(), GuestBlock::new(guest), block));
                    }
                }
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.outside.extend(other.outside);
        self.outsides += other.outsides;
        self.suspects.extend(other.suspects);
        self.newest = self.newest.max(other.newest);
    }
}

/// The roots that the copy of the superblock in a metadata snapshot names.
fn read_held(forest: &Forest, held: MetaBlock) -> Result<Roots> {
    let name = forest.reader().device().name().to_owned();
    let read = forest.reader().for_each(
        &[held],
        || None,
        |found, at, block| {
            *found = Some(block.and_then(|block| match inspect(block, at) {
                Some(BlockKind::Superblock) => Superblock::parse(&name, Box::new(**block), at),
                _ => {
                    let problem = "is no copy of the superblock";
                    Err(Error::new(ErrorKind::Corrupt, format!("metadata block {at}"), problem))
                }
            }));
        },
    );
    let found = read.into_iter().flatten().next().expect("one block was asked for");
    found.map(|copy| copy.roots())
}
