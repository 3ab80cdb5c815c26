//! The progress of a merge, and what others may ask of it: to pause, to slow down, to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

/// How far a merge is. Cheap to look at as often as one likes.
#[derive(Debug, Default)]
pub struct Progress {
    /// The whole that this is a part of.
    whole: Option<Arc<Progress>>,
    total: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicBool,
    pace: Mutex<Pace>,
    changed: Condvar,
}

/// How fast it may go.
#[derive(Debug, Default)]
struct Pace {
    paused: bool,
    /// Bytes in a second; none for as fast as it goes.
    rate: Option<ByteCount>,
    /// When the bytes that were copied have been paid for.
    paid_until: Option<Instant>,
}

impl Progress {
    /// The progress of a part of `whole`: it counts for both, and waits and ends with either.
    pub(crate) fn below(whole: &Arc<Self>) -> Self {
        Self { whole: Some(Arc::clone(whole)), ..Self::default() }
    }

    /// Bytes to copy in all.
    pub fn total(&self) -> ByteCount {
        ByteCount::new(self.total.load(Ordering::Relaxed))
    }

    /// Bytes copied so far.
    pub fn done(&self) -> ByteCount {
        ByteCount::new(self.done.load(Ordering::Relaxed))
    }

    /// Asks it to end; what it has done is kept, and what it had begun is begun again later.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether somebody asked it to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Has it wait, or go on.
    pub fn pause(&self, paused: bool) {
        self.pace.lock().paused = paused;
        self.changed.notify_all();
    }

    /// Lets it copy so many bytes in a second; `None` for as many as it can.
    pub fn limit(&self, rate: Option<ByteCount>) {
        let mut pace = self.pace.lock();
        pace.rate = rate.filter(|rate| !rate.is_zero());
        pace.paid_until = None;
        self.changed.notify_all();
    }

    /// There is so much more to copy.
    pub(crate) fn add(&self, bytes: ByteCount) {
        self.total.fetch_add(bytes.get(), Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.add(bytes);
        }
    }

    /// So much was copied.
    pub(crate) fn advance(&self, bytes: ByteCount) {
        self.done.fetch_add(bytes.get(), Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.advance(bytes);
        }
        let mut pace = self.pace.lock();
        if let Some(rate) = pace.rate {
            let now = Instant::now();
            let cost = Duration::from_secs_f64(bytes.get() as f64 / rate.get() as f64);
            pace.paid_until = Some(pace.paid_until.unwrap_or(now).max(now) + cost);
        }
    }

    /// Waits while it is paused or has gone too fast.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`].
    pub(crate) fn checkpoint(&self) -> Result<()> {
        if let Some(whole) = &self.whole {
            whole.checkpoint()?;
        }
        let mut pace = self.pace.lock();
        loop {
            if self.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "merge", "was cancelled"));
            }
            let now = Instant::now();
            match pace.paid_until {
                _ if pace.paused => self.changed.wait(&mut pace),
                Some(until) if until > now => {
                    self.changed.wait_until(&mut pace, until);
                }
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use block_types::{ByteCount, ErrorKind};
    use std::time::{Duration, Instant};

    #[test]
    fn it_waits_while_it_is_paused_and_keeps_its_rate() {
        let progress = Progress::default();
        progress.pause(true);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| progress.checkpoint());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            progress.pause(false);
            waiting.join().expect("no panic").expect("goes on");
        });
        progress.limit(Some(ByteCount::new(1_000_000)));
        let begun = Instant::now();
        for _ in 0..5 {
            progress.checkpoint().expect("goes on");
            progress.advance(ByteCount::new(10_000));
        }
        assert!(begun.elapsed() >= Duration::from_millis(40));
        progress.cancel();
        assert_eq!(progress.checkpoint().expect_err("ends").kind(), ErrorKind::Cancelled);
        assert_eq!(progress.done().get(), 50_000);
    }
}
