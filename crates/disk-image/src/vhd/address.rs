//! The addresses of a VHD: guest blocks, sectors of the file, and the shape of a block.

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

/// A block of the virtual disk, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestBlock(u32);

/// A sector of the file, counted from its start: what the block allocation table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileSector(u32);

/// The size of an image's blocks, and with it the size of their bitmaps: a power of two from 4 KiB
/// to 256 MiB. Everybody writes 2 MiB, and XenServer reads nothing larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl GuestBlock {
    /// Block number `index` of a disk.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number, as a place in a table.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl FileSector {
    /// What the table holds for a block without a place.
    pub(super) const UNUSED: u32 = u32::MAX;

    /// Sector number `index` of a file.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The sector at `at`, a whole number of sectors; `None` where the table cannot name it: it has
    /// 32 bits, which end at 2 TiB.
    pub(super) fn at(at: ByteOffset) -> Option<Self> {
        let sector = u32::try_from(at.get() / SECTOR).ok()?;
        (sector != Self::UNUSED).then_some(Self(sector))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Where it begins.
    pub const fn start(self) -> ByteOffset {
        ByteOffset::new(self.0 as u64 * SECTOR)
    }
}

impl BlockSize {
    /// What everybody writes.
    pub const DEFAULT: Self = Self(2 << 20);
    const LEAST: u32 = 4 << 10;
    const MOST: u32 = 256 << 20;

    /// A block size.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it is a power of two from 4 KiB to 256 MiB.
    pub fn new(size: ByteCount) -> Result<Self> {
        match u32::try_from(size.get()) {
            Ok(bytes @ Self::LEAST..=Self::MOST) if bytes.is_power_of_two() => Ok(Self(bytes)),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("block size of {} bytes", size.get()),
                "is not a power of two from 4 KiB to 256 MiB",
            )),
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> ByteCount {
        ByteCount::new(self.0 as u64)
    }

    /// Sectors of a block.
    pub(super) const fn sectors(self) -> usize {
        self.0 as usize / SECTOR as usize
    }

    /// Bytes of a block's bitmap in the file: a bit per sector, padded to whole sectors.
    pub(super) const fn bitmap_bytes(self) -> ByteCount {
        ByteCount::new((self.sectors() as u64).div_ceil(8).next_multiple_of(SECTOR))
    }

    /// Bytes of a block in the file: bitmap and data.
    pub(super) const fn footprint(self) -> ByteCount {
        ByteCount::new(self.bitmap_bytes().get() + self.0 as u64)
    }

    /// What a block in the file occupies that begins at `sector`.
    pub(super) const fn place(self, sector: FileSector) -> ByteRange {
        ByteRange::new(sector.start(), self.footprint())
    }

    /// Where the data of the block at `sector` begin.
    pub(super) const fn data_start(self, sector: FileSector) -> ByteOffset {
        sector.start().plus(self.bitmap_bytes())
    }

    /// The guest block that holds `at`, and how far into it that is. The disk ends within 2^32
    /// blocks: sizes are checked when an image is opened.
    pub(super) const fn locate(self, at: ByteOffset) -> (GuestBlock, ByteCount) {
        let size = self.0 as u64;
        (GuestBlock((at.get() / size) as u32), ByteCount::new(at.get() % size))
    }

    /// How many blocks hold a disk of `size`, the last perhaps in part.
    pub(super) const fn count(self, size: ByteCount) -> u64 {
        size.get().div_ceil(self.0 as u64)
    }
}

/// `bytes` rounded up to whole sectors.
pub(super) const fn whole_sectors(bytes: u64) -> ByteCount {
    ByteCount::new(bytes.next_multiple_of(SECTOR))
}

#[cfg(test)]
mod tests {
    use super::{BlockSize, FileSector};
    use block_types::{ByteCount, ByteOffset};

    #[test]
    fn the_usual_block_has_a_bitmap_of_one_sector() {
        let size = BlockSize::DEFAULT;
        assert_eq!((size.sectors(), size.bitmap_bytes().get()), (4096, 512));
        assert_eq!(size.data_start(FileSector::new(7)).get(), 4096);
        let (block, inside) = size.locate(ByteOffset::new((5 << 21) + 7));
        assert_eq!((block.get(), inside.get()), (5, 7));
        assert_eq!(size.count(ByteCount::new((2 << 21) + 1)), 3);
    }

    #[test]
    fn limits_of_block_sizes() {
        for (bytes, good) in
            [(0, false), (512, false), (4096, true), (3 << 20, false), (1 << 28, true)]
        {
            assert_eq!(BlockSize::new(ByteCount::new(bytes)).is_ok(), good, "{bytes}");
        }
        assert!(BlockSize::new(ByteCount::new(1 << 32)).is_err());
        let small = BlockSize::new(ByteCount::new(4096)).expect("a block size");
        assert_eq!(small.bitmap_bytes().get(), 512);
    }

    #[test]
    fn sectors_end_at_two_tebibytes() {
        assert!(FileSector::at(ByteOffset::new((1 << 41) - 1024)).is_some());
        assert!(FileSector::at(ByteOffset::new((1 << 41) - 512)).is_none());
        assert!(FileSector::at(ByteOffset::new(1 << 41)).is_none());
    }
}
