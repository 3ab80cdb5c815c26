//! How many metadata blocks a commit may allocate at worst.
//!
//! A commit writes every node that it touches once, to a new block, and frees the old one only when
//! it is durable; so what counts is how many nodes a batch of changes can touch, or make. Nodes are
//! never less than a third full but for the roots (`persistent_data::btree`), which bounds how many
//! there are.

use persistent_data::space_map::COUNTS_PER_BITMAP;

/// Blocks that one bitmap counts.
const BITMAP_ENTRIES: u64 = COUNTS_PER_BITMAP as u64;
/// The most entries of a node, and the fewest that a node keeps: a third.
const NODE_ENTRIES: u64 = 252;
const NODE_FEWEST: u64 = 84;
/// The fewest entries of a node of a refcount overflow tree, a third of 336.
const OVERFLOW_FEWEST: u64 = 112;
/// Bitmaps of a space map that one block of its index names, at least.
const INDEX_FEWEST: u64 = 56;
/// Nodes that a change may touch where it makes one too full or too empty: it and both neighbours.
const NEIGHBOURS: u64 = 3;

/// How large the trees are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TreeShape {
    /// Mapped blocks of all devices.
    pub(crate) mapped: u64,
    pub(crate) devices: u64,
    /// Whether leaves may be shared.
    pub(crate) is_shared: bool,
    pub(crate) data_bitmaps: u64,
    pub(crate) data_allocated: u64,
    /// Data blocks whose counts lie in the overflow tree.
    pub(crate) data_overflow: u64,
    pub(crate) metadata_bitmaps: u64,
    /// Metadata blocks in use.
    pub(crate) metadata_allocated: u64,
    pub(crate) metadata_overflow: u64,
}

/// Changes that are accepted for one commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Mapped blocks that get another data block.
    pub(crate) replaced: u64,
    /// Blocks mapped or unmapped.
    pub(crate) moved: u64,
    /// Devices made, deleted or exchanged.
    pub(crate) devices: u64,
    /// Bitmaps of data blocks that are added.
    pub(crate) bitmaps: u64,
}

impl Demand {
    /// A mapped block gets another data block.
    pub(crate) const REPLACED: Self = Self { replaced: 1, moved: 0, devices: 0, bitmaps: 0 };
    /// A block is mapped, or not any more.
    pub(crate) const MOVED: Self = Self { replaced: 0, moved: 1, devices: 0, bitmaps: 0 };

    /// A step is taken at what is left of a deleted device: a way down its tree, with neighbours.
    pub(crate) const RECLAIM: Self = Self { replaced: 0, moved: 4, devices: 1, bitmaps: 0 };

    /// So many devices change.
    pub(crate) fn devices(count: u64) -> Self {
        Self { devices: count, ..Self::default() }
    }

    /// The data device has `blocks` more blocks.
    pub(crate) fn more_data(blocks: u64) -> Self {
        // The last bitmap may become a full one.
        Self { devices: 1, bitmaps: blocks.div_ceil(BITMAP_ENTRIES) + 1, ..Self::default() }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            replaced: self.replaced + other.replaced,
            moved: self.moved + other.moved,
            devices: self.devices + other.devices,
            bitmaps: self.bitmaps + other.bitmaps,
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            replaced: self.replaced - other.replaced,
            moved: self.moved - other.moved,
            devices: self.devices - other.devices,
            bitmaps: self.bitmaps - other.bitmaps,
        }
    }

    /// The blocks that a commit of it allocates at worst, in trees of `shape`.
    pub(crate) fn blocks(&self, shape: &TreeShape) -> u64 {
        if *self == Self::default() {
            return 0;
        }
        let (leaves, inner) = self.mapping_nodes(shape);
        let device_trees = 8 * self.devices + shape.devices / 20 + 8;
        // A copied leaf that was shared counts each of its blocks once more.
        let may_be_shared = self.devices > 0 || shape.is_shared;
        let counted =
            if may_be_shared { NODE_ENTRIES * leaves } else { 2 * (self.replaced + self.moved) };
        let bitmaps =
            if self.devices > 0 { shape.data_bitmaps } else { shape.data_bitmaps.min(counted) };
        let bitmaps = bitmaps + self.bitmaps;
        let entries =
            (shape.data_overflow + counted).min(shape.data_allocated + self.replaced + self.moved);
        let overflow = overflow_nodes(entries);
        // A tree that goes takes a reference from each block that its own leaves name: all of them
        // may have large counts.
        let overflow = if self.devices > 0 { overflow } else { overflow.min(3 * counted + 6) };
        // A copied node that leads to others counts each of them once more.
        let children = (NODE_ENTRIES * (inner + device_trees)).min(shape.metadata_allocated);
        let own =
            shape.metadata_bitmaps + 1 + overflow_nodes(shape.metadata_overflow + children) + 3;
        leaves + inner + device_trees + bitmaps + bitmaps / INDEX_FEWEST + 3 + overflow + own
    }

    /// Leaves, and nodes above them, of mapping trees.
    fn mapping_nodes(&self, shape: &TreeShape) -> (u64, u64) {
        let trees = (self.replaced + self.moved).min(shape.devices);
        let entries = shape.mapped + self.moved;
        let of_level = |all: u64| self.replaced.min(all) + (NEIGHBOURS * self.moved).min(2 * all);
        // As many nodes as have enough entries, and one for each tree that ends at this level.
        let mut all = entries / NODE_FEWEST + trees;
        let leaves = of_level(all);
        let mut inner = 0;
        let mut below = entries / NODE_FEWEST;
        while below > 0 {
            all = below / NODE_FEWEST + trees.min(below);
            inner += of_level(all);
            below /= NODE_FEWEST;
        }
        (leaves, inner + trees)
    }
}

/// The nodes of an overflow tree of `entries`: the leaves, the few above them, and a way down.
fn overflow_nodes(entries: u64) -> u64 {
    let leaves = entries / OVERFLOW_FEWEST;
    leaves + leaves / 50 + 3
}
