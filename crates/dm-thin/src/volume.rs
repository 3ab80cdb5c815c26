//! A thin volume as a block device: what resolves, and what has to be done.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use block_io::{BlockDevice, LeaseSet, Limits, Resolve, Stall, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::{Mutex, MutexGuard, RwLock};
use persistent_data::MetaBlock;

use crate::origin::Origin;
use crate::shared::Shared;
use crate::table::MapTable;
use crate::{DeviceId, GuestBlock, Mapping, Time};

/// Locks of blocks; blocks whose numbers agree modulo this share one.
const BLOCK_LOCKS: usize = 64;

/// What all who have one volume open share.
pub(crate) struct Core {
    pub(crate) id: DeviceId,
    pub(crate) table: MapTable,
    /// Root of its mapping tree in the last commit.
    pub(crate) root: AtomicU64,
    /// The pool's time when it last became or got a snapshot: mappings made earlier may be shared.
    pub(crate) snapshotted: AtomicU32,
    /// Up to which such time no write in place is on its way any more that had found its block
    /// unshared.
    settled: AtomicU32,
    /// The commit that makes its last change durable.
    pub(crate) dirty: AtomicU64,
    /// Set while its content is exchanged: nothing resolves then.
    pub(crate) gate: AtomicBool,
    /// Held for reading by requests that are *done*, for writing by what must see none in flight:
    /// rollback and resize.
    pub(crate) slow: RwLock<()>,
    /// Requests that may change the mapping of a block hold its lock.
    blocks: [Mutex<()>; BLOCK_LOCKS],
    /// One page is loaded at a time.
    pub(crate) loading: Mutex<()>,
    size: AtomicU64,
    /// What shows where nothing is mapped; zeros if there is none.
    origin: Option<Origin>,
}

/// A thin device that is open.
///
/// Handles of one device share everything but whether they may write.
pub struct ThinVolume {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: Arc<Core>,
    name: String,
    read_only: bool,
}

impl Core {
    pub(crate) fn new(
        id: DeviceId,
        size: ByteCount,
        root: MetaBlock,
        snapshotted: Time,
        origin: Option<Origin>,
    ) -> Self {
        if let Some(origin) = &origin {
            origin.cut(size);
        }
        Self {
            id,
            table: MapTable::new(),
            root: AtomicU64::new(root.get()),
            snapshotted: AtomicU32::new(snapshotted.get()),
            settled: AtomicU32::new(snapshotted.get()),
            dirty: AtomicU64::new(0),
            gate: AtomicBool::new(false),
            slow: RwLock::new(()),
            blocks: [const { Mutex::new(()) }; BLOCK_LOCKS],
            loading: Mutex::new(()),
            size: AtomicU64::new(size.get()),
            origin,
        }
    }

    /// What shows where nothing is mapped, unless that is zeros throughout.
    pub(crate) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref().filter(|origin| !origin.is_freed())
    }

    /// Whether a write to the mapped block must go to a new one. Conservative: a mapping from
    /// before the last snapshot counts as shared even when the snapshot is gone.
    pub(crate) fn is_shared(&self, mapping: Mapping) -> bool {
        self.snapshotted.load(Ordering::SeqCst) > mapping.time.get()
    }

    /// Waits for writes in place that found their block unshared before the last snapshot. Must not
    /// be called with a lease.
    pub(crate) fn settle(&self, leases: &LeaseSet) {
        let time = self.snapshotted.load(Ordering::SeqCst);
        if self.settled.load(Ordering::SeqCst) < time {
            leases.drain();
            self.settled.fetch_max(time, Ordering::SeqCst);
        }
    }

    pub(crate) fn lock_block(&self, block: GuestBlock) -> MutexGuard<'_, ()> {
        self.blocks[block.get() as usize % BLOCK_LOCKS].lock()
    }

    pub(crate) fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::SeqCst))
    }

    /// Changes the size. What was cut off of an external origin does not come back.
    pub(crate) fn set_size(&self, size: ByteCount) {
        self.size.store(size.get(), Ordering::SeqCst);
        if let Some(origin) = &self.origin {
            origin.cut(size);
        }
    }
}

impl ThinVolume {
    pub(crate) fn new(shared: Arc<Shared>, core: Arc<Core>, name: String, read_only: bool) -> Self {
        Self { shared, core, name, read_only }
    }

    /// The device's number in its pool.
    pub fn id(&self) -> DeviceId {
        self.core.id
    }

    /// Whether writes are taken at all.
    pub(crate) fn takes_writes(&self) -> bool {
        !self.read_only && self.shared.is_writable()
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)
    }

    pub(crate) fn check_write(&self, range: ByteRange) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, &*self.name, "is open read-only"));
        }
        self.shared.check_writable()?;
        self.check(range)
    }
}

impl BlockDevice for ThinVolume {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        self.core.size()
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: self.shared.data.limits().minimum,
            preferred: self.shared.block_size.bytes().min(ByteCount::new(1 << 20)),
            read_only: !self.takes_writes(),
            discards: !self.ignores_discards(),
            // Over an external origin zeros may have to be written to hide it.
            zeroes_fast: self.core.origin().is_none(),
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.check(ByteRange::new(at, ByteCount::of(buffer)))?;
        let _slow = self.core.slow.read();
        self.do_read(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.patiently(|| self.try_write(bytes, at))
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.patiently(|| self.try_zero(range, mode))
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.check_write(range)?;
        if self.ignores_discards() {
            return Ok(());
        }
        let _slow = self.core.slow.read();
        self.do_discard(range)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.shared.check_writable()?;
        let dirty = self.core.dirty.load(Ordering::SeqCst);
        if dirty > self.shared.committed() {
            let is_to_come = self.shared.pending.lock().generation == dirty;
            self.shared.commit_to(dirty)?;
            // FLUSH-HOLDS: a commit flushes the data of what was written before it began. One that
            // ran already when this call came may have flushed before the last write in place.
            if is_to_come {
                return Ok(());
            }
        }
        self.shared.data.flush().inspect_err(|error| self.shared.stop(error))
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check(range)?;
        let _slow = self.core.slow.read();
        self.do_extents(range, each)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }

    fn stall(&self) -> Option<&dyn Stall> {
        Some(self)
    }
}
