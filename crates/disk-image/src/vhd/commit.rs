//! The commit: the order in which changes of the mapping become durable, and the only place that
//! flushes the file.
//!
//! 1. The batch of changes is taken over, each changed bitmap as it is now. New ones gather for the
//!    next commit.
//! 2. The file is flushed: whatever the batch reveals was written before (DATA-FIRST).
//! 3. The bitmaps are written; then, if blocks got places, the file is flushed again, so that no
//!    entry of the table shows a bitmap that is not there yet.
//! 4. The sectors of the table are written, without the places of blocks that came after the batch.
//! 5. The file is flushed.
//!
//! A crash between these leaves places that no entry names, and nothing else: bits and entries are
//! only ever added, and each lies within one sector, so any mixture of old and new sectors is a
//! state that some moment could have left.
//!
//! Commits run one at a time; all who wait for changes of one batch share its commit.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Result, SECTOR};

use super::address::{FileSector, GuestBlock};
use super::image::{Sparse, VhdImage};

/// Entries of the table in a sector.
const ENTRIES: u32 = 128;

/// Changes of the mapping that no commit has taken over.
pub(super) struct Pending {
    /// The commit that they belong to, from 1.
    generation: u64,
    /// Blocks that got a place.
    places: BTreeSet<GuestBlock>,
    /// Blocks whose bitmap has changed; those with a new place are among them.
    bitmaps: BTreeSet<GuestBlock>,
}

/// How far commits have come.
pub(super) struct Progress {
    /// The last commit that is durable.
    committed: u64,
    /// Whether somebody runs one.
    running: bool,
}

/// What one commit makes durable.
struct Batch {
    generation: u64,
    places: BTreeSet<GuestBlock>,
    bitmaps: BTreeSet<GuestBlock>,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { generation: 1, places: BTreeSet::new(), bitmaps: BTreeSet::new() }
    }

    /// Notes that the bitmap of `block` has changed; the commit that will write it.
    pub(super) fn note_bitmap(&mut self, block: GuestBlock) -> u64 {
        self.bitmaps.insert(block);
        self.generation
    }

    /// Notes that `block` got a place; the commit that will write it.
    pub(super) fn note_place(&mut self, block: GuestBlock) -> u64 {
        self.places.insert(block);
        self.note_bitmap(block)
    }

    fn take(&mut self) -> Batch {
        self.generation += 1;
        Batch {
            generation: self.generation - 1,
            places: std::mem::take(&mut self.places),
            bitmaps: std::mem::take(&mut self.bitmaps),
        }
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { committed: 0, running: false }
    }
}

/// Flushes a file that is no image yet.
pub(super) fn flush(file: &dyn BlockDevice) -> Result<()> {
    file.flush()
}

impl VhdImage {
    /// Makes everything durable that was answered before.
    pub(super) fn commit(&self) -> Result<()> {
        if let Some(sparse) = &self.sparse {
            let dirty = sparse.dirty.load(Ordering::SeqCst);
            if dirty > sparse.progress.lock().committed {
                // The commit flushes the data of every write that was answered before it began.
                return self.commit_to(sparse, dirty);
            }
        }
        self.barrier()
    }

    /// Flushes the file: what was written before is durable before anything that is written after.
    pub(super) fn barrier(&self) -> Result<()> {
        self.check_writable()?;
        self.file.flush().inspect_err(|error| self.stop(error))
    }

    /// Returns once the changes of `generation` are durable.
    fn commit_to(&self, sparse: &Sparse, generation: u64) -> Result<()> {
        let mut progress = sparse.progress.lock();
        while progress.committed < generation {
            if progress.running {
                sparse.progressed.wait(&mut progress);
                continue;
            }
            self.check_writable()?;
            progress.running = true;
            drop(progress);
            let done = self.run_commit(sparse).inspect_err(|error| self.stop(error));
            progress = sparse.progress.lock();
            progress.running = false;
            if let Ok(generation) = done {
                progress.committed = generation;
            }
            sparse.progressed.notify_all();
            done?;
        }
        Ok(())
    }

    /// Does `work` while no commit runs, and none begins.
    pub(super) fn between_commits(
        &self,
        sparse: &Sparse,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut progress = sparse.progress.lock();
        while progress.running {
            sparse.progressed.wait(&mut progress);
        }
        progress.running = true;
        drop(progress);
        let done = work().inspect_err(|error| self.stop(error));
        sparse.progress.lock().running = false;
        sparse.progressed.notify_all();
        done
    }

    /// Runs one commit; which it was.
    fn run_commit(&self, sparse: &Sparse) -> Result<u64> {
        let batch = sparse.pending.lock().take();
        let bitmaps = sparse.bitmaps_of(&batch);
        self.barrier()?;
        for (at, bytes) in &bitmaps {
            self.file.write_at(bytes, *at)?;
        }
        if !batch.places.is_empty() {
            self.barrier()?;
            self.write_table(sparse, &batch)?;
        }
        self.barrier()?;
        Ok(batch.generation)
    }

    /// Writes the sectors of the table that the batch changes.
    fn write_table(&self, sparse: &Sparse, batch: &Batch) -> Result<()> {
        let mut sectors: Vec<u32> =
            batch.places.iter().map(|block| block.get() / ENTRIES).collect();
        sectors.dedup();
        self.write_table_sectors(sparse, sectors)
    }

    /// Writes sectors of the table. The caller has made durable what their entries show.
    pub(super) fn write_table_sectors(
        &self,
        sparse: &Sparse,
        sectors: impl IntoIterator<Item = u32>,
    ) -> Result<()> {
        let header = self.heads.lock().header;
        let Some(header) = header else { return Ok(()) };
        for sector in sectors {
            let at = header.table_at().plus(ByteCount::new(u64::from(sector) * SECTOR));
            self.file.write_at(&sparse.table_sector(sector, header.entries()), at)?;
        }
        Ok(())
    }
}

impl Sparse {
    /// The changed bitmaps of `batch` as they are now, and where they belong. Every bit that is set
    /// is of a write that has returned, so the flush that follows covers its data.
    fn bitmaps_of(&self, batch: &Batch) -> Vec<(ByteOffset, Vec<u8>)> {
        let len = self.mapping.block_size().bitmap_bytes().as_usize();
        let mut bitmaps = Vec::with_capacity(batch.bitmaps.len());
        for &block in &batch.bitmaps {
            let Some(place) = self.mapping.place(block) else { continue };
            let mut bytes = vec![0; len];
            match self.mapping.bitmap(block) {
                Some(bitmap) => bitmap.write_to(&mut bytes),
                // Full from the start.
                None => bytes[..self.mapping.block_size().sectors() / 8].fill(0xff),
            }
            bitmaps.push((place.start(), bytes));
        }
        // In the order of the file.
        bitmaps.sort_unstable_by_key(|(at, _)| *at);
        bitmaps
    }

    /// Sector number `sector` of a table of `entries`, without the places that no commit has taken
    /// over; zeros pad it.
    fn table_sector(&self, sector: u32, entries: u32) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        // Places are given under this lock, too: whatever is not pending here is of this batch or
        // of an earlier one.
        let pending = self.pending.lock();
        for (entry, block) in bytes.chunks_exact_mut(4).zip(sector * ENTRIES..) {
            if block >= entries {
                break;
            }
            let block = GuestBlock::new(block);
            let known = block.index() < self.mapping.capacity();
            let place = (known && !pending.places.contains(&block))
                .then(|| self.mapping.place(block))
                .flatten();
            let value = place.map_or(FileSector::UNUSED, FileSector::get);
            entry.copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Pending;
    use crate::vhd::image::Sparse;
    use crate::vhd::mapping::Mapping;
    use crate::vhd::{BlockSize, FileSector, GuestBlock};
    use block_types::ByteCount;

    #[test]
    fn a_batch_is_taken_over_whole() {
        let mut pending = Pending::new();
        assert_eq!(pending.note_bitmap(GuestBlock::new(3)), 1);
        assert_eq!(pending.note_place(GuestBlock::new(5)), 1);
        let batch = pending.take();
        assert_eq!((batch.generation, batch.places.len(), batch.bitmaps.len()), (1, 1, 2));
        assert_eq!(pending.note_place(GuestBlock::new(5)), 2);
    }

    /// DATA-FIRST: a block that got its place while a commit runs is not in that commit's table.
    #[test]
    fn the_table_leaves_out_what_no_commit_has_taken_over() {
        let sparse = Sparse::new(Mapping::new(BlockSize::DEFAULT, 4), None, ByteCount::ZERO);
        let entry = |block: usize| {
            let sector = sparse.table_sector(0, 4);
            u32::from_be_bytes(sector[4 * block..][..4].try_into().expect("four"))
        };
        for (block, sector) in [(1, 7), (2, 9)] {
            sparse.mapping.set_place(GuestBlock::new(block), FileSector::new(sector));
        }
        sparse.pending.lock().note_place(GuestBlock::new(2));
        assert_eq!([0, 1, 2, 3].map(entry), [u32::MAX, 7, u32::MAX, u32::MAX]);
        assert_eq!(entry(4), 0, "padding");
        sparse.pending.lock().take();
        assert_eq!(entry(2), 9);
    }
}
