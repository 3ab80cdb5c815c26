//! The hierarchical bitmap: which parts of a disk have changed.
//!
//! A bit covers [`Granularity`] bytes. Above the bits stand levels of summary words, 64-way: bit
//! `i` of a level says that word `i` of the level below is not zero, so that what is next dirty is
//! found in a few steps however empty the bitmap is.
//!
//! ```text
//!   level 2   1                                        one word
//!   level 1   1 0 1 ...                                a bit for each word below
//!   level 0   0100.. 0000.. 1111.. ...                 a bit for each granule of the disk
//! ```
//!
//! Setting takes no lock: whoever returns from [`DirtyBitmap::set`] has seen every summary on the
//! way up set, also where another thread is on its way with the same word (NEVER-UNDER-REPORT).
//! Clearing keeps those who look away meanwhile, and takes a summary back if its word was set
//! again behind it.

mod level;
mod merge;
mod part;
mod scan;
#[cfg(test)]
mod tests;

pub use part::PartContent;

use std::fmt;

use parking_lot::RwLock;

use crate::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use level::Level;

/// Bits of a word, and words under a bit of the next level.
const FANOUT: u64 = 64;

/// The most bits: 512 MiB of them, as in QEMU.
const MOST_BITS: u64 = 1 << 32;

/// How many bytes a bit covers: a power of two from 512 bytes to 2 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granularity(u8);

/// Which granules of a disk are dirty. May be set by many threads at once.
pub struct DirtyBitmap {
    size: ByteCount,
    granularity: Granularity,
    /// From the bits up to a level of one word.
    levels: Vec<Level>,
    /// Held for writing by those who clear, for reading by those who look.
    clearing: RwLock<()>,
}

/// Some bits, by number; the last is not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    start: u64,
    end: u64,
}

impl Granularity {
    /// The smallest: a sector.
    pub const SMALLEST: Self = Self(9);

    /// The largest: 2 GiB.
    pub const LARGEST: Self = Self(31);

    /// A bit for every `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no power of two from 512 bytes to 2 GiB.
    pub fn new(bytes: ByteCount) -> Result<Self> {
        let (least, most) = (Self::SMALLEST.bytes(), Self::LARGEST.bytes());
        if bytes.get().is_power_of_two() && (least..=most).contains(&bytes) {
            return Ok(Self(bytes.get().trailing_zeros() as u8));
        }
        let problem = format!("{} bytes are no power of two from 512 to 2G", bytes.get());
        Err(Error::new(ErrorKind::Invalid, "granularity", problem).advise("say 64K, for example"))
    }

    /// A bit for every `1 << exponent` bytes, or `None` outside 9 to 31.
    pub fn from_exponent(exponent: u8) -> Option<Self> {
        let found = Self(exponent);
        (Self::SMALLEST..=Self::LARGEST).contains(&found).then_some(found)
    }

    /// The power of two.
    pub const fn exponent(self) -> u8 {
        self.0
    }

    /// Bytes under a bit.
    pub const fn bytes(self) -> ByteCount {
        ByteCount::new(1 << self.0)
    }
}

impl Clone for DirtyBitmap {
    fn clone(&self) -> Self {
        let levels = self.levels.iter().map(|level| Level::new(level.words() * FANOUT)).collect();
        let (size, granularity) = (self.size, self.granularity);
        let copy = Self { size, granularity, levels, clearing: RwLock::new(()) };
        copy.merge(self);
        copy
    }
}

impl PartialEq for DirtyBitmap {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size
            && self.granularity == other.granularity
            && self.dirty_runs().eq(other.dirty_runs())
    }
}

impl Eq for DirtyBitmap {}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("size", &self.size)
            .field("granularity", &self.granularity)
            .field("dirty", &self.dirty())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

impl Bits {
    fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The words that hold these bits: as many bits of the next level.
    fn words(self) -> Self {
        Self { start: self.start / FANOUT, end: self.end.div_ceil(FANOUT) }
    }
}

impl DirtyBitmap {
    /// A clean bitmap of a disk of `size` bytes. Its memory is taken where bits are set, page by
    /// page of the system's.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where it would take more than 2^32 bits (512 MiB).
    pub fn new(size: ByteCount, granularity: Granularity) -> Result<Self> {
        let bits = size.div_ceil(granularity.bytes());
        if bits > MOST_BITS {
            let problem = format!("a disk of {size} takes too many bits of {granularity}");
            return Err(Error::new(ErrorKind::Invalid, "bitmap", problem)
                .advise("choose a larger granularity"));
        }
        let mut levels = vec![Level::new(bits)];
        while let Some(words) = levels.last().map(Level::words).filter(|&words| words > 1) {
            levels.push(Level::new(words));
        }
        Ok(Self { size, granularity, levels, clearing: RwLock::new(()) })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Bytes under a bit.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Marks every granule that `range` touches, and says whether one was clean. What lies past the
    /// disk's end is left out. Takes no lock.
    pub fn set(&self, range: ByteRange) -> bool {
        self.set_bits(self.touched(range))
    }

    /// Clears every granule that lies wholly in `range`; one that is only touched stays as it is,
    /// for the rest of it may be dirty. The end of the disk ends its last granule.
    pub fn clear(&self, range: ByteRange) {
        self.clear_bits(self.covered(range));
    }

    /// Clears everything.
    pub fn clear_all(&self) {
        self.clear(self.whole());
    }

    /// Marks everything.
    pub fn set_all(&self) {
        self.set(self.whole());
    }

    /// Whether a granule that `range` touches is dirty.
    pub fn is_dirty(&self, range: ByteRange) -> bool {
        let bits = self.touched(range);
        if bits.is_empty() {
            return false;
        }
        let _nobody_clears = self.clearing.read();
        self.next_set(bits.start).is_some_and(|next| next < bits.end)
    }

    /// Whether every granule that `range` touches is dirty. Takes no lock.
    pub fn is_all_dirty(&self, range: ByteRange) -> bool {
        self.levels[0].has_all(self.touched(range))
    }

    /// The same bitmap for a disk of `size` bytes. A granule that the disk did not reach before, or
    /// not to its end, is dirty (NEVER-UNDER-REPORT): what was cut off and grown again is zeros,
    /// which it may not have been when the bitmap was clean.
    ///
    /// # Errors
    /// As [`DirtyBitmap::new`].
    pub fn resized(&self, size: ByteCount) -> Result<Self> {
        let resized = Self::new(size, self.granularity)?;
        resized.merge(self);
        if size > self.size {
            resized.set(ByteRange::between(end_of(self.size), end_of(size)));
        }
        Ok(resized)
    }

    /// The whole disk.
    fn whole(&self) -> ByteRange {
        ByteRange::new(ByteOffset::ZERO, self.size)
    }

    /// How many bits there are.
    fn bits(&self) -> u64 {
        self.size.div_ceil(self.granularity.bytes())
    }

    /// The bits whose granules `range` touches.
    fn touched(&self, range: ByteRange) -> Bits {
        if range.is_empty() {
            return Bits { start: 0, end: 0 };
        }
        let shift = self.granularity.0;
        let last = (range.end().get() - 1) >> shift;
        Bits { start: range.start.get() >> shift, end: (last + 1).min(self.bits()) }
    }

    /// The bits whose granules lie wholly in `range`.
    fn covered(&self, range: ByteRange) -> Bits {
        let unit = self.granularity.bytes();
        let start = range.start.get().div_ceil(unit.get());
        let end = match range.end().get() >= self.size.get() {
            true => self.bits(),
            false => range.end().get() / unit.get(),
        };
        Bits { start, end }
    }

    /// The disk's bytes under `bits`, which are not none.
    fn under(&self, bits: Bits) -> ByteRange {
        let at = |bit: u64| ByteOffset::new((bit << self.granularity.0).min(self.size.get()));
        ByteRange::between(at(bits.start), at(bits.end))
    }

    /// Sets bits and every summary above them, and says whether one of the bits was clear.
    fn set_bits(&self, bits: Bits) -> bool {
        if bits.is_empty() {
            return false;
        }
        let changed = self.levels[0].set(bits);
        let mut words = bits;
        for level in &self.levels[1..] {
            words = words.words();
            level.set(words);
        }
        changed
    }

    /// Clears bits, and the summaries of words that are zero by that.
    fn clear_bits(&self, bits: Bits) {
        if bits.is_empty() {
            return;
        }
        let _alone = self.clearing.write();
        self.levels[0].clear(bits);
        let mut words = bits;
        for pair in self.levels.windows(2) {
            let [below, above] = pair else { return };
            words = below.zero_ends(words.words());
            if words.is_empty() {
                return;
            }
            above.clear(words);
            restore(below, above, words);
        }
    }
}

/// Sets the summaries again of those `words` of `below` that are not zero any more.
///
/// Whoever set a bit of such a word looked at its summary after that. If that was before the
/// summary was cleared, the bit is seen here; if after, he sets the summary himself.
fn restore(below: &Level, above: &Level, words: Bits) {
    for word in words.start..words.end {
        if below.word(word) != 0 {
            above.set(Bits { start: word, end: word + 1 });
        }
    }
}

/// The end of a disk.
fn end_of(size: ByteCount) -> ByteOffset {
    ByteOffset::new(size.get())
}
