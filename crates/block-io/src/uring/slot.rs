//! An operation in the ring: what its entries are, and what their answers mean.

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::{io, mem, ptr};

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::Fd;

use crate::AlignedBuf;
use crate::queue::{Direction, Interest, Piece};

/// An operation in flight, or a free place for one.
pub(super) struct Slot {
    pub(super) token: u64,
    pub(super) work: Work,
    pub(super) buffer: Option<AlignedBuf>,
    /// Where the buffer's bytes begin.
    pub(super) base: *mut u8,
    /// What is left of a read's or write's segments.
    pub(super) pieces: Vec<Piece>,
    /// Entries that the system has not answered.
    pub(super) waiting: usize,
    pub(super) cancelled: bool,
    /// What the operation has come to so far: bytes, or the first failure.
    pub(super) result: io::Result<usize>,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Nothing,
    Transfer(Direction),
    /// The descriptor is kept open by the caller.
    Recv(RawFd, Range<usize>),
    /// As `Recv`, while it waits for a socket that is not to block.
    RecvPoll(RawFd, Range<usize>),
    Poll(RawFd, Interest),
}

/// What an answer means for its entry.
pub(super) enum Progress {
    /// It is to be queued again, for the rest.
    Again,
    /// It is done: bytes that were not counted before, or a failure.
    Done(io::Result<usize>),
}

impl Slot {
    pub(super) fn vacant() -> Self {
        Self {
            token: 0,
            work: Work::Nothing,
            buffer: None,
            base: ptr::null_mut(),
            pieces: Vec::new(),
            waiting: 0,
            cancelled: false,
            result: Ok(0),
        }
    }

    /// The entry for what is left of a piece, without its name.
    pub(super) fn entry(&self, piece: usize, longest: usize) -> Entry {
        let len = |part: &Range<usize>| part.len().min(longest) as u32;
        match &self.work {
            Work::Nothing => opcode::Nop::new().build(),
            Work::Transfer(direction) => {
                let Piece { fd, at, part } = &self.pieces[piece];
                let memory = self.base.wrapping_add(part.start);
                let fd = Fd(fd.as_raw_fd());
                match direction {
                    Direction::Read => opcode::Read::new(fd, memory, len(part)).offset(*at).build(),
                    Direction::Write => {
                        opcode::Write::new(fd, memory, len(part)).offset(*at).build()
                    }
                }
            }
            Work::Recv(fd, part) => {
                let memory = self.base.wrapping_add(part.start);
                opcode::Recv::new(Fd(*fd), memory, len(part)).build()
            }
            Work::RecvPoll(fd, _) | Work::Poll(fd, Interest::Readable) => {
                poll_entry(*fd, libc::POLLIN)
            }
            Work::Poll(fd, Interest::Writable) => poll_entry(*fd, libc::POLLOUT),
        }
    }

    /// What an answer to a piece's entry means.
    pub(super) fn progress(&mut self, piece: usize, result: i32) -> Progress {
        let moved = usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
        let code = moved.as_ref().err().and_then(io::Error::raw_os_error);
        let again = matches!(code, Some(libc::EAGAIN | libc::EINTR));
        if again && self.cancelled {
            return Progress::Done(Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
        match mem::replace(&mut self.work, Work::Nothing) {
            Work::Transfer(direction) => {
                self.work = Work::Transfer(direction);
                self.pieces[piece].progress(direction, moved, again)
            }
            // The socket is non-blocking, which the ring heeds: wait until it is readable.
            Work::Recv(fd, part) if code == Some(libc::EAGAIN) => {
                self.work = Work::RecvPoll(fd, part);
                Progress::Again
            }
            Work::RecvPoll(fd, part) if moved.is_ok() => {
                self.work = Work::Recv(fd, part);
                Progress::Again
            }
            work if again => {
                self.work = work;
                Progress::Again
            }
            Work::Poll(..) => Progress::Done(moved.map(|_events| 0)),
            _ => Progress::Done(moved),
        }
    }
}

impl Piece {
    /// What an answer to a read or write of this piece means. Its bytes were counted when the
    /// operation began.
    fn progress(
        &mut self,
        direction: Direction,
        moved: io::Result<usize>,
        again: bool,
    ) -> Progress {
        match moved {
            Err(_) if again => Progress::Again,
            Err(error) => Progress::Done(Err(error)),
            Ok(0) => Progress::Done(Err(direction.ended())),
            Ok(moved) => {
                self.at += moved as u64;
                self.part.start += moved;
                if self.part.is_empty() { Progress::Done(Ok(0)) } else { Progress::Again }
            }
        }
    }
}

impl Work {
    /// Whether it waits for a peer, so that it can be cancelled.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Recv(..) | Self::RecvPoll(..) | Self::Poll(..))
    }
}

fn poll_entry(fd: RawFd, events: libc::c_short) -> Entry {
    opcode::PollAdd::new(Fd(fd), events as u32).build()
}
