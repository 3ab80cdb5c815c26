//! A snapshot as a block device: the origin's past, and what was written over it.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{
    AlignedBuf, BlockDevice, Intent, Lease, Limits, Place, Resolve, ZeroMode, check_range,
};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use parking_lot::RwLockReadGuard;

use crate::alloc::Claim;
use crate::core::Core;
use crate::header::io_unit;
use crate::shared::Shared;
use crate::views::View;
use crate::workers::{PIECE, with_scratch};
use crate::{Exception, OriginChunk, SnapshotState, SnapshotStatus, StoreChunk, commit};

/// Zeros are written in pieces of this size.
const ZEROS: usize = 64 << 10;

/// A snapshot that is attached to its origin.
///
/// Its content is the origin's at the moment when it was taken (SNAPSHOT-FIXED), and what was
/// written to it since. Like a disk it keeps what was written to it through a crash only once it
/// was flushed; the origin's past it keeps as its [`Mode`](crate::Mode) says, unasked.
pub struct Snapshot {
    pub(crate) core: Arc<Core>,
    pub(crate) shared: Arc<Shared>,
    /// Which it is, in a store that several share.
    pub(crate) view: Option<Arc<View>>,
}

/// Where a stretch of the snapshot is read.
enum Source {
    /// In the store.
    Store(StoreChunk),
    /// On the origin, which holds it still.
    Origin,
    /// In memory, on its way to the store.
    Memory(Arc<AlignedBuf>),
}

/// What a part of a chunk is to hold.
#[derive(Clone, Copy)]
enum Fill<'b> {
    Bytes(&'b [u8]),
    Zeros(ByteCount),
}

impl Snapshot {
    /// State and figures.
    pub fn status(&self) -> SnapshotStatus {
        self.core.status()
    }

    /// Makes the store's device larger, which its use goes on over.
    ///
    /// # Errors
    /// What the device says; it is not made smaller.
    pub fn grow(&self, size: ByteCount) -> Result<()> {
        self.core.grow(size)
    }

    /// Refuses what is done to a store as a whole where others share it.
    pub(crate) fn check_alone(&self, what: &str) -> Result<()> {
        if self.view.is_none() {
            return Ok(());
        }
        let problem = format!("shares its store with other snapshots, and cannot be {what}");
        Err(Error::new(ErrorKind::Unsupported, self.name(), problem))
    }

    /// Checks that it is there, and can be read.
    fn check_readable(&self) -> Result<()> {
        if self.view.as_ref().is_some_and(|view| view.is_dropped()) {
            return Err(Error::new(ErrorKind::Stopped, self.name(), "the snapshot is dropped"));
        }
        self.core.check_readable()
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)
    }

    /// Begins a write: what must see none in flight waits until the guard is dropped.
    fn begin_write(&self, range: ByteRange) -> Result<RwLockReadGuard<'_, ()>> {
        let writing = self.core.writing.read();
        self.check_readable()?;
        self.core.check_writable()?;
        self.check(range)?;
        Ok(writing)
    }
}

impl BlockDevice for Snapshot {
    fn name(&self) -> &str {
        &self.core.name
    }

    fn size(&self) -> ByteCount {
        self.core.size
    }

    fn limits(&self) -> Limits {
        let minimum = io_unit(&*self.core.base).max(io_unit(&*self.core.device));
        let preferred = self.core.chunk.bytes().max(minimum).min(ByteCount::new(1 << 20));
        Limits {
            minimum,
            preferred: preferred.max(minimum),
            read_only: self.core.read_only || self.core.health.get() != SnapshotState::Active,
            discards: false,
            zeroes_fast: false,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(buffer));
        self.check(range)?;
        let core = &self.core;
        // While the lease lives nobody writes to those chunks of the origin that are looked up as
        // still there (SNAPSHOT-FIXED).
        let _lease = core.reads.acquire();
        self.check_readable()?;
        let mut rest = buffer;
        self.stretches(range, |source, piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len.as_usize());
            rest = later;
            let inside = self.inside(piece.start);
            match source {
                Source::Store(chunk) => {
                    core.device.read_at(now, core.chunk.store_start(chunk).plus(inside))
                }
                Source::Origin => core.base.read_at(now, piece.start),
                Source::Memory(bytes) => {
                    let from = inside.as_usize();
                    now.copy_from_slice(&bytes[from..from + now.len()]);
                    Ok(())
                }
            }
        })
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        let _writing = self.begin_write(range)?;
        let mut rest = bytes;
        for piece in range.pieces(self.core.chunk.bytes()) {
            let (now, later) = rest.split_at(piece.len.as_usize());
            self.write_piece(piece, Fill::Bytes(now))?;
            rest = later;
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        let _writing = self.begin_write(range)?;
        if mode.only_if_fast {
            let problem = "cannot make zeros without writing them";
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
        }
        for piece in range.pieces(self.core.chunk.bytes()) {
            self.write_piece(piece, Fill::Zeros(piece.len))?;
        }
        Ok(())
    }

    /// Does nothing, or makes whole chunks zero that are in the store, and lets the origin's device
    /// forget them: as the snapshot's options say. A discard never takes room in the store.
    fn discard(&self, range: ByteRange) -> Result<()> {
        let core = &self.core;
        {
            let _writing = self.begin_write(range)?;
            if !core.discard_zeroes {
                return Ok(());
            }
            let view = self.view.as_deref();
            let settled = |piece: &ByteRange| core.settled(core.chunk.holding(piece.start), view);
            for piece in range.pieces(core.chunk.bytes()).filter(|piece| self.is_whole(*piece)) {
                if settled(&piece).is_some() {
                    self.write_piece(piece, Fill::Zeros(piece.len))?;
                }
            }
        }
        if core.discard_passdown { self.shared.discard_for(range, core) } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        self.check_readable()?;
        if self.core.read_only {
            return Ok(());
        }
        commit::flush_snapshot(&self.core)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check(range)?;
        // Told without the lease: what is called may write, and that may wait for leases.
        let found = self.find_extents(range)?;
        let _ = found.into_iter().try_for_each(each);
        Ok(())
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

impl Resolve for Snapshot {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let core = &self.core;
        // The lease first: what is looked up below stays so while it lives.
        let lease = core.reads.acquire();
        let writes = intent == Intent::Write;
        let able = self.check_readable().and_then(|()| match writes {
            true => core.check_writable(),
            false => Ok(()),
        });
        if able.is_err() || range.end().get() > core.size.get() {
            return None;
        }
        let (base, store) = (core.base.resolver()?, core.device.resolver()?);
        let before = places.len();
        let resolved = self.stretches(range, |source, piece| {
            let place = match source {
                Source::Store(chunk) if !writes || self.is_own(piece) => {
                    let at = core.chunk.store_start(chunk).plus(self.inside(piece.start));
                    store.resolve(intent, ByteRange::new(at, piece.len), places)
                }
                Source::Origin if !writes => base.resolve(intent, piece, places),
                Source::Store(_) | Source::Origin | Source::Memory(_) => None,
            };
            // The places of files do not move; the snapshot's lease says who may use them.
            place.map(drop).ok_or_else(|| Error::new(ErrorKind::Unsupported, "", "to be done"))
        });
        if resolved.is_err() {
            places.truncate(before);
        }
        resolved.ok().map(|()| lease)
    }
}

impl Snapshot {
    fn find_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        let _lease = self.core.reads.acquire();
        self.check_readable()?;
        let mut found = Vec::new();
        self.stretches(range, |source, piece| {
            if let Source::Origin = source {
                return self.core.base.extents(piece, &mut |extent| {
                    found.push(extent);
                    ControlFlow::Continue(())
                });
            }
            found.push(Extent { range: piece, state: ExtentState::Data });
            Ok(())
        })?;
        Ok(found)
    }

    /// How far into its chunk `at` is.
    fn inside(&self, at: ByteOffset) -> ByteCount {
        ByteCount::new(at.get() % self.core.chunk.bytes().get())
    }

    /// Whether `piece`, which lies in one chunk, is all that the snapshot has of it.
    fn is_whole(&self, piece: ByteRange) -> bool {
        let chunk = self.core.chunk.holding(piece.start);
        self.core.chunk.origin_range(chunk, self.core.size) == piece
    }

    /// Cuts `range` into stretches that are read at one place, in order.
    fn stretches(
        &self,
        range: ByteRange,
        mut each: impl FnMut(Source, ByteRange) -> Result<()>,
    ) -> Result<()> {
        let size = self.core.chunk;
        let mut rest = range;
        while !rest.is_empty() {
            let chunk = size.holding(rest.start);
            let limit = size.touched(rest).end - chunk.get();
            let (source, chunks) = match self.core.captured(chunk) {
                Some(bytes) => (Source::Memory(bytes), 1),
                None => self.look_up(chunk, limit),
            };
            let end = ByteOffset::new((chunk.get() + chunks) * size.bytes().get());
            let piece = rest.intersect(ByteRange::between(rest.start, end));
            each(source, piece)?;
            rest = ByteRange::between(piece.end(), rest.end());
        }
        Ok(())
    }

    /// What the table says. A chunk may be captured as soon as it was looked for, so where that
    /// happens one is looked at a time.
    fn look_up(&self, chunk: OriginChunk, limit: u64) -> (Source, u64) {
        if let Some(view) = &self.view {
            let (place, chunks) =
                self.core.views.read().stretch(view, &self.core.table, chunk, limit);
            return (place.map_or(Source::Origin, Source::Store), chunks);
        }
        let limit = if self.core.captures() { 1 } else { limit };
        let (place, chunks) = self.core.table.stretch(chunk, limit);
        (place.map_or(Source::Origin, Source::Store), chunks)
    }

    /// Whether all chunks of `piece` in the store are this snapshot's alone.
    fn is_own(&self, piece: ByteRange) -> bool {
        let Some(view) = &self.view else { return true };
        let chunks = self.core.chunk.touched(piece);
        let first = OriginChunk::new(chunks.start);
        let (place, count) = view.own.stretch(first, chunks.end - chunks.start);
        place.is_some() && count == chunks.end - chunks.start
    }

    /// Writes `piece`, which lies in one chunk: to the store, into a new chunk where there is none.
    fn write_piece(&self, piece: ByteRange, fill: Fill<'_>) -> Result<()> {
        let core = &self.core;
        let chunk = core.chunk.holding(piece.start);
        loop {
            match core.claim_own(chunk, self.view.as_deref())? {
                Claim::Ours(exception) => return self.write_new(exception, piece, fill),
                Claim::Full => return Err(core.full()),
                // Where its data is written it can be written again, listed or not.
                Claim::There | Claim::Pending(_) => {
                    if let Some(new) = core.settled(chunk, self.view.as_deref()) {
                        return self.write_store(new, piece, fill);
                    }
                    core.wait_for_data(chunk, self.view.as_deref());
                    core.check_writable()?;
                }
            }
        }
    }

    /// Fills a new chunk. It becomes durable with a flush; until then the origin keeps what it
    /// held.
    fn write_new(&self, exception: Exception, piece: ByteRange, fill: Fill<'_>) -> Result<()> {
        let core = &self.core;
        let copied = match (self.is_whole(piece), &self.view) {
            (true, _) => Ok(()),
            (false, None) => core.copy_group(&[exception]),
            (false, Some(_)) => self.copy_seen(core.chunk.holding(piece.start), exception.new),
        };
        copied
            .and_then(|()| self.write_store(exception.new, piece, fill))
            .map_err(|error| core.lost(error))?;
        core.publish(&[exception]);
        core.commit_ready();
        Ok(())
    }

    /// Copies what the snapshot sees of a chunk, wherever that is, to a chunk of its own.
    fn copy_seen(&self, chunk: OriginChunk, new: StoreChunk) -> Result<()> {
        let core = &self.core;
        let range = core.chunk.origin_range(chunk, core.size);
        range.pieces(ByteCount::new(PIECE)).try_for_each(|piece| {
            with_scratch(|scratch| {
                let bytes = &mut scratch[..piece.len.as_usize()];
                self.read_at(bytes, piece.start)?;
                let inside = piece.start.since(range.start);
                core.device.write_at(bytes, core.chunk.store_start(new).plus(inside))
            })
        })
    }

    /// Writes to a chunk of the store.
    fn write_store(&self, chunk: StoreChunk, piece: ByteRange, fill: Fill<'_>) -> Result<()> {
        let core = &self.core;
        let at = core.chunk.store_start(chunk).plus(self.inside(piece.start));
        match fill {
            Fill::Bytes(bytes) => core.device.write_at(bytes, at),
            Fill::Zeros(len) => {
                let zeros = AlignedBuf::zeroed(ZEROS.min(len.as_usize()));
                let range = ByteRange::new(at, len);
                range.pieces(ByteCount::new(ZEROS as u64)).try_for_each(|part| {
                    core.device.write_at(&zeros[..part.len.as_usize()], part.start)
                })
            }
        }
    }
}
