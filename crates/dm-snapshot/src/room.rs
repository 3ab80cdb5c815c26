//! Room in a store: how much is used, and how it grows while it is in use.

use std::fmt;
use std::sync::atomic::Ordering;

use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use crate::core::Core;

/// How often a policy is not asked after the store did not grow, unless it is full.
const PAUSE: u32 = 256;

/// How full a store is, as the kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Up to where chunks are taken, header and areas included. Chunks are not given back.
    pub allocated: ByteCount,
    /// The size of the store's device.
    pub total: ByteCount,
    /// Header and areas; 0 for a transient store.
    pub metadata: ByteCount,
}

/// Decides whether a store is to grow.
pub trait GrowPolicy: Send + Sync {
    /// The size that a store of this room should have, if a larger one. It is asked whenever chunks
    /// were taken, and again when there is none left: a snapshot whose store stays full is lost.
    fn wanted(&self, room: Room) -> Option<ByteCount>;
}

/// Grows a store by steps when it is filled to a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoGrow {
    /// Percent of the store that may be taken before it grows.
    pub threshold: u8,
    /// By how much it grows; large enough that filling it takes longer than growing.
    pub step: ByteCount,
    /// The size that it does not grow past.
    pub limit: ByteCount,
}

impl Room {
    /// Percent of the store that is taken, rounded up.
    pub fn percent(self) -> u64 {
        if self.total.is_zero() {
            return 100;
        }
        let taken = u128::from(self.allocated.get()) * 100;
        u64::try_from(taken.div_ceil(u128::from(self.total.get()))).unwrap_or(u64::MAX)
    }
}

/// The kernel's words: sectors `allocated/total metadata`.
impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allocated, total, metadata } = self;
        write!(f, "{}/{} {}", allocated.sectors(), total.sectors(), metadata.sectors())
    }
}

impl GrowPolicy for AutoGrow {
    fn wanted(&self, room: Room) -> Option<ByteCount> {
        if room.percent() < u64::from(self.threshold) {
            return None;
        }
        let larger = room.total.checked_add(self.step)?.min(self.limit);
        (larger > room.total).then_some(larger)
    }
}

impl Core {
    /// How full the store is.
    pub(crate) fn room(&self) -> Room {
        let ledger = self.ledger.lock();
        let chunk = self.chunk.bytes().get();
        Room {
            allocated: ByteCount::new(ledger.next_free() * chunk),
            total: self.device.size(),
            metadata: ByteCount::new(ledger.metadata_chunks() * chunk),
        }
    }

    /// Grows the store if its policy wants that, and says whether it was grown. A store that has no
    /// room for what it is asked for counts as `full`, whatever its last chunks are kept for.
    pub(crate) fn grow_by_policy(&self, full: bool) -> bool {
        let Some(policy) = &self.grow else { return false };
        if !full && self.grow_pause.load(Ordering::Relaxed) > 0 {
            self.grow_pause.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let wanted = || {
            let room = self.room();
            policy.wanted(if full { Room { allocated: room.total, ..room } } else { room })
        };
        // Before the lock: most calls end here.
        if wanted().is_none() {
            return false;
        }
        let _alone = self.growing.lock();
        // Somebody may have grown it meanwhile.
        let Some(size) = wanted() else { return true };
        match self.grow(size) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(snapshot = self.name, "the store does not grow: {error}");
                self.grow_pause.store(PAUSE, Ordering::Relaxed);
                false
            }
        }
    }

    /// Makes the store's device larger.
    pub(crate) fn grow(&self, size: ByteCount) -> Result<()> {
        let before = self.device.size();
        if size <= before {
            return Ok(());
        }
        self.device.resize(size)?;
        // A file's size alone is no room: a store that fails to take a copy is lost.
        let (before, after) = (ByteOffset::new(before.get()), ByteOffset::new(size.get()));
        self.device.provision(ByteRange::between(before, after))
    }
}

#[cfg(test)]
mod tests {
    use super::{AutoGrow, GrowPolicy, Room};
    use block_types::ByteCount;

    fn room(allocated: u64, total: u64) -> Room {
        let count = ByteCount::from_sectors;
        Room { allocated: count(allocated), total: count(total), metadata: count(24) }
    }

    #[test]
    fn says_it_in_the_kernels_words() {
        assert_eq!(room(2496, 4096).to_string(), "2496/4096 24");
    }

    #[test]
    fn grows_at_the_threshold_up_to_the_limit() {
        let policy = AutoGrow {
            threshold: 70,
            step: ByteCount::from_sectors(1000),
            limit: ByteCount::from_sectors(5000),
        };
        let wanted =
            |allocated, total| policy.wanted(room(allocated, total)).map(ByteCount::sectors);
        assert_eq!(wanted(690, 1000), None);
        assert_eq!(wanted(700, 1000), Some(2000));
        assert_eq!(wanted(4400, 4500), Some(5000));
        assert_eq!(wanted(5000, 5000), None);
    }
}
