//! The content of a dirty bitmap in memory: one bit for each granule of the disk.

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

/// Granules of 512 bytes to 2 GiB, as in QEMU.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;

/// A set of granules that are dirty. It may hold more than what changed, never less
/// (NEVER-UNDER-REPORT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBits {
    granularity_bits: u32,
    size: ByteCount,
    /// Bit k of the disk is bit k mod 64 of word k / 64; nothing is set behind the end.
    words: Vec<u64>,
}

impl DirtyBits {
    /// A clean set for a disk of `size` with granules of `granularity`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for granules of no power of two from 512 bytes to 2 GiB.
    pub fn new(size: ByteCount, granularity: ByteCount) -> Result<Self> {
        let granularity_bits = granularity.get().trailing_zeros();
        if !granularity.get().is_power_of_two() || !GRANULARITY_BITS.contains(&granularity_bits) {
            let problem = "have a power of two from 512 bytes to 2 GiB";
            return Err(Error::new(ErrorKind::Invalid, "granules of a bitmap", problem));
        }
        let granules = size.get().div_ceil(granularity.get());
        let words = vec![0; ByteCount::new(granules.div_ceil(64)).as_usize()];
        Ok(Self { granularity_bits, size, words })
    }

    /// Bytes of a granule.
    pub fn granularity(&self) -> ByteCount {
        ByteCount::new(1 << self.granularity_bits)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Makes every granule dirty that `range` touches; what lies behind the end does not count.
    pub fn mark(&mut self, range: ByteRange) {
        let range = range.intersect(ByteRange::new(ByteOffset::ZERO, self.size));
        if range.is_empty() {
            return;
        }
        let first = range.start.get() >> self.granularity_bits;
        let last = (range.end().get() - 1) >> self.granularity_bits;
        let (head, tail) = ((first / 64) as usize, (last / 64) as usize);
        let (from, to) = (u64::MAX << (first % 64), u64::MAX >> (63 - last % 64));
        if head == tail {
            self.words[head] |= from & to;
            return;
        }
        self.words[head] |= from;
        self.words[head + 1..tail].fill(u64::MAX);
        self.words[tail] |= to;
    }

    /// Makes every granule clean.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether no granule is dirty.
    pub fn is_clean(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many bytes of the disk dirty granules cover.
    pub fn dirty(&self) -> ByteCount {
        ByteCount::new(self.ranges().map(|range| range.len.get()).sum())
    }

    /// The dirty parts of the disk in order, neighbours joined.
    pub fn ranges(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from, true)?;
            let end = self.next(first, false).unwrap_or(self.words.len() as u64 * 64);
            from = end;
            let (start, end) = (first << self.granularity_bits, end << self.granularity_bits);
            let end = end.min(self.size.get());
            Some(ByteRange::between(ByteOffset::new(start), ByteOffset::new(end)))
        })
    }

    /// The first granule from `from` on that is dirty, or that is not.
    fn next(&self, from: u64, dirty: bool) -> Option<u64> {
        let flip = if dirty { 0 } else { u64::MAX };
        let mut index = (from / 64) as usize;
        let mut word = (self.words.get(index)? ^ flip) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = self.words.get(index)? ^ flip;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// Makes dirty what is dirty in `other`, whatever its granules.
    pub fn merge(&mut self, other: &Self) {
        if other.granularity_bits == self.granularity_bits && other.size == self.size {
            self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
        } else {
            other.ranges().for_each(|range| self.mark(range));
        }
    }

    /// The same for a disk of `size`. What is cut off is forgotten, what is added is clean.
    pub(super) fn resized(&self, size: ByteCount) -> Result<Self> {
        let mut resized = Self::new(size, self.granularity())?;
        resized.merge(self);
        Ok(resized)
    }

    /// Bytes of the set as it stands in a file.
    pub(super) fn len(&self) -> ByteCount {
        let granules = self.size.get().div_ceil(1 << self.granularity_bits);
        ByteCount::new(granules.div_ceil(8))
    }

    /// `len` bytes of the set as it stands in a file, from byte `from` on; zeros behind its end.
    pub(super) fn bytes(&self, from: ByteOffset, len: ByteCount) -> Vec<u8> {
        let byte = |at: u64| {
            let word = self.words.get((at / 8) as usize).copied().unwrap_or(0);
            word.to_le_bytes()[(at % 8) as usize]
        };
        (from.get()..from.get() + len.get()).map(byte).collect()
    }

    /// Sets what is set in `bytes`, which stand at byte `from` of a file.
    pub(super) fn add_bytes(&mut self, from: ByteOffset, bytes: &[u8]) {
        for (at, &byte) in (from.get()..self.len().get()).zip(bytes) {
            self.words[(at / 8) as usize] |= u64::from(byte) << (at % 8 * 8);
        }
        self.cut_tail();
    }

    /// Nothing is set behind the end, whatever a file says.
    fn cut_tail(&mut self) {
        let granules = self.size.get().div_ceil(1 << self.granularity_bits);
        if let Some(last) = self.words.last_mut()
            && granules % 64 != 0
        {
            *last &= u64::MAX >> (64 - granules % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DirtyBits;
    use block_types::{ByteCount, ByteOffset, ByteRange};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(ByteOffset::new(start), ByteOffset::new(end))
    }

    fn bits(size: u64) -> DirtyBits {
        DirtyBits::new(ByteCount::new(size), ByteCount::new(512)).unwrap()
    }

    #[test]
    fn a_granule_is_dirty_as_a_whole() {
        let mut bits = bits(200 * 512 + 5);
        bits.mark(range(511, 513));
        bits.mark(range(63 * 512, 130 * 512));
        bits.mark(range(200 * 512 + 4, 1 << 40));
        let expected = [(0, 2), (63, 130)].map(|(start, end)| range(start * 512, end * 512));
        let found: Vec<_> = bits.ranges().collect();
        assert_eq!(found[..2], expected);
        assert_eq!(found[2..], [range(200 * 512, 200 * 512 + 5)]);
        assert_eq!(bits.dirty().get(), 69 * 512 + 5);
        bits.clear();
        assert!(bits.is_clean() && bits.ranges().next().is_none());
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let mut bits = bits(70 * 512);
        bits.mark(range(3 * 512, 4 * 512));
        bits.mark(range(65 * 512, 66 * 512));
        let bytes = bits.bytes(ByteOffset::ZERO, ByteCount::new(12));
        assert_eq!(bytes, [8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        let mut read = self::bits(70 * 512);
        read.add_bytes(ByteOffset::ZERO, &bytes);
        assert_eq!(read, bits);
        read.add_bytes(ByteOffset::new(8), &[0xff; 4]);
        assert_eq!(read.ranges().last(), Some(range(64 * 512, 70 * 512)), "set behind the end");
    }

    #[test]
    fn merging_never_loses_whatever_the_granules() {
        let mut fine = bits(1 << 20);
        fine.mark(range(5 * 512, 6 * 512));
        fine.mark(range((1 << 20) - 512, 1 << 20));
        let mut coarse = DirtyBits::new(ByteCount::new(1 << 20), ByteCount::new(65536)).unwrap();
        coarse.merge(&fine);
        let found: Vec<_> = coarse.ranges().collect();
        assert_eq!(found, [range(0, 65536), range((1 << 20) - 65536, 1 << 20)]);
        fine.merge(&coarse);
        assert_eq!(fine.ranges().collect::<Vec<_>>(), found);
        let shrunk = fine.resized(ByteCount::new(70_000)).unwrap();
        assert_eq!(shrunk.ranges().collect::<Vec<_>>(), [range(0, 65536)]);
    }
}
