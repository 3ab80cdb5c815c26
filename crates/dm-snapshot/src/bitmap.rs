//! A set of chunk numbers that is read without a lock.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a page.
const WORDS: usize = 512;
/// Numbers of a page.
const PAGE: u64 = WORDS as u64 * 64;

/// Which of so many chunks are in the set; memory is taken where there are some.
pub(crate) struct Bitmap {
    pages: Box<[OnceLock<Box<[AtomicU64; WORDS]>>]>,
}

impl Bitmap {
    /// An empty set of numbers below `count`.
    pub(crate) fn new(count: u64) -> Self {
        let pages = (0..count.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { pages }
    }

    /// Adds `number`. Whoever finds it in the set sees what was written before this call.
    pub(crate) fn insert(&self, number: u64) {
        let Some(page) = self.pages.get((number / PAGE) as usize) else { return };
        let words = page.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
        let word = &words[(number % PAGE / 64) as usize];
        word.fetch_or(1 << (number % 64), Ordering::SeqCst);
    }

    /// Takes all numbers out, while nobody asks for any.
    pub(crate) fn clear(&self) {
        let words = self.pages.iter().filter_map(OnceLock::get).flat_map(|page| page.iter());
        words.for_each(|word| word.store(0, Ordering::SeqCst));
    }

    /// Whether `number` is in the set.
    pub(crate) fn contains(&self, number: u64) -> bool {
        let page = self.pages.get((number / PAGE) as usize).and_then(OnceLock::get);
        page.is_some_and(|words| {
            let word = words[(number % PAGE / 64) as usize].load(Ordering::SeqCst);
            word & 1 << (number % 64) != 0
        })
    }

    /// Whether every number of `range` is in the set.
    pub(crate) fn contains_all(&self, mut range: Range<u64>) -> bool {
        range.all(|number| self.contains(number))
    }
}

#[cfg(test)]
mod tests {
    use super::{Bitmap, PAGE};

    #[test]
    fn numbers_on_both_sides_of_a_page() {
        let set = Bitmap::new(2 * PAGE);
        for number in [0, PAGE - 1, PAGE, 2 * PAGE - 1] {
            assert!(!set.contains(number));
            set.insert(number);
            assert!(set.contains(number));
        }
        assert!(set.contains_all(PAGE - 1..PAGE + 1));
        assert!(!set.contains_all(PAGE - 1..PAGE + 2));
        assert!(set.contains_all(5..5), "of nothing everything is there");
        set.insert(100 * PAGE);
        assert!(!set.contains(100 * PAGE), "beyond the end there is nothing");
        set.clear();
        assert!(!set.contains(0) && !set.contains(PAGE));
    }
}
