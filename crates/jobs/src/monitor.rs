//! What a job shows to the outside while it runs, and what the outside may ask of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

/// The progress of a job, and the hands that others have on it. Cheap to look at as often as one
/// likes.
///
/// The job calls [`checkpoint`](Self::checkpoint) before each bounded step, while it holds no lock
/// that others wait for, and [`advance`](Self::advance) or [`skip`](Self::skip) after it.
#[derive(Debug)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    /// Whether a checkpoint has anything to look at: nobody pays for what nobody asked for.
    asked: AtomicBool,
    wishes: Mutex<Wishes>,
    changed: Condvar,
}

/// What the outside asked for, and what the job answered.
#[derive(Debug, Default)]
struct Wishes {
    paused: bool,
    cancelled: bool,
    complete: bool,
    /// The job has all in place and waits for the word to complete.
    ready: bool,
    pace: Option<Pace>,
}

/// A rate that is kept.
#[derive(Debug)]
struct Pace {
    /// Bytes in a second, not 0.
    rate: u64,
    /// When what was moved so far was allowed to have been moved.
    due: Instant,
}

impl Pace {
    /// Counts `bytes` as moved by now.
    fn moved(&mut self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a delay need not be exact")]
        let seconds = bytes as f64 / self.rate as f64;
        // Far beyond any job, near enough to add to a clock.
        let delay = Duration::from_secs_f64(seconds.min(1e9));
        // Time that was not used is not saved up: after a pause there is no burst.
        self.due = self.due.max(Instant::now()) + delay;
    }
}

impl Monitor {
    /// The monitor of a job over `total` bytes, as far as is known yet.
    pub fn new(total: ByteCount) -> Self {
        Self {
            total: AtomicU64::new(total.get()),
            done: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            wishes: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Bytes that the job covers, those that need no moving included.
    pub fn total(&self) -> ByteCount {
        ByteCount::new(self.total.load(Ordering::Relaxed))
    }

    /// Bytes dealt with so far; never falls, and reaches [`total`](Self::total) at the end.
    pub fn done(&self) -> ByteCount {
        ByteCount::new(self.done.load(Ordering::Relaxed))
    }

    /// The bytes that may be moved in a second, if there is a limit.
    pub fn rate(&self) -> Option<ByteCount> {
        self.wishes.lock().pace.as_ref().map(|pace| ByteCount::new(pace.rate))
    }

    /// Whether it is to wait at the next checkpoint.
    pub fn is_paused(&self) -> bool {
        self.wishes.lock().paused
    }

    /// Whether somebody asked it to end.
    pub fn is_cancelled(&self) -> bool {
        // Cancelling sets both, so the lock is taken only where somebody wanted something.
        self.asked.load(Ordering::Relaxed) && self.wishes.lock().cancelled
    }

    /// Whether it waits for the word to complete.
    pub fn is_ready(&self) -> bool {
        self.wishes.lock().ready
    }

    /// Whether somebody gave the word to complete.
    pub fn is_to_complete(&self) -> bool {
        self.wishes.lock().complete
    }
}

/// What the outside asks for.
impl Monitor {
    /// Asks the job to end. It finishes the requests in flight, and then fails as cancelled.
    pub fn cancel(&self) {
        self.wish(|wishes| wishes.cancelled = true);
    }

    /// Asks the job to wait, once the requests in flight are done.
    pub fn pause(&self) {
        self.wish(|wishes| wishes.paused = true);
    }

    /// Lets a job that was paused go on.
    pub fn resume(&self) {
        self.wish(|wishes| wishes.paused = false);
    }

    /// Limits the bytes that are moved in a second; `None` or 0 for no limit.
    pub fn set_rate(&self, rate: Option<ByteCount>) {
        let rate = rate.map_or(0, ByteCount::get);
        let pace = (rate > 0).then(|| Pace { rate, due: Instant::now() });
        self.wish(|wishes| wishes.pace = pace);
    }

    /// Gives a job that is or will be [ready](Self::is_ready) the word to complete.
    pub fn complete(&self) {
        self.wish(|wishes| wishes.complete = true);
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        let mut wishes = self.wishes.lock();
        change(&mut wishes);
        let nothing = !wishes.paused && !wishes.cancelled && wishes.pace.is_none();
        self.asked.store(!nothing, Ordering::Relaxed);
        drop(wishes);
        self.changed.notify_all();
    }
}

/// What the job says.
impl Monitor {
    /// Counts `bytes` more as moved.
    pub fn advance(&self, bytes: ByteCount) {
        self.skip(bytes);
        if self.asked.load(Ordering::Relaxed)
            && let Some(pace) = &mut self.wishes.lock().pace
        {
            pace.moved(bytes.get());
        }
    }

    /// Counts `bytes` more as dealt with, which needed no moving: the rate does not hold for them.
    pub fn skip(&self, bytes: ByteCount) {
        self.done.fetch_add(bytes.get(), Ordering::Relaxed);
    }

    /// Says that there are `bytes` more to be dealt with than was known.
    pub fn grow(&self, bytes: ByteCount) {
        self.total.fetch_add(bytes.get(), Ordering::Relaxed);
    }

    /// Waits while the job is paused or ahead of its rate.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`], at once, if somebody asked the job to end.
    pub fn checkpoint(&self) -> Result<()> {
        if !self.asked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut wishes = self.wishes.lock();
        loop {
            if wishes.cancelled {
                return Err(cancelled());
            }
            if wishes.paused {
                self.changed.wait(&mut wishes);
                continue;
            }
            match wishes.pace.as_ref().map(|pace| pace.due) {
                Some(due) if due > Instant::now() => {
                    self.changed.wait_until(&mut wishes, due);
                }
                _ => return Ok(()),
            }
        }
    }

    /// Says whether everything is in place, so that the job could complete.
    pub fn set_ready(&self, ready: bool) {
        self.wishes.lock().ready = ready;
    }

    /// Waits for the word to complete, for at most `patience`; whether it was given.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`], at once, if somebody asked the job to end.
    pub fn await_completion(&self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        let mut wishes = self.wishes.lock();
        while !wishes.cancelled && (!wishes.complete || wishes.paused) {
            if self.changed.wait_until(&mut wishes, until).timed_out() {
                break;
            }
        }
        if wishes.cancelled {
            return Err(cancelled());
        }
        Ok(wishes.complete && !wishes.paused)
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "job", "was cancelled")
}

#[cfg(test)]
mod tests {
    use super::Monitor;
    use block_types::{ByteCount, ErrorKind};
    use std::thread;
    use std::time::{Duration, Instant};

    const SOON: Duration = Duration::from_millis(20);

    fn bytes(count: u64) -> ByteCount {
        ByteCount::new(count)
    }

    #[test]
    fn counts_what_is_dealt_with() {
        let monitor = Monitor::new(bytes(10));
        monitor.advance(bytes(3));
        monitor.skip(bytes(4));
        monitor.grow(bytes(5));
        assert_eq!((monitor.done(), monitor.total()), (bytes(7), bytes(15)));
        monitor.checkpoint().unwrap();
    }

    #[test]
    fn waits_while_it_is_paused() {
        let monitor = Monitor::new(bytes(1));
        monitor.pause();
        assert!(monitor.is_paused());
        thread::scope(|scope| {
            let job = scope.spawn(|| monitor.checkpoint());
            thread::sleep(SOON);
            assert!(!job.is_finished());
            monitor.resume();
            job.join().unwrap().unwrap();
        });
    }

    #[test]
    fn cancelling_wakes_what_waits() {
        let far_ahead = |monitor: &Monitor| {
            monitor.set_rate(Some(bytes(1)));
            monitor.advance(bytes(3600));
        };
        for prepare in [Monitor::pause, far_ahead] {
            let monitor = Monitor::new(bytes(1));
            prepare(&monitor);
            thread::scope(|scope| {
                let job = scope.spawn(|| monitor.checkpoint());
                thread::sleep(SOON);
                assert!(!job.is_finished());
                monitor.cancel();
                let error = job.join().unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Cancelled);
            });
            assert!(monitor.is_cancelled());
        }
    }

    #[test]
    fn keeps_the_rate_and_saves_nothing_up() {
        let monitor = Monitor::new(bytes(0));
        monitor.set_rate(Some(bytes(1_000_000)));
        assert_eq!(monitor.rate(), Some(bytes(1_000_000)));
        // Time that passes unused buys no burst.
        thread::sleep(2 * SOON);
        let start = Instant::now();
        for _ in 0..5 {
            monitor.checkpoint().unwrap();
            monitor.advance(bytes(10_000));
        }
        // What needs no moving costs nothing.
        monitor.skip(bytes(1 << 40));
        monitor.checkpoint().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
        monitor.set_rate(None);
        monitor.advance(bytes(1 << 40));
        monitor.checkpoint().unwrap();
    }

    #[test]
    fn completes_when_it_is_told() {
        let monitor = Monitor::new(bytes(0));
        monitor.set_ready(true);
        assert!(monitor.is_ready());
        assert!(!monitor.await_completion(SOON).unwrap());
        monitor.complete();
        assert!(monitor.is_to_complete());
        assert!(monitor.await_completion(SOON).unwrap());
        monitor.cancel();
        let error = monitor.await_completion(SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
