//! The snapshots of a store that they share: who sees which chunk.
//!
//! A chunk is copied once for every snapshot that lacks it: when the origin is overwritten, all
//! that were taken since the chunk was last copied. So copies are kept by epochs, an epoch being
//! the time in which one snapshot was the newest. A snapshot finds a chunk among its own, where it
//! was written to; then in its own epoch, and in the later ones, oldest first; then on the origin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_types::ByteCount;

use crate::key::Key;
use crate::table::Table;
use crate::{ChunkSize, Exception, OriginChunk, StoreChunk, ViewId};

/// A snapshot among those of its store.
pub(crate) struct View {
    pub(crate) id: ViewId,
    /// Chunks that it was written to.
    pub(crate) own: Table,
    dropped: AtomicBool,
}

/// The snapshots of a store, the oldest first.
#[derive(Default)]
pub(crate) struct Views {
    epochs: Vec<Epoch>,
}

struct Epoch {
    view: Arc<View>,
    /// What was copied while it was the newest snapshot; of the newest one, nothing: that is in the
    /// store's own table.
    copied: Table,
}

impl View {
    fn new(id: ViewId) -> Arc<Self> {
        Arc::new(Self { id, own: Table::default(), dropped: AtomicBool::new(false) })
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::SeqCst)
    }

    pub(crate) fn set_dropped(&self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl Views {
    /// What the log of a store says, checked before; and the copies since the newest snapshot.
    pub(crate) fn replay(entries: &[Exception]) -> (Self, Table) {
        let (mut views, current) = (Self::default(), Table::default());
        for entry in entries {
            match Key::of(entry.old) {
                Some(Key::Copy(old)) => current.insert(&[Exception { old, new: entry.new }]),
                Some(Key::Own(id, old)) => {
                    if let Some(view) = views.get(id) {
                        view.own.insert(&[Exception { old, new: entry.new }]);
                    }
                }
                Some(Key::Take(id)) => drop(views.take(id, &current)),
                Some(Key::Drop(id)) => views.get(id).into_iter().for_each(|it| it.set_dropped()),
                None => {}
            }
        }
        (views, current)
    }

    /// Begins the epoch of another snapshot: what is in `current` belongs to those before it.
    pub(crate) fn take(&mut self, id: ViewId, current: &Table) -> Arc<View> {
        let copied = current.take_all();
        if let Some(last) = self.epochs.last_mut() {
            last.copied = copied;
        }
        let view = View::new(id);
        self.epochs.push(Epoch { view: Arc::clone(&view), copied: Table::default() });
        view
    }

    /// The snapshot of this number that is not dropped.
    pub(crate) fn get(&self, id: ViewId) -> Option<Arc<View>> {
        self.live().find(|view| view.id == id).map(Arc::clone)
    }

    /// Those that are not dropped.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<View>> {
        self.epochs.iter().map(|epoch| &epoch.view).filter(|view| !view.is_dropped())
    }

    /// The number of the next snapshot, if there is another.
    pub(crate) fn next(&self) -> Option<ViewId> {
        let last = self.epochs.iter().map(|epoch| epoch.view.id.get()).max();
        last.map_or(Some(0), |last| last.checked_add(1)).map(ViewId::new)
    }

    /// Where `view` has `chunk` in the store, and how many chunks from it on, at most `limit`,
    /// follow it there or are all on the origin. `current` has the copies of the newest epoch.
    pub(crate) fn stretch(
        &self,
        view: &View,
        current: &Table,
        chunk: OriginChunk,
        limit: u64,
    ) -> (Option<StoreChunk>, u64) {
        let from = self.epochs.iter().position(|epoch| epoch.view.id == view.id).unwrap_or(0);
        let copied = self.epochs[from..].iter().map(|epoch| &epoch.copied);
        let mut limit = limit;
        for table in std::iter::once(&view.own).chain(copied).chain([current]) {
            let (place, chunks) = table.stretch(chunk, limit);
            limit = chunks;
            if place.is_some() {
                return (place, limit);
            }
        }
        (None, limit)
    }

    /// The chunks that no snapshot lacks: those copied since the newest that is not dropped was
    /// taken.
    pub(crate) fn kept(&self, current: &Table) -> Vec<u64> {
        let newest = self.epochs.iter().rposition(|epoch| !epoch.view.is_dropped());
        let Some(newest) = newest else { return Vec::new() };
        let copied = self.epochs[newest..].iter().map(|epoch| &epoch.copied);
        copied.chain([current]).flat_map(Table::chunks).collect()
    }
}

/// The rules that the log of a shared store breaks, one line each.
pub(crate) fn problems(
    entries: &[Exception],
    chunk: ChunkSize,
    store: ByteCount,
    origin: Option<ByteCount>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut places = std::collections::HashSet::new();
    let (mut copied, mut own) =
        (std::collections::HashSet::new(), std::collections::HashSet::new());
    let (mut taken, mut live) =
        (std::collections::HashSet::new(), std::collections::HashSet::new());
    for (number, entry) in entries.iter().enumerate() {
        let mut wrong = |what: String| problems.push(format!("entry {number} {what}"));
        let Some(key) = Key::of(entry.old) else {
            wrong(format!("is of a kind that is not known: {:#x}", entry.old.get()));
            continue;
        };
        match key {
            Key::Copy(_) if taken.is_empty() => wrong("is of no snapshot".to_owned()),
            Key::Copy(old) if !copied.insert(old) => {
                wrong(format!("has chunk {} of the origin once more", old.get()));
            }
            Key::Own(view, _) if !live.contains(&view) => wrong("is of no snapshot".to_owned()),
            Key::Own(view, old) if !own.insert((view, old)) => {
                wrong(format!("has chunk {} of a snapshot once more", old.get()));
            }
            Key::Take(view) if !taken.insert(view) => wrong("takes a snapshot anew".to_owned()),
            Key::Take(view) => {
                live.insert(view);
                copied.clear();
            }
            Key::Drop(view) if !live.remove(&view) => wrong("drops no snapshot".to_owned()),
            Key::Copy(_) | Key::Own(..) | Key::Drop(_) => {}
        }
        let (Key::Copy(old) | Key::Own(_, old)) = key else { continue };
        let mut wrong = |what: String| problems.push(format!("entry {number} {what}"));
        if origin.is_some_and(|origin| old.get() >= chunk.count(origin)) {
            wrong(format!("is of chunk {}, past the origin's end", old.get()));
        }
        if entry.new.get() >= store.get() / chunk.bytes().get() {
            wrong(format!("is in chunk {}, past the store's end", entry.new.get()));
        } else if chunk.is_metadata(entry.new) {
            wrong(format!("is in chunk {}, which holds no data", entry.new.get()));
        } else if !places.insert(entry.new) {
            wrong(format!("is in chunk {}, where another is", entry.new.get()));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{Views, problems};
    use crate::key::Key;
    use crate::{ChunkSize, Exception, OriginChunk, StoreChunk, ViewId};
    use block_types::ByteCount;

    fn entry(key: Key, new: u64) -> Exception {
        Exception { old: key.packed(), new: StoreChunk::new(new) }
    }

    fn copy(old: u64, new: u64) -> Exception {
        entry(Key::Copy(OriginChunk::new(old)), new)
    }

    fn own(view: u16, old: u64, new: u64) -> Exception {
        entry(Key::Own(ViewId::new(view), OriginChunk::new(old)), new)
    }

    fn take(view: u16) -> Exception {
        Key::Take(ViewId::new(view)).entry()
    }

    fn dropped(view: u16) -> Exception {
        Key::Drop(ViewId::new(view)).entry()
    }

    /// Where a snapshot has a chunk, and how far that goes.
    fn place(log: &[Exception], view: u16, chunk: u64) -> (Option<u64>, u64) {
        let (views, current) = Views::replay(log);
        let view = views.get(ViewId::new(view)).expect("a view");
        let (place, len) = views.stretch(&view, &current, OriginChunk::new(chunk), 10);
        (place.map(StoreChunk::get), len)
    }

    #[test]
    fn one_copy_serves_all_that_lack_it() {
        let log = [take(0), copy(5, 2), take(1), copy(5, 3), copy(6, 4), take(2), own(0, 6, 5)];
        assert_eq!(place(&log, 0, 5), (Some(2), 1));
        assert_eq!(place(&log, 1, 5), (Some(3), 2), "its own epoch, not the older one");
        assert_eq!(place(&log, 0, 6), (Some(5), 1), "what was written to it");
        assert_eq!(place(&log, 1, 6), (Some(4), 1));
        assert_eq!(place(&log, 2, 5), (None, 10));
        assert_eq!(place(&log, 1, 3), (None, 2));
        assert_eq!(Views::replay(&log).0.next(), Some(ViewId::new(3)));
    }

    #[test]
    fn chunks_that_nobody_lacks() {
        let mut log = vec![take(0), copy(5, 2), take(1), copy(7, 3)];
        let kept = |log: &[Exception]| {
            let (views, current) = Views::replay(log);
            let mut kept = views.kept(&current);
            kept.sort_unstable();
            kept
        };
        assert_eq!(kept(&log), [7]);
        log.push(dropped(1));
        assert_eq!(kept(&log), [5, 7], "the older one has both");
        log.push(dropped(0));
        assert!(kept(&log).is_empty());
    }

    #[test]
    fn every_rule_is_looked_at() {
        let chunk = ChunkSize::new(ByteCount::new(4096)).expect("a chunk size");
        let found = |log: &[Exception]| {
            problems(log, chunk, ByteCount::new(99 * 4096), Some(ByteCount::new(9 * 4096)))
        };
        assert!(found(&[take(0), copy(5, 2), own(0, 5, 3), take(1), copy(5, 4)]).is_empty());
        for (log, word) in [
            (&[copy(5, 2)][..], "no snapshot"),
            (&[take(0), copy(5, 2), copy(5, 3)], "origin once more"),
            (&[take(0), own(1, 5, 2)], "no snapshot"),
            (&[take(0), dropped(0), own(0, 5, 2)], "no snapshot"),
            (&[take(0), own(0, 5, 2), own(0, 5, 3)], "snapshot once more"),
            (&[take(0), take(0)], "anew"),
            (&[dropped(0)], "drops no"),
            (&[take(0), copy(9, 2)], "origin's end"),
            (&[take(0), copy(8, 99)], "store's end"),
            (&[take(0), copy(8, 1)], "no data"),
            (&[take(0), copy(8, 2), copy(7, 2)], "where another is"),
            (&[Exception { old: OriginChunk::new(9 << 56), new: StoreChunk::new(2) }], "kind"),
        ] {
            let problems = found(log);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(word), "{problems:?}");
        }
    }
}
