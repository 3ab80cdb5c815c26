//! Finding what is dirty, and counting it.

use super::level::Level;
use super::{Bits, DirtyBitmap, FANOUT};
use crate::{ByteCount, ByteOffset, ByteRange};

impl DirtyBitmap {
    /// The start of the first dirty granule at `from` or behind; `from` itself inside one.
    pub fn next_dirty(&self, from: ByteOffset) -> Option<ByteOffset> {
        self.next_dirty_run(from).map(|run| run.start)
    }

    /// The start of the first clean granule at `from` or behind; `from` itself inside one.
    pub fn next_clean(&self, from: ByteOffset) -> Option<ByteOffset> {
        if from.get() >= self.size.get() {
            return None;
        }
        let bit = from.get() >> self.granularity.exponent();
        let _nobody_clears = self.clearing.read();
        let clear = self.levels[0].next_clear(bit).filter(|&clear| clear < self.bits())?;
        Some(self.under(Bits { start: clear, end: clear + 1 }).start.max(from))
    }

    /// The first run of dirty granules that reaches past `from`, cut off there and at the disk's
    /// end. It may take in what is set meanwhile.
    pub fn next_dirty_run(&self, from: ByteOffset) -> Option<ByteRange> {
        let bit = from.get() >> self.granularity.exponent();
        let _nobody_clears = self.clearing.read();
        let start = self.next_set(bit)?;
        let end = self.levels[0].next_clear(start).unwrap_or(u64::MAX).min(self.bits());
        let run = self.under(Bits { start, end });
        let run = ByteRange::between(run.start.max(from), run.end().max(from));
        (!run.is_empty()).then_some(run)
    }

    /// The runs of dirty granules, in order.
    pub fn dirty_runs(&self) -> impl Iterator<Item = ByteRange> {
        let mut at = ByteOffset::ZERO;
        std::iter::from_fn(move || {
            let run = self.next_dirty_run(at)?;
            at = run.end();
            Some(run)
        })
    }

    /// Bytes that are dirty. What a broken last granule has behind the disk's end does not count.
    pub fn dirty(&self) -> ByteCount {
        let mut bits = 0;
        let _nobody_clears = self.clearing.read();
        self.each_word(|_, word| bits += u64::from(word.count_ones()));
        let bytes = bits << self.granularity.exponent();
        let last = self.bits().saturating_sub(1);
        let surplus = (self.bits() << self.granularity.exponent()) - self.size.get();
        let is_last_dirty = bits > 0 && self.next_set(last) == Some(last);
        ByteCount::new(if is_last_dirty { bytes - surplus } else { bytes })
    }

    /// Whether nothing is dirty.
    pub fn is_clean(&self) -> bool {
        let _nobody_clears = self.clearing.read();
        self.next_set(0).is_none()
    }

    /// The first bit that is set, at `bit` or behind.
    pub(super) fn next_set(&self, bit: u64) -> Option<u64> {
        // Up, until a word has something left to the right; what is summed up lies behind it.
        let (mut height, mut from) = (0, bit);
        loop {
            let level = self.levels.get(height)?;
            if let Some(found) = level.next_in_word(from) {
                // Down to the bits again, by the first of every word; a word whose last bit was
                // never set after all, or is not yet to be seen, sends the search on.
                match self.descend(height, found) {
                    Some(bit) => return Some(bit),
                    None => from = found + 1,
                }
                if from.is_multiple_of(FANOUT) {
                    (height, from) = (height + 1, from / FANOUT);
                }
                continue;
            }
            (height, from) = (height + 1, from / FANOUT + 1);
        }
    }

    /// The first bit below bit `found` of the level at `height`.
    fn descend(&self, height: usize, found: u64) -> Option<u64> {
        let mut below = self.levels[..height].iter().rev();
        below.try_fold(found, |word, level| level.next_in_word(word * FANOUT))
    }

    /// Calls `each` with every word of the bits that is not zero, in order.
    pub(super) fn each_word(&self, mut each: impl FnMut(u64, u64)) {
        let bits = &self.levels[0];
        match self.levels.get(1) {
            None => visit(bits, 0, &mut each),
            Some(above) => {
                for summary in 0..above.words() {
                    let mut set = above.word(summary);
                    while set != 0 {
                        let word = summary * FANOUT + u64::from(set.trailing_zeros());
                        set &= set - 1;
                        visit(bits, word, &mut each);
                    }
                }
            }
        }
    }
}

/// Calls `each` with a word that is not zero.
fn visit(level: &Level, number: u64, each: &mut impl FnMut(u64, u64)) {
    let word = level.word(number);
    if word != 0 {
        each(number, word);
    }
}
