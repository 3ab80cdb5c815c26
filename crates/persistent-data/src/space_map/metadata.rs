//! The space map of the metadata device itself.
//!
//! It lies in blocks that it counts, so writing it changes it. Changes go to memory alone until the
//! transaction is sealed; then every block that has to move is moved first, which is at most the
//! index, a few nodes, and each bitmap once; after that the counts are final, and the bitmaps are
//! written.

use block_types::{Error, ErrorKind, Result};

use super::bitmap::{COUNTS_PER_BITMAP, bitmaps_for, encode_bitmap};
use super::layout::{IndexEntry, MAX_METADATA_BITMAPS, MetadataIndex, SpaceMapRoot};
use super::ledger::Ledger;
use crate::btree::{self, NoRefs};
use crate::checksum::corrupt;
use crate::{BlockKind, BlockStore, MetaBlock, Transaction};

/// What messages call this map.
const NAME: &str = "metadata space map";

/// The most blocks that the map can count: 15.875 GiB of metadata.
pub(crate) const MAX_BLOCKS: u64 = (MAX_METADATA_BITMAPS * COUNTS_PER_BITMAP) as u64;

/// The counts of the metadata blocks, and where they lie on the disk.
#[derive(Debug)]
pub(crate) struct MetadataMap {
    pub(crate) ledger: Ledger,
    bitmaps: Vec<IndexEntry>,
    /// The index block; `None` until it is first written.
    index: Option<MetaBlock>,
    ref_count_root: MetaBlock,
}

impl MetadataMap {
    /// A map of `blocks` blocks, of which only the superblock is in use. Its tree of large counts
    /// has still to be made: see [`set_ref_counts`](MetadataMap::set_ref_counts).
    pub(crate) fn new(blocks: u64) -> Result<Self> {
        check_size(blocks)?;
        let mut ledger = Ledger::new(blocks);
        ledger.inc(0);
        let bitmaps = vec![IndexEntry::default(); bitmaps_for(blocks) as usize];
        Ok(Self { ledger, bitmaps, index: None, ref_count_root: MetaBlock::new(0) })
    }

    /// Gives a new map the tree for its large counts.
    pub(crate) fn set_ref_counts(&mut self, root: MetaBlock) {
        self.ref_count_root = root;
    }

    /// Reads the map at `root`.
    pub(crate) fn open(store: &BlockStore, root: &SpaceMapRoot) -> Result<Self> {
        let blocks = root.nr_blocks.get();
        check_size(blocks).map_err(|error| {
            Error::new(ErrorKind::Corrupt, NAME, "has an impossible size").because(error)
        })?;
        if blocks > store.device_blocks() {
            let problem =
                format!("counts {blocks} blocks where the device has {}", store.device_blocks());
            return Err(Error::new(ErrorKind::Corrupt, NAME, problem)
                .advise("the device was cut short, or is not the right one"));
        }
        let index = MetaBlock::new(root.bitmap_root.get());
        let ref_count_root = MetaBlock::new(root.ref_count_root.get());
        let block = store.read(index, BlockKind::Index)?;
        let entries = &MetadataIndex::of(&block).entries[..bitmaps_for(blocks) as usize];
        let places: Vec<MetaBlock> =
            entries.iter().map(|entry| MetaBlock::new(entry.bitmap.get())).collect();
        let ledger = Ledger::read(store, blocks, &places, ref_count_root)?;
        let superblock = MetaBlock::new(0);
        for &at in places.iter().chain([&index, &ref_count_root, &superblock]) {
            if ledger.counts().get(at.get()) == 0 {
                return Err(corrupt(at, "is always in use, but free in the metadata space map"));
            }
        }
        // Only the counts are believed: what the index says about free blocks is reckoned anew.
        let bitmaps = (0..)
            .zip(places)
            .map(|(number, at)| encode_bitmap(ledger.counts(), number).entry(at))
            .collect();
        Ok(Self { ledger, bitmaps, index: Some(index), ref_count_root })
    }

    /// Grows to `blocks` blocks.
    pub(crate) fn extend(&mut self, blocks: u64) -> Result<()> {
        let now = self.ledger.counts().len();
        if blocks < now {
            let problem = format!("has {now} blocks and cannot shrink to {blocks}");
            return Err(Error::new(ErrorKind::Invalid, NAME, problem));
        }
        check_size(blocks)?;
        self.ledger.extend(blocks);
        self.bitmaps.resize(bitmaps_for(blocks) as usize, IndexEntry::default());
        Ok(())
    }

    /// Where the bitmaps lie, as far as they were ever written.
    pub(crate) fn places(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        let places = self.bitmaps.iter().map(|entry| MetaBlock::new(entry.bitmap.get()));
        places.filter(|at| at.get() != 0)
    }

    /// The root that the superblock gets, once everything is written.
    fn root(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.ledger.counts().len().into(),
            nr_allocated: self.ledger.counts().allocated().into(),
            bitmap_root: self.index.map_or(0, MetaBlock::get).into(),
            ref_count_root: self.ref_count_root.get().into(),
        }
    }
}

/// Writes what changed in the metadata space map of `txn` to fresh blocks, and returns its root.
pub(crate) fn commit(txn: &mut Transaction) -> Result<SpaceMapRoot> {
    txn.map.ledger.sound(NAME)?;
    if txn.map.ledger.is_clean() {
        return Ok(txn.map.root());
    }
    let index = txn.replace(txn.map.index)?;
    txn.map.index = Some(index);
    // Nodes of this tree are never shared, so moving them changes no large count: once is enough.
    let large = txn.map.ledger.take_overflow();
    txn.map.ref_count_root = btree::apply(txn, txn.map.ref_count_root, &large, &mut NoRefs)?.root;
    let moved = move_bitmaps(txn)?;
    for number in moved {
        let at = txn.map.bitmaps[number as usize].at().expect("the bitmap was just moved");
        let encoded = encode_bitmap(txn.map.ledger.counts(), number);
        txn.map.bitmaps[number as usize] = encoded.entry(at);
        txn.put(at, BlockKind::Bitmap, encoded.block)?;
    }
    txn.map.ledger.mark_clean();
    let block = MetadataIndex::encode(&txn.map.bitmaps);
    txn.put(index, BlockKind::Index, block)?;
    Ok(txn.map.root())
}

/// Moves every bitmap that has changes to a new block, also those whose changes come from moving
/// others. Each moves once, so this ends.
fn move_bitmaps(txn: &mut Transaction) -> Result<Vec<u64>> {
    let mut moved = Vec::new();
    loop {
        let next = txn.map.ledger.dirty_bitmaps().find(|number| !moved.contains(number));
        let Some(number) = next else { return Ok(moved) };
        let at = txn.replace(txn.map.bitmaps[number as usize].at())?;
        txn.map.bitmaps[number as usize].bitmap = at.get().into();
        moved.push(number);
    }
}

fn check_size(blocks: u64) -> Result<()> {
    if blocks <= MAX_BLOCKS {
        return Ok(());
    }
    let problem = format!("cannot count {blocks} blocks, only {MAX_BLOCKS} (15.875 GiB)");
    Err(Error::new(ErrorKind::Invalid, NAME, problem))
}
