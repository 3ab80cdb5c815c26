//! Byte offsets, byte counts and ranges of one device.

use std::fmt;

/// Bytes in a device-mapper sector; the unit of the kernel's table and status lines.
pub const SECTOR: u64 = 512;

/// A position in a device, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(u64);

/// A length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(u64);

/// A run of bytes of one device. An empty range has a position all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: ByteOffset,
    /// Length; `start + len` never exceeds `u64::MAX`.
    pub len: ByteCount,
}

impl ByteOffset {
    /// The start of a device.
    pub const ZERO: Self = Self(0);

    /// The position `bytes` behind the start.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the start.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `count` further on, or `None` past the end of the address space.
    pub const fn checked_add(self, count: ByteCount) -> Option<Self> {
        match self.0.checked_add(count.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The position `count` further on.
    ///
    /// # Panics
    /// Past the end of the address space: callers check requests against the device's size first.
    #[must_use]
    pub const fn plus(self, count: ByteCount) -> Self {
        match self.checked_add(count) {
            Some(sum) => sum,
            None => panic!("byte offset overflows"),
        }
    }

    /// Bytes from `earlier` to here.
    ///
    /// # Panics
    /// If `earlier` lies behind this position.
    pub const fn since(self, earlier: Self) -> ByteCount {
        match self.0.checked_sub(earlier.0) {
            Some(distance) => ByteCount(distance),
            None => panic!("byte offsets out of order"),
        }
    }

    /// Whether the position is a multiple of `unit`.
    pub const fn is_aligned(self, unit: ByteCount) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// The nearest multiple of `unit` at or before the position.
    #[must_use]
    pub const fn align_down(self, unit: ByteCount) -> Self {
        Self(self.0 - self.0 % unit.0)
    }
}

impl ByteCount {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// A length of `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The length of a buffer.
    pub const fn of(buffer: &[u8]) -> Self {
        Self(buffer.len() as u64)
    }

    /// A length of `sectors` of 512 bytes.
    pub const fn from_sectors(sectors: u64) -> Self {
        Self(sectors * SECTOR)
    }

    /// Bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes, as the length of something in memory.
    ///
    /// # Panics
    /// On machines whose memory is smaller than the length (only below 64 bits).
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("length fits memory")
    }

    /// Whole sectors of 512 bytes; a broken last one is not counted.
    pub const fn sectors(self) -> u64 {
        self.0 / SECTOR
    }

    /// Whether there are no bytes.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether the length is a multiple of `unit`.
    pub const fn is_aligned(self, unit: Self) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// How many units of `unit` bytes hold this length, the last perhaps broken.
    pub const fn div_ceil(self, unit: Self) -> u64 {
        self.0.div_ceil(unit.0)
    }

    /// The sum, or `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The shorter of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

impl ByteRange {
    /// `len` bytes at `start`.
    ///
    /// # Panics
    /// If the end lies past the address space; use [`ByteRange::checked`] for input from outside.
    pub const fn new(start: ByteOffset, len: ByteCount) -> Self {
        match Self::checked(start, len) {
            Some(range) => range,
            None => panic!("byte range overflows"),
        }
    }

    /// `len` bytes at `start`, or `None` if the end lies past the address space.
    pub const fn checked(start: ByteOffset, len: ByteCount) -> Option<Self> {
        match start.checked_add(len) {
            Some(_) => Some(Self { start, len }),
            None => None,
        }
    }

    /// The bytes from `start` up to `end`, which is not included.
    ///
    /// # Panics
    /// If `end` lies before `start`.
    pub const fn between(start: ByteOffset, end: ByteOffset) -> Self {
        Self { start, len: end.since(start) }
    }

    /// The first byte behind the range.
    pub const fn end(self) -> ByteOffset {
        ByteOffset(self.start.0 + self.len.0)
    }

    /// Whether the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// Whether start and length are multiples of `unit`.
    pub const fn is_aligned(self, unit: ByteCount) -> bool {
        self.start.is_aligned(unit) && self.len.is_aligned(unit)
    }

    /// The bytes that both ranges hold; empty, at the later start, if there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end()).max(start);
        Self::between(start, end)
    }

    /// The range cut at the multiples of `unit`, in order.
    pub fn pieces(self, unit: ByteCount) -> impl Iterator<Item = Self> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let next = rest.start.align_down(unit).0.saturating_add(unit.0);
            let piece = Self::between(rest.start, ByteOffset(next.min(rest.end().0)));
            rest = Self::between(piece.end(), rest.end());
            Some(piece)
        })
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::format_size(*self))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.len.0, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteCount, ByteOffset, ByteRange};

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    #[test]
    fn pieces_cut_at_the_unit() {
        let cut: Vec<_> = range(5, 20).pieces(ByteCount::new(8)).collect();
        assert_eq!(cut, [range(5, 3), range(8, 8), range(16, 8), range(24, 1)]);
        assert_eq!(range(5, 0).pieces(ByteCount::new(8)).count(), 0);
    }

    #[test]
    fn pieces_reach_the_end_of_the_address_space() {
        let last = range(u64::MAX - 3, 3);
        assert_eq!(last.pieces(ByteCount::new(8)).collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn intersections() {
        assert_eq!(range(0, 10).intersect(range(4, 10)), range(4, 6));
        assert!(range(0, 4).intersect(range(8, 4)).is_empty());
        assert!(ByteRange::checked(ByteOffset::new(u64::MAX), ByteCount::new(1)).is_none());
    }
}
