//! The addresses of a snapshot: chunks of its origin, chunks of its store, and their size.

use std::ops::Range;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use crate::layout::ExceptionLayout;

/// A chunk of the origin, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginChunk(u64);

/// A chunk of an exception store, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreChunk(u64);

/// The size of a snapshot's chunks: a power of two from one sector to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSize(u64);

/// One exception: what the origin's chunk held, the store's chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Where the origin had it.
    pub old: OriginChunk,
    /// Where the store has it.
    pub new: StoreChunk,
}

impl OriginChunk {
    /// Chunk number `index` of an origin.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl StoreChunk {
    /// Chunk number `index` of a store.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl ChunkSize {
    /// The kernel's default, 16 KiB.
    pub const DEFAULT: Self = Self(32 * SECTOR);

    /// The kernel takes sizes below 2^31 bytes.
    const MAX: u64 = 1 << 30;

    /// A chunk size.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it is a power of two from 512 bytes to 1 GiB.
    pub fn new(size: ByteCount) -> Result<Self> {
        let bytes = size.get();
        if !bytes.is_power_of_two() || !(SECTOR..=Self::MAX).contains(&bytes) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("chunk size {size}"),
                "is not a power of two from 512 bytes to 1 GiB",
            ));
        }
        Ok(Self(bytes))
    }

    /// Bytes of a chunk.
    pub const fn bytes(self) -> ByteCount {
        ByteCount::new(self.0)
    }

    /// Sectors of a chunk.
    pub const fn sectors(self) -> u64 {
        self.0 / SECTOR
    }

    /// Exceptions of an area: as many as a chunk has room for.
    pub const fn per_area(self) -> u64 {
        self.0 / size_of::<ExceptionLayout>() as u64
    }

    /// The chunk that holds area number `area`: the areas are spread over the store, each before
    /// the data chunks of its exceptions.
    pub const fn area(self, area: u64) -> StoreChunk {
        StoreChunk(1 + (self.per_area() + 1) * area)
    }

    /// Whether a chunk of a persistent store is its header or an area, and so never holds data.
    pub const fn is_metadata(self, chunk: StoreChunk) -> bool {
        chunk.0 == 0 || chunk.0 % (self.per_area() + 1) == 1
    }

    /// How many chunks a device of `size` has, the last perhaps in part.
    pub const fn count(self, size: ByteCount) -> u64 {
        size.div_ceil(self.bytes())
    }

    /// The chunk of the origin that holds `at`.
    pub const fn holding(self, at: ByteOffset) -> OriginChunk {
        OriginChunk(at.get() / self.0)
    }

    /// The numbers of the origin's chunks that `range` touches.
    pub(crate) const fn touched(self, range: ByteRange) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start.get() / self.0..range.end().get().div_ceil(self.0)
    }

    /// The bytes of a chunk of the origin, as far as they lie within `size`.
    pub fn origin_range(self, chunk: OriginChunk, size: ByteCount) -> ByteRange {
        let whole = ByteRange::new(ByteOffset::new(chunk.0 * self.0), self.bytes());
        whole.intersect(ByteRange::new(ByteOffset::ZERO, size))
    }

    /// Where a chunk of the store begins.
    pub const fn store_start(self, chunk: StoreChunk) -> ByteOffset {
        ByteOffset::new(chunk.0 * self.0)
    }

    /// The bytes of a chunk of the store.
    pub const fn store_range(self, chunk: StoreChunk) -> ByteRange {
        ByteRange::new(self.store_start(chunk), self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{ChunkSize, OriginChunk, StoreChunk};
    use block_types::ByteCount;

    fn size(bytes: u64) -> ChunkSize {
        ChunkSize::new(ByteCount::new(bytes)).expect("a chunk size")
    }

    #[test]
    fn sizes_that_the_kernel_takes() {
        for bytes in [0, 256, 1536, 1 << 31] {
            assert!(ChunkSize::new(ByteCount::new(bytes)).is_err(), "{bytes}");
        }
        assert_eq!(size(512).per_area(), 32);
        assert_eq!(ChunkSize::DEFAULT.sectors(), 32);
    }

    /// The places of the fixture with 309 exceptions.
    #[test]
    fn areas_lie_before_their_data() {
        let size = size(4096);
        assert_eq!(size.area(0).get(), 1);
        assert_eq!(size.area(1).get(), 258);
        let metadata: Vec<u64> =
            (0..600).filter(|&chunk| size.is_metadata(StoreChunk::new(chunk))).collect();
        assert_eq!(metadata, [0, 1, 258, 515]);
    }

    #[test]
    fn the_last_chunk_may_be_partial() {
        let range = size(4096).origin_range(OriginChunk::new(2), ByteCount::new(9000));
        assert_eq!((range.start.get(), range.len.get()), (8192, 808));
    }
}
