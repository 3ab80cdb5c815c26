//! The way into an origin: requests hold a lease; who changes what lies under them closes a part of
//! it and waits until nobody is inside.

use std::sync::atomic::{AtomicBool, Ordering};

use block_io::{Lease, LeaseSet};
use block_types::{ByteCount, ByteOffset, ByteRange};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The gate of one origin.
#[derive(Default)]
pub(crate) struct Gate {
    requests: LeaseSet,
    /// Whether any part is closed.
    closed: AtomicBool,
    /// The parts, in order.
    parts: Mutex<Vec<ByteRange>>,
    opened: Condvar,
    closing: Mutex<()>,
}

/// A part of the gate that is closed to writes until this is dropped.
pub(crate) struct Closed<'g> {
    gate: &'g Gate,
    _alone: MutexGuard<'g, ()>,
}

impl Gate {
    /// Lets a write to `range` in, once no closed part overlaps it.
    pub(crate) fn enter(&self, range: ByteRange) -> Lease<'_> {
        loop {
            let lease = self.requests.acquire();
            // Whoever closes does so before it waits for leases: it is seen here, or waits.
            if !self.closed.load(Ordering::SeqCst) {
                return lease;
            }
            let mut parts = self.parts.lock();
            if !overlaps(&parts, range) {
                return lease;
            }
            drop(lease);
            while overlaps(&parts, range) {
                self.opened.wait(&mut parts);
            }
        }
    }

    /// Lets a write in if nothing at all is closed. Never blocks.
    pub(crate) fn try_enter(&self) -> Option<Lease<'_>> {
        let lease = self.requests.acquire();
        (!self.closed.load(Ordering::SeqCst)).then_some(lease)
    }

    /// Lets a read in, which no part is closed to.
    pub(crate) fn enter_to_read(&self) -> Lease<'_> {
        self.requests.acquire()
    }

    /// Closes the parts, which are in order, to writes, and waits until every request that was
    /// inside is done. Must not be called with a lease.
    pub(crate) fn close(&self, parts: Vec<ByteRange>) -> Closed<'_> {
        let alone = self.closing.lock();
        *self.parts.lock() = parts;
        self.closed.store(true, Ordering::SeqCst);
        self.requests.drain();
        Closed { gate: self, _alone: alone }
    }

    /// Closes all of it.
    pub(crate) fn close_all(&self) -> Closed<'_> {
        self.close(vec![ByteRange::new(ByteOffset::ZERO, ByteCount::new(u64::MAX))])
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.parts.lock().clear();
        self.gate.closed.store(false, Ordering::SeqCst);
        self.gate.opened.notify_all();
    }
}

/// Whether `range` overlaps one of the parts, which are in order.
fn overlaps(parts: &[ByteRange], range: ByteRange) -> bool {
    let after = parts.partition_point(|part| part.end() <= range.start);
    parts.get(after).is_some_and(|part| part.start < range.end())
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use block_types::{ByteCount, ByteOffset, ByteRange};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    #[test]
    fn closed_parts_wait_and_others_pass() {
        let gate = Gate::default();
        let entered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let closed = gate.close(vec![range(10, 10), range(40, 1)]);
            drop(gate.enter(range(0, 10)));
            drop(gate.enter(range(20, 20)));
            assert!(gate.try_enter().is_none());
            drop(gate.enter_to_read());
            scope.spawn(|| {
                drop(gate.enter(range(35, 6)));
                entered.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!entered.load(Ordering::SeqCst), "entered where it was closed");
            drop(closed);
        });
        assert!(entered.load(Ordering::SeqCst));
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn closing_waits_for_those_inside() {
        let gate = Gate::default();
        let closed = AtomicBool::new(false);
        let lease = gate.enter(range(0, 1));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(gate.close_all());
                closed.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!closed.load(Ordering::SeqCst), "closed over a request");
            drop(lease);
        });
    }
}
