//! Beginning a pool's time anew.
//!
//! A pool's time goes on with each snapshot, and a mapping has 24 bits for it. All that it is for
//! is the question whether a mapping is older than the last snapshot of its device: then its block
//! may be shared, and is not written in place. Two moments are enough for the answer: 0 for what
//! may be shared, and 1, the new time of the pool and of the last snapshot of every device, for
//! what is not.

use crate::{DeviceState, Time};

/// The new time of the pool.
const NOW: Time = Time::new(1);

/// How times are taken over from the input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Times {
    /// As they are.
    Kept,
    /// Anew. In a pool whose time has run over 24 bits nothing that mappings say of it can be
    /// believed: there, all count as shared.
    Anew { run_over: bool },
}

impl Times {
    pub(super) fn new(renumber: bool, time: Time) -> Self {
        if renumber { Self::Anew { run_over: time > Time::MAX } } else { Self::Kept }
    }

    /// The pool's time.
    pub(super) fn of_pool(self, time: Time) -> Time {
        match self {
            Self::Kept => time,
            Self::Anew { .. } => NOW,
        }
    }

    /// A device, of which the input says this.
    pub(super) fn of_device(self, state: DeviceState) -> DeviceState {
        match self {
            Self::Kept => state,
            Self::Anew { .. } => {
                DeviceState { created: state.created.min(NOW), snapshotted: NOW, ..state }
            }
        }
    }

    /// A mapping: of a device whose last snapshot was at `snapshotted`, or (`None`) of what several
    /// devices share.
    pub(super) fn of_mapping(self, time: Time, snapshotted: Option<Time>) -> Time {
        match self {
            Self::Kept => time,
            Self::Anew { run_over: true } => Time::default(),
            Self::Anew { run_over: false } => {
                let is_shared = snapshotted.is_none_or(|snapshotted| snapshotted > time);
                if is_shared { Time::default() } else { NOW }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NOW, Times};
    use crate::Time;

    #[test]
    fn what_is_shared_stays_shared_and_nothing_else_becomes_it() {
        let times = Times::new(true, Time::MAX);
        for (mapped, snapshotted) in [(0, 0), (3, 2), (2, 2), (2, 3), (0xff_ffff, 0xff_ffff)] {
            let was_shared = snapshotted > mapped;
            let new = times.of_mapping(Time::new(mapped), Some(Time::new(snapshotted)));
            assert_eq!(NOW > new, was_shared, "{mapped} {snapshotted}");
        }
        assert!(NOW > times.of_mapping(Time::new(9), None), "definitions are what is shared");
        assert_eq!(times.of_pool(Time::MAX), NOW);
    }

    #[test]
    fn after_time_has_run_over_everything_counts_as_shared() {
        let times = Times::new(true, Time::new(1 << 24));
        assert!(NOW > times.of_mapping(Time::new(0xff_ffff), Some(Time::new(5))));
    }

    #[test]
    fn unless_it_is_asked_for_nothing_changes() {
        let times = Times::new(false, Time::MAX);
        assert_eq!(times.of_mapping(Time::new(7), None), Time::new(7));
        assert_eq!(times.of_pool(Time::MAX), Time::MAX);
    }
}
