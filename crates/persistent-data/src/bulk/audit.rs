//! Holding what was counted against what a space map says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::facts::NodeProblem;
use super::forest::Forest;
use super::pages::Pages;
use super::read::BulkReader;
use crate::checksum::{corrupt, problem};
use crate::counts::OVERFLOW;
use crate::space_map::COUNTS_PER_BITMAP;
use crate::{Block, BlockKind, MetaBlock};

/// Where the counts of a bitmap begin.
const HEAD: usize = 16;
/// Counts in a word of a bitmap, two bits each.
const PER_WORD: usize = 32;
/// The pattern whose one bit stands in the first of each pair.
const PAIRS: u64 = 0x5555_5555_5555_5555;
/// What a bitmap says of a count that is found among the large counts.
const LARGE: u32 = OVERFLOW;

/// Counts that were found, to be held against a space map.
pub trait Counted: Sync {
    /// How many blocks there are.
    fn len(&self) -> u64;

    /// Whether there are no blocks at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a block was referred to.
    fn count(&self, block: u64) -> u32;

    /// Whether it is known at once that all blocks of the bitmap with this number have count 0.
    fn is_bitmap_unused(&self, number: usize) -> bool {
        let _ = number;
        false
    }
}

/// The counts of metadata blocks that a forest has found.
impl Counted for Forest {
    fn len(&self) -> u64 {
        self.blocks()
    }

    fn count(&self, block: u64) -> u32 {
        self.references(MetaBlock::new(block))
    }
}

/// A count of a space map that is not what was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CountMismatch {
    /// The block that is counted.
    pub block: u64,
    /// The count that the space map has.
    pub said: u32,
    /// The references that there are.
    pub counted: u32,
}

/// Mismatches, the first of them in full, and how many there are.
#[derive(Debug)]
pub struct Mismatches {
    /// Too low: somebody will reuse a block that is still referred to.
    pub low: Vec<CountMismatch>,
    /// Too high: space that is lost.
    pub high: Vec<CountMismatch>,
    /// How many counts are too low.
    pub lows: u64,
    /// How many counts are too high.
    pub highs: u64,
    keep: usize,
}

/// The bitmaps of a space map in memory, two bits a block.
#[derive(Debug)]
pub struct Bitmaps {
    bitmaps: Vec<Option<Box<Block>>>,
    len: u64,
    /// Blocks whose large count was seen.
    seen: Pages<AtomicU64, { COUNTS_PER_BITMAP / 64 }>,
}

impl Mismatches {
    /// None yet; of each sort, at most `keep` will be kept.
    pub fn new(keep: usize) -> Self {
        Self { low: Vec::new(), high: Vec::new(), lows: 0, highs: 0, keep }
    }

    /// Takes in what others found.
    pub fn extend(&mut self, other: Self) {
        self.lows += other.lows;
        self.highs += other.highs;
        self.low.extend(other.low);
        self.high.extend(other.high);
    }

    /// Sorts them by block, and drops what is more than to be kept.
    pub fn sort(&mut self) {
        for list in [&mut self.low, &mut self.high] {
            list.sort_unstable();
            list.truncate(self.keep);
        }
    }

    fn compare(&mut self, block: u64, said: u32, counted: u32) {
        let mismatch = CountMismatch { block, said, counted };
        let (list, count) = match said.cmp(&counted) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Less => (&mut self.low, &mut self.lows),
            std::cmp::Ordering::Greater => (&mut self.high, &mut self.highs),
        };
        *count += 1;
        if list.len() < self.keep {
            list.push(mismatch);
        }
    }
}

impl Bitmaps {
    /// Reads the bitmaps at `places` of a map of `len` blocks. One that cannot be read or is broken
    /// is left out, and returned as a problem.
    pub fn read(reader: &BulkReader, places: &[MetaBlock], len: u64) -> (Self, Vec<NodeProblem>) {
        let mut order: Vec<(MetaBlock, usize)> =
            places.iter().enumerate().map(|(number, &at)| (at, number)).collect();
        order.sort_unstable();
        let mut blocks: Vec<MetaBlock> = order.iter().map(|(at, _)| *at).collect();
        blocks.dedup();
        let bitmaps: Mutex<Vec<Option<Box<Block>>>> = Mutex::new(vec![None; places.len()]);
        let problems = reader.for_each(&blocks, Vec::new, |problems, at, block| {
            let sound = block.and_then(|block| {
                let wrong = problem(&block[..], BlockKind::Bitmap, at);
                wrong.map_or(Ok(block), |wrong| Err(corrupt(at, wrong)))
            });
            match sound {
                Err(error) => problems.push(NodeProblem { at, error }),
                Ok(block) => {
                    let first = order.partition_point(|(place, _)| *place < at);
                    let mut bitmaps = bitmaps.lock().unwrap_or_else(PoisonError::into_inner);
                    for (_, number) in order[first..].iter().take_while(|(place, _)| *place == at) {
                        bitmaps[*number] = Some(Box::new(block.clone()));
                    }
                }
            }
        });
        let mut problems: Vec<NodeProblem> = problems.into_iter().flatten().collect();
        problems.sort_by_key(|problem| problem.at);
        let bitmaps = bitmaps.into_inner().unwrap_or_else(PoisonError::into_inner);
        (Self { bitmaps, len, seen: Pages::new(len.div_ceil(64)) }, problems)
    }

    /// What the bitmap says of a block: its count, or 3 for those whose count is elsewhere. `None`
    /// past the end and where the bitmap is broken.
    pub fn get(&self, block: u64) -> Option<u32> {
        if block >= self.len {
            return None;
        }
        let (number, place) = split(block);
        let bitmap = self.bitmaps.get(number)?.as_ref()?;
        Some(pair(words(bitmap)[place / PER_WORD].get(), place % PER_WORD))
    }

    /// How many blocks are in use by the bitmaps.
    pub fn allocated(&self) -> u64 {
        let used = |word: u64| u64::from(((word | word >> 1) & PAIRS).count_ones());
        let bitmaps = self.bitmaps.iter().flatten();
        bitmaps.flat_map(|bitmap| words(bitmap)).map(|word| used(word.get())).sum()
    }

    /// Compares the counts that the bitmaps hold themselves with what was counted.
    pub fn compare(&self, counted: &impl Counted, found: &mut Mismatches) {
        for (number, bitmap) in self.bitmaps.iter().enumerate() {
            let Some(bitmap) = bitmap else { continue };
            let first = number as u64 * COUNTS_PER_BITMAP as u64;
            let len = (self.len - first).min(COUNTS_PER_BITMAP as u64);
            let unused = counted.is_bitmap_unused(number);
            for (word, first) in words(bitmap).iter().zip((first..first + len).step_by(PER_WORD)) {
                let word = word.get();
                if unused && word == 0 {
                    continue;
                }
                let len = PER_WORD.min((self.len - first) as usize);
                for (place, block) in (0..len).zip(first..) {
                    let (said, counted) = (pair(word, place), counted.count(block));
                    if said != LARGE {
                        found.compare(block, said, counted);
                    }
                }
            }
        }
    }

    /// Compares an entry of the tree of large counts with what was counted. Says what is wrong with
    /// the entry itself, if something is.
    pub fn compare_large(
        &self,
        (block, said): (u64, u32),
        counted: &impl Counted,
        found: &mut Mismatches,
    ) -> Option<String> {
        // The tree may keep an entry for a count that has become small: the bitmap is right then.
        if self.get(block) != Some(LARGE) {
            return None;
        }
        if let Some(seen) = self.seen.want(block / 64) {
            seen.fetch_or(1 << (block % 64), Ordering::Relaxed);
        }
        found.compare(block, said, counted.count(block));
        (said < OVERFLOW).then(|| format!("has the count {said} for block {block}, 3 or more"))
    }

    /// The first blocks, at most `keep`, whose large count was not seen, and how many there are.
    pub fn without_large(&self, keep: usize) -> (Vec<u64>, u64) {
        let (mut missing, mut count) = (Vec::new(), 0);
        for (number, bitmap) in self.bitmaps.iter().enumerate() {
            let Some(bitmap) = bitmap else { continue };
            let first = number as u64 * COUNTS_PER_BITMAP as u64;
            for (word, first) in words(bitmap).iter().zip((first..self.len).step_by(PER_WORD)) {
                let large = word.get() & word.get() >> 1 & PAIRS;
                if large == 0 {
                    continue;
                }
                for block in (first..self.len).zip(0..PER_WORD) {
                    let seen = self.seen.get(block.0 / 64);
                    let seen = seen.is_some_and(|seen| {
                        seen.load(Ordering::Relaxed) & 1 << (block.0 % 64) != 0
                    });
                    if large & 1 << (2 * block.1) != 0 && !seen {
                        count += 1;
                        if missing.len() < keep {
                            missing.push(block.0);
                        }
                    }
                }
            }
        }
        (missing, count)
    }
}

/// The bitmap that counts a block, and its place there.
fn split(block: u64) -> (usize, usize) {
    let per = COUNTS_PER_BITMAP as u64;
    ((block / per) as usize, (block % per) as usize)
}

fn words(bitmap: &Block) -> &[U64] {
    <[U64]>::ref_from_bytes(&bitmap[HEAD..]).expect("the counts are whole words")
}

/// The count at a place of a word: its lower bit is the high one.
fn pair(word: u64, place: usize) -> u32 {
    let pair = (word >> (2 * place) & 0b11) as u32;
    (pair & 1) << 1 | pair >> 1
}
