//! Writes of a guest while its leaf is merged into a node below: what was merged already goes to
//! both, the rest to the leaf alone.
//!
//! The disk is merged in steps. Each has a lock, which the merge holds for the one step, and a
//! write for the part of it that lies in the step: so a write waits for one step at most, and none
//! falls between. Until the one switch at the end the leaf is the truth: what a step has written
//! below is hidden by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use parking_lot::{Mutex, MutexGuard};

use crate::layer::Layer;

/// The largest part of a disk that is merged under one lock.
pub(crate) const STEP: ByteCount = ByteCount::new(256 << 10);
/// Locks of steps; those whose numbers agree modulo this share one.
const LOCKS: usize = 64;
/// Bits of a word.
const WORD: usize = 64;

/// Which steps of a disk are merged.
pub(crate) struct Mirror {
    target: Arc<Layer>,
    done: Box<[AtomicU64]>,
    locks: [Mutex<()>; LOCKS],
    /// The longest time that a step was locked, in nanoseconds.
    longest: AtomicU64,
}

/// A step that is locked.
pub(crate) struct Locked<'m> {
    mirror: &'m Mirror,
    index: usize,
    since: Instant,
    _guard: MutexGuard<'m, ()>,
}

impl Mirror {
    /// Nothing of a disk of `size` is merged into `target` yet.
    pub(crate) fn new(target: Arc<Layer>, size: ByteCount) -> Self {
        let words = (size.div_ceil(STEP) as usize).div_ceil(WORD);
        Self {
            target,
            done: (0..words).map(|_| AtomicU64::new(0)).collect(),
            locks: [const { Mutex::new(()) }; LOCKS],
            longest: AtomicU64::new(0),
        }
    }

    /// Locks the step that holds `at`, for the merge.
    pub(crate) fn lock(&self, at: ByteOffset) -> Locked<'_> {
        let index = index_of(at);
        let guard = self.locks[index % LOCKS].lock();
        Locked { mirror: self, index, since: Instant::now(), _guard: guard }
    }

    /// Has `write` do to the leaf, and to the target where that is merged already, what a guest
    /// wants of `range`, step by step.
    pub(crate) fn write(
        &self,
        range: ByteRange,
        mut write: impl FnMut(ByteRange, Option<&Layer>) -> Result<()>,
    ) -> Result<()> {
        for piece in range.pieces(STEP) {
            let index = index_of(piece.start);
            let _guard = self.locks[index % LOCKS].lock();
            let target = self.is_done(index).then_some(&*self.target);
            write(piece, target)?;
        }
        Ok(())
    }

    fn is_done(&self, index: usize) -> bool {
        self.done[index / WORD].load(Ordering::Acquire) & (1 << (index % WORD)) != 0
    }

    /// The longest time that a step was locked, in nanoseconds.
    pub(crate) fn longest_nanos(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }
}

impl Locked<'_> {
    /// The step is merged.
    pub(crate) fn done(self) {
        let word = &self.mirror.done[self.index / WORD];
        word.fetch_or(1 << (self.index % WORD), Ordering::Release);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.mirror.longest.fetch_max(nanos, Ordering::Relaxed);
    }
}

fn index_of(at: ByteOffset) -> usize {
    (at.get() / STEP.get()) as usize
}
