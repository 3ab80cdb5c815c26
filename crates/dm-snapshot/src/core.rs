//! What an origin and a snapshot of it share: the exceptions, the store, the state.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use block_io::{AlignedBuf, BlockDevice, LeaseSet};
use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::alloc::Ledger;
use crate::bitmap::Bitmap;
use crate::key::Key;
use crate::options::{OnFull, SnapshotOptions};
use crate::status::Health;
use crate::store::{StoreKind, Tail, check_chunk};
use crate::table::Table;
use crate::views::Views;
use crate::{
    ChunkSize, Exception, GrowPolicy, Label, Mode, OriginChunk, SnapshotState, Store, commit,
};

/// A snapshot that is attached to its origin.
///
/// Locks are taken in this order: `writing`, `health.marking`, `views`, `tail`, `ledger`,
/// `captured`. Neither of the last two is held over I/O.
pub(crate) struct Core {
    pub(crate) name: String,
    /// The device under the origin.
    pub(crate) base: Arc<dyn BlockDevice>,
    /// The store's device.
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) chunk: ChunkSize,
    /// What the store's header has beside the kernel's fields.
    pub(crate) label: Option<Label>,
    /// The origin's size when the snapshot was taken; its own for ever.
    pub(crate) size: ByteCount,
    pub(crate) mode: Mode,
    pub(crate) on_full: OnFull,
    pub(crate) discard_zeroes: bool,
    pub(crate) discard_passdown: bool,
    pub(crate) read_only: bool,
    pub(crate) grow: Option<Arc<dyn GrowPolicy>>,
    pub(crate) growing: Mutex<()>,
    /// How often the policy is not asked, since the store did not grow when it was asked last.
    pub(crate) grow_pause: AtomicU32,
    /// Threads that copy a large batch.
    pub(crate) workers: usize,
    /// Where chunks are read that are in the store; in a shared one, those copied since its newest
    /// snapshot was taken.
    pub(crate) table: Table,
    /// Whether several snapshots share the store, which they are, and whether there is none.
    pub(crate) is_shared: bool,
    pub(crate) views: RwLock<Views>,
    pub(crate) idle: AtomicBool,
    /// Chunks that the origin may overwrite: their exceptions are durable, as far as the mode has
    /// it, and nobody reads them from the origin any more.
    pub(crate) sealed: Bitmap,
    /// Held for reading by writes to the snapshot itself, for writing by what must see none in
    /// flight: a merge and a close.
    pub(crate) writing: RwLock<()>,
    /// Taken by who reads the past from the origin.
    pub(crate) reads: LeaseSet,
    /// Mode async: chunks that were read and are not yet in the store.
    pub(crate) captured: Mutex<HashMap<OriginChunk, Arc<AlignedBuf>>>,
    pub(crate) ledger: Mutex<Ledger>,
    /// Signalled when exceptions are written, listed, captured, and when the state changes.
    pub(crate) changed: Condvar,
    /// The end of the list; `None` for a transient store.
    pub(crate) tail: Option<Mutex<Tail>>,
    pub(crate) health: Health,
}

/// How a snapshot's exceptions reach the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// Not at all.
    Transient,
    /// When it suits.
    Async,
    /// In order, before the origin is written.
    Durable,
}

impl Core {
    /// Takes a store into use as the past of `base`, which nobody writes meanwhile.
    pub(crate) fn attach(
        name: String,
        base: Arc<dyn BlockDevice>,
        store: Store,
        options: SnapshotOptions,
        workers: usize,
    ) -> Result<Self> {
        let size = options.size.unwrap_or_else(|| base.size());
        check_fits(&base, &store, size)?;
        let store_is_shared = store.is_shared();
        let Store { device, chunk, kind } = store;
        let (mut state, mut reason) = (SnapshotState::Active, None);
        let is_shared = store_is_shared;
        let (mut exceptions, mut label) = (Vec::new(), None);
        let tail = match kind {
            StoreKind::Transient => None,
            StoreKind::Persistent(loaded) => {
                if !loaded.header.valid {
                    state = SnapshotState::Invalid;
                    reason = Some(why_invalid(loaded.header.in_use));
                }
                label = loaded.header.label;
                exceptions = loaded.list.exceptions;
                Some(Mutex::new(loaded.list.tail))
            }
        };
        let persistent = tail.is_some();
        let first_free = u64::from(persistent);
        let next_free = exceptions.iter().map(|one| one.new.get() + 1).max();
        let ledger = Ledger::new(
            chunk,
            persistent,
            next_free.unwrap_or(first_free).max(first_free),
            exceptions.len() as u64,
        );
        let core = Self {
            name,
            base,
            device,
            chunk,
            label,
            size,
            mode: options.mode,
            on_full: options.on_full,
            discard_zeroes: options.discard_zeroes,
            discard_passdown: options.discard_passdown,
            read_only: options.read_only,
            grow: options.grow,
            growing: Mutex::new(()),
            grow_pause: AtomicU32::new(0),
            workers,
            table: Table::default(),
            is_shared,
            views: RwLock::new(Views::default()),
            idle: AtomicBool::new(false),
            sealed: Bitmap::new(chunk.count(size)),
            writing: RwLock::new(()),
            reads: LeaseSet::new(),
            captured: Mutex::new(HashMap::new()),
            ledger: Mutex::new(ledger),
            changed: Condvar::new(),
            tail,
            health: Health::new(state, reason),
        };
        let core = core.load(&exceptions);
        if state == SnapshotState::Active && !core.is_still() {
            commit::begin_use(&core)?;
        }
        Ok(core)
    }

    /// Fills the tables from the list.
    fn load(mut self, exceptions: &[Exception]) -> Self {
        if !self.is_shared {
            self.table.insert(exceptions);
            exceptions.iter().for_each(|one| self.sealed.insert(one.old.get()));
            return self;
        }
        let (views, table) = Views::replay(exceptions);
        views.kept(&table).into_iter().for_each(|chunk| self.sealed.insert(chunk));
        let live = views.live().count() as u64;
        self.ledger.get_mut().spare(live);
        self.idle = AtomicBool::new(live == 0);
        (self.table, self.views) = (table, RwLock::new(views));
        self
    }

    /// Whether an exception is of the origin's past, not of what was written to a snapshot that
    /// shares the store.
    pub(crate) fn is_past(&self, exception: Exception) -> bool {
        !self.is_shared || matches!(Key::of(exception.old), Some(Key::Copy(_)))
    }

    /// Whether neither the origin nor the snapshot is written, and so nothing of the store either.
    pub(crate) fn is_still(&self) -> bool {
        self.read_only && self.base.limits().read_only
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.tail.is_some()
    }

    pub(crate) fn keeping(&self) -> Keeping {
        match (self.is_persistent(), self.mode) {
            (false, _) => Keeping::Transient,
            (true, Mode::Async) => Keeping::Async,
            (true, Mode::Sync | Mode::Deferred) => Keeping::Durable,
        }
    }

    /// The chunks of the snapshot that a range of the origin touches.
    pub(crate) fn touched(&self, range: block_types::ByteRange) -> std::ops::Range<u64> {
        let touched = self.chunk.touched(range);
        let end = touched.end.min(self.chunk.count(self.size));
        touched.start.min(end)..end
    }

    /// Whether the origin may overwrite `range` as far as this snapshot is concerned.
    pub(crate) fn permits(&self, range: block_types::ByteRange) -> bool {
        !self.health.keeps()
            || self.idle.load(Ordering::SeqCst)
            || self.sealed.contains_all(self.touched(range))
    }

    /// Gives the snapshot up: its past cannot be kept. Returns when that is durable, so that the
    /// origin may then be overwritten.
    pub(crate) fn invalidate(&self, reason: &str) {
        let _alone = self.health.marking.lock();
        if !self.health.keeps() {
            return;
        }
        tracing::error!(snapshot = self.name, "invalid: {reason}");
        self.health.begin_dying(reason.to_owned());
        if self.is_persistent()
            && let Err(error) = commit::mark_invalid(self)
        {
            // The origin is not to suffer from a store that is broken.
            tracing::error!(
                snapshot = self.name,
                "the store could not be marked invalid, it must not be used again: {error}"
            );
        }
        self.reads.drain();
        self.health.set(SnapshotState::Invalid);
        self.notify();
    }

    /// Wakes all who wait for a change.
    pub(crate) fn notify(&self) {
        // Whoever has looked and is about to wait holds the lock.
        drop(self.ledger.lock());
        self.changed.notify_all();
    }

    /// Checks that the snapshot can be read.
    pub(crate) fn check_readable(&self) -> Result<()> {
        match self.health.get() {
            SnapshotState::Active | SnapshotState::Overflow => Ok(()),
            state => Err(self.unusable(state)),
        }
    }

    /// Checks that the snapshot can be written.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, &*self.name, "is open read-only"));
        }
        match self.health.get() {
            SnapshotState::Active => Ok(()),
            state => Err(self.unusable(state)),
        }
    }

    /// The error of a request in a state that does not serve it.
    fn unusable(&self, state: SnapshotState) -> Error {
        let reason = self.health.reason().unwrap_or_default();
        let error = |kind, problem: &str| Error::new(kind, &*self.name, problem);
        match state {
            SnapshotState::Overflow => self.full(),
            SnapshotState::Invalid => {
                error(ErrorKind::Stopped, &format!("the snapshot is invalid: {reason}"))
                    .advise("drop it; the origin is not concerned")
            }
            SnapshotState::Merging | SnapshotState::MergeFailed => {
                error(ErrorKind::Busy, "the snapshot is being merged into its origin")
                    .advise("use the origin, which has its content")
            }
            SnapshotState::Active | SnapshotState::Closed => {
                error(ErrorKind::Stopped, "the snapshot is closed")
            }
        }
    }

    /// The error of a write to the snapshot for which there is no chunk.
    pub(crate) fn full(&self) -> Error {
        let problem = format!("its store {} is full", self.device.name());
        Error::new(ErrorKind::OutOfSpace, &*self.name, problem)
            .advise("grow the store, or set a policy that does")
    }
}

/// Why a store that opens as invalid is so.
fn why_invalid(in_use: bool) -> String {
    if in_use {
        "it was in use in mode async and not closed, so exceptions or copies may be missing".into()
    } else {
        "its store is marked invalid: it was full, or failed".into()
    }
}

/// Checks that a store can hold the past of `size` bytes of `base`.
fn check_fits(base: &Arc<dyn BlockDevice>, store: &Store, size: ByteCount) -> Result<()> {
    let invalid = |problem: String| Err(Error::new(ErrorKind::Invalid, base.name(), problem));
    if size > base.size() {
        return invalid(format!("is smaller than the snapshot's {size}"));
    }
    if Arc::ptr_eq(base, &store.device) {
        return invalid("cannot be its own store".to_owned());
    }
    if store.is_shared() && store.chunk.count(size) > Key::LIMIT {
        return invalid(format!("has more than {} chunks", Key::LIMIT));
    }
    check_chunk(&**base, store.chunk)?;
    check_chunk(&*store.device, store.chunk)?;
    if let StoreKind::Persistent(loaded) = &store.kind {
        let exceptions = &loaded.list.exceptions;
        let problems = loaded.header.problems(exceptions, store.device.size(), Some(size));
        if let Some(problem) = problems.first() {
            return Err(Error::new(ErrorKind::Corrupt, store.device.name(), problem.clone())
                .advise("is it the store of another origin? It was not written to"));
        }
    }
    Ok(())
}
