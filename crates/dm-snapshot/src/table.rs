//! The exceptions in memory: where the store has what a chunk of the origin held.
//!
//! Chunks that follow each other in the origin and in the store are one run. The lock is held for a
//! look only, never over I/O; that a chunk may be overwritten is asked of a bitmap without a lock.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use crate::{Exception, OriginChunk, StoreChunk};

/// The exceptions of one store.
#[derive(Default)]
pub(crate) struct Table {
    /// First old chunk of each run; runs neither overlap nor could be joined.
    runs: RwLock<BTreeMap<u64, Run>>,
}

#[derive(Clone, Copy)]
struct Run {
    new: u64,
    len: u64,
}

impl Table {
    /// Where the store has `chunk`, if it does.
    pub(crate) fn get(&self, chunk: OriginChunk) -> Option<StoreChunk> {
        self.stretch(chunk, 1).0
    }

    /// Where the store has `chunk`, and how many chunks from it on, at most `limit`, follow it
    /// there or are all absent.
    pub(crate) fn stretch(&self, chunk: OriginChunk, limit: u64) -> (Option<StoreChunk>, u64) {
        let chunk = chunk.get();
        let runs = self.runs.read();
        let before = runs.range(..=chunk).next_back();
        if let Some((&old, run)) = before.filter(|(old, run)| chunk - **old < run.len) {
            let inside = chunk - old;
            return (Some(StoreChunk::new(run.new + inside)), limit.min(run.len - inside));
        }
        let next = runs.range(chunk..).next().map_or(limit, |(&old, _)| old - chunk);
        (None, limit.min(next))
    }

    /// Adds exceptions whose old chunks are absent.
    pub(crate) fn insert(&self, exceptions: &[Exception]) {
        let mut runs = self.runs.write();
        for exception in exceptions {
            let (mut old, mut new) = (exception.old.get(), exception.new.get());
            let mut len = 1;
            if let Some((&first, run)) = runs.range(..old).next_back()
                && (first + run.len, run.new + run.len) == (old, new)
            {
                (old, new, len) = (first, run.new, run.len + 1);
            }
            if let Some(next) = runs.get(&(old + len)).copied()
                && next.new == new + len
            {
                runs.remove(&(old + len));
                len += next.len;
            }
            runs.insert(old, Run { new, len });
        }
    }

    /// Removes the exceptions of these old chunks.
    pub(crate) fn remove(&self, chunks: impl Iterator<Item = OriginChunk>) {
        let mut runs = self.runs.write();
        for chunk in chunks.map(OriginChunk::get) {
            let before = runs.range(..=chunk).next_back().map(|(&old, &run)| (old, run));
            let Some((old, run)) = before.filter(|(old, run)| chunk - old < run.len) else {
                continue;
            };
            let inside = chunk - old;
            runs.remove(&old);
            if inside > 0 {
                runs.insert(old, Run { new: run.new, len: inside });
            }
            if inside + 1 < run.len {
                let rest = Run { new: run.new + inside + 1, len: run.len - inside - 1 };
                runs.insert(chunk + 1, rest);
            }
        }
    }

    /// Moves everything to another table.
    pub(crate) fn take_all(&self) -> Self {
        Self { runs: RwLock::new(std::mem::take(&mut *self.runs.write())) }
    }

    /// The old chunks of all exceptions.
    pub(crate) fn chunks(&self) -> Vec<u64> {
        let runs = self.runs.read();
        runs.iter().flat_map(|(&old, run)| old..old + run.len).collect()
    }

    /// How many runs there are.
    #[cfg(test)]
    fn runs(&self) -> usize {
        self.runs.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;
    use crate::{Exception, OriginChunk, StoreChunk};
    use proptest::prelude::{ProptestConfig, any, prop, proptest};
    use proptest::prop_assert_eq;
    use std::collections::BTreeMap;

    fn exception(old: u64, new: u64) -> Exception {
        Exception { old: OriginChunk::new(old), new: StoreChunk::new(new) }
    }

    #[test]
    fn neighbours_are_one_run() {
        let table = Table::default();
        table.insert(&[exception(5, 2), exception(7, 4), exception(6, 3), exception(8, 9)]);
        assert_eq!(table.runs(), 2);
        assert_eq!(table.stretch(OriginChunk::new(6), 9), (Some(StoreChunk::new(3)), 2));
        assert_eq!(table.stretch(OriginChunk::new(1), 9), (None, 4));
        assert_eq!(table.stretch(OriginChunk::new(9), 9), (None, 9));
        table.remove([OriginChunk::new(6)].into_iter());
        assert_eq!(table.runs(), 3);
        assert_eq!(table.get(OriginChunk::new(6)), None);
        assert_eq!(table.get(OriginChunk::new(7)), Some(StoreChunk::new(4)));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn agrees_with_a_map(
            steps in prop::collection::vec((any::<bool>(), 0u64..24, 1u64..3), 1..60),
        ) {
            let table = Table::default();
            let mut model = BTreeMap::new();
            for (insert, old, base) in steps {
                if insert && !model.contains_key(&old) {
                    // Two families of store chunks that continue each other in different places.
                    let new = base * 100 + old;
                    table.insert(&[exception(old, new)]);
                    model.insert(old, new);
                } else if !insert {
                    table.remove([OriginChunk::new(old)].into_iter());
                    model.remove(&old);
                }
            }
            for old in 0..24u64 {
                let (new, len) = table.stretch(OriginChunk::new(old), 24 - old);
                prop_assert_eq!(new.map(StoreChunk::get), model.get(&old).copied());
                for step in 0..len {
                    let there = model.get(&(old + step)).copied();
                    prop_assert_eq!(there, new.map(|new| new.get() + step));
                }
            }
        }
    }
}
