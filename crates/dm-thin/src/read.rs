//! Reading, and finding out where things lie: what runs when a request does not resolve.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{ByteOffset, ByteRange, Error, ErrorKind, Result};
use persistent_data::MetaBlock;
use persistent_data::btree::walk;

use crate::table::{Lookup, PAGE_BLOCKS, PageIndex};
use crate::volume::ThinVolume;
use crate::{DataBlock, GuestBlock, Mapping};

impl ThinVolume {
    /// Fills `buffer` from `at`, block by block; neighbours on the data device are read together.
    pub(crate) fn do_read(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let size = self.shared.block_size;
        let mut done = 0;
        while done < buffer.len() {
            let start = ByteOffset::new(at.get() + done as u64);
            // Under the lease the block stays this volume's until the read is over.
            let lease = self.shared.leases.acquire();
            let (block, inside) = size.locate(start);
            let room = (size.bytes().get() - inside.get()) as usize;
            let first = self.lookup(block)?;
            let len = self.run_length(block, first, room, buffer.len() - done)?;
            let part = &mut buffer[done..done + len];
            match first {
                Some(first) => {
                    let from = size.data_start(first.block).plus(inside);
                    self.shared.data.read_at(part, from)?;
                }
                None => {
                    // An origin may be slow to answer, and commits wait for leases.
                    drop(lease);
                    self.read_unmapped(part, start)?;
                }
            }
            done += len;
        }
        Ok(())
    }

    /// Fills `buffer` with what shows from `at` on, where nothing is mapped.
    pub(crate) fn read_unmapped(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let Some(origin) = self.core.origin() else {
            buffer.fill(0);
            return Ok(());
        };
        origin
            .read(buffer, at)
            .map_err(|error| error.within(&format!("{}, external origin", self.name())))
    }

    /// How many of `wanted` bytes lie in one run, mapped as `first` or not at all, that begins
    /// `room` bytes before the end of `block`.
    fn run_length(
        &self,
        block: GuestBlock,
        first: Option<Mapping>,
        room: usize,
        wanted: usize,
    ) -> Result<usize> {
        let step = self.shared.block_size.bytes().as_usize();
        let mut len = room;
        let mut ahead = 1;
        while len < wanted {
            let next = self.lookup(GuestBlock::new(block.get() + ahead))?;
            let expected = first.map(|first| DataBlock::new(first.block.get() + ahead));
            if next.map(|next| next.block) != expected {
                break;
            }
            len += step;
            ahead += 1;
        }
        Ok(len.min(wanted))
    }

    /// The mapping of `block`, its page loaded if it has to be.
    pub(crate) fn lookup(&self, block: GuestBlock) -> Result<Option<Mapping>> {
        loop {
            match self.core.table.get(block) {
                Lookup::Mapped(mapping) => return Ok(Some(mapping)),
                Lookup::Unmapped => return Ok(None),
                Lookup::Unloaded => self.load(PageIndex::of(block))?,
            }
        }
    }

    /// Loads `page` from the committed mapping tree, and with it notes how far behind it nothing is
    /// mapped.
    fn load(&self, page: PageIndex) -> Result<()> {
        let _one_at_a_time = self.core.loading.lock();
        if !self.core.table.is_unloaded(page) {
            return Ok(());
        }
        let _roots_stay = self.shared.reading.read();
        let root = MetaBlock::new(self.core.root.load(Ordering::SeqCst));
        let from = page.first().get();
        let mut mappings = Vec::new();
        let mut behind = None;
        walk(&*self.shared.store, root, from, &mut |key, value: u64| {
            if key - from >= PAGE_BLOCKS {
                behind = Some(key);
                return ControlFlow::Break(());
            }
            mappings.push((GuestBlock::new(key), Mapping::unpack(value)));
            ControlFlow::Continue(())
        })?;
        self.check_loaded(&mappings)?;
        self.core.table.fill(page, &mappings);
        self.fill_gap(page, behind);
        Ok(())
    }

    /// Marks the pages between `page` and the next mapped block as empty.
    fn fill_gap(&self, page: PageIndex, behind: Option<u64>) {
        let blocks = self.shared.block_size.count(self.core.size());
        let next_used = PageIndex::of(GuestBlock::new(behind.unwrap_or(blocks + PAGE_BLOCKS)));
        let mut empty = page.next();
        while empty != next_used && empty.first().get() < blocks {
            self.core.table.fill(empty, &[]);
            empty = empty.next();
        }
    }

    fn check_loaded(&self, mappings: &[(GuestBlock, Mapping)]) -> Result<()> {
        let blocks = self.shared.pending.lock().data_blocks;
        let Some((at, mapping)) = mappings.iter().find(|(_, to)| to.block.get() >= blocks) else {
            return Ok(());
        };
        let problem = format!(
            "device {} maps block {} to data block {}, but there are {blocks}",
            self.core.id,
            at.get(),
            mapping.block.get()
        );
        Err(Error::new(ErrorKind::Corrupt, &*self.shared.name, problem)
            .advise("check the pool with 'firn pool check'"))
    }

    /// The bytes of data that `mapping` holds for the part of a guest block at `piece`.
    pub(crate) fn host_range(&self, mapping: Mapping, piece: ByteRange) -> ByteRange {
        let size = self.shared.block_size;
        let (_, inside) = size.locate(piece.start);
        ByteRange::new(size.data_start(mapping.block).plus(inside), piece.len)
    }
}
