//! Writes that find no space: they wait, or say that they would have to.

use std::time::Duration;

use block_io::{Attempt, BlockDevice, Stall, Ticket, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use crate::volume::ThinVolume;
use crate::write::Fill;

/// How long one sleep of a write that waits may be; it looks around in between.
const NAP: Duration = Duration::from_secs(3600);

impl ThinVolume {
    /// Tries until it is done, or has failed. Nothing is held while it waits, so a pool that is out
    /// of space goes on with everything that needs none.
    pub(crate) fn patiently(&self, attempt: impl Fn() -> Result<Attempt>) -> Result<()> {
        while let Attempt::Stalled(ticket) = attempt()? {
            while !self.await_change(ticket, NAP) {}
        }
        Ok(())
    }

    /// Does `work` on `range`, which may find no space.
    fn attempt(&self, range: ByteRange, work: impl FnOnce() -> Result<()>) -> Result<Attempt> {
        // First: space that comes from here on is not missed.
        let ticket = self.shared.condition.ticket();
        let _slow = self.core.slow.read();
        // Each time anew: the volume may have become smaller since.
        self.check_write(range)?;
        match work() {
            Err(error) if self.shared.condition.should_wait(ticket, &error) => {
                Ok(Attempt::Stalled(ticket))
            }
            done => done.map(|()| Attempt::Done),
        }
    }
}

impl Stall for ThinVolume {
    fn try_write(&self, bytes: &[u8], at: ByteOffset) -> Result<Attempt> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        self.attempt(range, || {
            let mut rest = bytes;
            for piece in range.pieces(self.shared.block_size.bytes()) {
                let (now, later) = rest.split_at(piece.len.as_usize());
                self.write_piece(piece, Fill::Bytes(now))?;
                rest = later;
            }
            Ok(())
        })
    }

    fn try_zero(&self, range: ByteRange, mode: ZeroMode) -> Result<Attempt> {
        if mode.only_if_fast && !mode.may_unmap {
            let problem = "cannot write zeros fast while keeping the space";
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
        }
        self.attempt(range, || {
            if mode.only_if_fast && self.shows_origin(range)? {
                let problem = "cannot hide what its external origin holds without writing";
                return Err(Error::new(ErrorKind::Unsupported, self.name(), problem));
            }
            for piece in range.pieces(self.shared.block_size.bytes()) {
                if mode.may_unmap {
                    self.unmap_or_zero(piece)?;
                } else {
                    self.write_piece(piece, Fill::Zeros)?;
                }
            }
            Ok(())
        })
    }

    fn await_change(&self, ticket: Ticket, limit: Duration) -> bool {
        self.shared.condition.await_change(ticket, limit)
    }
}
