//! Space in the file: where new blocks go.
//!
//! A place that the table does not name belongs to nobody, whatever lies there: so what a crash
//! leaked is found again when the image is next opened for writing. A block never loses its place,
//! so nothing is freed while an image is open but what was taken and not used.

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::address::{BlockSize, FileSector};

/// Block data begin at multiples of this, as XenServer's do.
const DATA_ALIGNMENT: u64 = 4096;

/// The free space of a file.
pub(super) struct Space {
    block_size: BlockSize,
    /// Places between others.
    spares: Vec<FileSector>,
    /// Behind everything that is used.
    end: ByteOffset,
    /// Where the footer begins that is durable: up to here blocks may lie.
    limit: ByteOffset,
    /// From here on the file was made longer since it was opened, and is zeros where nothing was
    /// written.
    clean_from: ByteOffset,
}

/// A place that was taken; dropping it gives it back.
pub(super) struct Reserved<'s> {
    space: &'s Mutex<Space>,
    sector: FileSector,
    is_clean: bool,
    is_used: bool,
}

/// What occupies a part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Occupied {
    pub(super) range: ByteRange,
    pub(super) by: Occupant,
}

/// Who occupies a part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupant {
    /// Footer, header, table and the like, by its name.
    Structure(&'static str),
    /// A guest block, by its number.
    Block(u32),
}

impl Space {
    /// The space between `occupied`, which is sorted here, of a file whose footer is at `limit`.
    ///
    /// # Errors
    /// `Corrupt` where two overlap, or one reaches past the footer: who writes to such an image
    /// makes it worse.
    pub(super) fn survey(
        object: &str,
        block_size: BlockSize,
        occupied: &mut [Occupied],
        limit: ByteOffset,
        file_size: ByteCount,
    ) -> Result<Self> {
        occupied.sort_unstable_by_key(|one| one.range.start);
        let end = ByteOffset::ZERO;
        let clean_from = ByteOffset::new(file_size.get());
        let mut space = Self { block_size, spares: Vec::new(), end, limit, clean_from };
        let mut last: Option<Occupied> = None;
        for one in occupied.iter().filter(|one| !one.range.is_empty()) {
            let before = last.filter(|last| last.range.end() > one.range.start);
            if before.is_some() || one.range.end() > limit {
                let other = before.map_or("the end of the file".to_owned(), |last| last.by.text());
                let problem = format!("has {} over {other}, at {}", one.by.text(), one.range.start);
                return Err(Error::new(ErrorKind::Corrupt, object, problem)
                    .advise("open it read-only, check it, and repair it before it is written"));
            }
            space.add_spares(ByteRange::between(space.end, one.range.start));
            space.end = one.range.end();
            last = Some(*one);
        }
        Ok(space)
    }

    /// Notes the places that a gap has room for.
    fn add_spares(&mut self, gap: ByteRange) {
        let mut at = gap.start;
        let fits = |sector: &FileSector| self.block_size.place(*sector).end() <= gap.end();
        while let Some(sector) = fitting(self.block_size, at).filter(fits) {
            self.spares.push(sector);
            at = self.block_size.place(sector).end();
        }
    }

    /// Takes a place, if there is one below the footer.
    pub(super) fn take(&mut self) -> Option<(FileSector, bool)> {
        if let Some(sector) = self.spares.pop() {
            return Some((sector, false));
        }
        let sector = fitting(self.block_size, self.end)?;
        let place = self.block_size.place(sector);
        if place.end() > self.limit {
            return None;
        }
        self.end = place.end();
        Some((sector, place.start >= self.clean_from))
    }

    /// Where the footer would lie if the file had room for `blocks` more; `None` past 2 TiB.
    pub(super) fn target(&self, blocks: u64) -> Option<ByteOffset> {
        let first = fitting(self.block_size, self.end)?;
        let stride = self.block_size.footprint().get().next_multiple_of(DATA_ALIGNMENT);
        let end = self.block_size.place(first).end();
        Some(ByteOffset::new(end.get() + (blocks.max(1) - 1) * stride))
    }

    /// Blocks may lie up to `limit` from now on: the footer there is durable.
    pub(super) fn set_limit(&mut self, limit: ByteOffset) {
        self.limit = limit;
    }
}

/// The first place at or behind `at`, unless it lies past 2 TiB.
fn fitting(size: BlockSize, at: ByteOffset) -> Option<FileSector> {
    let bitmap = size.bitmap_bytes().get();
    let data = (at.get() + bitmap).next_multiple_of(DATA_ALIGNMENT);
    FileSector::at(ByteOffset::new(data - bitmap))
}

/// Whether the next writer would find a place in `gap`.
pub(super) fn has_room(gap: ByteRange, size: BlockSize) -> bool {
    let place = fitting(size, gap.start).map(|sector| size.place(sector));
    place.is_some_and(|place| place.end() <= gap.end())
}

impl<'s> Reserved<'s> {
    /// A place that was taken from `space`.
    pub(super) fn new(space: &'s Mutex<Space>, (sector, is_clean): (FileSector, bool)) -> Self {
        Self { space, sector, is_clean, is_used: false }
    }

    pub(super) fn sector(&self) -> FileSector {
        self.sector
    }

    /// Whether nobody has written there since the file was made longer.
    pub(super) fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// The place has its user.
    pub(super) fn keep(mut self) -> FileSector {
        self.is_used = true;
        self.sector
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            // What was written there may still be on its way, but only to a place without a name.
            self.space.lock().spares.push(self.sector);
        }
    }
}

impl Occupant {
    /// What to call it in messages.
    pub(super) fn text(self) -> String {
        match self {
            Self::Structure(name) => format!("the {name}"),
            Self::Block(block) => format!("block {block}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Occupant, Occupied, Reserved, Space};
    use crate::vhd::{BlockSize, FileSector};
    use block_types::{ByteCount, ByteOffset, ByteRange, Result};
    use parking_lot::Mutex;

    fn occupied(list: &[(u64, u64)]) -> Vec<Occupied> {
        let one = |(number, &(start, len)): (u32, &(u64, u64))| Occupied {
            range: ByteRange::new(ByteOffset::new(start), ByteCount::new(len)),
            by: Occupant::Block(number),
        };
        (0..).zip(list).map(one).collect()
    }

    fn survey(list: &[(u64, u64)], limit: u64) -> Result<Space> {
        let size = BlockSize::new(ByteCount::new(4096)).expect("a block size");
        let file = ByteCount::new(limit + 512);
        Space::survey("disk", size, &mut occupied(list), ByteOffset::new(limit), file)
    }

    #[test]
    fn places_follow_what_is_used_with_aligned_data() {
        let mut space = survey(&[(0, 2048)], 20_480).expect("sound");
        assert_eq!(space.take(), Some((FileSector::new(7), false)));
        assert_eq!(space.take(), Some((FileSector::new(23), false)));
        assert_eq!(space.take(), None, "would overwrite the footer");
        assert_eq!(space.target(1).map(ByteOffset::get), Some(24_576));
        space.set_limit(ByteOffset::new(28_672));
        assert_eq!(space.take(), Some((FileSector::new(39), false)));
    }

    #[test]
    fn what_was_leaked_is_found_again() {
        let mut space = survey(&[(20_480, 512), (0, 2048)], 20_992).expect("sound");
        assert_eq!(space.take(), Some((FileSector::new(23), false)));
        assert_eq!(space.take(), Some((FileSector::new(7), false)));
        assert_eq!(space.take(), None);
    }

    #[test]
    fn overlaps_are_refused() {
        for list in [&[(0, 2048), (1024, 512)][..], &[(0, 1024), (1024, 4096)]] {
            let error = survey(list, 4096).err().expect("refused");
            assert!(error.advice().is_some(), "{error}");
        }
    }

    #[test]
    fn a_place_that_was_not_used_comes_back() {
        let space = Mutex::new(survey(&[(0, 2048)], 20_480).expect("sound"));
        let taken = space.lock().take().expect("room");
        drop(Reserved::new(&space, taken));
        let again = space.lock().take().expect("room");
        assert_eq!(again.0, taken.0);
        Reserved::new(&space, again).keep();
        assert_ne!(space.lock().take(), Some(again));
    }
}
