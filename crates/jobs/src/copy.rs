//! Making one device read like another.

use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::Monitor;
use crate::plan::Plan;
use crate::worker::{Shared, Tally, work};

/// The smallest run of zeros that is looked for in data.
const SMALLEST_ZEROS: ByteCount = ByteCount::new(4096);

/// What the target holds before the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetContent {
    /// Zeros everywhere, because it was created for this copy: what reads as zeros in the source is
    /// left alone.
    Zeros,
    /// Anything: what reads as zeros in the source is made zero, and its space given back.
    Unknown,
}

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// Requests in flight; as many threads.
    pub requests: usize,
    /// The largest request: a power of two, at least the minimum of both devices. `requests` times
    /// this is the memory that the job takes.
    pub piece: ByteCount,
    /// What the target holds.
    pub target: TargetContent,
    /// Look for zeros in what the source calls data, and treat them like holes.
    pub find_zeros: bool,
}

impl CopyOptions {
    /// Eight requests of at most 1 MiB, looking for zeros.
    pub const fn new(target: TargetContent) -> Self {
        Self { requests: 8, piece: ByteCount::new(1 << 20), target, find_zeros: true }
    }
}

/// What a copy did, in bytes of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Written as data.
    pub copied: ByteCount,
    /// Made zero.
    pub cleared: ByteCount,
    /// Left alone, because they were zeros already.
    pub skipped: ByteCount,
}

/// A copy of a whole device to the start of another.
///
/// A target that is larger keeps what it holds behind the source's end, but for zeros up to its
/// next alignment.
pub struct CopyJob {
    source: Arc<dyn BlockDevice>,
    target: Arc<dyn BlockDevice>,
    options: CopyOptions,
    monitor: Arc<Monitor>,
}

impl CopyJob {
    /// A job that copies `source` to `target`, once it is run.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] if the target is too small; [`ErrorKind::ReadOnly`];
    /// [`ErrorKind::Invalid`] for options that make no sense.
    pub fn new(
        source: Arc<dyn BlockDevice>,
        target: Arc<dyn BlockDevice>,
        options: CopyOptions,
    ) -> Result<Self> {
        block_io::check_writable(&*target)?;
        check_sizes(&*source, &*target)?;
        let minimum = source.limits().minimum.max(target.limits().minimum);
        if options.requests == 0
            || !options.piece.get().is_power_of_two()
            || options.piece < minimum
        {
            let problem = format!(
                "cannot copy by {} requests of {} bytes",
                options.requests,
                options.piece.get()
            );
            return Err(Error::new(ErrorKind::Invalid, target.name(), problem));
        }
        let monitor = Arc::new(Monitor::new(source.size()));
        Ok(Self { source, target, options, monitor })
    }

    /// Where to look how far it is, and to cancel it.
    pub fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    /// Copies everything, and makes it durable. Blocks until that is done.
    ///
    /// # Errors
    /// The first failure of a request, with its place; [`ErrorKind::Cancelled`]. The target then
    /// holds part of the source.
    pub fn run(self) -> Result<CopyReport> {
        let monitor = self.monitor();
        self.run_under(&monitor)
    }

    /// [`run`](Self::run) as a part of a larger job, which has the monitor and counted this copy
    /// in its total.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_under(self, monitor: &Monitor) -> Result<CopyReport> {
        let shared = Shared {
            source: &*self.source,
            target: &*self.target,
            monitor,
            target_content: self.options.target,
            zeros: self.options.find_zeros.then(|| self.zero_unit()),
            plan: Mutex::new(self.plan()),
            failure: Mutex::new(None),
        };
        let tally = self.work_in_threads(&shared);
        if let Some(error) = shared.failure.into_inner() {
            return Err(error);
        }
        if monitor.is_cancelled() {
            let done = monitor.done().get();
            let problem = format!("was cancelled after {done} bytes");
            return Err(Error::new(ErrorKind::Cancelled, self.title(), problem));
        }
        self.target.flush()?;
        Ok(tally.report())
    }

    /// Has every worker do its part.
    fn work_in_threads(&self, shared: &Shared<'_>) -> Tally {
        let buffer = self.options.piece.min(self.padded_size());
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..self.options.requests).map(|_| scope.spawn(|| work(shared, buffer))).collect();
            let tallies = workers.into_iter().map(ScopedJoinHandle::join);
            tallies.fold(Tally::default(), |sum, tally| match tally {
                Ok(tally) => sum.plus(tally),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// The plan. Its borders suit the target, so that two workers seldom meet in one of its blocks.
    fn plan(&self) -> Plan {
        let source = self.source.limits();
        let target = self.target.limits();
        let suits = target.preferred.min(self.options.piece);
        let unit = source.minimum.max(target.minimum).max(suits);
        let whole = ByteRange::new(ByteOffset::ZERO, self.source.size());
        Plan::new(whole, unit, self.options.piece)
    }

    /// The unit in which zeros are looked for: what the target can leave out.
    fn zero_unit(&self) -> usize {
        let suits = self.target.limits().preferred.max(SMALLEST_ZEROS);
        suits.min(self.options.piece).max(self.target.limits().minimum).as_usize()
    }

    /// The source's size, padded to the target's alignment.
    fn padded_size(&self) -> ByteCount {
        padded(self.source.size(), self.target.limits().minimum)
    }

    /// What the job is called in messages.
    fn title(&self) -> String {
        title(&*self.source, &*self.target)
    }
}

/// What a copy is called in messages.
pub(crate) fn title(source: &dyn BlockDevice, target: &dyn BlockDevice) -> String {
    format!("copy of {} to {}", source.name(), target.name())
}

/// `length` rounded up to a multiple of `unit`.
pub(crate) fn padded(length: ByteCount, unit: ByteCount) -> ByteCount {
    ByteCount::new(length.div_ceil(unit) * unit.get())
}

/// Checks that what `source` holds fits `target`.
fn check_sizes(source: &dyn BlockDevice, target: &dyn BlockDevice) -> Result<()> {
    let needed = padded(source.size(), target.limits().minimum);
    if needed <= target.size() {
        return Ok(());
    }
    let problem = format!(
        "has {} bytes, too few for the {} of {}",
        target.size().get(),
        needed.get(),
        source.name()
    );
    Err(Error::new(ErrorKind::OutOfRange, target.name(), problem).advise("make it larger"))
}
