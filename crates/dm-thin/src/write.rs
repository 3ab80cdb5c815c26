//! Writing, zeroing and discarding blocks: what runs when a request does not resolve.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use block_io::{AlignedBuf, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};

use crate::volume::ThinVolume;
use crate::worst_case::Demand;
use crate::{DataBlock, Discards, GuestBlock, Mapping};

/// A block is put together and written in pieces of at most this size; a usual block is one piece.
pub(crate) const PIECE: usize = 1 << 20;

/// What a part of a block is to hold.
#[derive(Clone, Copy)]
pub(crate) enum Fill<'b> {
    /// These bytes.
    Bytes(&'b [u8]),
    /// Zeros.
    Zeros,
}

/// What a block held before a write: what its mapping says, or what shows where there is none.
#[derive(Clone, Copy)]
struct Old {
    block: GuestBlock,
    mapping: Option<Mapping>,
}

thread_local! {
    /// Where this thread puts blocks together.
    static SCRATCH: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

impl ThinVolume {
    /// Writes `piece`, which lies in one block: in place where the block is this volume's alone,
    /// and into a new block where it is shared or absent.
    pub(crate) fn write_piece(&self, piece: ByteRange, fill: Fill<'_>) -> Result<()> {
        let (block, inside) = self.shared.block_size.locate(piece.start);
        let _alone = self.core.lock_block(block);
        let old = self.lookup(block)?;
        // SNAPSHOT-FIXED: a snapshot waits for the lease, so the block is still unshared when it is
        // written.
        let lease = self.shared.leases.acquire();
        if let Some(mapping) = old
            && !self.core.is_shared(mapping)
        {
            let range = self.host_range(mapping, piece);
            return match fill {
                Fill::Bytes(bytes) => self.shared.data.write_at(bytes, range.start),
                Fill::Zeros => self.shared.data.zero(range, ZeroMode::default()),
            };
        }
        // Preparing may wait for a commit, which waits for leases.
        drop(lease);
        if old.is_some() {
            // A write that a snapshot overtook may be on its way to the old block: it was told, or
            // will be, that it is in the volume, so the copy has to have it.
            self.core.settle(&self.shared.leases);
        }
        let change = if old.is_some() { Demand::REPLACED } else { Demand::MOVED };
        let prepared = self.shared.prepare(self.core.id, change)?;
        self.write_block(prepared.block(), Old { block, mapping: old }, inside, piece.len, fill)?;
        // DATA-FIRST: the block is written; what makes the mapping durable flushes the data before.
        prepared.publish(&self.core, block);
        Ok(())
    }

    /// Makes `piece`, which lies in one block, read as zeros, and gives up its space if it is the
    /// whole block and nothing of an external origin shows instead.
    pub(crate) fn unmap_or_zero(&self, piece: ByteRange) -> Result<()> {
        if self.shows_origin(piece)? {
            return self.write_piece(piece, Fill::Zeros);
        }
        if self.covers_block(piece) && !self.ignores_discards() {
            return self.unmap(piece);
        }
        let (block, _) = self.shared.block_size.locate(piece.start);
        if self.lookup(block)?.is_none() {
            return Ok(());
        }
        self.write_piece(piece, Fill::Zeros)
    }

    /// Gives up the whole blocks of `range`; parts of blocks stay as they are, and so does what
    /// would uncover an external origin.
    pub(crate) fn do_discard(&self, range: ByteRange) -> Result<()> {
        for piece in range.pieces(self.shared.block_size.bytes()) {
            if !self.covers_block(piece) {
                continue;
            }
            if self.shows_origin(piece)? {
                self.give_back_below(piece)?;
            } else {
                self.unmap(piece)?;
            }
        }
        Ok(())
    }

    /// Whether space is kept that clients give up.
    pub(crate) fn ignores_discards(&self) -> bool {
        self.shared.condition.settings().features.discards == Discards::Ignored
    }

    /// Whether such space goes back to the data device.
    fn passes_discards_down(&self) -> bool {
        self.shared.condition.settings().features.discards == Discards::PassedDown
    }

    /// Gives the space of a block back to what the data device lies on, and keeps the block: it
    /// reads as zeros then. One that is shared stays as it is, and so does every block of a data
    /// device that would have to write the zeros.
    fn give_back_below(&self, piece: ByteRange) -> Result<()> {
        let (block, _) = self.shared.block_size.locate(piece.start);
        let _alone = self.core.lock_block(block);
        let mapping = self.lookup(block)?;
        // SNAPSHOT-FIXED: as for a write in place.
        let _lease = self.shared.leases.acquire();
        let own = mapping.filter(|mapping| !self.core.is_shared(*mapping));
        let Some(mapping) = own.filter(|_| self.passes_discards_down()) else { return Ok(()) };
        let mode = ZeroMode { may_unmap: true, only_if_fast: true };
        match self.shared.data.zero(self.host_range(mapping, piece), mode) {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    /// Gives up every block of `range`, which lies behind the volume's end.
    pub(crate) fn drop_tail(&self, range: ByteRange) -> Result<()> {
        range.pieces(self.shared.block_size.bytes()).try_for_each(|piece| self.unmap(piece))
    }

    /// Makes zeros of what lies between the new end of a volume and the end of its last block, so
    /// that nothing old shows when it grows again.
    pub(crate) fn zero_tail(&self, size: ByteCount, block_end: ByteOffset) -> Result<()> {
        let tail = ByteRange::between(ByteOffset::new(size.get()), block_end);
        if tail.is_empty() || self.lookup(self.shared.block_size.locate(tail.start).0)?.is_none() {
            return Ok(());
        }
        self.write_piece(tail, Fill::Zeros)
    }

    /// Whether `piece` is all that its block can hold; a volume's last block may be a short one.
    fn covers_block(&self, piece: ByteRange) -> bool {
        let size = self.shared.block_size.bytes();
        let at_end = piece.end().get() == self.core.size().get();
        piece.start.is_aligned(size) && (piece.len == size || at_end)
    }

    fn unmap(&self, piece: ByteRange) -> Result<()> {
        let (block, _) = self.shared.block_size.locate(piece.start);
        let _alone = self.core.lock_block(block);
        if self.lookup(block)?.is_none() {
            return Ok(());
        }
        let share = self.shared.share(Demand::MOVED, false)?;
        let mut pending = self.shared.pending.lock();
        pending.unmap(self.core.id, block);
        share.enter(&mut pending);
        self.core.table.set(block, None);
        self.core.dirty.store(pending.generation, Ordering::SeqCst);
        Ok(())
    }

    /// Writes data block `new` whole: `len` bytes from `inside` on are `fill`, the rest is what the
    /// block held; or what was there, where a new block need not be zeroed and nothing shows.
    fn write_block(
        &self,
        new: DataBlock,
        old: Old,
        inside: ByteCount,
        len: ByteCount,
        fill: Fill<'_>,
    ) -> Result<()> {
        let size = self.shared.block_size;
        let start = size.data_start(new);
        if let (Fill::Bytes(bytes), true) = (fill, len == size.bytes()) {
            return self.shared.data.write_at(bytes, start);
        }
        let part = ByteRange::new(ByteOffset::new(inside.get()), len);
        let shows_nothing = old.mapping.is_none() && self.core.origin().is_none();
        if shows_nothing && self.shared.condition.settings().features.skip_zeroing {
            let range = ByteRange::new(start.plus(inside), len);
            return match fill {
                Fill::Bytes(bytes) => self.shared.data.write_at(bytes, range.start),
                Fill::Zeros => self.shared.data.zero(range, ZeroMode::default()),
            };
        }
        let whole = ByteRange::new(ByteOffset::ZERO, size.bytes());
        for piece in whole.pieces(ByteCount::new(PIECE as u64)) {
            with_scratch(|scratch| {
                let scratch = &mut scratch[..piece.len.as_usize()];
                self.keep_old(old, piece, part, scratch)?;
                overlay(scratch, piece, part, fill);
                self.shared.data.write_at(scratch, start.plus(ByteCount::new(piece.start.get())))
            })?;
        }
        Ok(())
    }

    /// Fills `scratch`, the bytes of a block at `piece`, with what the block held, except where
    /// `part` covers them.
    fn keep_old(
        &self,
        old: Old,
        piece: ByteRange,
        part: ByteRange,
        scratch: &mut [u8],
    ) -> Result<()> {
        let covered = part.intersect(piece);
        if covered == piece {
            return Ok(());
        }
        let mut read = |range: ByteRange| {
            let from = range.start.since(piece.start).as_usize();
            self.read_old(old, range.start, &mut scratch[from..from + range.len.as_usize()])
        };
        // One read of everything is cheaper than two around a small hole.
        if covered.len.get() * 2 < piece.len.get() {
            return read(piece);
        }
        read(ByteRange::between(piece.start, covered.start))?;
        read(ByteRange::between(covered.end(), piece.end()))
    }

    /// Fills `target` with what a block held from `inside` on.
    fn read_old(&self, old: Old, inside: ByteOffset, target: &mut [u8]) -> Result<()> {
        let size = self.shared.block_size;
        let inside = ByteCount::new(inside.get());
        match old.mapping {
            _ if target.is_empty() => Ok(()),
            Some(mapping) => {
                self.shared.data.read_at(target, size.data_start(mapping.block).plus(inside))
            }
            None => self.read_unmapped(target, size.guest_start(old.block).plus(inside)),
        }
    }
}

/// Puts the part of `fill` that falls into `piece` over `scratch`.
fn overlay(scratch: &mut [u8], piece: ByteRange, part: ByteRange, fill: Fill<'_>) {
    let covered = part.intersect(piece);
    if covered.is_empty() {
        return;
    }
    let at = (covered.start.get() - piece.start.get()) as usize;
    let target = &mut scratch[at..at + covered.len.as_usize()];
    match fill {
        Fill::Zeros => target.fill(0),
        Fill::Bytes(bytes) => {
            let from = (covered.start.get() - part.start.get()) as usize;
            target.copy_from_slice(&bytes[from..from + target.len()]);
        }
    }
}

pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        work(scratch.get_or_insert_with(|| AlignedBuf::zeroed(PIECE)))
    })
}
