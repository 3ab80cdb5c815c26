//! What a job shows to the outside while it runs, and the one thing that the outside may ask of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block_types::ByteCount;

/// The progress of a job, and the flag that cancels it. Cheap to look at as often as one likes.
#[derive(Debug)]
pub struct Monitor {
    total: u64,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Monitor {
    /// The monitor of a job over `total` bytes.
    pub(crate) fn new(total: ByteCount) -> Self {
        Self { total: total.get(), done: AtomicU64::new(0), cancelled: AtomicBool::new(false) }
    }

    /// Bytes that the job covers, those that need no copying included.
    pub fn total(&self) -> ByteCount {
        ByteCount::new(self.total)
    }

    /// Bytes dealt with so far; never falls, and reaches [`total`](Self::total) at the end.
    pub fn done(&self) -> ByteCount {
        ByteCount::new(self.done.load(Ordering::Relaxed))
    }

    /// Asks the job to end. It finishes the requests in flight, and then fails as cancelled.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked it to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Counts `bytes` more as dealt with.
    pub(crate) fn advance(&self, bytes: ByteCount) {
        self.done.fetch_add(bytes.get(), Ordering::Relaxed);
    }
}
