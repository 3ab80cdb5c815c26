//! What state a snapshot is in, in the kernel's words and in full.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::core::Core;
use crate::{ChunkSize, Mode, Room};

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// It is read, written and kept.
    Active,
    /// Its store is full, found by a write to the snapshot itself: it takes no more writes, and the
    /// next chunk of the origin that should be copied makes it invalid.
    Overflow,
    /// Something of the past is lost. Nothing is read any more.
    Invalid,
    /// It is being merged back: it is read and written as the origin.
    Merging,
    /// A merge has stopped at an error. The origin is read and written as before it stopped.
    MergeFailed,
    /// It is closed, dropped, or merged.
    Closed,
}

/// A snapshot's state and figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// The state.
    pub state: SnapshotState,
    /// What led to it, if it is not the usual one.
    pub reason: Option<String>,
    /// How full the store is.
    pub room: Room,
    /// How the past is kept; `None` for a transient store.
    pub mode: Option<Mode>,
    /// The size of a chunk.
    pub chunk: ChunkSize,
    /// Exceptions that are listed on disk (in memory, for a transient store).
    pub exceptions: u64,
}

/// The kernel's words for a `snapshot` or `snapshot-merge` target, without start, length and name.
impl fmt::Display for SnapshotStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            SnapshotState::Invalid => f.write_str("Invalid"),
            SnapshotState::MergeFailed => f.write_str("Merge failed"),
            SnapshotState::Overflow => f.write_str("Overflow"),
            SnapshotState::Active | SnapshotState::Merging => self.room.fmt(f),
            SnapshotState::Closed => f.write_str("Unknown"),
        }
    }
}

/// The state of a snapshot that is attached; read without a lock.
pub(crate) struct Health {
    state: AtomicU8,
    reason: Mutex<Option<String>>,
    /// Held while the snapshot is being made invalid.
    pub(crate) marking: Mutex<()>,
}

const STATES: [SnapshotState; 6] = [
    SnapshotState::Active,
    SnapshotState::Overflow,
    SnapshotState::Invalid,
    SnapshotState::Merging,
    SnapshotState::MergeFailed,
    SnapshotState::Closed,
];
/// Becoming invalid: nothing is read, but the mark is not durable yet.
const DYING: u8 = 100;

impl Health {
    pub(crate) fn new(state: SnapshotState, reason: Option<String>) -> Self {
        let health =
            Self { state: AtomicU8::new(0), reason: Mutex::new(reason), marking: Mutex::new(()) };
        health.set(state);
        health
    }

    /// The state; a snapshot on its way to invalid counts as such.
    pub(crate) fn get(&self) -> SnapshotState {
        let state = self.state.load(Ordering::SeqCst);
        STATES.get(usize::from(state)).copied().unwrap_or(SnapshotState::Invalid)
    }

    /// Whether writes to the origin have to be kept from the snapshot's past. While it is becoming
    /// invalid they still have to: they wait for the mark.
    pub(crate) fn keeps(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state == DYING || matches!(self.get(), SnapshotState::Active | SnapshotState::Overflow)
    }

    pub(crate) fn set(&self, state: SnapshotState) {
        let number = STATES.iter().position(|&known| known == state).unwrap_or(0);
        self.state.store(number as u8, Ordering::SeqCst);
    }

    /// Ends reading; the first reason stays.
    pub(crate) fn begin_dying(&self, reason: String) {
        self.reason.lock().get_or_insert(reason);
        self.state.store(DYING, Ordering::SeqCst);
    }

    /// Leaves the state with a reason for it.
    pub(crate) fn set_for(&self, state: SnapshotState, reason: String) {
        self.reason.lock().get_or_insert(reason);
        self.set(state);
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }
}

impl Core {
    /// State and figures now.
    pub(crate) fn status(&self) -> SnapshotStatus {
        let exceptions = self.ledger.lock().listed();
        SnapshotStatus {
            state: self.health.get(),
            reason: self.health.reason(),
            room: self.room(),
            mode: self.is_persistent().then_some(self.mode),
            chunk: self.chunk,
            exceptions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Health, STATES, SnapshotState};

    #[test]
    fn states_are_kept_as_numbers() {
        let health = Health::new(SnapshotState::Active, None);
        for state in STATES {
            health.set(state);
            assert_eq!(health.get(), state);
        }
    }

    #[test]
    fn a_dying_snapshot_is_not_read_and_still_waited_for() {
        let health = Health::new(SnapshotState::Active, None);
        health.begin_dying("full".to_owned());
        assert_eq!(health.get(), SnapshotState::Invalid);
        assert!(health.keeps());
        health.set(SnapshotState::Invalid);
        assert!(!health.keeps());
        assert_eq!(health.reason().as_deref(), Some("full"));
    }
}
