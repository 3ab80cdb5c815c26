//! L2 tables in memory: what the hot path reads, without a lock.
//!
//! Tables hang on slots; slots stand in segments that double in size, so that the set grows with
//! its disk and nothing in it ever moves. Words are those of the file. An extended entry has two;
//! a reader that meets a change of one takes neither (a version per slot, odd while one is made).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::entry::Words;
use super::geometry::{Geometry, L1Index};

/// Segments: the last ends behind the largest L1 table that is taken.
const SEGMENTS: usize = 24;

/// Slot states.
const UNLOADED: u8 = 0;
const EMPTY: u8 = 1;
const LOADED: u8 = 2;

/// What the set knows of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Nothing yet: load its table.
    Unloaded,
    /// Its words.
    Entry(Words),
}

/// The L2 tables of one L1 table, as far as they were wanted.
pub(crate) struct L2Tables {
    geometry: Geometry,
    segments: [OnceLock<Box<[Slot]>>; SEGMENTS],
}

#[derive(Default)]
struct Slot {
    state: AtomicU8,
    version: AtomicU32,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl L2Tables {
    /// A set that knows nothing yet.
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, segments: [const { OnceLock::new() }; SEGMENTS] }
    }

    /// What is known of the entry `at` of the table at `index`.
    pub(crate) fn get(&self, index: L1Index, at: usize) -> Lookup {
        loop {
            match self.try_get(index, at) {
                Some(lookup) => return lookup,
                None => std::hint::spin_loop(),
            }
        }
    }

    /// The same; `None` where a change of just that table is under way.
    pub(crate) fn try_get(&self, index: L1Index, at: usize) -> Option<Lookup> {
        let Some(slot) = self.slot(index) else {
            return Some(Lookup::Unloaded);
        };
        match slot.state.load(Ordering::Acquire) {
            UNLOADED => return Some(Lookup::Unloaded),
            EMPTY => return Some(Lookup::Entry([0, 0])),
            _ => {}
        }
        let words = slot.words.get().expect("a loaded slot has its words");
        if !self.geometry.extended {
            return Some(Lookup::Entry([words[at].load(Ordering::Acquire), 0]));
        }
        let before = slot.version.load(Ordering::SeqCst);
        let entry =
            [words[2 * at].load(Ordering::Acquire), words[2 * at + 1].load(Ordering::Acquire)];
        let whole = before.is_multiple_of(2) && slot.version.load(Ordering::SeqCst) == before;
        whole.then_some(Lookup::Entry(entry))
    }

    /// Whether nothing is known of the table at `index`.
    pub(crate) fn is_unloaded(&self, index: L1Index) -> bool {
        self.slot(index).is_none_or(|slot| slot.state.load(Ordering::Acquire) == UNLOADED)
    }

    /// Enters a change in a table that is loaded. Calls for one set do not overlap.
    pub(crate) fn set(&self, index: L1Index, at: usize, entry: Words) {
        let slot = self.slot_or_new(index);
        debug_assert_ne!(slot.state.load(Ordering::Relaxed), UNLOADED, "changed before loaded");
        let words = slot.words.get_or_init(|| self.blank());
        if self.geometry.extended {
            slot.version.fetch_add(1, Ordering::SeqCst);
            words[2 * at].store(entry[0], Ordering::SeqCst);
            words[2 * at + 1].store(entry[1], Ordering::SeqCst);
            slot.version.fetch_add(1, Ordering::SeqCst);
        } else {
            words[at].store(entry[0], Ordering::Release);
        }
        slot.state.store(LOADED, Ordering::Release);
    }

    /// Fills the table at `index` with `words` of the file; `None` where there is no table. Does
    /// nothing if it is loaded: what is in memory is never older.
    pub(crate) fn fill(&self, index: L1Index, words: Option<&[u64]>) {
        let slot = self.slot_or_new(index);
        if slot.state.load(Ordering::Acquire) != UNLOADED {
            return;
        }
        let Some(words) = words else {
            // Words from before a reset may hang here, and `set` trusts them to be blank.
            let old = slot.words.get().into_iter().flat_map(|words| words.iter());
            old.for_each(|word| word.store(0, Ordering::Relaxed));
            slot.state.store(EMPTY, Ordering::Release);
            return;
        };
        let held = slot.words.get_or_init(|| self.blank());
        for (held, &word) in held.iter().zip(words) {
            held.store(word, Ordering::Relaxed);
        }
        slot.state.store(LOADED, Ordering::Release);
    }

    /// A copy of `len` words of the table at `index` from word `from` on; `None` if it is not
    /// loaded or empty. Nobody changes it meanwhile.
    pub(crate) fn copy(&self, index: L1Index, from: usize, len: usize) -> Option<Vec<u64>> {
        let slot = self.slot(index)?;
        if slot.state.load(Ordering::Acquire) != LOADED {
            return None;
        }
        let words = &slot.words.get()?[from..from + len];
        Some(words.iter().map(|word| word.load(Ordering::Relaxed)).collect())
    }

    /// Puts `words` into the table at `index`, if it is loaded. They differ in marks alone.
    pub(crate) fn remark(&self, index: L1Index, words: &[u64]) {
        let Some(slot) = self.slot(index) else { return };
        if slot.state.load(Ordering::Acquire) == LOADED
            && let Some(held) = slot.words.get()
        {
            held.iter().zip(words).for_each(|(held, &word)| held.store(word, Ordering::Release));
        }
    }

    /// Changes the first word of every entry of the table at `index`, if it is loaded, by `change`,
    /// which touches marks alone.
    pub(crate) fn remark_all(&self, index: L1Index, change: impl Fn(u64) -> u64) {
        let Some(slot) = self.slot(index) else { return };
        if slot.state.load(Ordering::Acquire) == LOADED
            && let Some(held) = slot.words.get()
        {
            for word in held.iter().step_by(self.geometry.entry_words()) {
                word.store(change(word.load(Ordering::Relaxed)), Ordering::Release);
            }
        }
    }

    /// Forgets everything: the L1 table was exchanged. Nobody else is in the set.
    pub(crate) fn reset(&self) {
        for slot in self.segments.iter().filter_map(OnceLock::get).flat_map(|slots| slots.iter()) {
            slot.state.store(UNLOADED, Ordering::Release);
        }
    }

    fn blank(&self) -> Box<[AtomicU64]> {
        (0..self.geometry.table_words()).map(|_| AtomicU64::new(0)).collect()
    }

    fn slot(&self, index: L1Index) -> Option<&Slot> {
        let (segment, inside) = place(index);
        self.segments[segment].get().map(|slots| &slots[inside])
    }

    fn slot_or_new(&self, index: L1Index) -> &Slot {
        let (segment, inside) = place(index);
        let slots = self.segments[segment]
            .get_or_init(|| (0..1usize << segment).map(|_| Slot::default()).collect());
        &slots[inside]
    }
}

/// Segment and place in it: segment k holds the 2^k slots from 2^k - 1 on.
fn place(index: L1Index) -> (usize, usize) {
    let segment = (index.0 + 1).ilog2();
    (segment as usize, (index.0 + 1 - (1 << segment)) as usize)
}

#[cfg(test)]
mod tests {
    use super::{L2Tables, Lookup};
    use crate::qcow2::geometry::{Geometry, L1Index};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn tables(extended: bool) -> L2Tables {
        L2Tables::new(Geometry {
            cluster_bits: 14,
            refcount_order: 4,
            extended,
            external: false,
            zero_clusters: true,
        })
    }

    #[test]
    fn loads_changes_and_forgets() {
        let tables = tables(false);
        let far = L1Index(4_000_000);
        assert_eq!(tables.get(far, 3), Lookup::Unloaded);
        tables.fill(far, None);
        assert_eq!(tables.get(far, 3), Lookup::Entry([0, 0]));
        tables.set(far, 3, [7, 0]);
        assert_eq!(tables.get(far, 3), Lookup::Entry([7, 0]));
        tables.fill(far, Some(&[9; 2048]));
        assert_eq!(tables.get(far, 3), Lookup::Entry([7, 0]), "a late fill undid a change");
        assert_eq!(tables.copy(far, 2, 2), Some(vec![0, 7]));
        tables.reset();
        assert!(tables.is_unloaded(far));
        tables.fill(far, None);
        tables.set(far, 4, [8, 0]);
        assert_eq!(tables.get(far, 3), Lookup::Entry([0, 0]), "it came back after a reset");
    }

    #[test]
    fn an_extended_entry_is_read_whole() {
        let tables = tables(true);
        let index = L1Index(0);
        tables.fill(index, None);
        tables.set(index, 5, [0, 0]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Lookup::Entry([first, second]) = tables.get(index, 5) else {
                        panic!("unloaded")
                    };
                    assert_eq!(first, second, "half of a change was read");
                }
            });
            for value in 0..20_000 {
                tables.set(index, 5, [value, value]);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
