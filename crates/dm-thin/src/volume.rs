//! A thin volume as a block device: what resolves, and what has to be done.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use block_io::{
    BlockDevice, Intent, Lease, LeaseSet, Limits, Place, Resolve, Stall, ZeroMode, check_range,
};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use parking_lot::{Mutex, MutexGuard, RwLock};
use persistent_data::MetaBlock;

use crate::shared::Shared;
use crate::table::{Lookup, MapTable};
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
    pub(crate) fn new(id: DeviceId, size: ByteCount, root: MetaBlock, snapshotted: Time) -> Self {
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
        }
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

    pub(crate) fn set_size(&self, size: ByteCount) {
        self.size.store(size.get(), Ordering::SeqCst);
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
            read_only: self.read_only || !self.shared.is_writable(),
            discards: !self.ignores_discards(),
            zeroes_fast: true,
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

impl Resolve for ThinVolume {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let writes = intent == Intent::Write;
        if writes && (self.read_only || !self.shared.is_writable()) {
            return None;
        }
        // The lease first: what is read below it, a snapshot or a rollback changed either before
        // its drain began, and then it is seen, or waits for the lease.
        let lease = self.shared.leases.acquire();
        if self.core.gate.load(Ordering::SeqCst) || range.end().get() > self.core.size().get() {
            return None;
        }
        let before = places.len();
        let whole = self.resolve_blocks(intent, range, places);
        if whole.is_none() {
            places.truncate(before);
        }
        whole.map(|()| lease)
    }
}

impl ThinVolume {
    fn resolve_blocks<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let writes = intent == Intent::Write;
        let resolver = self.shared.data.resolver()?;
        let size = self.shared.block_size;
        // Neighbours on the data device are asked for together.
        let mut run = ByteRange::default();
        for piece in range.pieces(size.bytes()) {
            let (block, inside) = size.locate(piece.start);
            let at = match self.core.table.get(block) {
                Lookup::Mapped(mapping) if !(writes && self.core.is_shared(mapping)) => {
                    size.data_start(mapping.block).plus(inside)
                }
                Lookup::Unmapped if !writes => {
                    push_run(resolver, intent, &mut run, places)?;
                    places.push(Place { file: None, at: ByteOffset::ZERO, len: piece.len });
                    continue;
                }
                Lookup::Mapped(_) | Lookup::Unmapped | Lookup::Unloaded => return None,
            };
            if !run.is_empty() && run.end() == at {
                run = ByteRange::between(run.start, at.plus(piece.len));
            } else {
                push_run(resolver, intent, &mut run, places)?;
                run = ByteRange::new(at, piece.len);
            }
        }
        push_run(resolver, intent, &mut run, places)
    }

    /// Reports mapped blocks as data and all others as holes, neighbours joined.
    fn do_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut open: Option<Extent> = None;
        let size = self.shared.block_size;
        for piece in range.pieces(size.bytes()) {
            let state = match self.lookup(size.locate(piece.start).0)? {
                Some(_) => ExtentState::Data,
                None => ExtentState::Hole,
            };
            open = match open {
                Some(extent) if extent.state == state => {
                    let range = ByteRange::between(extent.range.start, piece.end());
                    Some(Extent { range, state })
                }
                Some(done) => {
                    if each(done).is_break() {
                        return Ok(());
                    }
                    Some(Extent { range: piece, state })
                }
                None => Some(Extent { range: piece, state }),
            };
        }
        if let Some(last) = open {
            // The walk is over whatever the answer is.
            let _ = each(last);
        }
        Ok(())
    }
}

/// Resolves the run that has gathered, if there is one.
fn push_run<'d>(
    resolver: &'d dyn Resolve,
    intent: Intent,
    run: &mut ByteRange,
    places: &mut Vec<Place<'d>>,
) -> Option<()> {
    if run.is_empty() {
        return Some(());
    }
    // The data device's places do not move while the pool is open; the volume's lease says who may
    // use them.
    let _permanent = resolver.resolve(intent, std::mem::take(run), places)?;
    Some(())
}
