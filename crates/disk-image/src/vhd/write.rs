//! Writing, zeroing and discarding.
//!
//! A sector that is present is overwritten in place, without a lock. One that is not is written to
//! its block's place, which is reserved if the block has none, and then marked: in memory at once,
//! in the file by the next commit (DATA-FIRST, see `commit`).
//!
//! A new block of a disk without a parent is zeroed around what is written and is full from the
//! start, as QEMU makes them: QEMU reads such a block whole, whatever its bitmap says, and no later
//! write to it has anything to commit.

use std::sync::atomic::Ordering;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteRange, Error, ErrorKind, Result};

use super::address::GuestBlock;
use super::alloc::Reserved;
use super::footer::Kind;
use super::image::{Sparse, VhdImage};
use super::mapping::{Bitmap, Held, Run};

/// What a range is to hold.
#[derive(Clone, Copy)]
pub(super) enum Fill<'b> {
    /// These bytes.
    Bytes(&'b [u8]),
    /// Zeros.
    Zeros(ZeroMode),
}

impl<'b> Fill<'b> {
    /// The part of a fill that begins `skip` bytes in, `len` bytes long.
    fn part(self, skip: ByteCount, len: ByteCount) -> Self {
        match self {
            Self::Bytes(bytes) => {
                let from = skip.as_usize();
                Self::Bytes(&bytes[from..from + len.as_usize()])
            }
            Self::Zeros(mode) => Self::Zeros(mode),
        }
    }
}

impl VhdImage {
    /// Makes `range`, which was checked, hold `fill`.
    pub(super) fn do_write(&self, range: ByteRange, fill: Fill<'_>) -> Result<()> {
        let Some(sparse) = &self.sparse else {
            return self.put(fill, range);
        };
        for piece in range.pieces(sparse.mapping.block_size().bytes()) {
            let part = fill.part(piece.start.since(range.start), piece.len);
            self.write_piece(sparse, piece, part)?;
        }
        Ok(())
    }

    /// Makes `range` read as zeros. Sectors that are absent and read as zeros stay so where space
    /// may be given back.
    pub(super) fn do_zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        if mode.only_if_fast && !self.file.limits().zeroes_fast {
            let problem = "its file cannot write zeros fast";
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
        }
        let fill = Fill::Zeros(mode);
        self.each_run(range, |piece, own| {
            match own {
                Some(place) => self.put(fill, ByteRange::new(place, piece.len))?,
                None if mode.may_unmap && self.is_zero_below(piece)? => {}
                None => self.do_write(piece, fill)?,
            }
            Ok(())
        })
    }

    /// Gives back the file's space under sectors that are present.
    pub(super) fn do_discard(&self, range: ByteRange) -> Result<()> {
        self.each_run(range, |piece, own| {
            if let Some(place) = own {
                self.file.discard(ByteRange::new(place, piece.len))?;
            }
            Ok(())
        })
    }

    /// Makes `range` of the file hold `fill`.
    fn put(&self, fill: Fill<'_>, range: ByteRange) -> Result<()> {
        match fill {
            Fill::Bytes(bytes) => self.file.write_at(bytes, range.start),
            Fill::Zeros(mode) => self.file.zero(range, mode),
        }
    }

    /// Writes `piece`, which lies in one block.
    fn write_piece(&self, sparse: &Sparse, piece: ByteRange, fill: Fill<'_>) -> Result<()> {
        let mapping = &sparse.mapping;
        let present = |run: Run| match run.held {
            Held::Own(place) if run.len == piece.len => Some(place),
            _ => None,
        };
        if let Some(place) = present(mapping.run(piece)) {
            return self.put(fill, ByteRange::new(place, piece.len));
        }
        let (block, inside) = mapping.block_size().locate(piece.start);
        let _alone = sparse.lock_block(block);
        let Some(place) = mapping.place(block) else {
            return self.write_new(sparse, block, piece, fill);
        };
        let data = mapping.block_size().data_start(place).plus(inside);
        self.load_bitmap(block)?;
        self.put(fill, ByteRange::new(data, piece.len))?;
        if present(mapping.run(piece)).is_none() {
            // DATA-FIRST: in memory, too, nobody sees the sectors before they are written.
            sparse.mark(block, piece);
        }
        Ok(())
    }

    /// Writes sectors of a block that has a place and whose bitmap is loaded, all of them absent;
    /// the caller holds the block's lock.
    pub(super) fn write_absent(
        &self,
        sparse: &Sparse,
        block: GuestBlock,
        piece: ByteRange,
        bytes: &[u8],
    ) -> Result<()> {
        let Some(place) = sparse.mapping.place(block) else { return Ok(()) };
        let (_, inside) = sparse.mapping.block_size().locate(piece.start);
        let data = sparse.mapping.block_size().data_start(place).plus(inside);
        self.file.write_at(bytes, data)?;
        sparse.mark(block, piece);
        Ok(())
    }

    /// Writes `piece`, whose block has no place yet.
    pub(super) fn write_new(
        &self,
        sparse: &Sparse,
        block: GuestBlock,
        piece: ByteRange,
        fill: Fill<'_>,
    ) -> Result<()> {
        let size = sparse.mapping.block_size();
        let reserved = self.reserve(sparse)?;
        let place = size.place(reserved.sector());
        // FULL-IS-NOT-BROKEN: what a commit will write has its space before the write is accepted.
        self.file.provision(ByteRange::new(place.start, size.bitmap_bytes()))?;
        let (_, inside) = size.locate(piece.start);
        let data = size.data_start(reserved.sector()).plus(inside);
        let written = ByteRange::new(data, piece.len);
        let kind = self.kind();
        if kind == Kind::Dynamic && !reserved.is_clean() {
            let whole = ByteRange::between(size.data_start(reserved.sector()), place.end());
            self.zero_around(whole, written)?;
        }
        self.put(fill, written)?;
        sparse.publish(block, piece, reserved, kind);
        Ok(())
    }

    /// Zeroes what of `whole` is not `written`.
    fn zero_around(&self, whole: ByteRange, written: ByteRange) -> Result<()> {
        let mode = ZeroMode { may_unmap: true, only_if_fast: false };
        let before = ByteRange::between(whole.start, written.start);
        let behind = ByteRange::between(written.end(), whole.end());
        for part in [before, behind] {
            if !part.is_empty() {
                self.file.zero(part, mode)?;
            }
        }
        Ok(())
    }

    /// Takes a place for a block; makes the file longer if it has to.
    pub(super) fn reserve<'s>(&self, sparse: &'s Sparse) -> Result<Reserved<'s>> {
        self.check_writable()?;
        let Some(space) = &sparse.space else {
            return Err(Error::new(ErrorKind::ReadOnly, self.name(), "is open read-only"));
        };
        let mut free = space.lock();
        let taken = match free.take() {
            Some(taken) => taken,
            None => {
                self.extend(sparse, &mut free)?;
                free.take().ok_or_else(|| self.past_the_end())?
            }
        };
        drop(free);
        Ok(Reserved::new(space, taken))
    }

    /// The answer where the file would have to be larger than the format allows.
    pub(super) fn past_the_end(&self) -> Error {
        let problem = "would be larger than 2 TiB, which is as far as a VHD's table can point";
        Error::new(ErrorKind::OutOfSpace, self.name(), problem)
            .advise("merge its snapshots, or convert it to qcow2")
    }
}

impl Sparse {
    /// Marks sectors of a block that has a place as present, and notes its bitmap for the commit.
    fn mark(&self, block: GuestBlock, piece: ByteRange) {
        let mut pending = self.pending.lock();
        self.mapping.set_present(block, piece);
        self.dirty.store(pending.note_bitmap(block), Ordering::SeqCst);
    }

    /// Gives `block` its place, with `piece` of it written: of a disk without a parent all of it.
    fn publish(&self, block: GuestBlock, piece: ByteRange, at: Reserved<'_>, kind: Kind) {
        let mut pending = self.pending.lock();
        if kind == Kind::Dynamic {
            self.mapping.set_full(block);
        } else {
            self.mapping.enter_bitmap(block, Bitmap::empty(self.mapping.block_size()));
            self.mapping.set_present(block, piece);
        }
        self.mapping.set_place(block, at.keep());
        self.dirty.store(pending.note_place(block), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::Fill;
    use block_types::ByteCount;

    #[test]
    fn parts_of_a_fill() {
        let bytes = [1, 2, 3, 4];
        let Fill::Bytes(part) = Fill::Bytes(&bytes).part(ByteCount::new(1), ByteCount::new(2))
        else {
            panic!("bytes stay bytes")
        };
        assert_eq!(part, [2, 3]);
    }
}
