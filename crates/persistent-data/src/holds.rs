//! Committed states that somebody reads while later transactions go on.
//!
//! A hold is nothing but a note, in memory, of which blocks a committed state uses. A block that a
//! later transaction frees and that a hold needs is free in the space map, and so on the disk, but
//! is not taken again until nobody needs it. So a hold costs the disk nothing, however many there
//! are, and nothing is left of it after a crash.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{MetaBlock, RefCounts};

const WORD: u64 = u64::BITS as u64;

/// A committed state whose blocks stay as they are until the hold is
/// [let go](crate::Transaction::let_go) or broken.
#[derive(Debug)]
pub struct Hold {
    broken: Arc<AtomicBool>,
}

/// The holds on the states of one device.
#[derive(Default)]
pub(crate) struct Holds {
    held: Vec<Held>,
    /// Blocks that are free, and that a hold needs.
    withheld: HashSet<MetaBlock>,
}

struct Held {
    /// A bit for each block that the state uses.
    used: Vec<u64>,
    broken: Arc<AtomicBool>,
}

impl Hold {
    /// Set once the blocks may be taken again although somebody reads them: what is read from then
    /// on may be anything. What was read before it was set is right.
    pub fn broken(&self) -> &Arc<AtomicBool> {
        &self.broken
    }
}

impl Held {
    fn needs(&self, at: MetaBlock) -> bool {
        let word = usize::try_from(at.get() / WORD).ok().and_then(|index| self.used.get(index));
        word.is_some_and(|word| word & 1 << (at.get() % WORD) != 0)
    }
}

impl Holds {
    /// Holds the state that uses the blocks with a count in `counts`.
    pub(crate) fn add(&mut self, counts: &RefCounts) -> Hold {
        let mut used = vec![0; counts.len().div_ceil(WORD) as usize];
        for (block, _) in counts.used() {
            used[(block / WORD) as usize] |= 1 << (block % WORD);
        }
        let broken = Arc::new(AtomicBool::new(false));
        self.held.push(Held { used, broken: Arc::clone(&broken) });
        Hold { broken }
    }

    /// Gives up a hold, and the blocks that no other one needs.
    pub(crate) fn remove(&mut self, hold: &Hold) {
        self.held.retain(|held| !Arc::ptr_eq(&held.broken, &hold.broken));
        let Self { held, withheld, .. } = self;
        withheld.retain(|&at| held.iter().any(|held| held.needs(at)));
    }

    /// Gives up all holds, whoever reads; `false` if there is none.
    pub(crate) fn break_all(&mut self) -> bool {
        let any = !self.held.is_empty();
        for held in self.held.drain(..) {
            held.broken.store(true, Ordering::SeqCst);
        }
        self.withheld.clear();
        any
    }

    /// Takes note of a block that a transaction has freed, durably.
    pub(crate) fn freed(&mut self, at: MetaBlock) {
        if self.held.iter().any(|held| held.needs(at)) {
            self.withheld.insert(at);
        }
    }

    /// Whether a block, free in the space map, is not to be taken.
    pub(crate) fn withholds(&self, at: MetaBlock) -> bool {
        self.withheld.contains(&at)
    }

    /// How many blocks are free and not to be taken.
    pub(crate) fn withheld(&self) -> u64 {
        self.withheld.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Holds;
    use crate::{MetaBlock, RefCounts};
    use std::sync::atomic::Ordering;

    fn counts(used: &[u64]) -> RefCounts {
        let mut counts = RefCounts::new(200);
        used.iter().for_each(|&block| counts.set(block, 1));
        counts
    }

    #[test]
    fn a_block_is_withheld_as_long_as_a_hold_needs_it() {
        let mut holds = Holds::default();
        let (one, other) = (holds.add(&counts(&[3, 130])), holds.add(&counts(&[3, 9])));
        for block in [3, 9, 130, 131, 5000] {
            holds.freed(MetaBlock::new(block));
        }
        assert_eq!(holds.withheld(), 3);
        assert!(!holds.withholds(MetaBlock::new(131)), "nobody needs it");
        holds.remove(&one);
        assert!(holds.withholds(MetaBlock::new(3)) && !holds.withholds(MetaBlock::new(130)));
        assert!(holds.break_all() && other.broken().load(Ordering::SeqCst));
        assert!(!one.broken().load(Ordering::SeqCst), "it was let go before");
        assert_eq!((holds.withheld(), holds.break_all()), (0, false));
    }
}
