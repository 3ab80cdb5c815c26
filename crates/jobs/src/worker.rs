//! One of the threads that copy: takes the next piece, reads it, writes what is not zero.

use block_io::{AlignedBuf, BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteRange, Error, Result};
use parking_lot::Mutex;

use crate::copy::{CopyReport, TargetContent, padded, title};
use crate::plan::{Action, Piece, Plan};
use crate::{Monitor, zeros};

/// What the workers of one copy share.
pub(crate) struct Shared<'c> {
    pub(crate) source: &'c dyn BlockDevice,
    pub(crate) target: &'c dyn BlockDevice,
    pub(crate) monitor: &'c Monitor,
    pub(crate) target_content: TargetContent,
    /// The unit in which zeros are looked for in data, if they are.
    pub(crate) zeros: Option<usize>,
    pub(crate) plan: Mutex<Plan>,
    /// The first failure. Everybody stops once there is one.
    pub(crate) failure: Mutex<Option<Error>>,
}

/// What a worker did, in bytes of the target.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    copied: u64,
    cleared: u64,
    skipped: u64,
}

impl Tally {
    /// The sum of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            copied: self.copied + other.copied,
            cleared: self.cleared + other.cleared,
            skipped: self.skipped + other.skipped,
        }
    }

    /// The same, as the outside sees it.
    pub(crate) fn report(self) -> CopyReport {
        CopyReport {
            copied: ByteCount::new(self.copied),
            cleared: ByteCount::new(self.cleared),
            skipped: ByteCount::new(self.skipped),
        }
    }
}

/// Deals with pieces, through a buffer of `size` bytes, until there are none, somebody fails, or
/// the job is cancelled.
pub(crate) fn work(shared: &Shared<'_>, size: ByteCount) -> Tally {
    let mut worker =
        Worker { shared, buffer: AlignedBuf::zeroed(size.as_usize()), tally: Tally::default() };
    while let Some(piece) = shared.take() {
        match worker.deal_with(piece) {
            Ok(()) => shared.count(piece),
            Err(error) => {
                shared.fail(&format!("stopped at {}", piece.range), error);
                break;
            }
        }
    }
    worker.tally
}

impl Shared<'_> {
    /// The next piece that is to be dealt with.
    fn take(&self) -> Option<Piece> {
        if self.monitor.checkpoint().is_err() || self.failure.lock().is_some() {
            return None;
        }
        let next = self.plan.lock().next(self.source);
        next.unwrap_or_else(|error| {
            self.fail("cannot find out what there is to copy", error);
            None
        })
    }

    /// Counts a piece as dealt with.
    fn count(&self, piece: Piece) {
        match piece.action {
            Action::Copy => self.monitor.advance(piece.range.len),
            Action::Clear => self.monitor.skip(piece.range.len),
        }
    }

    /// Keeps the failure, unless it is a later one.
    fn fail(&self, problem: &str, error: Error) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            let object = title(self.source, self.target);
            *failure = Some(Error::new(error.kind(), object, problem).because(error));
        }
    }
}

struct Worker<'s, 'c> {
    shared: &'s Shared<'c>,
    buffer: AlignedBuf,
    tally: Tally,
}

impl Worker<'_, '_> {
    fn deal_with(&mut self, piece: Piece) -> Result<()> {
        // Only the last piece is ever padded: all others end where both devices like it.
        let minimum = self.shared.target.limits().minimum;
        let range = ByteRange::new(piece.range.start, padded(piece.range.len, minimum));
        match piece.action {
            Action::Clear => self.clear(range),
            Action::Copy => self.copy(piece.range.len, range),
        }
    }

    /// Copies `length` bytes of the source to `range`, zeros behind them.
    fn copy(&mut self, length: ByteCount, range: ByteRange) -> Result<()> {
        let read = length.as_usize();
        let whole = range.len.as_usize();
        self.shared.source.read_at(&mut self.buffer[..read], range.start)?;
        self.buffer[read..whole].fill(0);
        let Some(unit) = self.shared.zeros else {
            return self.write(range, 0);
        };
        let runs: Vec<_> = zeros::runs(&self.buffer[..whole], unit).collect();
        for run in runs {
            let start = range.start.plus(ByteCount::new(run.part.start as u64));
            let part = ByteRange::new(start, ByteCount::new(run.part.len() as u64));
            if run.zero { self.clear(part)? } else { self.write(part, run.part.start)? }
        }
        Ok(())
    }

    /// Writes the buffer, from `from` on, to `range`.
    fn write(&mut self, range: ByteRange, from: usize) -> Result<()> {
        let bytes = &self.buffer[from..from + range.len.as_usize()];
        self.shared.target.write_at(bytes, range.start)?;
        self.tally.copied += range.len.get();
        Ok(())
    }

    /// Sees to it that `range` reads as zeros.
    fn clear(&mut self, range: ByteRange) -> Result<()> {
        match self.shared.target_content {
            TargetContent::Zeros => self.tally.skipped += range.len.get(),
            TargetContent::Unknown => {
                self.shared
                    .target
                    .zero(range, ZeroMode { may_unmap: true, only_if_fast: false })?;
                self.tally.cleared += range.len.get();
            }
        }
        Ok(())
    }
}
