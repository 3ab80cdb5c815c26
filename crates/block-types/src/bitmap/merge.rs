//! Taking another bitmap's dirt over.

use super::{Bits, DirtyBitmap, FANOUT};
use crate::{ByteOffset, ByteRange};

impl DirtyBitmap {
    /// Marks everything that is dirty in `other`, whose granularity and size may differ: a granule
    /// that is touched becomes dirty, and what lies past the end of this disk is left out.
    pub fn merge(&self, other: &Self) {
        let _nobody_clears = other.clearing.read();
        if self.granularity == other.granularity {
            other.each_word(|number, word| self.merge_word(number, word));
            return;
        }
        let mut run: Option<Bits> = None;
        other.each_word(|number, word| {
            for bits in runs(number, word) {
                run = match run {
                    Some(open) if open.end == bits.start => {
                        Some(Bits { start: open.start, end: bits.end })
                    }
                    open => {
                        self.merge_run(other, open);
                        Some(bits)
                    }
                };
            }
        });
        self.merge_run(other, run);
    }

    /// Sets the bits of a word of a bitmap of the same granularity.
    pub(super) fn merge_word(&self, number: u64, word: u64) {
        let first = number * FANOUT;
        let Some(left) = self.bits().checked_sub(first).filter(|&left| left > 0) else { return };
        let mask = if left < FANOUT { word & ((1 << left) - 1) } else { word };
        if mask == 0 {
            return;
        }
        self.levels[0].or(number, mask);
        let mut words = Bits { start: first, end: first + 1 };
        for level in &self.levels[1..] {
            words = words.words();
            level.set(words);
        }
    }

    /// Marks what lies under a run of bits of `other`.
    fn merge_run(&self, other: &Self, run: Option<Bits>) {
        let Some(run) = run else { return };
        let range = other.under(run);
        let end = ByteOffset::new(range.end().get().min(self.size.get()));
        if range.start < end {
            self.set(ByteRange::between(range.start, end));
        }
    }
}

/// The runs of bits that are set in a word.
fn runs(number: u64, word: u64) -> impl Iterator<Item = Bits> {
    let mut rest = word;
    let mut at = number * FANOUT;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let skip = rest.trailing_zeros();
        let ones = (rest >> skip).trailing_ones();
        let start = at + u64::from(skip);
        let used = skip + ones;
        rest = if used < 64 { rest >> used } else { 0 };
        at += u64::from(used);
        Some(Bits { start, end: start + u64::from(ones) })
    })
}
