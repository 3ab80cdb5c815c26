//! A bitmap as bytes, part by part, as images and bitmap files keep it.
//!
//! Bit `k` is bit `k % 8` of byte `k / 8`; what is left over in the last byte is zero.

use std::ops::Range;

use super::{Bits, DirtyBitmap, FANOUT};
use crate::ByteRange;

/// What a part of a bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartContent {
    /// No bit is set.
    Clean,
    /// Every bit is set; of the last part, every bit that the disk has.
    Dirty,
    /// Both.
    Mixed,
}

/// Bytes of a word.
const WORD: u64 = FANOUT / 8;

impl DirtyBitmap {
    /// Bytes that the whole bitmap takes.
    pub fn byte_len(&self) -> u64 {
        self.bits().div_ceil(8)
    }

    /// Which bytes of the bitmap hold the granules that `range` touches.
    pub fn bytes_of(&self, range: ByteRange) -> Range<u64> {
        let bits = self.touched(range);
        bits.start / 8..bits.end.div_ceil(8)
    }

    /// What the bytes `part` of the bitmap hold; those past its end count for nothing.
    pub fn content(&self, part: Range<u64>) -> PartContent {
        let bits = self.bits_in(&part);
        let _nobody_clears = self.clearing.read();
        match self.next_set(bits.start).filter(|&set| set < bits.end) {
            None => PartContent::Clean,
            Some(first) if first > bits.start => PartContent::Mixed,
            Some(_) => match self.levels[0].next_clear(bits.start) {
                Some(clear) if clear < bits.end => PartContent::Mixed,
                _ => PartContent::Dirty,
            },
        }
    }

    /// Fills `buffer` with the bitmap's bytes from `at` on, a multiple of 8; with zeros past its
    /// end.
    pub fn export(&self, at: u64, buffer: &mut [u8]) {
        debug_assert!(at.is_multiple_of(WORD), "parts begin with a word");
        let _nobody_clears = self.clearing.read();
        for (number, bytes) in (at / WORD..).zip(buffer.chunks_mut(WORD as usize)) {
            let word =
                if number < self.levels[0].words() { self.levels[0].word(number) } else { 0 };
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }

    /// Marks what `bytes` say, the bitmap's from `at` on, a multiple of 8. Bits past the disk's end
    /// are ignored.
    pub fn import(&self, at: u64, bytes: &[u8]) {
        debug_assert!(at.is_multiple_of(WORD), "parts begin with a word");
        for (number, bytes) in (at / WORD..).zip(bytes.chunks(WORD as usize)) {
            let mut word = [0; WORD as usize];
            word[..bytes.len()].copy_from_slice(bytes);
            self.merge_word(number, u64::from_le_bytes(word));
        }
    }

    /// Marks everything under the bytes `part`.
    pub fn set_part(&self, part: Range<u64>) {
        self.set_bits(self.bits_in(&part));
    }

    /// Clears everything under the bytes `part`.
    pub fn clear_part(&self, part: Range<u64>) {
        self.clear_bits(self.bits_in(&part));
    }

    fn bits_in(&self, part: &Range<u64>) -> Bits {
        let limit = |byte: u64| byte.saturating_mul(8).min(self.bits());
        Bits { start: limit(part.start), end: limit(part.end) }
    }
}
