//! Transactions: the one place where metadata blocks are allocated, counted, written and freed.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use block_types::{Error, ErrorKind, Result};

use crate::checksum::corrupt;
use crate::fresh::FreshBlocks;
use crate::holds::{Hold, Holds};
use crate::space_map::metadata::{self, MetadataMap};
use crate::{Block, BlockKind, BlockStore, MetaBlock, ReadBlocks, RefCounts, SpaceMapRoot, btree};

/// The changes to a metadata device since the last commit; one after another, as long as the device
/// is open.
///
/// A commit is [`seal`](Transaction::seal), [`write`](Transaction::write), a flush, the superblock,
/// another flush, and [`finish`](Transaction::finish). There is no way back: after a failure
/// between the first change and the end, whoever owns the transaction drops it and opens the device
/// anew.
///
/// Counting never fails: an impossible count (one less than none, a block past the end) changes
/// nothing, and the transaction refuses to be sealed from then on.
pub struct Transaction {
    store: Arc<BlockStore>,
    pub(crate) map: MetadataMap,
    /// Allocated since the last commit, and still in use.
    fresh: FreshBlocks,
    /// In use at the last commit, and free by now: not to be given out before the next is durable.
    freed: HashSet<MetaBlock>,
    holds: Holds,
    /// Where to look for the next free block.
    cursor: u64,
    /// Whether the transaction waits to become durable.
    sealed: bool,
}

impl Transaction {
    /// The most blocks that a metadata device may have: 15.875 GiB.
    pub const MAX_BLOCKS: u64 = metadata::MAX_BLOCKS;

    /// Begins the first transaction on a device: nothing is in use but block 0, for the superblock,
    /// and what the space map itself needs.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if `blocks` is more than the format or the device has;
    /// [`ErrorKind::OutOfSpace`] if it is too few.
    pub fn format(store: Arc<BlockStore>, blocks: u64) -> Result<Self> {
        check_device(&store, blocks)?;
        let map = MetadataMap::new(blocks)?;
        let mut txn = Self::new(store, map);
        let root = btree::empty::<u32>(&mut txn)?;
        txn.map.set_ref_counts(root);
        Ok(txn)
    }

    /// Begins a transaction on a device whose superblock has `root` for its metadata space map.
    /// Reads all counts.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the space map is broken or larger than the device; the device's
    /// failures.
    pub fn open(store: Arc<BlockStore>, root: &SpaceMapRoot) -> Result<Self> {
        let map = MetadataMap::open(&store, root)?;
        Ok(Self::new(store, map))
    }

    fn new(store: Arc<BlockStore>, map: MetadataMap) -> Self {
        let (fresh, freed) = (FreshBlocks::default(), HashSet::new());
        Self { store, map, fresh, freed, holds: Holds::default(), cursor: 0, sealed: false }
    }

    /// The committed blocks that the transaction builds on.
    pub fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }

    /// Takes a free block, with a count of 1. It has to get content before the transaction is
    /// sealed. Blocks that are taken one after another lie side by side as far as can be.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`] if every block is in use, or was when the last transaction was
    /// committed (FREE-LATE).
    pub fn alloc(&mut self) -> Result<MetaBlock> {
        self.assert_open();
        let Some(at) = self.find_free() else {
            let problem = format!("has no free block left of {}", self.nr_blocks());
            return Err(Error::new(ErrorKind::OutOfSpace, self.store.device().name(), problem)
                .advise("grow the metadata device"));
        };
        self.map.ledger.inc(at.get());
        self.fresh.reserve(at);
        self.cursor = at.get() + 1;
        Ok(at)
    }

    /// Takes a block for the new content of `old`, which has no other parent and is dropped. A
    /// block of this transaction stays where it is.
    pub(crate) fn replace(&mut self, old: Option<MetaBlock>) -> Result<MetaBlock> {
        match old {
            Some(at) if self.is_fresh(at) => Ok(at),
            _ => {
                let at = self.alloc()?;
                if let Some(old) = old {
                    self.dec(old);
                }
                Ok(at)
            }
        }
    }

    /// Blocks that this transaction can still take. Those that it freed are not among them, nor
    /// those that a hold needs.
    pub fn free_blocks(&self) -> u64 {
        let free = self.nr_blocks() - self.map.ledger.counts().allocated();
        free - self.freed.len() as u64 - self.holds.withheld()
    }

    /// Holds the last committed state for readers: none of its blocks is taken again until the hold
    /// is let go. To be called between two transactions.
    pub fn hold(&mut self) -> Hold {
        self.holds.add(self.map.ledger.counts())
    }

    /// Ends a hold; one that was broken before is none any more.
    pub fn let_go(&mut self, hold: &Hold) {
        self.holds.remove(hold);
    }

    /// Takes back what all holds withhold, since it is needed: whoever reads is told by
    /// [`Hold::broken`]. `false` if nothing was held.
    pub fn break_holds(&mut self) -> bool {
        self.holds.break_all()
    }

    /// Blocks of the metadata device that the space map counts.
    pub fn nr_blocks(&self) -> u64 {
        self.map.ledger.counts().len()
    }

    /// Takes the device's growth to `blocks` blocks into the space map.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if that is fewer than now, or more than
    /// [`MAX_BLOCKS`](Transaction::MAX_BLOCKS) or than the device has. Nothing is changed then.
    pub fn extend(&mut self, blocks: u64) -> Result<()> {
        self.assert_open();
        check_device(&self.store, blocks)?;
        self.map.extend(blocks)
    }

    /// Every count of the metadata device.
    pub fn counts(&self) -> &RefCounts {
        self.map.ledger.counts()
    }

    /// The bitmaps of the metadata space map, for those who count every block.
    pub fn bitmaps(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        self.map.places()
    }

    /// The count of a block: its parents in the present state. 0 if it is free or past the end.
    pub fn count(&self, at: MetaBlock) -> u32 {
        self.map.ledger.counts().get(at.get())
    }

    /// Adds a reference to a block that is in use.
    pub fn inc(&mut self, at: MetaBlock) {
        self.assert_open();
        if self.count(at) == 0 {
            self.map.ledger.fail(at.get());
        } else {
            self.map.ledger.inc(at.get());
        }
    }

    /// Drops a reference to a block, and returns how many are left. At 0 the block is free. What it
    /// refers to itself is not touched: see [`btree::release`].
    pub fn dec(&mut self, at: MetaBlock) -> u32 {
        self.assert_open();
        match self.map.ledger.dec(at.get()) {
            None => 0,
            Some(0) => {
                // A block of this transaction was free at the last commit: it may be taken again.
                if !self.fresh.remove(at) {
                    self.freed.insert(at);
                }
                0
            }
            Some(count) => count,
        }
    }

    /// Whether the block was allocated in this transaction.
    pub fn is_fresh(&self, at: MetaBlock) -> bool {
        self.fresh.contains(at)
    }

    /// Gives a block of this transaction its content. Number and checksum are filled in when the
    /// transaction is sealed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the block was not allocated in this transaction: all others belong
    /// to the committed state.
    pub fn put(&mut self, at: MetaBlock, kind: BlockKind, block: Block) -> Result<()> {
        self.put_shared(at, kind, Arc::new(block))
    }

    /// The same with a block that others may hold, too. It is copied when it is changed.
    pub(crate) fn put_shared(
        &mut self,
        at: MetaBlock,
        kind: BlockKind,
        block: Arc<Block>,
    ) -> Result<()> {
        self.assert_open();
        self.fresh.put(at, kind, block)
    }

    /// The content of a block of this transaction, to change.
    pub(crate) fn edit(&mut self, at: MetaBlock) -> Result<&mut Block> {
        self.assert_open();
        self.fresh.edit(at)
    }

    /// Completes the transaction: brings the metadata space map up to date and seals every block.
    /// Returns the root that the superblock needs. Nothing may be changed then until
    /// [`finish`](Transaction::finish).
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`]; [`ErrorKind::Corrupt`] if a block was counted where that is
    /// impossible; [`ErrorKind::Invalid`] if an allocated block has no content.
    pub fn seal(&mut self) -> Result<SpaceMapRoot> {
        self.assert_open();
        let root = metadata::commit(self)?;
        self.fresh.seal()?;
        self.sealed = true;
        Ok(root)
    }

    /// Writes every block of the sealed transaction. Flushes nothing: the caller flushes the
    /// device, and then writes and flushes the superblock.
    ///
    /// # Errors
    /// The device's failures. Nothing that counts was overwritten then (FREE-LATE), but the
    /// transaction is lost.
    pub fn write(&self) -> Result<()> {
        assert!(self.sealed, "a transaction is sealed before it is written");
        self.fresh.write(&**self.store.device())
    }

    /// The superblock that names the sealed transaction is durable: what the transaction freed may
    /// be used again, and the next one begins.
    pub fn finish(&mut self) {
        assert!(self.sealed, "a transaction is sealed before it is finished");
        for at in self.freed.drain() {
            self.store.forget(at);
            self.holds.freed(at);
        }
        for (at, fresh) in self.fresh.drain() {
            if fresh.kind == BlockKind::Node {
                self.store.keep(at, fresh.block);
            }
        }
        self.sealed = false;
    }

    fn assert_open(&self) {
        assert!(!self.sealed, "nothing changes between sealing a transaction and finishing it");
    }

    /// The next free block behind the last one that was taken.
    fn find_free(&self) -> Option<MetaBlock> {
        if self.free_blocks() == 0 {
            return None;
        }
        self.free_from(self.cursor).or_else(|| self.free_from(0))
    }

    fn free_from(&self, mut from: u64) -> Option<MetaBlock> {
        loop {
            let at = MetaBlock::new(self.map.ledger.counts().next_free(from)?);
            if !self.freed.contains(&at) && !self.holds.withholds(at) {
                return Some(at);
            }
            from = at.get() + 1;
        }
    }
}

/// Checks that the device of `store` has `blocks` blocks.
fn check_device(store: &BlockStore, blocks: u64) -> Result<()> {
    let there = store.device_blocks();
    if blocks <= there {
        return Ok(());
    }
    let problem = format!("has {there} metadata blocks, not {blocks}");
    Err(Error::new(ErrorKind::Invalid, store.device().name(), problem))
}

impl ReadBlocks for Transaction {
    fn read_block(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        match self.fresh.get(at) {
            Some(fresh) if fresh.kind == kind => Ok(Arc::clone(&fresh.block)),
            Some(fresh) => {
                Err(corrupt(at, format!("is a {} where a {kind} is expected", fresh.kind)))
            }
            None => self.store.read(at, kind),
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("store", &self.store)
            .field("allocated", &self.map.ledger.counts().allocated())
            .field("blocks", &self.nr_blocks())
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}
