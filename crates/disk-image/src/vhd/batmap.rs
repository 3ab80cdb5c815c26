//! XenServer's batmap: a bit per block that says "full", so that its bitmap need not be read.
//!
//! What a set bit says: the block has a place and its bitmap is all ones. What a clear bit says:
//! nothing. Neither here nor at XenServer nor at QEMU does a block ever lose its place or a sector
//! of its bitmap, so a batmap that was right once stays right: whoever writes the image without
//! keeping it up leaves bits clear, which costs a read each and no more. It is trusted if
//!
//! - the creator keeps one, and its header has cookie, version and a map that lies in the file;
//! - the sum of the map is right, so no crash caught it half written; and only the bits under the
//!   sum count (for some sizes XenServer's sum stops short of the map's end);
//! - no block lies over header or map: QEMU, which knows nothing of batmaps, puts the first block
//!   of a fresh image there;
//! - no bit is set for a block without a place.
//!
//! One that is not trusted is as good as none: all bitmaps are read, and it is written anew when
//! the image is closed, after everything that it is about is durable.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result, SECTOR};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::address::BlockSize;
use super::footer::Footer;
use super::header::Header;
use super::host::{read_bytes, read_structure};
use super::identity::Creator;
use super::layout::{BATMAP_COOKIE, BATMAP_VERSION, BatmapLayout, ones_complement};

/// Bytes of a batmap's header.
pub(super) const BATMAP_HEADER: ByteCount = ByteCount::new(SECTOR);
/// Sectors of a map at most: enough for the largest table that is read.
const MOST_SECTORS: u32 = 1 << 12;

/// What an image has of a batmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatmapState {
    /// None, as its creator keeps none.
    None,
    /// One that is trusted.
    Trusted,
    /// One that is missing or wrong, and why. It is written anew when the image is closed.
    Distrusted(String),
}

/// A batmap that was checked by itself, with every byte of its header.
#[derive(Clone)]
pub(super) struct Batmap {
    header: BatmapLayout,
    map: Vec<u8>,
    /// Bits that the sum covers.
    covered: usize,
}

/// What was found where a batmap should be.
pub(super) enum Found {
    /// The creator keeps none.
    Absent,
    /// Why it cannot be trusted.
    Bad(String),
    /// One whose sum is right.
    Sound(Box<Batmap>),
}

/// Where the header of a batmap lies: directly behind the block allocation table.
pub(super) fn header_at(header: &Header) -> ByteOffset {
    header.table().end()
}

/// Where the map of a new batmap lies: directly behind its header.
pub(super) fn map_at(header: &Header) -> ByteOffset {
    header_at(header).plus(BATMAP_HEADER)
}

/// What a new batmap occupies: header and map; nothing if `creator` keeps none.
pub(super) fn home(creator: Creator, header: &Header) -> Option<ByteRange> {
    let map = map_bytes(header.entries());
    let sane = map.sectors() <= u64::from(MOST_SECTORS);
    (creator.has_batmap() && sane).then(|| {
        let len = ByteCount::new(BATMAP_HEADER.get() + map.get());
        ByteRange::new(header_at(header), len)
    })
}

/// Bytes of the map for a table of `entries`.
pub(super) fn map_bytes(entries: u32) -> ByteCount {
    ByteCount::new(u64::from(entries).div_ceil(8).max(1).next_multiple_of(SECTOR))
}

/// Bytes of the map that the sum covers. XenServer counts the whole bytes of bits that the disk
/// fills, and rounds them up to sectors: that can be a sector less than the map.
fn covered_bytes(size: ByteCount, block: BlockSize, map: usize) -> usize {
    let bytes = (size.get() / (8 * block.bytes().get())).max(1);
    ByteCount::new(bytes.next_multiple_of(SECTOR)).as_usize().min(map)
}

/// Reads the batmap of an image. Blocks over it, and bits of blocks without a place, are for the
/// caller to look for, who knows the table.
///
/// # Errors
/// Those of the file.
pub(super) fn read(file: &dyn BlockDevice, footer: &Footer, header: &Header) -> Result<Found> {
    let creator = footer.creator();
    if !creator.may_have_batmap() {
        return Ok(Found::Absent);
    }
    let at = header_at(header);
    let bytes = read_structure::<{ SECTOR as usize }>(file, at)?;
    let layout = bytes.map(|bytes| BatmapLayout::read_from_bytes(&bytes).expect("a sector"));
    let Some(layout) = layout.filter(|layout| layout.cookie == BATMAP_COOKIE) else {
        if !creator.has_batmap() {
            return Ok(Found::Absent);
        }
        return Ok(Found::Bad(format!("there is none at {at}, where its creator keeps it")));
    };
    if layout.version.get() >> 16 != BATMAP_VERSION >> 16 {
        let version = layout.version.get();
        return Ok(Found::Bad(format!("its version {version:#x} is not known")));
    }
    let sectors = layout.map_sectors.get();
    let map_at = ByteOffset::new(layout.map_offset.get());
    let len = ByteCount::from_sectors(u64::from(sectors));
    let range = ByteRange::checked(map_at, len)
        .filter(|range| range.end().get() <= file.size().get() && sectors <= MOST_SECTORS);
    let Some(range) = range.filter(|range| !range.is_empty()) else {
        return Ok(Found::Bad(format!("its map of {sectors} sectors at {map_at} cannot be")));
    };
    let mut map = vec![0; range.len.as_usize()];
    read_bytes(file, &mut map, range.start)?;
    Ok(check_sum(footer, header, layout, map))
}

fn check_sum(footer: &Footer, header: &Header, layout: BatmapLayout, map: Vec<u8>) -> Found {
    let covered = covered_bytes(footer.size(), header.block_size(), map.len());
    let sum = ones_complement(&map[..covered]);
    let found = layout.checksum.get();
    let old = layout.version.get() < BATMAP_VERSION;
    if found != sum && !(old && found == signed_sum(&map[..covered])) {
        return Found::Bad(format!("its map has the sum {found:#x} in its header, not {sum:#x}"));
    }
    Found::Sound(Box::new(Batmap { header: layout, map, covered: covered * 8 }))
}

/// The sum as XenServer took it at version 1.1: over bytes with a sign.
fn signed_sum(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(0i32, |sum, &byte| sum.wrapping_add(i32::from(byte as i8)));
    !(sum.cast_unsigned())
}

impl Batmap {
    /// An empty batmap for a disk of `size` with `header`, at home.
    pub(super) fn new(size: ByteCount, header: &Header) -> Self {
        let mut layout = BatmapLayout::new_zeroed();
        let map = vec![0; map_bytes(header.entries()).as_usize()];
        layout.cookie = BATMAP_COOKIE;
        layout.version = BATMAP_VERSION.into();
        layout.map_offset = map_at(header).get().into();
        layout.map_sectors = u32::try_from(map.len() / SECTOR as usize).unwrap_or(0).into();
        layout.checksum = ones_complement(&map).into();
        let covered = covered_bytes(size, header.block_size(), map.len()) * 8;
        Self { header: layout, map, covered }
    }

    /// The same batmap for a disk that has grown to `size`: the sum may cover more.
    pub(super) fn resized(mut self, size: ByteCount, block: BlockSize) -> Self {
        self.covered = covered_bytes(size, block, self.map.len()) * 8;
        self
    }

    /// The same batmap with its map at `at`.
    pub(super) fn moved(mut self, at: ByteOffset) -> Self {
        self.header.map_offset = at.get().into();
        self
    }

    /// Whether block number `index` is full. Bits that the sum does not cover say nothing.
    pub(super) fn is_full(&self, index: usize) -> bool {
        index < self.covered && self.map[index / 8] & 0x80 >> (index % 8) != 0
    }

    /// Notes that block number `index` is full, if a bit that counts can say so.
    pub(super) fn mark_full(&mut self, index: usize) {
        if index < self.covered {
            self.map[index / 8] |= 0x80 >> (index % 8);
        }
    }

    /// Clears every bit.
    pub(super) fn clear(&mut self) {
        self.map.fill(0);
    }

    /// The blocks whose bits are set.
    pub(super) fn full(&self) -> impl Iterator<Item = usize> {
        (0..self.covered).filter(|&index| self.is_full(index))
    }

    /// The bytes of the map.
    pub(super) fn map(&self) -> &[u8] {
        &self.map
    }

    /// Where the map lies.
    pub(super) fn map_range(&self) -> ByteRange {
        let at = ByteOffset::new(self.header.map_offset.get());
        ByteRange::new(at, ByteCount::of(&self.map))
    }

    /// The bytes of the header, with the right sum.
    pub(super) fn header_bytes(&self) -> [u8; SECTOR as usize] {
        let mut header = self.header;
        header.version = BATMAP_VERSION.into();
        header.checksum = ones_complement(&self.map[..self.covered / 8]).into();
        header.as_bytes().try_into().expect("as long as a sector")
    }
}

#[cfg(test)]
mod tests {
    use super::{Batmap, Found, covered_bytes, header_at, map_bytes, read, signed_sum};
    use crate::vhd::footer::{Footer, Kind};
    use crate::vhd::header::Header;
    use crate::vhd::layout::ones_complement;
    use crate::vhd::{BlockSize, Creator, DiskId, Timestamp};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};

    fn parts(mib: u64) -> (Footer, Header) {
        let (id, size) = (DiskId::new([1; 16]), ByteCount::new(mib << 20));
        let footer = Footer::new(Kind::Dynamic, size, id, Timestamp::new(0), Creator::XENSERVER);
        let entries = u32::try_from(BlockSize::DEFAULT.count(size)).expect("few");
        (footer, Header::new(BlockSize::DEFAULT, entries))
    }

    fn written(batmap: &Batmap, header: &Header) -> MemoryDevice {
        let file = MemoryDevice::new("disk.vhd", ByteCount::new(1 << 20));
        file.write_at(batmap.map(), batmap.map_range().start).expect("written");
        file.write_at(&batmap.header_bytes(), header_at(header)).expect("written");
        file
    }

    #[test]
    fn full_blocks_are_noted_and_read_back() {
        let (footer, header) = parts(64);
        let mut batmap = Batmap::new(footer.size(), &header);
        [0, 1, 31].into_iter().for_each(|index| batmap.mark_full(index));
        let file = written(&batmap, &header);
        let Found::Sound(again) = read(&file, &footer, &header).expect("read") else {
            panic!("not trusted")
        };
        assert_eq!(again.full().collect::<Vec<_>>(), [0, 1, 31]);
        assert_eq!(again.map()[0], 0xc0);
    }

    #[test]
    fn a_map_that_was_torn_is_not_trusted() {
        let (footer, header) = parts(64);
        let mut batmap = Batmap::new(footer.size(), &header);
        batmap.mark_full(3);
        let file = written(&batmap, &header);
        file.write_at(&[0], batmap.map_range().start).expect("written");
        assert!(
            matches!(read(&file, &footer, &header), Ok(Found::Bad(why)) if why.contains("sum"))
        );
        file.write_at(&[0; 8], header_at(&header)).expect("written");
        assert!(matches!(read(&file, &footer, &header), Ok(Found::Bad(_))));
    }

    /// The sizes at which XenServer's sum stops a sector before the map's end.
    #[test]
    fn bits_beyond_the_sum_say_nothing() {
        for (mib, covered, map) in [(8190, 512, 512), (8194, 512, 1024), (8208, 1024, 1024)] {
            let (footer, header) = parts(mib);
            assert_eq!(map_bytes(header.entries()).get(), map, "{mib}");
            let size = footer.size();
            assert_eq!(covered_bytes(size, BlockSize::DEFAULT, map as usize), covered, "{mib}");
            let mut batmap = Batmap::new(size, &header);
            batmap.mark_full(4096);
            assert_eq!(batmap.is_full(4096), covered == 1024, "{mib}");
            let file = written(&batmap, &header);
            assert!(matches!(read(&file, &footer, &header), Ok(Found::Sound(_))), "{mib}");
        }
    }

    #[test]
    fn maps_that_cannot_be_are_not_read() {
        let (footer, header) = parts(64);
        let file = written(&Batmap::new(footer.size(), &header), &header);
        for (offset, sectors) in [(u64::MAX, 1u32), (1 << 20, 1), (0, u32::MAX), (2560, 0)] {
            let at = header_at(&header);
            file.write_at(&offset.to_be_bytes(), ByteOffset::new(at.get() + 8)).expect("written");
            file.write_at(&sectors.to_be_bytes(), ByteOffset::new(at.get() + 16)).expect("ok");
            assert!(matches!(read(&file, &footer, &header), Ok(Found::Bad(_))), "{offset}");
        }
    }

    #[test]
    fn old_sums_are_signed() {
        assert_eq!(signed_sum(&[1, 2]), ones_complement(&[1, 2]));
        assert_eq!(signed_sum(&[0xff]), 0);
    }
}
