//! Bitmaps: two bits for the count of a block.
//!
//! The block of a bitmap begins with 16 bytes of checksum and number; then come 16320 counts, four
//! in a byte, the first in the lowest bits. Of the two bits of a count the *lower* one is the high
//! bit: a count of 1 is the bits `10`, a count of 2 is `01`. The value 3 means that the count is 3
//! or more and is found in the B-tree of large counts.

use super::layout::IndexEntry;
use crate::{Block, MetaBlock, RefCounts};

/// How many counts a bitmap holds.
pub const COUNTS_PER_BITMAP: usize = 16320;

/// Bytes before the counts.
const HEAD: usize = 16;
/// Counts in a byte.
const PER_BYTE: usize = 4;

/// A bitmap, and what its index entry says about it.
#[derive(Debug)]
pub struct EncodedBitmap {
    /// The block, complete but for its seal.
    pub block: Block,
    nr_free: u32,
    none_free_before: u32,
}

impl EncodedBitmap {
    /// The index entry of the bitmap, which lies at `at`.
    pub fn entry(&self, at: MetaBlock) -> IndexEntry {
        IndexEntry {
            bitmap: at.get().into(),
            nr_free: self.nr_free.into(),
            none_free_before: self.none_free_before.into(),
        }
    }
}

/// How many bitmaps `blocks` blocks need.
pub(crate) const fn bitmaps_for(blocks: u64) -> u64 {
    blocks.div_ceil(COUNTS_PER_BITMAP as u64)
}

/// The bitmap with this index.
pub fn encode_bitmap(counts: &RefCounts, index: u64) -> EncodedBitmap {
    let first = index * COUNTS_PER_BITMAP as u64;
    let bytes = counts.bytes(first..first + COUNTS_PER_BITMAP as u64);
    let mut block = Block::zeroed();
    let mut used = 0;
    for (packed, four) in block[HEAD..].iter_mut().zip(bytes.chunks(PER_BYTE)) {
        // Most of a map is free, or in use once.
        match four {
            [0, 0, 0, 0] => {}
            [1, 1, 1, 1] => {
                *packed = 0b10_10_10_10;
                used += 4;
            }
            _ => {
                *packed = pack(four);
                used += four.iter().filter(|&&count| count != 0).count();
            }
        }
    }
    let before = bytes.iter().position(|&count| count == 0).unwrap_or(bytes.len());
    // The format counts what lies past the end of the map as free.
    let nr_free = (COUNTS_PER_BITMAP - used) as u32;
    EncodedBitmap { block, nr_free, none_free_before: before as u32 }
}

/// Writes the counts of a bitmap to `counts`, 3 for those that are elsewhere; as many as there is
/// room for.
pub(crate) fn decode(block: &Block, counts: &mut [u8]) {
    for (packed, four) in block[HEAD..].iter().zip(counts.chunks_mut(PER_BYTE)) {
        if *packed == 0 {
            four.fill(0);
            continue;
        }
        for (place, count) in four.iter_mut().enumerate() {
            *count = swap(packed >> (2 * place) & 0b11);
        }
    }
}

fn pack(four: &[u8]) -> u8 {
    four.iter()
        .enumerate()
        .fold(0, |byte, (place, &count)| byte | swap(count.min(3)) << (2 * place))
}

/// Turns a two-bit count into its bits, and back.
fn swap(count: u8) -> u8 {
    (count & 1) << 1 | count >> 1
}

#[cfg(test)]
mod tests {
    use super::{COUNTS_PER_BITMAP, bitmaps_for, decode, encode_bitmap};
    use crate::RefCounts;

    #[test]
    fn the_high_bit_is_the_even_one() {
        let mut counts = RefCounts::new(10);
        for (block, count) in [2, 0, 2, 2, 1, 1, 1, 1, 1000, 3].into_iter().enumerate() {
            counts.set(block as u64, count);
        }
        let encoded = encode_bitmap(&counts, 0);
        // 0x51 begins the data bitmap of a kernel's pool: count 2, count 0, count 2, count 2.
        assert_eq!(encoded.block[16..19], [0x51, 0xAA, 0x0F]);
        assert!(encoded.block[19..].iter().all(|&byte| byte == 0));
        assert_eq!(encoded.nr_free, 16320 - 9);
        assert_eq!(encoded.none_free_before, 1);
        let mut decoded = [9; 10];
        decode(&encoded.block, &mut decoded);
        assert_eq!(decoded, [2, 0, 2, 2, 1, 1, 1, 1, 3, 3]);
    }

    #[test]
    fn a_full_bitmap_has_no_free_count() {
        let mut counts = RefCounts::new(COUNTS_PER_BITMAP as u64 + 3);
        (0..counts.len()).for_each(|block| counts.set(block, 1));
        let first = encode_bitmap(&counts, 0);
        assert_eq!((first.nr_free, first.none_free_before), (0, 16320));
        let second = encode_bitmap(&counts, 1);
        assert_eq!((second.nr_free, second.none_free_before), (16317, 3));
        assert_eq!(second.block[16..18], [0b10_10_10, 0]);
    }

    #[test]
    fn bitmaps_cover_the_last_block() {
        assert_eq!(bitmaps_for(0), 0);
        assert_eq!(bitmaps_for(16320), 1);
        assert_eq!(bitmaps_for(16321), 2);
    }
}
