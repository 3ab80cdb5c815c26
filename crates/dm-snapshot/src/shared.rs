//! What an origin, its background thread and its merges share; and the way of a write.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use block_io::{BlockDevice, ZeroMode};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::buffer::{Buffer, PAGE};
use crate::copy::Debt;
use crate::core::{Core, Keeping};
use crate::gate::Gate;
use crate::{Mode, OriginOptions, SnapshotState, commit};

/// An open origin.
///
/// Locks are taken in this order: `changing`, the gate, `draining`, those of a snapshot.
pub(crate) struct Shared {
    pub(crate) base: Arc<dyn BlockDevice>,
    pub(crate) gate: Gate,
    /// Snapshots whose past is kept.
    members: RwLock<Members>,
    /// The snapshot that is being merged: the chunks in its store are read and written there.
    merging: RwLock<Option<Arc<Core>>>,
    /// Held by who changes the two above.
    pub(crate) changing: Mutex<()>,
    pub(crate) buffer: Buffer,
    pub(crate) draining: Draining,
    /// Whether the background thread is to end, and what wakes it.
    pub(crate) ending: Mutex<bool>,
    pub(crate) wake: Condvar,
    stopped: OnceLock<String>,
    pub(crate) workers: usize,
}

/// Held by who drains the buffer, one after the other; the second is taken before the first is let
/// go.
#[derive(Default)]
pub(crate) struct Draining {
    /// While copies and exceptions of a batch are made.
    pub(crate) copying: Mutex<()>,
    /// While a batch is written to the origin.
    pub(crate) writing: Mutex<()>,
}

/// The snapshots of an origin at one moment.
pub(crate) type Members = Arc<[Arc<Core>]>;

/// Bytes of a write that is large.
const LARGE: u64 = 256 << 10;

/// What a range is to hold.
#[derive(Clone, Copy)]
pub(crate) enum Fill<'b> {
    Bytes(&'b [u8]),
    Zeros(ZeroMode),
}

impl Shared {
    pub(crate) fn new(base: Arc<dyn BlockDevice>, options: OriginOptions) -> Self {
        Self {
            base,
            gate: Gate::default(),
            members: RwLock::new(Arc::new([])),
            merging: RwLock::new(None),
            changing: Mutex::new(()),
            buffer: Buffer::new(options.buffer),
            draining: Draining::default(),
            ending: Mutex::new(false),
            wake: Condvar::new(),
            stopped: OnceLock::new(),
            workers: options.workers.max(1),
        }
    }

    pub(crate) fn members(&self) -> Members {
        Arc::clone(&self.members.read())
    }

    pub(crate) fn merging(&self) -> Option<Arc<Core>> {
        self.merging.read().clone()
    }

    /// Exchanges the snapshots; whoever calls it has closed the gate.
    pub(crate) fn set_members(&self, members: Vec<Arc<Core>>, merging: Option<Arc<Core>>) {
        *self.members.write() = members.into();
        *self.merging.write() = merging;
    }

    /// Takes a snapshot out that need not be kept any more; requests may go on.
    pub(crate) fn remove_member(&self, core: &Arc<Core>) {
        let mut members = self.members.write();
        *members = members.iter().filter(|one| !Arc::ptr_eq(one, core)).map(Arc::clone).collect();
    }

    /// Gives a store up, marked invalid, since the past that it lacks will be overwritten.
    pub(crate) fn give_up(&self, core: &Arc<Core>) -> Result<()> {
        let _alone = self.changing.lock();
        let marking = core.health.marking.lock();
        if core.health.keeps() {
            if core.is_persistent() {
                commit::mark_invalid(core)?;
            }
            core.health.begin_dying("it was dropped".to_owned());
            core.reads.drain();
        }
        core.health.set(SnapshotState::Closed);
        drop(marking);
        core.notify();
        self.remove_member(core);
        Ok(())
    }

    /// FAIL-STOP: writes that were answered did not get to the origin, or what was there is not
    /// known to be durable.
    pub(crate) fn stop(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(origin = self.base.name(), "stopped: {reason}");
        self.stop_quietly(reason);
    }

    /// Takes no more writes; the first reason stays.
    pub(crate) fn stop_quietly(&self, reason: impl Into<String>) {
        let _ = self.stopped.set(reason.into());
    }

    /// Checks that writes are taken.
    pub(crate) fn check_running(&self) -> Result<()> {
        match self.stopped.get() {
            None => Ok(()),
            Some(reason) => {
                let problem = format!("takes no more writes: {reason}");
                Err(Error::new(ErrorKind::Stopped, self.base.name(), problem))
            }
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.stopped.get().is_none()
    }

    /// Whether a write to `range` can go straight to the device below; for who must not block.
    pub(crate) fn is_free(&self, range: ByteRange) -> bool {
        let unmerged = self.merging.try_read().is_some_and(|merging| merging.is_none());
        let permitted = || {
            let members = self.members.try_read();
            members.is_some_and(|members| members.iter().all(|core| core.permits(range)))
        };
        unmerged && permitted() && !self.buffer.touches(range)
    }

    /// Whether `range` can be read from the device below; for who must not block.
    pub(crate) fn is_below(&self, range: ByteRange) -> bool {
        let unmerged = self.merging.try_read().is_some_and(|merging| merging.is_none());
        unmerged && !self.buffer.touches(range)
    }

    /// Whether a write to `range` waits in the buffer: where older ones do, and where a snapshot of
    /// mode deferred lacks something. A large one does not: it has a commit nearly for itself, and
    /// is not copied through memory.
    fn waits(&self, members: &Members, range: ByteRange) -> bool {
        let defers = |core: &Arc<Core>| {
            core.mode == Mode::Deferred
                && core.keeping() == Keeping::Durable
                && !core.permits(range)
        };
        self.buffer.touches(range) || (range.len.get() < LARGE && members.iter().any(defers))
    }

    /// Writes `bytes`, a piece that fits the buffer, at `at`.
    pub(crate) fn write(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let (mut rest, mut at) = (bytes, at);
        loop {
            let range = ByteRange::new(at, ByteCount::of(rest));
            let lease = self.gate.enter(range);
            self.check_running()?;
            let members = self.members();
            if let Some(core) = self.merging() {
                return self.write_merging(&core, &members, range, Fill::Bytes(rest));
            }
            if !self.waits(&members, range) {
                return self.write_below(&members, range, Fill::Bytes(rest));
            }
            let (done, much) = self.buffer.insert(at, rest);
            drop(lease);
            if much {
                self.wake.notify_one();
            }
            if done == rest.len() {
                return Ok(());
            }
            (rest, at) = (&rest[done..], at.plus(ByteCount::new(done as u64)));
            self.drain_for_room()?;
        }
    }

    /// Makes a piece zeros. Zeros do not wait in the buffer: there may be very many.
    pub(crate) fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        if self.buffer.touches(range) {
            // What was answered before is older than the zeros.
            self.drain()?;
        }
        let _lease = self.gate.enter(range);
        self.check_running()?;
        let members = self.members();
        match self.merging() {
            Some(core) => self.write_merging(&core, &members, range, Fill::Zeros(mode)),
            None => self.write_below(&members, range, Fill::Zeros(mode)),
        }
    }

    /// Writes to the device below, once every snapshot has what was there.
    fn write_below(&self, members: &Members, range: ByteRange, fill: Fill<'_>) -> Result<()> {
        let debts = self.protect(members, &[range]);
        let done = fill.put(&*self.base, range, range.start);
        debts.into_iter().for_each(Debt::pay);
        done
    }

    /// Writes where the snapshot that is being merged has the bytes. The caller's lease keeps them
    /// there: a chunk is taken off the table only while the gate is closed to it.
    fn write_merging(
        &self,
        core: &Core,
        members: &Members,
        range: ByteRange,
        fill: Fill<'_>,
    ) -> Result<()> {
        each_place(core, range, |piece, place| {
            let fill = fill.part(range, piece);
            match place {
                Some(at) => fill.put(&*core.device, piece, at),
                None => self.write_below(members, piece, fill),
            }
        })
    }

    /// Reads from wherever the origin's bytes are.
    pub(crate) fn read(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(buffer));
        let _lease = self.gate.enter_to_read();
        if let Some(core) = self.merging() {
            return each_place(&core, range, |piece, place| {
                let part = part_of(buffer, range, piece);
                match place {
                    Some(at) => core.device.read_at(part, at),
                    None => self.base.read_at(part, piece.start),
                }
            });
        }
        if !self.buffer.touches(range) {
            return self.base.read_at(buffer, at);
        }
        // The buffer first: what it does not hold then is below already.
        let mut gaps = Vec::new();
        self.buffer.read(at, buffer, |gap| gaps.push(gap));
        gaps.into_iter().try_for_each(|gap| {
            let part = part_of(buffer, range, gap);
            self.base.read_at(part, gap.start)
        })
    }

    /// Sees to it that the origin may be overwritten at `ranges`, which are in order.
    pub(crate) fn protect(&self, members: &Members, ranges: &[ByteRange]) -> Vec<Debt> {
        let lacking = |core: &&Arc<Core>| !ranges.iter().all(|range| core.permits(*range));
        let lacking: Vec<&Arc<Core>> = members.iter().filter(lacking).collect();
        let protect = |core: &Arc<Core>| {
            let mut chunks: Vec<u64> = ranges
                .iter()
                .flat_map(|range| core.touched(*range))
                .filter(|&chunk| !core.sealed.contains(chunk))
                .collect();
            chunks.dedup();
            core.protect(&chunks)
        };
        if lacking.len() < 2 || self.workers < 2 {
            return lacking.into_iter().filter_map(protect).collect();
        }
        // Each has its own store to wait for.
        let protect = &protect;
        std::thread::scope(|scope| {
            let all: Vec<_> = lacking.iter().map(|core| scope.spawn(|| protect(core))).collect();
            let join = |one: std::thread::ScopedJoinHandle<'_, _>| {
                one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            all.into_iter().filter_map(join).collect()
        })
    }

    /// Discards what no snapshot needs. The rest keeps its space: copying it first would fill the
    /// stores with what nobody wants.
    pub(crate) fn discard(&self, range: ByteRange) -> Result<()> {
        let _lease = self.gate.enter(range);
        self.check_running()?;
        if self.merging().is_some() {
            return Ok(());
        }
        self.discard_unless_needed(&self.members(), range)
    }

    /// Discards what no snapshot but `core` needs, which is the one that asks for it: what it reads
    /// there afterwards is what the device has then.
    pub(crate) fn discard_for(&self, range: ByteRange, core: &Arc<Core>) -> Result<()> {
        let _lease = self.gate.enter(range);
        self.check_running()?;
        if self.merging().is_some() {
            return Ok(());
        }
        let members = self.members();
        let others = members.iter().filter(|one| !Arc::ptr_eq(one, core)).map(Arc::clone);
        self.discard_unless_needed(&others.collect(), range)
    }

    fn discard_unless_needed(&self, members: &Members, range: ByteRange) -> Result<()> {
        let unit = members.iter().map(|core| core.chunk.bytes()).max();
        let unit = unit.unwrap_or(range.len.max(ByteCount::new(1)));
        let mut run = ByteRange::new(range.start, ByteCount::ZERO);
        for piece in range.pieces(unit) {
            let free =
                members.iter().all(|core| core.permits(piece)) && !self.buffer.touches(piece);
            if free {
                run = ByteRange::between(run.start, piece.end());
                continue;
            }
            if !run.is_empty() {
                self.base.discard(run)?;
            }
            run = ByteRange::new(piece.end(), ByteCount::ZERO);
        }
        if run.is_empty() { Ok(()) } else { self.base.discard(run) }
    }

    /// Makes everything that was answered durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.check_running()?;
        self.drain()?;
        let merging = self.merging();
        commit::flush_origin(&*self.base, merging.as_deref())
            .inspect_err(|error| self.stop(format!("a flush failed: {error}")))
    }

    /// Reports what lies below, and what is elsewhere as data.
    pub(crate) fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let _lease = self.gate.enter_to_read();
        let mut flow = ControlFlow::Continue(());
        let mut report = |piece: ByteRange, below: bool| {
            if flow.is_break() {
                return Ok(());
            }
            if below {
                return self.base.extents(piece, &mut |extent| {
                    flow = each(extent);
                    flow
                });
            }
            flow = each(Extent { range: piece, state: ExtentState::Data });
            Ok(())
        };
        if let Some(core) = self.merging() {
            return each_place(&core, range, |piece, place| report(piece, place.is_none()));
        }
        if !self.buffer.touches(range) {
            return report(range, true);
        }
        let mut pages = range.pieces(ByteCount::new(PAGE));
        pages.try_for_each(|piece| report(piece, !self.buffer.touches(piece)))
    }
}

impl<'b> Fill<'b> {
    /// The part of a fill of `whole` that falls on `piece`.
    fn part(self, whole: ByteRange, piece: ByteRange) -> Self {
        match self {
            Self::Bytes(bytes) => {
                let from = piece.start.since(whole.start).as_usize();
                Self::Bytes(&bytes[from..from + piece.len.as_usize()])
            }
            Self::Zeros(mode) => Self::Zeros(mode),
        }
    }

    /// Writes it to `at` of `device`, where `piece` of the origin lies.
    fn put(self, device: &dyn BlockDevice, piece: ByteRange, at: ByteOffset) -> Result<()> {
        match self {
            Self::Bytes(bytes) => device.write_at(bytes, at),
            Self::Zeros(mode) => device.zero(ByteRange::new(at, piece.len), mode),
        }
    }
}

/// The part of a buffer for `whole` that is for `piece`.
fn part_of(buffer: &mut [u8], whole: ByteRange, piece: ByteRange) -> &mut [u8] {
    let from = piece.start.since(whole.start).as_usize();
    &mut buffer[from..from + piece.len.as_usize()]
}

/// Calls `each` with the pieces of `range`, in order, and where in the store of the snapshot that
/// is being merged they lie, if they do.
fn each_place(
    core: &Core,
    range: ByteRange,
    mut each: impl FnMut(ByteRange, Option<ByteOffset>) -> Result<()>,
) -> Result<()> {
    let size = core.chunk;
    let mut rest = range;
    while !rest.is_empty() {
        let chunk = size.holding(rest.start);
        let (place, chunks) = core.table.stretch(chunk, size.touched(rest).end - chunk.get());
        let end = ByteOffset::new((chunk.get() + chunks) * size.bytes().get());
        let piece = rest.intersect(ByteRange::between(rest.start, end));
        let inside = ByteCount::new(piece.start.get() % size.bytes().get());
        each(piece, place.map(|chunk| size.store_start(chunk).plus(inside)))?;
        rest = ByteRange::between(piece.end(), rest.end());
    }
    Ok(())
}
