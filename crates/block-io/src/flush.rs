//! Flushes of one file: concurrent ones share, and a failure stays (FAIL-STOP).

use std::sync::atomic::{AtomicU64, Ordering};

use block_types::{Error, ErrorKind, Result};
use parking_lot::Mutex;

/// What is known of a file's flushes.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// How many have begun.
    begun: AtomicU64,
    /// Held while one runs: the system reports a failure of its writes to one caller only, so no
    /// other may return before that one has written it down here.
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    /// The number of the last flush that succeeded, counted from 1.
    succeeded: u64,
    /// What the first failure said.
    failure: Option<String>,
}

impl Flushes {
    /// Runs `sync`, unless a flush that began after this call has succeeded meanwhile. Once one has
    /// failed, all later ones fail: the system may have dropped what it could not write.
    pub(crate) fn flush(&self, object: &str, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let begun_before = self.begun.load(Ordering::SeqCst);
        let mut past = self.past.lock();
        if let Some(failure) = &past.failure {
            return Err(Error::new(
                ErrorKind::Stopped,
                object,
                format!("an earlier flush failed, so nothing more is durable ({failure})"),
            )
            .advise("close it, look at the system's log and the disk, and check it before use"));
        }
        if past.succeeded > begun_before {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let done = sync();
        match &done {
            Ok(()) => past.succeeded = number,
            Err(error) => past.failure = Some(error.to_string()),
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::Flushes;
    use block_types::{Error, ErrorKind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn a_failure_stays_and_is_named() {
        let flushes = Flushes::default();
        flushes.flush("file", || Ok(())).unwrap();
        let first = flushes.flush("file", || Err(Error::new(ErrorKind::Io, "file", "disk gone")));
        assert_eq!(first.unwrap_err().kind(), ErrorKind::Io);
        let later = flushes.flush("file", || Ok(())).unwrap_err();
        assert_eq!(later.kind(), ErrorKind::Stopped);
        assert!(later.to_string().contains("disk gone"), "{later}");
    }

    /// Five flushes that arrive while one runs: that one began before them and does not count, but
    /// one more serves them all.
    #[test]
    fn those_who_wait_share_one_flush_that_began_after_them() {
        let flushes = Flushes::default();
        let runs = AtomicU64::new(0);
        let sync = || {
            runs.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        };
        std::thread::scope(|scope| {
            scope.spawn(|| flushes.flush("file", sync).unwrap());
            while runs.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..5 {
                scope.spawn(|| flushes.flush("file", sync).unwrap());
            }
        });
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}
