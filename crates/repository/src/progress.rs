//! One merge among those of a collection: how far it is by itself, and the word that ends it alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block_types::{ByteCount, Error, ErrorKind, Result};
use jobs::Monitor;

/// How often a merge looks, while it is paused, whether it is to end.
const LOOK: Duration = Duration::from_millis(5);

/// How far a merge is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    /// Bytes to copy in all.
    pub(crate) fn total(&self) -> ByteCount {
        ByteCount::new(self.total.load(Ordering::Relaxed))
    }

    /// Bytes copied so far.
    pub(crate) fn done(&self) -> ByteCount {
        ByteCount::new(self.done.load(Ordering::Relaxed))
    }

    /// Asks it to end: somebody wants to change its nodes. It is begun again later.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// There is so much to copy.
    pub(crate) fn expect(&self, bytes: ByteCount, monitor: &Monitor) {
        self.total.fetch_add(bytes.get(), Ordering::Relaxed);
        monitor.grow(bytes);
    }

    /// So much was copied.
    pub(crate) fn advance(&self, bytes: ByteCount, monitor: &Monitor) {
        self.done.fetch_add(bytes.get(), Ordering::Relaxed);
        monitor.advance(bytes);
    }

    /// Waits while the collection is paused or ahead of its rate.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] for either.
    pub(crate) fn checkpoint(&self, monitor: &Monitor) -> Result<()> {
        loop {
            if self.ended.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Cancelled, "merge", "was ended for a change"));
            }
            if !monitor.is_paused() || monitor.is_cancelled() {
                return monitor.checkpoint();
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use block_types::{ByteCount, ErrorKind};
    use jobs::Monitor;
    use std::time::Duration;

    #[test]
    fn a_merge_ends_by_itself_though_all_are_paused() {
        let (progress, monitor) = (Progress::default(), Monitor::new(ByteCount::ZERO));
        progress.expect(ByteCount::new(10), &monitor);
        progress.advance(ByteCount::new(4), &monitor);
        assert_eq!((monitor.done().get(), monitor.total().get()), (4, 10));
        monitor.pause();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| progress.checkpoint(&monitor));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            progress.end();
            let error = waiting.join().expect("no panic").expect_err("ended");
            assert_eq!(error.kind(), ErrorKind::Cancelled);
        });
    }
}
