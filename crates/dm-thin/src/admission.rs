//! FULL-IS-NOT-BROKEN for metadata: no change is accepted whose commit might not find room.
//!
//! Every change takes its share, at worst, of the free metadata blocks before anything is done for
//! it. When the shares are used up a commit settles what they really came to; when that does not
//! help, the metadata grows; when it cannot, the answer is "no space" and nothing has happened.

/// Mappings that wait before a commit begins by itself.
const EAGER: u64 = 4096;
/// Mappings that the free metadata blocks should always suffice for.
const COMFORTABLE: u64 = 4096;
/// The most entries of a node, and the fewest that a node keeps: a third.
const NODE_ENTRIES: u64 = 252;
const NODE_FEWEST: u64 = 84;
/// The fewest entries of a node of a refcount overflow tree, a third of 336.
const OVERFLOW_FEWEST: u64 = 112;

/// Metadata blocks that are free, and who may yet need them.
pub(crate) struct Budget {
    /// Free blocks when the last commit ended; blocks that it freed are among them.
    free: u64,
    shape: TreeShape,
    /// What the running commit has taken over.
    committing: Demand,
    /// What waits for the next one.
    waiting: Demand,
}

/// How large the trees are, for the worst case of a change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TreeShape {
    pub(crate) mapped: u64,
    pub(crate) devices: u64,
    /// Whether leaves may be shared.
    pub(crate) is_shared: bool,
    pub(crate) data_bitmaps: u64,
    pub(crate) data_allocated: u64,
    pub(crate) data_overflow: u64,
    pub(crate) metadata_bitmaps: u64,
    pub(crate) metadata_overflow: u64,
}

/// Accepted changes.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// Blocks mapped or unmapped.
    mappings: u64,
    /// Devices made, deleted or exchanged.
    devices: u64,
}

impl Budget {
    /// A budget of `free` blocks for trees of `shape`.
    pub(crate) fn new(free: u64, shape: TreeShape) -> Self {
        Self { free, shape, committing: Demand::default(), waiting: Demand::default() }
    }

    /// Takes a share for mapping or unmapping `count` more blocks; `false` if there is not enough.
    pub(crate) fn take(&mut self, count: u64) -> bool {
        let wanted = Demand { mappings: self.waiting.mappings + count, ..self.waiting };
        let fits = self.fits(wanted, self.reserve());
        if fits {
            self.waiting = wanted;
        }
        fits
    }

    /// Gives back a share that was not used.
    pub(crate) fn give_back(&mut self) {
        self.waiting.mappings = self.waiting.mappings.saturating_sub(1);
    }

    /// Takes a share for changing `count` devices; `false` if there is not enough. Deleting may use
    /// what is kept in reserve for it, since it is what helps when the metadata is full.
    pub(crate) fn take_devices(&mut self, count: u64, deletes: bool) -> bool {
        let wanted = Demand { devices: self.waiting.devices + count, ..self.waiting };
        let fits = self.fits(wanted, if deletes { 0 } else { self.reserve() });
        if fits {
            self.waiting = wanted;
        }
        fits
    }

    fn fits(&self, wanted: Demand, reserve: u64) -> bool {
        self.need(wanted) + self.need(self.committing) + reserve <= self.free
    }

    /// What only deleting may use.
    fn reserve(&self) -> u64 {
        self.need(Demand { mappings: 0, devices: 2 })
    }

    /// Whether so much waits that a commit should begin before it is asked for.
    pub(crate) fn is_strained(&self) -> bool {
        self.waiting.mappings >= EAGER || self.need(self.waiting) * 2 > self.free
    }

    /// The waiting changes become those of the running commit.
    pub(crate) fn begin_commit(&mut self) {
        self.committing = std::mem::take(&mut self.waiting);
    }

    /// The running commit has ended with so many blocks free.
    pub(crate) fn end_commit(&mut self, free: u64, shape: TreeShape) {
        self.free = free;
        self.shape = shape;
        self.committing = Demand::default();
    }

    /// Free blocks under which the metadata should grow before the commit that runs now.
    pub(crate) fn comfortable(&self) -> u64 {
        let most = Demand { mappings: COMFORTABLE, devices: 64 };
        2 * self.need(most)
    }

    /// The blocks that a commit of `demand` allocates at worst.
    fn need(&self, demand: Demand) -> u64 {
        let Demand { mappings, devices } = demand;
        if mappings == 0 && devices == 0 {
            return 0;
        }
        let shape = &self.shape;
        // A leaf and the way to it, all copied and all split; but no more than the trees can have.
        let all = (shape.mapped + mappings) / NODE_FEWEST * 2 + 3 * mappings.min(shape.devices) + 3;
        let nodes = (6 * mappings).min(all);
        // Copying a leaf that is shared counts each of its blocks once more.
        let shares = devices > 0 || shape.is_shared;
        let counted = if shares { mappings.saturating_mul(NODE_ENTRIES) } else { 2 * mappings };
        let bitmaps =
            if devices > 0 { shape.data_bitmaps } else { shape.data_bitmaps.min(counted) };
        let index = bitmaps / 56 + 3;
        let entries = (shape.data_overflow + counted).min(shape.data_allocated + mappings);
        let overflow = (entries / OVERFLOW_FEWEST * 2).min(3 * counted + 3) + 3;
        let device_trees = 8 * devices + shape.devices / 20 + 8;
        let own = shape.metadata_bitmaps
            + 1
            + (shape.metadata_overflow + nodes) / OVERFLOW_FEWEST * 2
            + 6;
        nodes + bitmaps + index + overflow + device_trees + own
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, TreeShape};

    /// Large trees, all of them shared: every change of a mapping may need its own way down.
    fn shape() -> TreeShape {
        TreeShape {
            mapped: 1_000_000,
            devices: 10,
            is_shared: true,
            data_bitmaps: 10,
            data_allocated: 1_000_000,
            metadata_bitmaps: 1,
            ..TreeShape::default()
        }
    }

    #[test]
    fn shares_end_and_a_commit_settles_them() {
        let mut budget = Budget::new(1000, shape());
        let mut taken = 0;
        while budget.take(1) {
            taken += 1;
        }
        assert!((50..200).contains(&taken), "{taken}");
        budget.begin_commit();
        assert!(!budget.take(100), "the running commit still holds its share");
        budget.end_commit(990, shape());
        assert!(budget.take(1));
    }

    #[test]
    fn a_share_can_be_given_back() {
        let mut budget = Budget::new(1000, shape());
        while budget.take(1) {}
        budget.give_back();
        assert!(budget.take(1));
        assert!(!budget.take(1));
    }
}
