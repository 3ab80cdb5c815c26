//! A store that several snapshots share: one copy serves all of them.
//!
//! It is a [`Store`] whose entries are a log (`key`), and whose version the kernel refuses. How it
//! is filled, committed and grown is what it is for a store of one snapshot; taking and dropping a
//! snapshot is one more entry, and a commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::core::Core;
use crate::key::Key;
use crate::shared::Shared;
use crate::{Origin, Snapshot, SnapshotOptions, SnapshotStatus, Store, ViewId, commit};

/// A shared store that is attached to its origin: see
/// [`Origin::attach_shared`](crate::Origin::attach_shared).
pub struct SharedStore {
    core: Arc<Core>,
    shared: Arc<Shared>,
}

impl Origin {
    /// Attaches a store that several snapshots share, with all that it has; snapshots are taken in
    /// it by [`SharedStore::take`].
    ///
    /// # Errors
    /// As [`attach`](Origin::attach); [`ErrorKind::Unsupported`] for another kind of store, and for
    /// the mode async.
    pub fn attach_shared(
        &self,
        name: impl Into<String>,
        store: Store,
        options: SnapshotOptions,
    ) -> Result<SharedStore> {
        if !store.is_shared() || options.mode == crate::Mode::Async {
            let problem = "is not a store that several snapshots share, in mode sync or deferred";
            return Err(Error::new(ErrorKind::Unsupported, store.device.name(), problem));
        }
        let Snapshot { core, shared, .. } = self.attach_core(name.into(), store, options)?;
        Ok(SharedStore { core, shared })
    }
}

impl SharedStore {
    /// State and figures of the store.
    pub fn status(&self) -> SnapshotStatus {
        self.core.status()
    }

    /// Its snapshots, the oldest first.
    pub fn snapshots(&self) -> Vec<ViewId> {
        self.core.views.read().live().map(|view| view.id).collect()
    }

    /// The snapshot of this number.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn open(&self, id: ViewId) -> Result<Snapshot> {
        let view = self.core.views.read().get(id).ok_or_else(|| self.no_snapshot(id))?;
        Ok(self.snapshot(view))
    }

    /// Takes a snapshot of the origin as it is now: all writes that were answered are in it and
    /// durable, later ones are not, and of writes in flight each is or is not.
    ///
    /// Writes wait meanwhile for as long as a few flushes take.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`] where the store has no room for it; [`ErrorKind::Busy`] during a
    /// merge; [`ErrorKind::Invalid`] where the origin has another size than the store is for.
    pub fn take(&self) -> Result<(ViewId, Snapshot)> {
        let (shared, core) = (&self.shared, &self.core);
        let _alone = shared.changing.lock();
        shared.check_running()?;
        core.check_readable()?;
        if shared.merging().is_some() {
            let problem = "has a snapshot that is being merged into it";
            return Err(Error::new(ErrorKind::Busy, shared.base.name(), problem));
        }
        if shared.base.size() != core.size {
            let problem = format!("has another size than the {} that the store is for", core.size);
            return Err(Error::new(ErrorKind::Invalid, shared.base.name(), problem)
                .advise("make another store"));
        }
        shared.flush()?;
        let _closed = shared.gate.close_all();
        shared.flush()?;
        let _writing = core.writing.write();
        if core.idle.load(Ordering::SeqCst) {
            commit::empty(core)?;
        }
        let id = core.views.read().next().ok_or_else(|| {
            let problem = "has had as many snapshots as it can number";
            Error::new(ErrorKind::OutOfSpace, core.device.name(), problem)
                .advise("make another store, or drop all that it has")
        })?;
        commit::append_mark(core, Key::Take(id))?;
        // Nobody writes, so nobody asks what is sealed; readers hold the lock to look.
        let view = {
            let mut views = core.views.write();
            let view = views.take(id, &core.table);
            core.sealed.clear();
            view
        };
        core.idle.store(false, Ordering::SeqCst);
        Ok((id, self.snapshot(view)))
    }

    /// Gives a snapshot up. The chunks that only it had are used again once the store has no
    /// snapshot any more.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; what kept it from being durable, and the store is then invalid.
    pub fn drop_snapshot(&self, id: ViewId) -> Result<()> {
        let core = &self.core;
        let _alone = self.shared.changing.lock();
        let view = core.views.read().get(id).ok_or_else(|| self.no_snapshot(id))?;
        let _closed = self.shared.gate.close_all();
        let _writing = core.writing.write();
        core.check_readable()?;
        commit::append_mark(core, Key::Drop(id))?;
        let views = core.views.write();
        view.set_dropped();
        for chunk in views.kept(&core.table) {
            core.sealed.insert(chunk);
        }
        let live = views.live().count();
        core.ledger.lock().spare(live as u64);
        core.idle.store(live == 0, Ordering::SeqCst);
        Ok(())
    }

    /// Gives the store up with all that it has, while the origin is in use.
    ///
    /// # Errors
    /// What kept the mark from being durable; the snapshots go on then.
    pub fn give_up(&self) -> Result<()> {
        self.shared.give_up(&self.core)
    }

    /// Makes the store's device larger, which its use goes on over.
    ///
    /// # Errors
    /// What the device says; it is not made smaller.
    pub fn grow(&self, size: ByteCount) -> Result<()> {
        self.core.grow(size)
    }

    fn snapshot(&self, view: Arc<crate::views::View>) -> Snapshot {
        Snapshot {
            core: Arc::clone(&self.core),
            shared: Arc::clone(&self.shared),
            view: Some(view),
        }
    }

    fn no_snapshot(&self, id: ViewId) -> Error {
        let problem = format!("has no snapshot {}", id.get());
        Error::new(ErrorKind::NotFound, self.core.device.name(), problem)
    }
}
