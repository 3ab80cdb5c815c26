//! The copy of a merge: every sector that is seen through the topmost node, and that the target
//! does not show already, is written to the target once.
//!
//! What lies above the target overwrites what it holds: nobody sees that, for whoever reads the
//! target does so through those above. What lies below fills what it does not hold, and beside a
//! guest that writes to it whatever the guest wrote stays. So any part of the copy may be there
//! after a crash, in any order, and it may be done again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use jobs::Monitor;
use parking_lot::Mutex;

use crate::chain::{Chain, PIECE};
use crate::layer::Layer;
use crate::mirror::{Mirror, STEP};
use crate::point::{Point, Probe};
use crate::progress::Progress;

/// Threads that copy, each with a request in flight.
const THREADS: usize = 4;

/// A copy within a run.
pub(crate) struct Copy {
    /// The nodes of the run, the topmost first; without a topmost that a guest writes to.
    pub(crate) chain: Arc<Chain>,
    pub(crate) target: Arc<Layer>,
    /// The target's place in the chain; `None` where it is the topmost, and not in it.
    pub(crate) place: Option<usize>,
    /// The topmost that a guest writes to, and that is merged down.
    pub(crate) live: Option<(Arc<Layer>, Arc<Mirror>)>,
    /// The target will be a root, whose blocks are whole.
    pub(crate) makes_root: bool,
    pub(crate) size: ByteCount,
}

impl Copy {
    /// Copies everything. Nothing is durable yet.
    ///
    /// # Errors
    /// The first failure; [`Cancelled`](block_types::ErrorKind::Cancelled).
    pub(crate) fn run(&self, progress: &Progress, monitor: &Monitor, probe: &Probe) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let pieces = self.size.div_ceil(PIECE) as usize;
        let work = || {
            let mut buffer = Vec::new();
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces || failure.lock().is_some() {
                    return;
                }
                let done = self.piece(piece, &mut buffer, progress, monitor);
                if let Err(error) = done {
                    failure.lock().get_or_insert(error);
                    return;
                }
                probe.reach(Point::MergeCopying);
            }
        };
        std::thread::scope(|scope| {
            (1..THREADS.min(pieces)).for_each(|_| {
                scope.spawn(work);
            });
            work();
        });
        failure.into_inner().map_or(Ok(()), Err)
    }

    fn piece(
        &self,
        index: usize,
        buffer: &mut Vec<u8>,
        progress: &Progress,
        monitor: &Monitor,
    ) -> Result<()> {
        let start = ByteOffset::new(index as u64 * PIECE.get());
        let whole = ByteRange::new(ByteOffset::ZERO, self.size);
        let piece = ByteRange::new(start, PIECE).intersect(whole);
        let runs = self.chain.runs_of_piece(index)?;
        for step in piece.pieces(STEP) {
            progress.checkpoint(monitor)?;
            let bytes = match &self.live {
                None => self.step(step, &runs, buffer)?,
                Some((top, mirror)) => {
                    let locked = mirror.lock(step.start);
                    let bytes = self.live_step(top, step, &runs, buffer)?;
                    locked.done();
                    bytes
                }
            };
            progress.advance(ByteCount::new(bytes), monitor);
        }
        Ok(())
    }

    /// Copies a step of a disk whose topmost node no guest writes down to the target.
    fn step(
        &self,
        step: ByteRange,
        runs: &[(ByteRange, Option<usize>)],
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        let mut copied = 0;
        let first = runs.partition_point(|(range, _)| range.end() <= step.start);
        for (range, layer) in &runs[first..] {
            let range = range.intersect(step);
            if range.is_empty() {
                break;
            }
            copied += self.copy_run(range, *layer, buffer)?;
        }
        Ok(copied)
    }

    fn copy_run(
        &self,
        range: ByteRange,
        layer: Option<usize>,
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        let Some(layer) = layer else { return self.fill_zeros(range, buffer) };
        if self.place == Some(layer) {
            return Ok(0);
        }
        let source = &self.chain.layers()[layer];
        let above = self.place.is_some_and(|place| layer < place);
        buffer.resize(range.len.as_usize(), 0);
        if above {
            source.image.read_at(buffer, range.start)?;
            self.target.image.write_at(buffer, range.start)?;
            return Ok(range.len.get());
        }
        if matches!(self.target.find(range)?, (len, Some(_)) if len == range.len) {
            return Ok(0);
        }
        source.image.read_at(buffer, range.start)?;
        Ok(self.target.image.fill_absent(buffer, range.start)?.get())
    }

    /// Where nobody holds anything there is nothing to do, unless a block is to be made whole.
    fn fill_zeros(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<u64> {
        let Some(size) = self.target.image.block_size().filter(|_| self.makes_root) else {
            return Ok(0);
        };
        let mut filled = 0;
        for part in range.pieces(size.bytes()) {
            if self.target.image.has_place(part.start) {
                buffer.clear();
                buffer.resize(part.len.as_usize(), 0);
                filled += self.target.image.fill_absent(buffer, part.start)?.get();
            }
        }
        Ok(filled)
    }

    /// Copies a step of a disk whose topmost node a guest writes to; the step is locked.
    fn live_step(
        &self,
        top: &Layer,
        step: ByteRange,
        runs: &[(ByteRange, Option<usize>)],
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        let mut copied = 0;
        let mut at = step.start;
        while at < step.end() {
            let (len, own) = top.find(ByteRange::between(at, step.end()))?;
            let part = ByteRange::new(at, len);
            if own.is_some() {
                buffer.resize(len.as_usize(), 0);
                top.image.read_at(buffer, at)?;
                self.target.image.write_at(buffer, at)?;
                copied += len.get();
            } else {
                copied += self.step(part, runs, buffer)?;
            }
            at = part.end();
        }
        Ok(copied)
    }
}
