//! The counts of a space map in memory, and what about them is not on the disk yet.

use std::ops::ControlFlow;

use block_types::{Error, ErrorKind, Result};

use super::bitmap::{COUNTS_PER_BITMAP, bitmaps_for, decode};
use crate::counts::OVERFLOW;
use crate::{BlockKind, MetaBlock, ReadBlocks, RefCounts, btree};

const WORD: u64 = u64::BITS as u64;

/// Counts that remember what changed.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    counts: RefCounts,
    /// For each bitmap whether it differs from the one on the disk.
    dirty: Vec<bool>,
    /// Blocks whose entry among the large counts may differ, a bit each; no bits where there are
    /// none.
    overflow: Vec<u64>,
    /// The first block that was counted where that is impossible.
    fault: Option<u64>,
}

impl Ledger {
    /// A map of `len` free blocks that is not on the disk at all.
    pub(crate) fn new(len: u64) -> Self {
        let mut ledger = Self::clean(RefCounts::default());
        ledger.extend(len);
        ledger
    }

    /// The map of `len` blocks that lies in these bitmaps and in the tree of large counts.
    pub(crate) fn read(
        reader: &(impl ReadBlocks + ?Sized),
        len: u64,
        bitmaps: &[MetaBlock],
        overflow: MetaBlock,
    ) -> Result<Self> {
        let mut bytes = vec![0; len as usize];
        for (chunk, &at) in bytes.chunks_mut(COUNTS_PER_BITMAP).zip(bitmaps) {
            decode(&*reader.read_block(at, BlockKind::Bitmap)?, chunk);
        }
        let mut counts = RefCounts::from_bytes(bytes);
        read_overflow(reader, overflow, &mut counts)?;
        Ok(Self::clean(counts))
    }

    fn clean(counts: RefCounts) -> Self {
        let dirty = vec![false; bitmaps_for(counts.len()) as usize];
        Self { counts, dirty, overflow: Vec::new(), fault: None }
    }

    pub(crate) fn counts(&self) -> &RefCounts {
        &self.counts
    }

    /// Adds one to a count and returns the new one.
    pub(crate) fn inc(&mut self, block: u64) -> Option<u32> {
        let count = self.counts.inc(block);
        self.note(block, count, count)
    }

    /// Takes one from a count and returns the new one.
    pub(crate) fn dec(&mut self, block: u64) -> Option<u32> {
        let count = self.counts.dec(block);
        self.note(block, count, count.map(|count| count + 1))
    }

    /// Remembers that a count changed, `larger` being the larger of old and new; or that it could
    /// not.
    fn note(&mut self, block: u64, count: Option<u32>, larger: Option<u32>) -> Option<u32> {
        match larger {
            None => self.fail(block),
            Some(larger) => {
                self.dirty[(block / COUNTS_PER_BITMAP as u64) as usize] = true;
                if larger >= OVERFLOW {
                    self.note_overflow(block);
                }
            }
        }
        count
    }

    fn note_overflow(&mut self, block: u64) {
        if self.overflow.is_empty() {
            self.overflow = vec![0; self.counts.len().div_ceil(WORD) as usize];
        }
        self.overflow[(block / WORD) as usize] |= 1 << (block % WORD);
    }

    /// Remembers that `block` was counted where that is impossible.
    pub(crate) fn fail(&mut self, block: u64) {
        tracing::error!(block, "a reference count would go where no count can be");
        self.fault.get_or_insert(block);
    }

    /// Whether every count could be kept; after an impossible one nothing may be committed any
    /// more.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], naming the first block that could not be counted.
    pub(crate) fn sound(&self, map: &str) -> Result<()> {
        let Some(block) = self.fault else { return Ok(()) };
        let problem = format!("block {block} is referred to, but its count does not say so");
        Err(Error::new(ErrorKind::Corrupt, map, problem).advise("check and repair the metadata"))
    }

    /// Grows to `len` blocks.
    pub(crate) fn extend(&mut self, len: u64) {
        self.counts.extend(len);
        // What the last bitmap has behind the old end is free already.
        self.dirty.resize(bitmaps_for(self.counts.len()) as usize, true);
        if !self.overflow.is_empty() {
            self.overflow.resize(self.counts.len().div_ceil(WORD) as usize, 0);
        }
    }

    /// Whether the disk has the same.
    pub(crate) fn is_clean(&self) -> bool {
        self.overflow.is_empty() && !self.dirty.contains(&true)
    }

    /// The bitmaps that differ from the disk, ascending.
    pub(crate) fn dirty_bitmaps(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(&self.dirty).filter(|(_, dirty)| **dirty).map(|(index, _)| index)
    }

    /// The changes that bring the tree of large counts up to date; they count as made.
    pub(crate) fn take_overflow(&mut self) -> Vec<(u64, Option<u32>)> {
        let noted = std::mem::take(&mut self.overflow);
        let count = |block| Some(self.counts.get(block)).filter(|&count| count >= OVERFLOW);
        let words = (0..).zip(noted).filter(|(_, word)| *word != 0);
        words
            .flat_map(|(index, word)| bits(word).map(move |bit| index * WORD + bit))
            .map(|block| (block, count(block)))
            .collect()
    }

    /// All bitmaps are as on the disk from now on.
    pub(crate) fn mark_clean(&mut self) {
        self.dirty.fill(false);
    }
}

/// The bits of `word` that are set, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = u64::from(word.trailing_zeros());
        (word != 0).then(|| {
            word &= word - 1;
            bit
        })
    })
}

/// Puts the large counts in the place of the threes that stand for them.
fn read_overflow(
    reader: &(impl ReadBlocks + ?Sized),
    root: MetaBlock,
    counts: &mut RefCounts,
) -> Result<()> {
    let mut missing = counts.overflowing();
    let mut small = None;
    btree::walk(reader, root, 0, &mut |block, count: u32| {
        // The tree may keep an entry for a count that has become small: the bitmap is right then.
        if counts.get(block) == OVERFLOW {
            if count < OVERFLOW {
                small = Some(block);
                return ControlFlow::Break(());
            }
            counts.set(block, count);
            missing -= 1;
        }
        ControlFlow::Continue(())
    })?;
    match (small, missing) {
        (None, 0) => Ok(()),
        (Some(block), _) => Err(broken(
            root,
            format!("has a count below 3 for block {block}, the bitmap 3 or more"),
        )),
        (None, missing) => Err(broken(root, format!("lacks {missing} counts of 3 or more"))),
    }
}

fn broken(root: MetaBlock, problem: String) -> Error {
    Error::new(ErrorKind::Corrupt, format!("space map, tree of large counts at {root}"), problem)
}
