//! The space map of another device than the metadata's own: for a thin pool, of its data.

use std::ops::ControlFlow;

use block_types::{Error, ErrorKind, Result};

use super::bitmap::{bitmaps_for, encode_bitmap};
use super::layout::{IndexEntry, SpaceMapRoot};
use super::ledger::Ledger;
use crate::btree::{self, NoRefs};
use crate::{BlockKind, MetaBlock, ReadBlocks, RefCounts, Transaction};

/// What messages call this map.
const NAME: &str = "data space map";

/// The reference counts of a device's blocks, kept in memory whole, and on the metadata device as
/// bitmaps below one B-tree and as large counts in another.
///
/// Counting never fails: an impossible count (one more than the largest, one less than none, a
/// block past the end) changes nothing, and [`commit`](DiskSpaceMap::commit) refuses from then on.
#[derive(Clone, Debug)]
pub struct DiskSpaceMap {
    ledger: Ledger,
    /// Where each bitmap lies; `None` until it is first written.
    bitmaps: Vec<Option<MetaBlock>>,
    bitmap_root: MetaBlock,
    ref_count_root: MetaBlock,
}

impl DiskSpaceMap {
    /// A map of `nr_blocks` free blocks. Takes the blocks for its two trees at once, and those for
    /// the bitmaps when it is committed.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`].
    pub fn format(txn: &mut Transaction, nr_blocks: u64) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::new(nr_blocks),
            bitmaps: vec![None; bitmaps_for(nr_blocks) as usize],
            bitmap_root: btree::empty::<IndexEntry>(txn)?,
            ref_count_root: btree::empty::<u32>(txn)?,
        })
    }

    /// Reads the map at `root`. Only the counts are believed: what the root and the index say about
    /// free blocks is reckoned anew.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a part of it is broken; the reader's failures.
    pub fn open(reader: &(impl ReadBlocks + ?Sized), root: &SpaceMapRoot) -> Result<Self> {
        let bitmap_root = MetaBlock::new(root.bitmap_root.get());
        let ref_count_root = MetaBlock::new(root.ref_count_root.get());
        let bitmaps = read_index(reader, bitmap_root, bitmaps_for(root.nr_blocks.get()))?;
        let ledger = Ledger::read(reader, root.nr_blocks.get(), &bitmaps, ref_count_root)?;
        let bitmaps = bitmaps.into_iter().map(Some).collect();
        Ok(Self { ledger, bitmaps, bitmap_root, ref_count_root })
    }

    /// The count of `block`; 0 past the end.
    pub fn get(&self, block: u64) -> u32 {
        self.ledger.counts().get(block)
    }

    /// Adds a reference to `block` and returns its new count.
    pub fn inc(&mut self, block: u64) -> u32 {
        let count = self.ledger.inc(block);
        count.unwrap_or_else(|| self.get(block))
    }

    /// Drops a reference to `block` and returns its new count.
    pub fn dec(&mut self, block: u64) -> u32 {
        self.ledger.dec(block).unwrap_or(0)
    }

    /// Blocks that are counted.
    pub fn nr_blocks(&self) -> u64 {
        self.counts().len()
    }

    /// Blocks with a count above 0.
    pub fn allocated(&self) -> u64 {
        self.counts().allocated()
    }

    /// Every count, with iterators over used blocks and free runs.
    pub fn counts(&self) -> &RefCounts {
        self.ledger.counts()
    }

    /// Grows to `nr_blocks` blocks. Never shrinks.
    pub fn extend(&mut self, nr_blocks: u64) {
        self.ledger.extend(nr_blocks);
        self.bitmaps.resize(bitmaps_for(self.nr_blocks()) as usize, None);
    }

    /// Brings the map on the metadata device up to date, as part of `txn`, and returns its new
    /// root.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`]; [`ErrorKind::Corrupt`] if a block was counted where that is
    /// impossible, or a tree of the map is broken; the device's failures.
    pub fn commit(&mut self, txn: &mut Transaction) -> Result<SpaceMapRoot> {
        self.ledger.sound(NAME)?;
        let large = self.ledger.take_overflow();
        self.ref_count_root = btree::apply(txn, self.ref_count_root, &large, &mut NoRefs)?.root;
        let mut entries = Vec::new();
        for index in self.ledger.dirty_bitmaps() {
            let slot = &mut self.bitmaps[index as usize];
            let at = txn.replace(*slot)?;
            *slot = Some(at);
            let encoded = encode_bitmap(self.ledger.counts(), index);
            entries.push((index, Some(encoded.entry(at))));
            txn.put(at, BlockKind::Bitmap, encoded.block)?;
        }
        self.ledger.mark_clean();
        self.bitmap_root = btree::apply(txn, self.bitmap_root, &entries, &mut NoRefs)?.root;
        Ok(SpaceMapRoot {
            nr_blocks: self.nr_blocks().into(),
            nr_allocated: self.allocated().into(),
            bitmap_root: self.bitmap_root.get().into(),
            ref_count_root: self.ref_count_root.get().into(),
        })
    }
}

/// Where the first `count` bitmaps lie. The tree may list more.
fn read_index(
    reader: &(impl ReadBlocks + ?Sized),
    root: MetaBlock,
    count: u64,
) -> Result<Vec<MetaBlock>> {
    let mut bitmaps = Vec::new();
    btree::walk(reader, root, 0, &mut |index, entry: IndexEntry| {
        if index >= count || index != bitmaps.len() as u64 {
            return ControlFlow::Break(());
        }
        bitmaps.push(MetaBlock::new(entry.bitmap.get()));
        ControlFlow::Continue(())
    })?;
    if bitmaps.len() as u64 == count {
        return Ok(bitmaps);
    }
    let problem = format!("lists {} bitmaps without a gap, {count} are needed", bitmaps.len());
    Err(Error::new(ErrorKind::Corrupt, format!("{NAME}, index at metadata block {root}"), problem))
}
