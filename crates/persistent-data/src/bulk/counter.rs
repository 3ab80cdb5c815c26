//! Counting references to the blocks of a device, on several threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use super::audit::Counted;
use super::pages::Pages;
use crate::space_map::COUNTS_PER_BITMAP;

/// The bits of a word that count: 1 to 255 once the block is referred to.
const COUNT: u16 = 0xff;
/// How far the mark of the owner is shifted.
const OWNER_SHIFT: u32 = 8;

/// How often each block of a device is referred to, and whether always by the same owner.
///
/// An owner is a number of the caller's: for the data blocks of a thin pool, the guest block that
/// is mapped to them. Only a mark of eight bits is kept of it: owners that lie near each other
/// always have different marks, any two others in 255 of 256 cases. Memory is taken where
/// references are: two bytes a block, for 16320 blocks at a time.
#[derive(Debug)]
pub struct RefCounter {
    words: Pages<AtomicU16, COUNTS_PER_BITMAP>,
    /// What the counts of some blocks have beside their words.
    wraps: Mutex<HashMap<u64, u32>>,
    /// Whether there are any.
    wrapped: AtomicBool,
}

/// What a reference was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referred {
    /// The first to its block.
    First,
    /// One more of the same owner, as far as that can be seen.
    Again,
    /// Another owner's.
    Elsewhere,
    /// To a block that the device does not have; it was not counted.
    OutOfRange,
}

impl RefCounter {
    /// Counts for `len` blocks, all 0.
    pub fn new(len: u64) -> Self {
        Self { words: Pages::new(len), wraps: Mutex::default(), wrapped: AtomicBool::new(false) }
    }

    /// Counts a reference of `owner` to `block`.
    pub fn refer(&self, block: u64, owner: u64) -> Referred {
        let Some(word) = self.words.want(block) else { return Referred::OutOfRange };
        let owner = mark(owner);
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let new = match old & COUNT {
                0 => owner << OWNER_SHIFT | 1,
                // No block that is referred to goes back to 0, which would forget its owner.
                COUNT => (old & !COUNT) | 1,
                _ => old + 1,
            };
            match word.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        match old {
            0 => return Referred::First,
            _ if old & COUNT == COUNT => self.wrap(block),
            _ => {}
        }
        if old >> OWNER_SHIFT == owner { Referred::Again } else { Referred::Elsewhere }
    }

    /// The word of a block went from 255 to 1: there are 255 more references than it says.
    fn wrap(&self, block: u64) {
        let mut wraps = self.wraps.lock().unwrap_or_else(PoisonError::into_inner);
        let more = wraps.entry(block).or_default();
        *more = more.saturating_add(u32::from(COUNT));
        self.wrapped.store(true, Ordering::Relaxed);
    }
}

/// The mark of an owner: multiplying by the golden ratio spreads neighbours evenly.
fn mark(owner: u64) -> u16 {
    (owner.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u16
}

impl Counted for RefCounter {
    fn len(&self) -> u64 {
        self.words.len()
    }

    fn count(&self, block: u64) -> u32 {
        let word = self.words.get(block).map_or(0, |word| word.load(Ordering::Relaxed));
        let count = u32::from(word & COUNT);
        if count == 0 || !self.wrapped.load(Ordering::Relaxed) {
            return count;
        }
        let wraps = self.wraps.lock().unwrap_or_else(PoisonError::into_inner);
        count.saturating_add(wraps.get(&block).copied().unwrap_or(0))
    }

    fn is_bitmap_unused(&self, number: usize) -> bool {
        self.words.page(number).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::{Counted, RefCounter, Referred, mark};
    use std::thread;

    #[test]
    fn counts_go_on_behind_a_byte() {
        let counter = RefCounter::new(20_000);
        assert_eq!(counter.refer(20_000, 1), Referred::OutOfRange);
        assert_eq!(counter.refer(17_000, 0), Referred::First);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..250).for_each(|_| assert_eq!(counter.refer(17_000, 0), Referred::Again));
                });
            }
        });
        assert_eq!(counter.count(17_000), 1001);
        assert_eq!((counter.count(0), counter.count(99_999)), (0, 0));
        assert!(counter.is_bitmap_unused(0) && !counter.is_bitmap_unused(1));
    }

    #[test]
    fn neighbours_never_have_the_same_mark() {
        for owner in (0..100_000).chain(u64::MAX - 200..u64::MAX - 100) {
            assert!((1..=88).all(|distance| mark(owner) != mark(owner + distance)), "{owner}");
        }
    }

    #[test]
    fn owners_are_told_apart() {
        let counter = RefCounter::new(10);
        assert_eq!(counter.refer(3, 1000), Referred::First);
        assert_eq!(counter.refer(3, 1001), Referred::Elsewhere);
        assert_eq!(counter.refer(3, 1000), Referred::Again);
        (0..300).for_each(|_| assert_eq!(counter.refer(3, 1000), Referred::Again));
        assert_eq!(counter.count(3), 303);
    }
}
