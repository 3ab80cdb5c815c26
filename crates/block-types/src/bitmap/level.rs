//! One level of a bitmap: words that are set and cleared without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::{Bits, FANOUT};

/// The bits of one level.
pub(super) struct Level(Box<[AtomicU64]>);

impl Level {
    /// So many bits, all clear; at least one word.
    pub(super) fn new(bits: u64) -> Self {
        let words = bits.div_ceil(FANOUT).max(1) as usize;
        // From zeroed memory, which the system has not provided yet: a bitmap of a large disk is
        // made at once and takes no memory before it has bits.
        Self(<[AtomicU64]>::new_box_zeroed_with_elems(words).expect("memory for a bitmap"))
    }

    /// How many words there are.
    pub(super) fn words(&self) -> u64 {
        self.0.len() as u64
    }

    /// A word by its number.
    pub(super) fn word(&self, number: u64) -> u64 {
        self.0[number as usize].load(Ordering::SeqCst)
    }

    /// Sets `bits`, and says whether one of them was clear.
    pub(super) fn set(&self, bits: Bits) -> bool {
        let mut changed = false;
        for (word, mask) in masks(bits) {
            changed |= self.or(word, mask);
        }
        changed
    }

    /// Sets the bits of `mask` in one word, and says whether one of them was clear. Where all are
    /// set already, which is what most writes find, it only looks.
    pub(super) fn or(&self, word: u64, mask: u64) -> bool {
        let cell = &self.0[word as usize];
        cell.load(Ordering::SeqCst) & mask != mask
            && cell.fetch_or(mask, Ordering::SeqCst) & mask != mask
    }

    /// Whether all of `bits` are set.
    pub(super) fn has_all(&self, bits: Bits) -> bool {
        masks(bits).all(|(word, mask)| self.word(word) & mask == mask)
    }

    /// Clears `bits`.
    pub(super) fn clear(&self, bits: Bits) {
        for (word, mask) in masks(bits) {
            let cell = &self.0[word as usize];
            // A word that is zero stays untouched, and its memory perhaps unused.
            if cell.load(Ordering::SeqCst) & mask != 0 {
                cell.fetch_and(!mask, Ordering::SeqCst);
            }
        }
    }

    /// `words` without the first and the last one, where that is not zero. All between have just
    /// been cleared.
    pub(super) fn zero_ends(&self, words: Bits) -> Bits {
        let mut zero = words;
        if !zero.is_empty() && self.word(zero.start) != 0 {
            zero.start += 1;
        }
        if !zero.is_empty() && self.word(zero.end - 1) != 0 {
            zero.end -= 1;
        }
        zero
    }

    /// The first bit that is set, from `bit` on in its own word.
    pub(super) fn next_in_word(&self, bit: u64) -> Option<u64> {
        let word = bit / FANOUT;
        let found =
            self.0.get(word as usize)?.load(Ordering::SeqCst) & (u64::MAX << (bit % FANOUT));
        (found != 0).then(|| word * FANOUT + u64::from(found.trailing_zeros()))
    }

    /// The first bit at `bit` or behind that is clear; perhaps one behind the last that counts, or
    /// none.
    pub(super) fn next_clear(&self, bit: u64) -> Option<u64> {
        let mut ignored = (1 << (bit % FANOUT)) - 1;
        for word in bit / FANOUT..self.words() {
            let clear = !(self.word(word) | ignored);
            if clear != 0 {
                return Some(word * FANOUT + u64::from(clear.trailing_zeros()));
            }
            ignored = 0;
        }
        None
    }
}

/// `bits` word by word: the number of each word and those of its bits that are among them.
fn masks(bits: Bits) -> impl Iterator<Item = (u64, u64)> {
    let words = bits.words();
    (words.start..words.end).map(move |word| {
        let low = bits.start.saturating_sub(word * FANOUT);
        let high = (bits.end - word * FANOUT).min(FANOUT);
        (word, (u64::MAX << low) & (u64::MAX >> (FANOUT - high)))
    })
}
