//! FULL-IS-NOT-BROKEN for metadata: no change is accepted whose commit might not find room.
//!
//! Every change takes its share, at worst, of the free metadata blocks before anything is done for
//! it. When the shares are used up a commit settles what they really came to; when that does not
//! help, the metadata grows; when it cannot, the answer is "no space" and nothing has happened.

use crate::trees::Promise;
use crate::worst_case::{Demand, TreeShape};

/// Mappings that wait before a commit begins by itself.
const EAGER: u64 = 4096;
/// Mappings that the free metadata blocks should always suffice for, twice: for a commit that runs,
/// and for what writers change meanwhile.
const COMFORTABLE: u64 = 8192;

/// Metadata blocks that are free, and who may yet need them.
#[derive(Default)]
pub(crate) struct Budget {
    /// Free blocks when the last commit ended; blocks that it freed are among them.
    free: u64,
    shape: TreeShape,
    /// What the running commit has taken over.
    committing: Demand,
    /// What waits for the next one.
    waiting: Demand,
    /// What is accepted, but not entered yet: it may come with any later one.
    accepted: Demand,
}

impl Budget {
    const SMALL: Demand = Demand { replaced: 1, moved: 1, devices: 1, bitmaps: 0 };

    /// A budget of `free` blocks for trees of `shape`.
    pub(crate) fn new(free: u64, shape: TreeShape) -> Self {
        Self { free, shape, ..Self::default() }
    }

    /// Takes a share for `change`; `false` if there is not enough. What frees metadata may use what
    /// is kept in reserve for it, since it is what helps when the metadata is full.
    pub(crate) fn take(&mut self, change: Demand, frees: bool) -> bool {
        let accepted = self.accepted.plus(change);
        let promised = [self.committing, self.waiting, accepted];
        let blocks: u64 = promised.iter().map(|demand| demand.blocks(&self.shape)).sum();
        let reserve = if frees { 0 } else { self.reserve() };
        let fits = blocks + reserve <= self.free;
        if fits {
            self.accepted = accepted;
        }
        fits
    }

    /// The change whose share was taken waits for the next commit.
    pub(crate) fn enter(&mut self, change: Demand) {
        self.accepted = self.accepted.minus(change);
        self.waiting = self.waiting.plus(change);
    }

    /// Gives back a share that was not used.
    pub(crate) fn give_back(&mut self, change: Demand) {
        self.accepted = self.accepted.minus(change);
    }

    /// Free blocks without which no small change would be accepted.
    pub(crate) fn least(&self) -> u64 {
        Self::SMALL.blocks(&self.shape) + self.reserve()
    }

    /// What only deleting may use.
    fn reserve(&self) -> u64 {
        Demand { devices: 2, ..Demand::default() }.blocks(&self.shape)
    }

    /// Whether so much waits that a commit should begin before it is asked for.
    pub(crate) fn is_strained(&self) -> bool {
        let Demand { replaced, moved, .. } = self.waiting;
        replaced + moved >= EAGER || self.waiting.blocks(&self.shape) * 2 > self.free
    }

    /// Whether a small change would find room.
    pub(crate) fn has_room(&self) -> bool {
        let promised = [self.committing, self.waiting, self.accepted.plus(Self::SMALL)];
        let blocks: u64 = promised.iter().map(|demand| demand.blocks(&self.shape)).sum();
        blocks + self.reserve() <= self.free
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

    /// What the running commit was promised.
    pub(crate) fn promise(&self) -> Promise {
        let usual = Demand { replaced: COMFORTABLE, devices: 64, ..Demand::default() };
        Promise {
            most: self.committing.blocks(&self.shape),
            comfortable: 2 * usual.blocks(&self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;
    use crate::worst_case::{Demand, TreeShape};

    /// Large trees, all of them shared: every change of a mapping may need its own way down.
    fn shape() -> TreeShape {
        TreeShape {
            mapped: 1_000_000,
            devices: 10,
            is_shared: true,
            data_bitmaps: 10,
            data_allocated: 1_000_000,
            metadata_bitmaps: 1,
            metadata_allocated: 10_000,
            ..TreeShape::default()
        }
    }

    /// Takes shares while there are any.
    fn exhaust(budget: &mut Budget) -> u64 {
        (0..).take_while(|_| budget.take(Demand::REPLACED, false)).count() as u64
    }

    #[test]
    fn shares_end_and_a_commit_settles_them() {
        let mut budget = Budget::new(2000, shape());
        let taken = exhaust(&mut budget);
        assert!((50..500).contains(&taken), "{taken}");
        for _ in 0..taken {
            budget.enter(Demand::REPLACED);
        }
        budget.begin_commit();
        assert!(budget.promise().most > 1000, "{:?}", budget.promise());
        assert!(exhaust(&mut budget) < taken / 2, "the running commit still holds its share");
        budget.end_commit(1990, shape());
        assert!(budget.take(Demand::REPLACED, false));
    }

    #[test]
    fn a_share_can_be_given_back() {
        let mut budget = Budget::new(2000, shape());
        exhaust(&mut budget);
        budget.give_back(Demand::REPLACED);
        assert!(budget.take(Demand::REPLACED, false));
        assert!(!budget.take(Demand::REPLACED, false));
    }

    #[test]
    fn a_share_outlives_commits_that_it_is_not_part_of() {
        let mut budget = Budget::new(2000, shape());
        assert!(budget.take(Demand::MOVED, false));
        for _ in 0..3 {
            budget.begin_commit();
            assert_eq!(budget.promise().most, 0, "nothing was entered");
            budget.end_commit(2000, shape());
        }
        budget.enter(Demand::MOVED);
        budget.begin_commit();
        assert!(budget.promise().most > 0);
    }

    #[test]
    fn deleting_may_use_the_reserve() {
        let mut budget = Budget::new(2000, shape());
        exhaust(&mut budget);
        assert!(!budget.take(Demand::devices(1), false));
        assert!(budget.take(Demand::devices(1), true));
    }
}
