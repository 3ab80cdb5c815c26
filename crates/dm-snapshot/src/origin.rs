//! The origin: any device, in place, with snapshots of its past.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{
    BlockDevice, Intent, Lease, Limits, Place, Resolve, ZeroMode, check_range, check_writable,
};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result, SECTOR};
use parking_lot::Mutex;

use crate::core::Core;
use crate::header::io_unit;
use crate::shared::Shared;
use crate::status::SnapshotState;
use crate::{Merge, Mode, OriginOptions, Snapshot, SnapshotOptions, Store, commit, drain};

/// A request is divided into pieces of this size, so that a piece fits the buffer.
const PIECE: ByteCount = ByteCount::new(1 << 20);
/// Zeros are made in pieces of this size, since what lies there may have to be copied.
const ZERO_PIECE: ByteCount = ByteCount::new(8 << 20);

/// A device whose snapshots keep what it held.
///
/// It is the device that it was: the same bytes, in place. Writes have to come through here from
/// the moment when a snapshot is taken until it is dropped; between [`close`](Origin::close) and
/// the next [`open`](Origin::open) nobody may write to it.
pub struct Origin {
    shared: Arc<Shared>,
    background: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl Origin {
    /// Takes a device into use as an origin, yet without snapshots.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if its size is not whole sectors.
    pub fn open(base: Arc<dyn BlockDevice>, options: OriginOptions) -> Result<Self> {
        if !base.size().is_aligned(ByteCount::new(SECTOR)) {
            let problem = format!("has {} bytes, not whole sectors", base.size().get());
            return Err(Error::new(ErrorKind::Invalid, base.name(), problem)
                .advise("make it a little larger"));
        }
        let shared = Arc::new(Shared::new(base, options));
        let background =
            if options.background { drain::start_background(&shared)? } else { Vec::new() };
        Ok(Self { shared, background: Mutex::new(background) })
    }

    /// Attaches a snapshot. An empty store begins with this moment: all writes that were answered
    /// are in the snapshot and durable, later ones are not, and of writes in flight each is or is
    /// not. A store that was closed goes on.
    ///
    /// Writes wait meanwhile for as long as two flushes take.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the store is of a larger origin; [`ErrorKind::Invalid`] where
    /// its chunks do not fit the device; [`ErrorKind::Exists`] where a snapshot of that name is
    /// attached; [`ErrorKind::Busy`] during a merge.
    pub fn attach(
        &self,
        name: impl Into<String>,
        store: Store,
        options: SnapshotOptions,
    ) -> Result<Snapshot> {
        if store.is_shared() {
            let problem = "is a store that several snapshots share";
            return Err(Error::new(ErrorKind::Unsupported, store.device.name(), problem)
                .advise("attach it as such, and take a snapshot in it"));
        }
        self.attach_core(name.into(), store, options)
    }

    /// Attaches a store of either kind.
    pub(crate) fn attach_core(
        &self,
        name: String,
        store: Store,
        options: SnapshotOptions,
    ) -> Result<Snapshot> {
        let shared = &self.shared;
        let _alone = shared.changing.lock();
        shared.check_running()?;
        self.check_unmerged()?;
        if shared.members().iter().any(|core| core.name == name) {
            return Err(Error::new(ErrorKind::Exists, name, "is attached already"));
        }
        if options.mode == Mode::Deferred && store.is_persistent() {
            shared.buffer.reserve();
        }
        // Most of it while requests go on. What a snapshot has must not be lost by a crash, so
        // everything that was answered before it becomes durable with it (SNAPSHOT-FIXED).
        shared.flush()?;
        let _closed = shared.gate.close_all();
        shared.flush()?;
        let base = Arc::clone(&shared.base);
        let core = Arc::new(Core::attach(name, base, store, options, shared.workers)?);
        let mut members = shared.members().to_vec();
        members.push(Arc::clone(&core));
        shared.set_members(members, None);
        Ok(Snapshot { core, shared: Arc::clone(shared), view: None })
    }

    /// Gives a snapshot up while the origin is in use: its store is marked invalid, since the past
    /// that it lacks will be overwritten.
    ///
    /// # Errors
    /// What kept the mark from being durable; the snapshot goes on then.
    pub fn drop_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        snapshot.check_alone("dropped with its store")?;
        self.shared.give_up(&snapshot.core)
    }

    /// Begins to merge a snapshot back. From this moment on the origin has the snapshot's content;
    /// what was written to it since the snapshot was taken is gone. The merge itself is done by
    /// [`Merge::step`], and can be begun again after a crash by attaching the store and merging it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] during another merge; [`ErrorKind::Unsupported`] for a transient store;
    /// [`ErrorKind::Stopped`] for a snapshot that is invalid or not this origin's.
    pub fn merge(&self, snapshot: &Snapshot) -> Result<Merge> {
        let (shared, core) = (&self.shared, &snapshot.core);
        snapshot.check_alone("merged")?;
        let _alone = shared.changing.lock();
        shared.check_running()?;
        self.check_unmerged()?;
        let members = shared.members();
        if !members.iter().any(|one| Arc::ptr_eq(one, core)) || !core.health.keeps() {
            let problem = "is not a snapshot of this origin that could be merged";
            return Err(Error::new(ErrorKind::Stopped, &*core.name, problem));
        }
        if !core.is_persistent() {
            let problem = "has a transient store, which cannot be merged";
            return Err(Error::new(ErrorKind::Unsupported, &*core.name, problem)
                .advise("copy the snapshot's content to the origin instead"));
        }
        shared.drain()?;
        let _closed = shared.gate.close_all();
        shared.drain()?;
        // A chunk that is taken from here on would not be on the list that is merged.
        let _writing = core.writing.write();
        commit::end_use(core)?;
        core.check_readable()?;
        core.health.set(SnapshotState::Merging);
        core.reads.drain();
        let others = members.iter().filter(|one| !Arc::ptr_eq(one, core)).map(Arc::clone);
        shared.set_members(others.collect(), Some(Arc::clone(core)));
        Ok(Merge::new(Arc::clone(shared), Arc::clone(core)))
    }

    /// Makes everything durable, and leaves every store so that it can be attached again. Nothing
    /// is written through this origin any more.
    ///
    /// # Errors
    /// The first failure; the rest is closed all the same.
    pub fn close(&self) -> Result<()> {
        let shared = &self.shared;
        let _alone = shared.changing.lock();
        if !shared.is_running() {
            return Ok(());
        }
        let _closed = shared.gate.close_all();
        let mut done = shared.flush();
        for core in shared.members().iter() {
            let _writing = core.writing.write();
            if core.health.keeps() {
                done = done.and(commit::end_use(core));
                core.reads.drain();
                core.health.set(SnapshotState::Closed);
                core.notify();
            }
        }
        shared.stop_quietly("it is closed");
        done
    }

    fn check_unmerged(&self) -> Result<()> {
        match self.shared.merging() {
            None => Ok(()),
            Some(core) => {
                let problem = format!("the snapshot {} is being merged into it", core.name);
                Err(Error::new(ErrorKind::Busy, self.name(), problem)
                    .advise("wait until the merge is done"))
            }
        }
    }

    /// Checks a request: whole sectors inside the device.
    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)?;
        if range.is_aligned(ByteCount::new(SECTOR)) {
            return Ok(());
        }
        let problem = format!("{range} are not whole sectors");
        Err(Error::new(ErrorKind::Invalid, self.name(), problem))
    }

    fn check_write(&self, range: ByteRange) -> Result<()> {
        self.check(range)?;
        check_writable(&*self.shared.base)?;
        self.shared.check_running()
    }
}

impl BlockDevice for Origin {
    fn name(&self) -> &str {
        self.shared.base.name()
    }

    fn size(&self) -> ByteCount {
        self.shared.base.size()
    }

    fn limits(&self) -> Limits {
        let below = self.shared.base.limits();
        Limits {
            minimum: io_unit(&*self.shared.base),
            preferred: below.preferred.max(io_unit(&*self.shared.base)),
            read_only: below.read_only || !self.shared.is_running(),
            ..below
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.check(ByteRange::new(at, ByteCount::of(buffer)))?;
        self.shared.read(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        self.check_write(range)?;
        let mut rest = bytes;
        for piece in range.pieces(PIECE) {
            let (now, later) = rest.split_at(piece.len.as_usize());
            self.shared.write(now, piece.start)?;
            rest = later;
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.check_write(range)?;
        if mode.only_if_fast && !self.shared.is_free(range) {
            let problem = format!("has to copy some of {range} before it is zeroed");
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
        }
        range.pieces(ZERO_PIECE).try_for_each(|piece| self.shared.zero(piece, mode))
    }

    /// Gives back the space of what every snapshot has already, and leaves the rest as it is: a
    /// discard never takes room in a store.
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.check_write(range)?;
        self.shared.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.shared.flush()
    }

    fn provision(&self, range: ByteRange) -> Result<()> {
        self.check_write(range)?;
        self.shared.base.provision(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check(range)?;
        self.shared.extents(range, each)
    }

    /// Growing concerns no snapshot: each keeps the size that it was taken with. Shrinking into a
    /// snapshot, or during a merge, is refused.
    fn resize(&self, size: ByteCount) -> Result<()> {
        if !size.is_aligned(ByteCount::new(SECTOR)) {
            let problem = format!("cannot have {} bytes, which are not whole sectors", size.get());
            return Err(Error::new(ErrorKind::Invalid, self.name(), problem));
        }
        let _alone = self.shared.changing.lock();
        self.shared.check_running()?;
        self.check_unmerged()?;
        self.shared.drain()?;
        let _closed = self.shared.gate.close_all();
        self.shared.drain()?;
        let members = self.shared.members();
        if let Some(core) = members.iter().find(|core| core.health.keeps() && core.size > size) {
            let problem = format!("cannot shrink to {size}: the snapshot {} is larger", core.name);
            return Err(
                Error::new(ErrorKind::Busy, self.name(), problem).advise("drop the snapshot first")
            );
        }
        self.shared.base.resize(size)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        self.shared.base.resolver().map(|_| self as &dyn Resolve)
    }
}

impl Resolve for Origin {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let shared = &self.shared;
        let below = shared.base.resolver()?;
        // The lease first: what is looked at below stays so while it lives.
        let (lease, free) = match intent {
            Intent::Read => (shared.gate.enter_to_read(), shared.is_below(range)),
            Intent::Write => {
                let lease = shared.gate.try_enter()?;
                (lease, shared.is_running() && shared.is_free(range))
            }
        };
        if !free {
            return None;
        }
        // The places below do not move; the origin's lease says who may use them.
        below.resolve(intent, range, places).map(|_| lease)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(origin = self.name(), "was not closed well: {error}");
        }
        *self.shared.ending.lock() = true;
        self.shared.wake.notify_all();
        for background in self.background.lock().drain(..) {
            // A panic there was reported by its thread.
            let _ = background.join();
        }
    }
}
