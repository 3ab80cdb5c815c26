//! What a pool has to tell: a short history with running numbers, which whoever is interested
//! pulls.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::PoolMode;

/// Events that are kept.
const KEPT: usize = 1024;

/// Something that has happened to a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, counted from 1 at open.
    pub sequence: u64,
    /// When it happened.
    pub at: SystemTime,
    /// What.
    pub kind: EventKind,
}

/// What has happened. Counts are blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A data block was asked for when no more than the low water mark were free. Once, until the
    /// pool grows or is configured anew.
    LowWater {
        /// Blocks that were free.
        free: u64,
        /// The mark.
        mark: u64,
    },
    /// Likewise for the mark that [`set_alarm`](crate::Pool::set_alarm) has set.
    Alarm {
        /// Blocks that were free.
        free: u64,
        /// The mark.
        mark: u64,
    },
    /// Little metadata is left. Once, until there is more again.
    MetadataLow {
        /// Blocks that are free.
        free: u64,
        /// The mark.
        mark: u64,
    },
    /// The mode has changed.
    Mode {
        /// The mode it was.
        from: PoolMode,
        /// The mode it is.
        to: PoolMode,
        /// Why it takes no writes, if it takes none.
        reason: Option<String>,
    },
    /// Writes have waited for space for as long as they may; they fail from now on.
    NoSpaceTimeout,
    /// There are more data blocks.
    DataGrown {
        /// Blocks there were.
        from: u64,
        /// Blocks there are.
        to: u64,
    },
    /// There are more metadata blocks.
    MetadataGrown {
        /// Blocks there were.
        from: u64,
        /// Blocks there are.
        to: u64,
    },
}

/// Events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// How many before them were forgotten before anybody asked.
    pub lost: u64,
    /// Whether there will be no more.
    pub ended: bool,
}

/// The events of one pool.
#[derive(Default)]
pub(crate) struct EventQueue {
    state: Mutex<History>,
    added: Condvar,
}

#[derive(Default)]
struct History {
    last: u64,
    kept: VecDeque<Event>,
    ended: bool,
}

impl EventQueue {
    pub(crate) fn push(&self, kind: EventKind) {
        let mut state = self.state.lock();
        state.last += 1;
        let sequence = state.last;
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(Event { sequence, at: SystemTime::now(), kind });
        drop(state);
        self.added.notify_all();
    }

    /// The events after number `after`; waits for one for `patience` at most.
    pub(crate) fn after(&self, after: u64, patience: Duration) -> EventPage {
        let mut state = self.state.lock();
        let deadline = Instant::now() + patience;
        while state.last <= after && !state.ended {
            if self.added.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let events: Vec<Event> =
            state.kept.iter().filter(|event| event.sequence > after).cloned().collect();
        let first = events.first().map_or(after + 1, |event| event.sequence);
        EventPage { events, lost: first - after - 1, ended: state.ended }
    }

    /// There will be no more; nobody waits any longer.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.added.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{EventKind, EventQueue, KEPT};
    use std::time::Duration;

    fn grown(to: u64) -> EventKind {
        EventKind::DataGrown { from: 0, to }
    }

    #[test]
    fn each_reader_pulls_from_where_it_stands() {
        let queue = EventQueue::default();
        assert!(queue.after(0, Duration::ZERO).events.is_empty());
        (1..=3).for_each(|to| queue.push(grown(to)));
        let page = queue.after(1, Duration::ZERO);
        let kinds: Vec<_> = page.events.iter().map(|event| event.kind.clone()).collect();
        assert_eq!((kinds, page.lost), (vec![grown(2), grown(3)], 0));
        assert_eq!(queue.after(3, Duration::ZERO).lost, 0);
    }

    #[test]
    fn what_was_forgotten_is_counted() {
        let queue = EventQueue::default();
        (1..=KEPT as u64 + 5).for_each(|to| queue.push(grown(to)));
        let page = queue.after(2, Duration::ZERO);
        assert_eq!((page.lost, page.events.len(), page.events[0].sequence), (3, KEPT, 6));
    }

    #[test]
    fn who_waits_is_woken_by_an_event_and_by_the_end() {
        let queue = EventQueue::default();
        std::thread::scope(|scope| {
            let waits = |after| {
                let queue = &queue;
                scope.spawn(move || queue.after(after, Duration::from_secs(60)))
            };
            let (one, end) = (waits(0), waits(1));
            queue.push(grown(1));
            assert_eq!(one.join().expect("returned").events.len(), 1);
            queue.end();
            assert!(end.join().expect("returned").ended);
        });
    }
}
