//! One bitmap that records.

use std::ops::Range;

use block_types::{ByteCount, ByteRange, DirtyBitmap, PartContent, Result};
use parking_lot::{Condvar, Mutex};

use super::store::{BitmapPart, BitmapStore};

/// Bytes of a bitmap that are made all set together: 1024 bits, so that a disk of 1 TiB at 64 KiB
/// has 16384 regions of 64 MiB, each of which costs a small write once, shared by all who wait.
const REGION: u64 = 1 << (Recorder::REGION_BITS - 3);

/// A bitmap that records the writes to a disk.
pub struct Recorder {
    name: String,
    /// What has changed.
    bits: DirtyBitmap,
    /// What the store has durably, or part of that: nothing here that a crash could take back.
    kept: DirtyBitmap,
    store: Box<dyn BitmapStore>,
    turn: Mutex<Turn>,
    over: Condvar,
}

/// Whose turn it is to use the store.
#[derive(Default)]
struct Turn {
    busy: bool,
    /// Writes that wait for a region.
    waiting: usize,
    /// The regions that they wait for.
    wanted: Vec<Range<u64>>,
}

impl Recorder {
    /// The bits of a region, as a power of two.
    pub const REGION_BITS: u8 = 10;

    /// A recorder that goes on from `bits`, which `store` holds as they are, or more of them.
    ///
    /// # Errors
    /// Where there is no memory for as many bits again.
    pub fn new(
        name: impl Into<String>,
        bits: DirtyBitmap,
        store: Box<dyn BitmapStore>,
    ) -> Result<Self> {
        let kept = bits.resized(bits.size())?;
        let (turn, over) = (Mutex::default(), Condvar::new());
        Ok(Self { name: name.into(), bits, kept, store, turn, over })
    }

    /// What the bitmap is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has changed. Who clears any of it has the disk's writers
    /// [drained](super::Tracked::drain) before he reads what the disk holds there.
    pub fn bits(&self) -> &DirtyBitmap {
        &self.bits
    }

    /// The granularity of what a crash may leave: bytes of the disk under a region.
    pub fn consistent_level(&self) -> ByteCount {
        ByteCount::new(self.bits.granularity().bytes().get() * REGION * 8)
    }

    /// Notes a write to `range`, if a crash cannot take that back. Takes no lock.
    pub(super) fn note(&self, range: ByteRange) -> bool {
        let kept = self.kept.is_all_dirty(range);
        if kept {
            self.bits.set(range);
        }
        kept
    }

    /// Sees to it that a write to `range` can be noted, at least for a moment.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn cover(&self, range: ByteRange) -> Result<()> {
        let region = regions(&self.kept.bytes_of(range));
        let mut turn = self.turn.lock();
        turn.wanted.push(region);
        turn.waiting += 1;
        // Whoever has the turn next takes along what all others want.
        while turn.busy && !self.kept.is_all_dirty(range) {
            self.over.wait(&mut turn);
        }
        turn.waiting -= 1;
        if turn.busy || self.kept.is_all_dirty(range) {
            drop(turn);
            self.over.notify_all();
            return Ok(());
        }
        turn.busy = true;
        let mut wanted = std::mem::take(&mut turn.wanted);
        drop(turn);
        wanted.sort_unstable_by_key(|region| (region.start, region.end));
        wanted.dedup();
        let parts: Vec<_> = wanted.iter().map(|region| self.all_set(region)).collect();
        let result = self.store.put(&parts).inspect(|()| self.keep(&parts));
        self.end_turn();
        result
    }

    /// Puts exact bits in the place of all that are only kept, once `drain` has seen every write to
    /// its end that was noted before. Writes to those regions wait meanwhile.
    ///
    /// # Errors
    /// Those of the store; the regions are covered again when they are written.
    pub(super) fn refine(&self, drain: impl FnOnce()) -> Result<()> {
        let mut turn = self.turn.lock();
        // Writes come first: there is no hurry with this.
        while turn.busy || turn.waiting > 0 {
            self.over.wait(&mut turn);
        }
        turn.busy = true;
        drop(turn);
        let loose = self.loose();
        for region in &loose {
            self.kept.clear_part(region.clone());
        }
        // Who noted a write before is done with it after this, and nobody notes one there now.
        drain();
        let parts: Vec<_> = loose.iter().map(|region| self.exact(region)).collect();
        let result = if parts.is_empty() { Ok(()) } else { self.store.put(&parts) };
        let result = result.inspect(|()| self.keep(&parts));
        self.end_turn();
        result
    }

    fn end_turn(&self) {
        self.turn.lock().busy = false;
        self.over.notify_all();
    }

    /// What the store has durably.
    fn keep(&self, parts: &[BitmapPart]) {
        for part in parts {
            self.kept.import(part.at, &part.bytes);
        }
    }

    /// The regions of which more is kept than has changed.
    fn loose(&self) -> Vec<Range<u64>> {
        let all = regions(&(0..self.kept.byte_len()));
        let each = (all.start..all.end).step_by(REGION as usize).map(|at| at..at + REGION);
        each.filter(|region| self.kept.content(region.clone()) != PartContent::Clean)
            .filter(|region| self.exact(region) != exported(&self.kept, region))
            .collect()
    }

    fn exact(&self, region: &Range<u64>) -> BitmapPart {
        exported(&self.bits, region)
    }

    /// A region with every bit set that the disk has.
    fn all_set(&self, region: &Range<u64>) -> BitmapPart {
        let bits = self.bits.size().div_ceil(self.bits.granularity().bytes());
        let byte = |at: u64| match bits.saturating_sub(at * 8) {
            0 => 0,
            left @ 1..8 => (1u8 << left) - 1,
            _ => 0xff,
        };
        BitmapPart { at: region.start, bytes: region.clone().map(byte).collect() }
    }
}

/// The bytes of `region` of a bitmap.
fn exported(bitmap: &DirtyBitmap, region: &Range<u64>) -> BitmapPart {
    let mut bytes = vec![0; (region.end - region.start) as usize];
    bitmap.export(region.start, &mut bytes);
    BitmapPart { at: region.start, bytes }
}

/// The regions that hold the bytes `part`.
fn regions(part: &Range<u64>) -> Range<u64> {
    let start = part.start / REGION * REGION;
    start..part.end.next_multiple_of(REGION).max(start)
}
