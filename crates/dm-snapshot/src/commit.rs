//! The commit: the only place that decides in which order things become durable.
//!
//! Exceptions, in the modes sync and deferred:
//!
//! 1. The copies are written, and the areas that the list is about to enter are zeroed.
//! 2. The store is flushed: whatever an exception reveals is there before it (DATA-FIRST).
//! 3. The areas are written. A crash leaves some of their sectors: the list ends at the first slot
//!    that was not, and everything behind is ignored, and cleaned before the list comes near.
//! 4. The store is flushed. Before this moment a crash leaves the exceptions out, or some of them,
//!    which are true as well, since the origin still holds the same.
//! 5. Those who still read the past from the origin are waited for, and the origin may be written.
//!
//! None of the two flushes can go: without the first an exception could name a chunk whose copy was
//! lost, without the second the origin could be overwritten and the exception be lost. Both are
//! shared by all who wait for exceptions meanwhile.
//!
//! A merge goes the other way: the origin is written and flushed, then the exceptions are taken off
//! the list, and the store is flushed before anybody may write to those chunks of the origin; else
//! a crash would merge them once more, over what was written there.

use block_io::{AlignedBuf, BlockDevice};
use block_types::Result;

use crate::alloc::Ledger;
use crate::core::{Core, Keeping};
use crate::header::{Header, io_unit};
use crate::key::Key;
use crate::layout::ExceptionLayout;
use crate::store::Tail;
use crate::views::Views;
use crate::{ChunkSize, Exception, SnapshotState};

/// Makes a new store valid; its empty first area was written before.
pub(crate) fn first_header(device: &dyn BlockDevice, chunk: ChunkSize, shared: bool) -> Result<()> {
    device.flush()?;
    Header { valid: true, in_use: false, chunk, shared, label: None }.write(device)?;
    device.flush()
}

/// Writes the header of a store that is in nobody's use, one sector of which has changed.
pub(crate) fn rewrite_header(device: &dyn BlockDevice, header: &Header) -> Result<()> {
    header.write(device)?;
    device.flush()
}

/// Marks the store invalid, durably.
pub(crate) fn mark_invalid(core: &Core) -> Result<()> {
    core.header(false, false).write(&*core.device)?;
    core.device.flush()
}

/// Prepares the store for its first exception.
pub(crate) fn begin_use(core: &Core) -> Result<()> {
    let Some(tail) = &core.tail else { return Ok(()) };
    let mut tail = tail.lock();
    if tail.stale {
        core.device.write_at(&tail.bytes, core.chunk.store_start(core.chunk.area(tail.area)))?;
        core.device.flush()?;
        tail.stale = false;
    }
    if core.keeping() == Keeping::Async {
        core.header(false, true).write(&*core.device)?;
        core.device.flush()?;
    }
    Ok(())
}

/// Leaves the store as the kernel would find it: every exception listed, everything durable.
pub(crate) fn end_use(core: &Core) -> Result<()> {
    if core.is_still() {
        return Ok(());
    }
    let end = core.ledger.lock().end();
    core.commit_through(end);
    let Some(tail) = &core.tail else { return Ok(()) };
    let mut tail = tail.lock();
    if matches!(core.health.get(), SnapshotState::Invalid | SnapshotState::Closed) {
        return Ok(());
    }
    write_slots(core, &mut tail)?;
    core.device.flush()?;
    if core.keeping() == Keeping::Async {
        // Only now is the past whole on disk.
        core.header(true, false).write(&*core.device)?;
        core.device.flush()?;
    }
    Ok(())
}

/// Takes the last `count` exceptions, whose chunks were written back to the origin, off the list.
pub(crate) fn take_off(core: &Core, tail: &mut Tail, count: u64) -> Result<()> {
    core.base.flush()?;
    tail.pop(count);
    let emptied = tail.used * SLOT..(tail.used + count) * SLOT;
    write_area(core, tail, emptied.start, emptied.end)?;
    core.device.flush()
}

/// Puts an entry without data on the list of a shared store, durably. Nobody writes meanwhile,
/// neither to the origin nor to a snapshot, so nothing else is on its way.
pub(crate) fn append_mark(core: &Core, key: Key) -> Result<()> {
    let Some(tail) = &core.tail else { return Ok(()) };
    let end = core.ledger.lock().end();
    core.commit_through(end);
    core.check_readable()?;
    let live = core.views.read().live().count() as u64;
    let has_room = || {
        let (mut ledger, size) = (core.ledger.lock(), core.device.size());
        match key {
            // It may have the place that was kept for it.
            Key::Drop(_) => ledger.has_room_for_entry(size),
            // It will have to be dropped, too.
            _ => {
                ledger.spare(live + 1);
                ledger.has_room(size)
            }
        }
    };
    while !has_room() {
        if !core.grow_by_policy(true) {
            return Err(core.full());
        }
    }
    let mut tail = tail.lock();
    if let Err(error) = core.append_durably(&mut tail, &[key.entry()]) {
        drop(tail);
        core.invalidate(&format!("an entry cannot be written: {error}"));
        return Err(error);
    }
    core.ledger.lock().note_mark();
    Ok(())
}

/// Empties the list of a shared store that has no snapshot any more; its chunks are used again.
/// Nobody writes meanwhile. The list ends at its first slot, so one write of it is the end of all.
pub(crate) fn empty(core: &Core) -> Result<()> {
    let Some(tail) = &core.tail else { return Ok(()) };
    let mut tail = tail.lock();
    if tail.area == 0 && tail.used == 0 {
        return Ok(());
    }
    // Whoever still reads or writes what was dropped.
    core.reads.drain();
    core.zero_area(0)?;
    core.device.flush()?;
    tail.clear();
    *core.ledger.lock() = Ledger::new(core.chunk, true, 0, 0);
    *core.views.write() = Views::default();
    drop(core.table.take_all());
    core.sealed.clear();
    if core.health.get() == SnapshotState::Overflow {
        core.health.set(SnapshotState::Active);
    }
    Ok(())
}

/// Makes what was written to the snapshot itself durable, its new chunks included.
pub(crate) fn flush_snapshot(core: &Core) -> Result<()> {
    let end = core.ledger.lock().end();
    core.commit_through(end);
    core.check_readable()?;
    core.device.flush()
}

/// Makes what was written through the origin durable: `merging` is the snapshot that has a part of
/// it.
pub(crate) fn flush_origin(base: &dyn BlockDevice, merging: Option<&Core>) -> Result<()> {
    if let Some(core) = merging {
        core.device.flush()?;
    }
    base.flush()
}

/// Bytes of an exception.
const SLOT: u64 = size_of::<ExceptionLayout>() as u64;

impl Core {
    /// The header of the store in that state.
    fn header(&self, valid: bool, in_use: bool) -> Header {
        let label = self.label.clone();
        Header { valid, in_use, chunk: self.chunk, shared: self.is_shared, label }
    }

    /// Returns once the exceptions below `number` are listed, or the snapshot is lost.
    pub(crate) fn commit_through(&self, number: u64) {
        let mut ledger = self.ledger.lock();
        while !ledger.is_listed(number) && self.health.keeps() {
            let dying = self.health.get() == SnapshotState::Invalid;
            let ready = if ledger.committing || dying { Vec::new() } else { ledger.ready() };
            if ready.is_empty() {
                // Somebody commits, copies, or gives the snapshot up, and says so when it is done.
                self.changed.wait(&mut ledger);
                continue;
            }
            ledger.committing = true;
            drop(ledger);
            let listed = self.list(&ready);
            ledger = self.ledger.lock();
            ledger.committing = false;
            match listed {
                Ok(()) => {
                    ledger.retire(ready.len());
                    self.changed.notify_all();
                }
                Err(error) => {
                    drop(ledger);
                    self.invalidate(&format!("exceptions cannot be written: {error}"));
                    return;
                }
            }
        }
    }

    /// Lists what is ready and costs no flush: for stores that are not kept durably.
    pub(crate) fn commit_ready(&self) {
        if self.keeping() == Keeping::Durable {
            return;
        }
        let ready = {
            let mut ledger = self.ledger.lock();
            while ledger.committing {
                self.changed.wait(&mut ledger);
            }
            ledger.ready_end()
        };
        self.commit_through(ready);
    }

    /// Puts exceptions whose data is written on the list, and lets the origin be written.
    fn list(&self, exceptions: &[Exception]) -> Result<()> {
        if let Some(tail) = &self.tail {
            let mut tail = tail.lock();
            match self.keeping() {
                Keeping::Durable => self.append_durably(&mut tail, exceptions)?,
                Keeping::Async | Keeping::Transient => self.append(&mut tail, exceptions)?,
            }
        }
        self.seal(exceptions);
        Ok(())
    }

    /// Waits for those who read these chunks from the origin, and lets it be written.
    pub(crate) fn seal(&self, exceptions: &[Exception]) {
        self.reads.drain();
        exceptions
            .iter()
            .filter(|exception| self.is_past(**exception))
            .for_each(|exception| self.sealed.insert(exception.old.get()));
    }

    fn append_durably(&self, tail: &mut Tail, exceptions: &[Exception]) -> Result<()> {
        let entered = (tail.used + exceptions.len() as u64) / self.chunk.per_area();
        for step in 1..=entered {
            self.zero_area(tail.area + step)?;
        }
        self.device.flush()?;
        for exception in exceptions {
            tail.push(*exception);
            if tail.used == self.chunk.per_area() {
                write_slots(self, tail)?;
                tail.advance();
            }
        }
        write_slots(self, tail)?;
        self.device.flush()
    }

    /// As EVMS: sectors go out when they are full, and nothing is flushed.
    fn append(&self, tail: &mut Tail, exceptions: &[Exception]) -> Result<()> {
        let per_unit = io_unit(&*self.device).get() / SLOT;
        for exception in exceptions {
            tail.push(*exception);
            if tail.used == self.chunk.per_area() {
                self.zero_area(tail.area + 1)?;
                write_slots(self, tail)?;
                tail.advance();
            } else if tail.used.is_multiple_of(per_unit) {
                write_slots(self, tail)?;
            }
        }
        Ok(())
    }

    fn zero_area(&self, area: u64) -> Result<()> {
        let zeros = AlignedBuf::zeroed(self.chunk.bytes().as_usize());
        self.device.write_at(&zeros, self.chunk.store_start(self.chunk.area(area)))
    }
}

/// Writes the exceptions of the area that are not on the disk yet.
fn write_slots(core: &Core, tail: &mut Tail) -> Result<()> {
    if tail.written < tail.used {
        write_area(core, tail, tail.written * SLOT, tail.used * SLOT)?;
        tail.written = tail.used;
    }
    Ok(())
}

/// Writes the units of the area's chunk that hold its bytes from `start` to `end`.
fn write_area(core: &Core, tail: &Tail, start: u64, end: u64) -> Result<()> {
    let unit = io_unit(&*core.device).get();
    let (start, end) = (start - start % unit, end.next_multiple_of(unit));
    let at = core.chunk.store_start(core.chunk.area(tail.area));
    let at = at.plus(block_types::ByteCount::new(start));
    core.device.write_at(&tail.bytes[start as usize..end as usize], at)
}
