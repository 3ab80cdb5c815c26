//! Reference counts as a flat array.

use std::collections::HashMap;
use std::ops::Range;

/// The entry of a count that does not fit a byte.
const LARGE: u8 = u8::MAX;

/// The least count that does not fit the two bits of a bitmap.
pub(crate) const OVERFLOW: u32 = 3;

/// The reference count of every block of a device: a byte each, and a map for the few that are
/// larger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefCounts {
    /// The counts; [`LARGE`] means that the count is in `large`.
    small: Vec<u8>,
    /// Counts from [`LARGE`] on.
    large: HashMap<u64, u32>,
    /// How many counts are above 0.
    allocated: u64,
    /// How many counts do not fit the two bits of a bitmap.
    overflowing: u64,
}

impl RefCounts {
    /// `len` blocks, all free.
    pub fn new(len: u64) -> Self {
        let mut counts = Self::default();
        counts.extend(len);
        counts
    }

    /// The counts in `bytes`, none of them large.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        debug_assert!(!bytes.contains(&LARGE));
        let allocated = bytes.iter().filter(|&&count| count != 0).count() as u64;
        let overflowing =
            bytes.iter().filter(|&&count| u32::from(count) >= OVERFLOW).count() as u64;
        Self { small: bytes, large: HashMap::new(), allocated, overflowing }
    }

    /// How many blocks there are.
    pub fn len(&self) -> u64 {
        self.small.len() as u64
    }

    /// Whether there are no blocks at all.
    pub fn is_empty(&self) -> bool {
        self.small.is_empty()
    }

    /// How many blocks have a count above 0.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// How many blocks have a count of 3 or more, which takes an entry of a tree beside the bitmap.
    pub fn overflowing(&self) -> u64 {
        self.overflowing
    }

    /// The count of `block`; 0 past the end.
    pub fn get(&self, block: u64) -> u32 {
        match self.small.get(index(block)) {
            None => 0,
            Some(&LARGE) => self.large.get(&block).copied().unwrap_or(u32::from(LARGE)),
            Some(&small) => u32::from(small),
        }
    }

    /// Sets the count of `block`.
    ///
    /// # Panics
    /// Past the end.
    pub fn set(&mut self, block: u64, count: u32) {
        let entry = &mut self.small[index(block)];
        self.allocated -= u64::from(*entry != 0);
        self.allocated += u64::from(count != 0);
        self.overflowing -= u64::from(u32::from(*entry) >= OVERFLOW);
        self.overflowing += u64::from(count >= OVERFLOW);
        if *entry == LARGE {
            self.large.remove(&block);
        }
        *entry = u8::try_from(count).unwrap_or(LARGE);
        if *entry == LARGE {
            self.large.insert(block, count);
        }
    }

    /// Adds one to the count of `block` and returns the new count, or `None`, with nothing changed,
    /// past the end and where the count is as large as the format allows.
    pub fn inc(&mut self, block: u64) -> Option<u32> {
        if block >= self.len() {
            return None;
        }
        let count = self.get(block).checked_add(1)?;
        self.set(block, count);
        Some(count)
    }

    /// Takes one from the count of `block` and returns the new count, or `None`, with nothing
    /// changed, where there is nothing to take.
    pub fn dec(&mut self, block: u64) -> Option<u32> {
        let count = self.get(block).checked_sub(1)?;
        self.set(block, count);
        Some(count)
    }

    /// Grows to `len` blocks; the new ones are free. Never shrinks.
    pub fn extend(&mut self, len: u64) {
        let len = index(len).max(self.small.len());
        self.small.resize(len, 0);
    }

    /// The first free block at or behind `from`.
    pub fn next_free(&self, from: u64) -> Option<u64> {
        self.next(from, |count| count == 0)
    }

    /// The first block at or behind `from` that is in use.
    pub fn next_used(&self, from: u64) -> Option<u64> {
        self.next(from, |count| count != 0)
    }

    /// The blocks in use with their counts, ascending.
    pub fn used(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let block = self.next_used(from)?;
            from = block + 1;
            Some((block, self.get(block)))
        })
    }

    /// A bit for every block, set where it is in use: 64 blocks a word, the first in the lowest
    /// bit.
    pub fn used_bits(&self) -> impl Iterator<Item = u64> + '_ {
        self.small.chunks(u64::BITS as usize).map(|counts| {
            let (whole, rest) = counts.as_chunks();
            let bits = whole.iter().rev().fold(0, |bits, eight| bits << 8 | above_zero(*eight));
            let rest = rest.iter().rev().fold(0, |bits, &count| bits << 1 | u64::from(count != 0));
            bits | rest.checked_shl(8 * whole.len() as u32).unwrap_or(0)
        })
    }

    /// The runs of free blocks, ascending, each as long as it can be.
    pub fn free_runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_free(from)?;
            from = self.next_used(start).unwrap_or(self.len());
            Some(start..from)
        })
    }

    /// The bytes of the blocks in `range`, cut at the end: 0 is free, 255 anything from 255 on.
    pub(crate) fn bytes(&self, range: Range<u64>) -> &[u8] {
        let end = index(range.end).min(self.small.len());
        &self.small[index(range.start).min(end)..end]
    }

    fn next(&self, from: u64, wanted: impl Fn(u8) -> bool) -> Option<u64> {
        let rest = self.small.get(index(from)..)?;
        rest.iter().position(|&count| wanted(count)).map(|distance| from + distance as u64)
    }
}

/// A bit for each of eight counts, set where it is above 0.
fn above_zero(counts: [u8; 8]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let counts = u64::from_le_bytes(counts);
    // The addition carries into the highest bit of a byte that has any of the lower ones.
    let marks = (((counts & LOW) + LOW) | counts) & !LOW;
    // Each factor moves the mark of one byte to its place in the highest byte; none collide.
    (marks >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// A block number as an index; numbers that no array reaches lie past every end.
fn index(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::RefCounts;

    #[test]
    fn counts_cross_the_byte_both_ways() {
        let mut counts = RefCounts::new(3);
        for expected in 1..=300 {
            assert_eq!(counts.inc(1), Some(expected));
            assert_eq!(counts.get(1), expected);
        }
        for expected in (0..300).rev() {
            assert_eq!(counts.dec(1), Some(expected));
            assert_eq!(counts.get(1), expected);
        }
        assert_eq!(counts.dec(1), None);
        assert_eq!(counts, RefCounts::new(3));
    }

    #[test]
    fn every_length_has_its_bits() {
        for len in 0..200 {
            let mut counts = RefCounts::new(len);
            (0..len).for_each(|block| counts.set(block, (block * block % 7 * 90) as u32));
            let words: Vec<u64> = counts.used_bits().collect();
            assert_eq!(words.len() as u64, len.div_ceil(64));
            let bit = |block: u64| words[(block / 64) as usize] >> (block % 64) & 1 == 1;
            assert!((0..len).all(|block| bit(block) == (counts.get(block) != 0)), "{len}");
            let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
            assert_eq!(u64::from(ones), counts.allocated());
        }
    }

    #[test]
    fn nothing_is_counted_past_the_end() {
        let mut counts = RefCounts::new(2);
        assert_eq!(counts.get(2), 0);
        assert_eq!(counts.inc(2), None);
        assert_eq!(counts.dec(u64::MAX), None);
        counts.set(0, u32::MAX);
        assert_eq!(counts.inc(0), None);
        assert_eq!(counts.allocated(), 1);
    }

    #[test]
    fn iterates_used_blocks_and_free_runs() {
        let mut counts = RefCounts::new(10);
        for (block, count) in [(0, 1), (3, 700), (4, 2), (9, 1)] {
            counts.set(block, count);
        }
        assert_eq!(counts.used().collect::<Vec<_>>(), [(0, 1), (3, 700), (4, 2), (9, 1)]);
        assert_eq!(counts.free_runs().collect::<Vec<_>>(), [1..3, 5..9]);
        assert_eq!(counts.used_bits().collect::<Vec<_>>(), [0b10_0001_1001]);
        counts.extend(12);
        assert_eq!(counts.free_runs().last(), Some(10..12));
        assert_eq!(counts.allocated(), 4);
    }
}
