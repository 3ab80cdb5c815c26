//! Where the disk's sectors lie, in memory: the block allocation table and the sector bitmaps.
//!
//! Read by atomic loads, without a lock and without I/O. Entries only ever come to be: a block that
//! has a place keeps it, a sector that is present stays so. The table is read when the image is
//! opened; a bitmap when its block is first wanted, unless the block is known to be full.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use block_types::{ByteCount, ByteOffset, ByteRange};

use super::address::{BlockSize, FileSector, GuestBlock};

/// Blocks whose bitmaps hang on one page.
const PAGE: usize = 256;
/// Bits of a word of a bitmap.
const WORD: usize = 64;

/// The mapping of a sparse disk.
pub(super) struct Mapping {
    block_size: BlockSize,
    /// The table, for as many blocks as the disk could grow to.
    table: Box<[AtomicU32]>,
    /// A bit per block: all of its sectors are present.
    full: Box<[AtomicU64]>,
    bitmaps: Box<[OnceLock<Box<Page>>]>,
}

type Page = [OnceLock<Bitmap>; PAGE];

/// Which sectors of a block are present. The first is the highest bit of the first word, as in the
/// file.
pub(super) struct Bitmap {
    words: Box<[AtomicU64]>,
}

/// A run of guest bytes that lie in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) len: ByteCount,
    pub(super) held: Held,
}

/// Where guest bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Here in the file.
    Own(ByteOffset),
    /// Not in this image.
    Absent,
    /// The bitmap of this block has to be read first.
    Unknown(GuestBlock),
}

impl Mapping {
    /// A mapping of `capacity` blocks without places.
    pub(super) fn new(block_size: BlockSize, capacity: usize) -> Self {
        Self {
            block_size,
            table: (0..capacity).map(|_| AtomicU32::new(FileSector::UNUSED)).collect(),
            full: (0..capacity.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect(),
            bitmaps: (0..capacity.div_ceil(PAGE)).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Enters what the table in the file says, from block `first` on.
    pub(super) fn fill(&self, first: usize, entries: &[u8]) {
        for (entry, bytes) in self.table[first..].iter().zip(entries.chunks_exact(4)) {
            let sector = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            entry.store(sector, Ordering::Relaxed);
        }
    }

    pub(super) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Blocks that the disk could grow to.
    pub(super) fn capacity(&self) -> usize {
        self.table.len()
    }

    /// Where `block` lies in the file.
    pub(super) fn place(&self, block: GuestBlock) -> Option<FileSector> {
        let sector = self.table[block.index()].load(Ordering::Acquire);
        (sector != FileSector::UNUSED).then_some(FileSector::new(sector))
    }

    /// The blocks that have a place, and where.
    pub(super) fn places(&self) -> impl Iterator<Item = (GuestBlock, FileSector)> {
        let blocks = (0..u32::try_from(self.table.len()).unwrap_or(u32::MAX)).map(GuestBlock::new);
        blocks.filter_map(|block| self.place(block).map(|place| (block, place)))
    }

    /// Gives `block`, whose sectors are marked already, a place.
    pub(super) fn set_place(&self, block: GuestBlock, sector: FileSector) {
        self.table[block.index()].store(sector.get(), Ordering::Release);
    }

    pub(super) fn is_full(&self, block: GuestBlock) -> bool {
        let word = self.full[block.index() / WORD].load(Ordering::Acquire);
        word & mask(block.index() % WORD) != 0
    }

    /// Notes that every sector of `block` is present.
    pub(super) fn set_full(&self, block: GuestBlock) {
        let bit = mask(block.index() % WORD);
        self.full[block.index() / WORD].fetch_or(bit, Ordering::Release);
    }

    /// The bitmap of `block`, if it was wanted before.
    pub(super) fn bitmap(&self, block: GuestBlock) -> Option<&Bitmap> {
        self.bitmaps[block.index() / PAGE].get()?[block.index() % PAGE].get()
    }

    /// Enters the bitmap of `block`. One that is there already is no older, and stays.
    pub(super) fn enter_bitmap(&self, block: GuestBlock, bitmap: Bitmap) -> &Bitmap {
        let page = self.bitmaps[block.index() / PAGE]
            .get_or_init(|| Box::new([const { OnceLock::new() }; PAGE]));
        if bitmap.is_full(self.block_size) {
            self.set_full(block);
        }
        page[block.index() % PAGE].get_or_init(|| bitmap)
    }

    /// Marks sectors of `block` as present; `range` lies in the block. Its bitmap is entered.
    pub(super) fn set_present(&self, block: GuestBlock, range: ByteRange) {
        let (_, inside) = self.block_size.locate(range.start);
        let bitmap = self.bitmap(block).expect("a block's bitmap is entered before it changes");
        bitmap.set(inside.sectors() as usize, range.len.sectors() as usize);
        if bitmap.is_full(self.block_size) {
            self.set_full(block);
        }
    }

    /// What lies at the start of `range`, which is not empty, and how far that goes. Absent blocks
    /// join; the rest ends with its block.
    pub(super) fn run(&self, range: ByteRange) -> Run {
        let (block, inside) = self.block_size.locate(range.start);
        let room = ByteCount::new(self.block_size.bytes().get() - inside.get());
        let len = room.min(range.len);
        let Some(place) = self.place(block) else {
            return self.absent_from(block, room, range.len);
        };
        let at = self.block_size.data_start(place).plus(inside);
        if self.is_full(block) {
            return Run { len, held: Held::Own(at) };
        }
        let Some(bitmap) = self.bitmap(block) else {
            return Run { len, held: Held::Unknown(block) };
        };
        let first = inside.sectors() as usize;
        let (present, sectors) = bitmap.run(first, len.sectors() as usize);
        let held = if present { Held::Own(at) } else { Held::Absent };
        Run { len: ByteCount::from_sectors(sectors as u64), held }
    }

    /// A run of absent blocks that begins `room` bytes before the end of `block`.
    fn absent_from(&self, block: GuestBlock, room: ByteCount, wanted: ByteCount) -> Run {
        let mut len = room.get();
        let mut next = block.get() + 1;
        while len < wanted.get() && self.place(GuestBlock::new(next)).is_none() {
            len += self.block_size.bytes().get();
            next += 1;
        }
        Run { len: ByteCount::new(len).min(wanted), held: Held::Absent }
    }
}

impl Bitmap {
    /// The bitmap of a block without any sector.
    pub(super) fn empty(block_size: BlockSize) -> Self {
        let words = block_size.sectors().div_ceil(WORD);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The bitmap that the file holds as `bytes`.
    pub(super) fn parse(block_size: BlockSize, bytes: &[u8]) -> Self {
        let bitmap = Self::empty(block_size);
        for (word, bytes) in bitmap.words.iter().zip(bytes.chunks_exact(8)) {
            let bytes = bytes.try_into().expect("chunks of eight");
            word.store(u64::from_be_bytes(bytes), Ordering::Relaxed);
        }
        bitmap
    }

    /// Writes it as the file holds it; a sector that becomes present meanwhile may be in or not.
    pub(super) fn write_to(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        for (word, bytes) in self.words.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_be_bytes());
        }
    }

    pub(super) fn is_full(&self, block_size: BlockSize) -> bool {
        let sectors = block_size.sectors();
        self.run(0, sectors) == (true, sectors)
    }

    fn set(&self, first: usize, count: usize) {
        let mut sector = first;
        while sector < first + count {
            let inside = sector % WORD;
            let len = (WORD - inside).min(first + count - sector);
            let bits = (u64::MAX << (WORD - len)) >> inside;
            self.words[sector / WORD].fetch_or(bits, Ordering::Release);
            sector += len;
        }
    }

    /// Whether sector `first` is present, and how many of `count` from there on are as it is.
    fn run(&self, first: usize, count: usize) -> (bool, usize) {
        let load = |sector: usize| self.words[sector / WORD].load(Ordering::Acquire);
        let present = load(first) & mask(first % WORD) != 0;
        let mut sector = first;
        while sector < first + count {
            let word = load(sector);
            // The bits of interest at the top, those that end the run as ones.
            let rest = (if present { !word } else { word }) << (sector % WORD);
            let same = (rest.leading_zeros() as usize).min(WORD - sector % WORD);
            sector += same;
            if !sector.is_multiple_of(WORD) || same == 0 {
                break;
            }
        }
        (present, (sector - first).min(count))
    }
}

/// The bit of place `place` in its word.
const fn mask(place: usize) -> u64 {
    1 << (WORD - 1 - place)
}

#[cfg(test)]
mod tests {
    use super::{Bitmap, Held, Mapping};
    use crate::vhd::{BlockSize, FileSector, GuestBlock};
    use block_types::{ByteCount, ByteOffset, ByteRange};
    use testkit::rng::Rng;

    const BLOCK: u64 = 64 << 10;

    fn size() -> BlockSize {
        BlockSize::new(ByteCount::new(BLOCK)).expect("a block size")
    }

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    #[test]
    fn bitmaps_agree_with_a_list_of_bools() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let bitmap = Bitmap::empty(size());
            let mut model = [false; 128];
            for _ in 0..rng.within(1..6) {
                let first = rng.index(128);
                let count = 1 + rng.index(128 - first);
                bitmap.set(first, count);
                model[first..first + count].fill(true);
            }
            for first in 0..128 {
                let count = 1 + rng.index(128 - first);
                let same = model[first..first + count].iter().take_while(|&&m| m == model[first]);
                assert_eq!(bitmap.run(first, count), (model[first], same.count()));
            }
            let mut bytes = [0; 512];
            bitmap.write_to(&mut bytes);
            for (sector, present) in model.iter().enumerate() {
                assert_eq!(bytes[sector / 8] & 0x80 >> (sector % 8) != 0, *present);
            }
            let again = Bitmap::parse(size(), &bytes);
            assert_eq!(again.run(0, 128), bitmap.run(0, 128));
            assert_eq!(bitmap.is_full(size()), model.iter().all(|&m| m));
        }
    }

    #[test]
    fn runs_join_absent_blocks_and_stop_at_unknown_ones() {
        let mapping = Mapping::new(size(), 8);
        let run = mapping.run(range(512, 8 * BLOCK - 512));
        assert_eq!((run.len.get(), run.held), (8 * BLOCK - 512, Held::Absent));
        let block = GuestBlock::new(2);
        mapping.set_place(block, FileSector::new(7));
        let run = mapping.run(range(0, 8 * BLOCK));
        assert_eq!((run.len.get(), run.held), (2 * BLOCK, Held::Absent));
        let at = range(2 * BLOCK + 512, BLOCK);
        assert_eq!(mapping.run(at).held, Held::Unknown(block));
        mapping.enter_bitmap(block, Bitmap::empty(size()));
        assert_eq!(mapping.run(at).held, Held::Absent);
        mapping.set_present(block, range(2 * BLOCK + 512, 1024));
        let run = mapping.run(at);
        let own = Held::Own(ByteOffset::new(7 * 512 + 512 + 512));
        assert_eq!((run.len.get(), run.held), (1024, own));
        mapping.set_present(block, range(2 * BLOCK, BLOCK));
        assert!(mapping.is_full(block));
        assert_eq!(mapping.places().collect::<Vec<_>>(), [(block, FileSector::new(7))]);
    }

    #[test]
    fn a_full_block_needs_no_bitmap() {
        let mapping = Mapping::new(size(), 2);
        let block = GuestBlock::new(1);
        mapping.set_full(block);
        mapping.set_place(block, FileSector::new(8));
        let run = mapping.run(range(BLOCK, BLOCK));
        assert_eq!((run.len.get(), run.held), (BLOCK, Held::Own(ByteOffset::new(9 * 512))));
    }

    #[test]
    fn the_table_of_the_file() {
        let mapping = Mapping::new(size(), 3);
        mapping.fill(1, &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9]);
        assert_eq!(mapping.place(GuestBlock::new(1)), Some(FileSector::new(7)));
        assert_eq!(mapping.place(GuestBlock::new(2)), None);
    }
}
