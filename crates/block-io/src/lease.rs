//! Leases: how those who do I/O on resolved places and those who change mappings keep apart.
//!
//! Taking a lease is one addition on a counter that hardly anybody else touches.
//! [`LeaseSet::drain`] begins a new epoch and waits until every lease of the old one is dropped;
//! leases of the new epoch do not hold it up, and whoever takes one sees everything that was
//! written before the drain began. This is sleepable RCU with explicit read sides, without
//! callbacks.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::{Backoff, CachePadded};
use parking_lot::Mutex;

/// Counters per set; threads beyond this number share, which costs them cache misses only.
const LANES: usize = 32;

/// The most sets that one lease can be of: that of a device, and that of the one below it.
const MOST_HELD: usize = 2;

/// One lane: the leases of even and of odd epochs.
type Lane = CachePadded<[AtomicU64; 2]>;

/// The leases on one thing whose mappings change.
#[derive(Debug)]
pub struct LeaseSet {
    epoch: CachePadded<AtomicU64>,
    lanes: Box<[Lane]>,
    draining: Mutex<()>,
}

/// A promise that resolved places stay where they are; dropped when the I/O on them is complete.
///
/// A lease may be dropped by another thread than the one that took it.
#[derive(Debug)]
pub struct Lease<'d> {
    /// The counters to give back to; none for places that never move.
    held: [Option<&'d AtomicU64>; MOST_HELD],
}

impl Default for LeaseSet {
    fn default() -> Self {
        Self::new()
    }
}

impl LeaseSet {
    /// A set without leases.
    pub fn new() -> Self {
        let lanes = (0..LANES).map(|_| Lane::default()).collect();
        Self { epoch: CachePadded::default(), lanes, draining: Mutex::new(()) }
    }

    /// Takes a lease in the present epoch. Never blocks.
    pub fn acquire(&self) -> Lease<'_> {
        let lane = &self.lanes[lane_of_thread()];
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let counter = &lane[(epoch & 1) as usize];
            counter.fetch_add(1, Ordering::SeqCst);
            // If the epoch is still the same, a drain that ends it comes after the addition in the
            // one order of SeqCst operations, and so sees it. If not, the drain may have looked
            // already: step back and join the new epoch.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Lease { held: [Some(counter), None] };
            }
            counter.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until every lease that was taken before the call is dropped.
    ///
    /// Must not be called by a thread that holds a lease of this set.
    pub fn drain(&self) {
        // One drain at a time: the parity of the old epoch is used again only once it is empty.
        let _alone = self.draining.lock();
        let old = self.epoch.fetch_add(1, Ordering::SeqCst);
        for lane in &self.lanes {
            let counter = &lane[(old & 1) as usize];
            let backoff = Backoff::new();
            while counter.load(Ordering::SeqCst) != 0 {
                if backoff.is_completed() {
                    std::thread::sleep(Duration::from_micros(20));
                } else {
                    backoff.snooze();
                }
            }
        }
    }
}

impl Lease<'_> {
    /// The lease on places that never move: nobody waits for it.
    pub const fn permanent() -> Self {
        Self { held: [None; MOST_HELD] }
    }

    /// This lease and `other` as one; `None`, with both dropped, where that would hold up more than
    /// two sets.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Option<Self> {
        for theirs in other.held.iter_mut().filter(|held| held.is_some()) {
            let free = self.held.iter_mut().find(|held| held.is_none())?;
            *free = theirs.take();
        }
        Some(self)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        for counter in self.held.into_iter().flatten() {
            counter.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The lane of this thread, given out in turn.
fn lane_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    LANE.with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT.fetch_add(1, Ordering::Relaxed) % LANES);
        }
        lane.get()
    })
}

#[cfg(test)]
mod tests {
    use super::{Lease, LeaseSet};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn drain_waits_for_old_leases_only() {
        let set = LeaseSet::new();
        let done = AtomicBool::new(false);
        let old = set.acquire();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                set.drain();
                done.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
            let young = set.acquire();
            assert!(!done.load(Ordering::SeqCst), "drain passed a lease that is held");
            drop(old);
            while !done.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            drop(young);
        });
    }

    #[test]
    fn permanent_leases_hold_nobody_up() {
        let set = LeaseSet::new();
        let _forever = Lease::permanent();
        set.drain();
    }

    /// Whether nobody holds a lease on `set`.
    fn is_free(set: &LeaseSet) -> bool {
        set.lanes.iter().flat_map(|lane| lane.iter()).all(|held| held.load(Ordering::SeqCst) == 0)
    }

    #[test]
    fn a_joined_lease_holds_both_sets_up() {
        let [upper, lower, third] = [LeaseSet::new(), LeaseSet::new(), LeaseSet::new()];
        let none = Lease::permanent();
        let joined = upper.acquire().and(none).and_then(|it| it.and(lower.acquire()));
        let joined = joined.expect("two sets");
        assert!(!is_free(&upper) && !is_free(&lower));
        assert!(joined.and(third.acquire()).is_none(), "three sets in one lease");
        assert!(is_free(&upper) && is_free(&lower) && is_free(&third));
        let joined = upper.acquire().and(lower.acquire()).expect("two sets");
        drop(joined);
        assert!(is_free(&upper) && is_free(&lower));
    }

    /// Readers see a place, use it under a lease; the mutator moves it, drains, and then poisons
    /// the old place. A reader that finds poison held a lease that the drain did not wait for.
    #[test]
    fn no_reader_sees_a_place_after_its_drain() {
        const POISON: u64 = u64::MAX;
        let set = LeaseSet::new();
        let current = AtomicU64::new(0);
        let places = [AtomicU64::new(1), AtomicU64::new(1)];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _lease = set.acquire();
                        let place = &places[current.load(Ordering::SeqCst) as usize];
                        for _ in 0..10 {
                            assert_ne!(place.load(Ordering::SeqCst), POISON);
                        }
                    }
                });
            }
            for round in 1..3000u64 {
                let old = current.load(Ordering::SeqCst);
                places[1 - old as usize].store(round, Ordering::SeqCst);
                current.store(1 - old, Ordering::SeqCst);
                set.drain();
                places[old as usize].store(POISON, Ordering::SeqCst);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
