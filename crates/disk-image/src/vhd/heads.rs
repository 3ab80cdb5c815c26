//! Changes of footer, header and batmap, each in an order that a crash may cut short anywhere.
//!
//! Footers first at the end, then the copy: either is one sector, so the disk is always the old or
//! the new one (see `footer`); and never both are on their way at once, so a drive that spoils the
//! sector that it writes as the power fails spoils one of them. Header and batmap are more than one
//! sector, but each is named by one: the header by the footer, the batmap's map by the batmap's
//! header. So a changed one is written to a free place of the file, made durable, and named; then
//! it is written to where it belongs, made durable, and named there. The free place is a block's;
//! it is given back.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use super::alloc::{Reserved, Space};
use super::batmap::{self, Batmap};
use super::footer::{FOOTER, Footer};
use super::header::{HEADER, HEADER_AT, Header, ParentLink};
use super::image::{Heads, Sparse, VhdImage};
use super::locator::{self, Locator};
use super::open::{locators_at, structures};

/// What a new header says that the old one did not.
#[derive(Clone, Copy)]
pub(super) enum Change<'l> {
    /// Another parent.
    Parent(&'l ParentLink),
    /// No parent.
    NoParent,
    /// Nothing: it only moves.
    Place,
}

/// A header with its locators, and where both are to lie.
struct Draft {
    header: Header,
    at: ByteOffset,
    texts: Vec<u8>,
    texts_at: ByteOffset,
}

impl Draft {
    fn new(
        old: &Header,
        change: Change<'_>,
        locators: &[Locator],
        at: ByteOffset,
        texts_at: ByteOffset,
    ) -> Result<Self> {
        let placed = locator::place(locators, texts_at)?;
        let header = match change {
            Change::Parent(link) => old.with_parent(link, placed.entries)?,
            Change::NoParent => old.without_parent(),
            Change::Place => old.with_locators(placed.entries),
        };
        Ok(Self { header, at, texts: placed.bytes, texts_at })
    }

    /// Whether the header can be written over `old` in one piece, since only its first sector
    /// changes: the new paths are as long as the old ones. The paths themselves are overwritten
    /// before, each in its sector, as XenServer does; until the header follows they are the new
    /// parent's beside the old one's UUID.
    fn changes_one_sector(&self, old: &Header) -> bool {
        self.header.bytes()[SECTOR as usize..] == old.bytes()[SECTOR as usize..]
    }
}

impl VhdImage {
    /// Writes `footer` to both its places.
    pub(super) fn write_footers(&self, heads: &mut Heads, footer: Footer) -> Result<()> {
        let written = self.write_both(heads.footer_at, &footer);
        written.inspect_err(|error| self.stop(error))?;
        heads.footer = footer;
        Ok(())
    }

    fn write_both(&self, end: ByteOffset, footer: &Footer) -> Result<()> {
        // A footer of 511 bytes has no room for its last, which is zero.
        let room = self.file.size().get().saturating_sub(end.get()).min(FOOTER.get());
        self.file.write_at(&footer.bytes()[..room as usize], end)?;
        self.barrier()?;
        if self.sparse.is_some() {
            self.file.write_at(&footer.bytes(), ByteOffset::ZERO)?;
            self.barrier()?;
        }
        Ok(())
    }

    /// Makes the file longer, so that at least one more block fits before the footer.
    ///
    /// # Errors
    /// `OutOfSpace` where the file cannot grow; nothing has changed then.
    pub(super) fn extend(&self, sparse: &Sparse, space: &mut Space) -> Result<()> {
        let block = sparse.mapping.block_size().footprint();
        let blocks = sparse.mapping.block_size().count(self.size());
        let left = blocks.saturating_sub(sparse.mapping.places().count() as u64);
        let wanted = sparse.step.div_ceil(block).clamp(1, left.max(1));
        let target = space.target(wanted).or_else(|| space.target(1));
        let Some(target) = target.filter(|target| target.get() <= 2 << 40) else {
            return Err(self.past_the_end());
        };
        let mut heads = self.heads.lock();
        self.lengthen(target.plus(FOOTER))?;
        if let Err(error) = self.file.write_at(&heads.footer.bytes(), target) {
            // The old footer is still in its place: there it has to be at the end again. If that
            // fails, too, the copy at the start stands in for it.
            let _ = self.file.resize(ByteCount::new(heads.footer_at.plus(FOOTER).get()));
            return Err(error);
        }
        // Only when the new footer is durable the old one's place is a block's.
        self.barrier()?;
        heads.footer_at = target;
        space.set_limit(target);
        Ok(())
    }

    /// Gives the file a new, larger size.
    fn lengthen(&self, end: ByteOffset) -> Result<()> {
        self.file.resize(ByteCount::new(end.get())).map_err(|error| {
            if error.kind() == ErrorKind::Unsupported { self.device_full() } else { error }
        })
    }

    fn device_full(&self) -> Error {
        Error::new(ErrorKind::OutOfSpace, self.name(), "its device is full")
            .advise("grow the device, and open the image again")
    }

    /// A free place, unless there is none.
    fn reserve_if_room<'s>(&self, sparse: &'s Sparse) -> Result<Option<Reserved<'s>>> {
        match self.reserve(sparse) {
            Ok(reserved) => Ok(Some(reserved)),
            Err(error) if error.kind() == ErrorKind::OutOfSpace => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives back what of the file lies behind the last block, so that the footer is directly
    /// behind it: QEMU takes what lies there for zeros, and overwrites the footer with its next
    /// block. A block device has the size it has.
    fn trim(&self, sparse: &Sparse, space: &mut Space) -> Result<()> {
        let mut heads = self.heads.lock();
        let Some(header) = heads.header else { return Ok(()) };
        let own = structures(&heads.footer, &header, heads.batmap.as_ref());
        let own = own.into_iter().map(|one| one.range.end());
        let size = sparse.mapping.block_size();
        let blocks = sparse.mapping.places().map(|(_, place)| size.place(place).end());
        let end = own.chain(blocks).max().unwrap_or(heads.footer_at);
        let end = ByteOffset::new(end.get().next_multiple_of(SECTOR));
        if end >= heads.footer_at || self.file.resize(self.file.size()).is_err() {
            return Ok(());
        }
        self.file.write_at(&heads.footer.bytes(), end)?;
        self.barrier()?;
        self.file.resize(ByteCount::new(end.plus(FOOTER).get()))?;
        heads.footer_at = end;
        space.set_limit(end);
        self.barrier()
    }

    /// Makes everything durable, brings the batmap up to date, gives back what was taken ahead, and
    /// takes no writes any more. An image that is dropped without it is as after a crash: what was
    /// flushed is there.
    ///
    /// # Errors
    /// Those of the file. The image is closed all the same.
    pub fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.check_writable()?;
        let closed = self.finish();
        self.stop_as_closed();
        closed
    }

    fn finish(&self) -> Result<()> {
        let Some(sparse) = &self.sparse else {
            return self.commit();
        };
        // What is full now is durably so after the commit.
        let full: Vec<usize> = sparse
            .mapping
            .places()
            .filter(|&(block, _)| sparse.mapping.is_full(block))
            .map(|(block, _)| block.index())
            .collect();
        self.commit()?;
        self.update_batmap(sparse, &full)?;
        match &sparse.space {
            Some(space) => self.trim(sparse, &mut space.lock()),
            None => Ok(()),
        }
    }

    /// Writes a batmap that says that the blocks `full` are so.
    fn update_batmap(&self, sparse: &Sparse, full: &[usize]) -> Result<()> {
        let (header, size, old, creator) = {
            let heads = self.heads.lock();
            let creator = heads.footer.creator();
            (heads.header, heads.footer.size(), heads.batmap.clone(), creator)
        };
        let Some(header) = header else { return Ok(()) };
        let Some(home) = batmap::home(creator, &header) else { return Ok(()) };
        let (map_home, trusted) = (batmap::map_at(&header), old.is_some());
        let mut new = match &old {
            Some(old) => old.clone().resized(size, header.block_size()),
            None => Batmap::new(size, &header),
        };
        new.clear();
        full.iter().for_each(|&index| new.mark_full(index));
        let same = |old: &Batmap| old.map() == new.map() && old.map_range().start == map_home;
        if old.as_ref().is_some_and(same) || self.is_occupied(sparse, home) {
            return Ok(());
        }
        if trusted && new.map().len() as u64 <= header.block_size().footprint().get() {
            // On a device that is full the old one stays, which says less, and no wrong.
            let Some(aside) = self.reserve_if_room(sparse)? else { return Ok(()) };
            self.put_batmap(&header, &new.clone().moved(aside.sector().start()))?;
        }
        let new = new.moved(map_home);
        self.put_batmap(&header, &new)?;
        let mut heads = self.heads.lock();
        heads.batmap = Some(new);
        heads.distrust = None;
        Ok(())
    }

    /// Writes a map, and the header that names it.
    fn put_batmap(&self, header: &Header, batmap: &Batmap) -> Result<()> {
        self.file.write_at(batmap.map(), batmap.map_range().start)?;
        self.barrier()?;
        self.file.write_at(&batmap.header_bytes(), batmap::header_at(header))?;
        self.barrier()
    }

    /// Whether a block lies over `range`.
    pub(super) fn is_occupied(&self, sparse: &Sparse, range: ByteRange) -> bool {
        let size = sparse.mapping.block_size();
        let mut places = sparse.mapping.places();
        places.any(|(_, place)| !size.place(place).intersect(range).is_empty())
    }

    /// Writes a header that says `change`, with its locators.
    ///
    /// # Errors
    /// `Unsupported` where no locator fits between the image's own structures and its blocks;
    /// nothing has changed then.
    pub(super) fn replace_header(
        &self,
        sparse: &Sparse,
        change: Change<'_>,
        locators: &[Locator],
    ) -> Result<()> {
        let at_home = self.heads.lock().footer.header_at() == HEADER_AT;
        // Declared before the lock on the heads, so given back after it.
        let aside = if at_home { self.reserve_if_room(sparse)? } else { None };
        let mut heads = self.heads.lock();
        let Some(old) = heads.header else { return Ok(()) };
        let (kept, texts_home) = self.locator_home(sparse, &heads, &old, locators)?;
        let home = Draft::new(&old, change, kept, HEADER_AT, texts_home)?;
        let Some(aside) = aside else {
            if at_home && !home.changes_one_sector(&old) {
                return Err(self.device_full());
            }
            return self.put_header(&mut heads, &home);
        };
        let at = aside.sector().start();
        let draft = Draft::new(&old, change, kept, at, at.plus(HEADER))?;
        let room = sparse.mapping.block_size().footprint();
        if HEADER.get() + draft.texts.len() as u64 > room.get() {
            let problem = "has blocks that are too small to hold a header aside";
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
        }
        let beside = self.put_header(&mut heads, &draft);
        let done = beside.and_then(|()| {
            self.put_header(&mut heads, &home).inspect_err(|error| self.stop(error))
        });
        if done.is_err() {
            // A footer may name the header aside: its place is nobody else's any more.
            aside.keep();
        }
        done
    }

    /// Writes a header with its locators, and the footers that name it.
    fn put_header(&self, heads: &mut Heads, draft: &Draft) -> Result<()> {
        if !draft.texts.is_empty() {
            self.file.write_at(&draft.texts, draft.texts_at)?;
        }
        self.file.write_at(&draft.header.bytes(), draft.at)?;
        self.barrier()?;
        let footer = heads.footer.with_header_at(draft.at);
        self.write_footers(heads, footer)?;
        heads.header = Some(draft.header);
        Ok(())
    }

    /// Where the locators of a disk belong, behind table and batmap, and as many of them as fit
    /// there before the first block.
    fn locator_home<'l>(
        &self,
        sparse: &Sparse,
        heads: &Heads,
        header: &Header,
        locators: &'l [Locator],
    ) -> Result<(&'l [Locator], ByteOffset)> {
        let at = locators_at(heads.footer.creator(), header);
        // The last is the one that every reader knows.
        for skip in 0..=locators.len() {
            let kept = &locators[skip..];
            let len = locator::place(kept, at)?.bytes.len() as u64;
            let range = ByteRange::new(at, ByteCount::new(len));
            let fits = range.end() <= heads.footer_at && !self.is_occupied(sparse, range);
            if fits && (!kept.is_empty() || locators.is_empty()) {
                return Ok((kept, at));
            }
        }
        let problem = format!("has no room for a path to its parent before its blocks, at {at}");
        Err(Error::new(ErrorKind::Unsupported, self.name(), problem)
            .advise("convert it to a new image, which has room"))
    }

    /// Finishes, or undoes the traces of, what a crash cut short: both footers sound and alike, and
    /// the header in its place. Runs when the image is opened for writing.
    pub(super) fn heal(&self, end_is_good: bool, copy_is_good: bool) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        if !end_is_good {
            let heads = self.heads.lock();
            let end = heads.footer_at.plus(FOOTER);
            if end.get() > self.file.size().get() {
                self.lengthen(end)?;
            }
            self.file.write_at(&heads.footer.bytes(), heads.footer_at)?;
            self.barrier()?;
        }
        if !copy_is_good {
            self.file.write_at(&self.heads.lock().footer.bytes(), ByteOffset::ZERO)?;
            self.barrier()?;
        }
        self.settle_header(sparse)
    }

    /// Brings a header to its place that a crash left aside.
    fn settle_header(&self, sparse: &Sparse) -> Result<()> {
        let (header, at) = {
            let heads = self.heads.lock();
            (heads.header, heads.footer.header_at())
        };
        let Some(header) = header.filter(|_| at != HEADER_AT) else { return Ok(()) };
        let home = ByteRange::new(HEADER_AT, HEADER);
        // Somebody else may keep headers elsewhere for good.
        let table = header.table_at();
        let foreign = !table.is_aligned(ByteCount::new(SECTOR)) || table < home.end();
        if foreign || self.is_occupied(sparse, home) {
            return Ok(());
        }
        let locators = locator::read(&*self.file, header.locators(self.kind()))?;
        self.replace_header(sparse, Change::Place, &locators)
    }
}
