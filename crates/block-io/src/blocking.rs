//! The queue by plain system calls: pread, pwrite, recv and poll(2).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use block_types::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::AlignedBuf;
use crate::queue::{Completion, Direction, Interest, Piece};

/// Reads and writes are done when they are submitted; receives and polls wait for poll(2).
#[derive(Debug, Default)]
pub(crate) struct BlockingQueue {
    transfers: Vec<Transfer>,
    waits: Vec<Wait>,
    ready: VecDeque<Completion>,
}

/// A read or write that was not submitted yet.
#[derive(Debug)]
struct Transfer {
    direction: Direction,
    token: u64,
    buffer: AlignedBuf,
    pieces: Vec<Piece>,
}

/// A receive or poll that is not complete.
#[derive(Debug)]
struct Wait {
    token: u64,
    /// A duplicate of the caller's.
    fd: OwnedFd,
    interest: Interest,
    /// Where a receive puts its bytes.
    target: Option<(AlignedBuf, Range<usize>)>,
}

impl BlockingQueue {
    /// Queues a read or write of pieces that were checked.
    pub(crate) fn transfer(
        &mut self,
        direction: Direction,
        token: u64,
        buffer: AlignedBuf,
        pieces: Vec<Piece>,
    ) {
        self.transfers.push(Transfer { direction, token, buffer, pieces });
    }

    /// Queues a receive.
    pub(crate) fn recv(
        &mut self,
        token: u64,
        socket: BorrowedFd<'_>,
        buffer: AlignedBuf,
        part: Range<usize>,
    ) {
        self.wait(token, socket, Interest::Readable, Some((buffer, part)));
    }

    /// Queues a poll.
    pub(crate) fn poll(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) {
        self.wait(token, fd, interest, None);
    }

    fn wait(
        &mut self,
        token: u64,
        fd: BorrowedFd<'_>,
        interest: Interest,
        target: Option<(AlignedBuf, Range<usize>)>,
    ) {
        match fd.try_clone_to_owned() {
            Ok(fd) => self.waits.push(Wait { token, fd, interest, target }),
            Err(error) => {
                let buffer = target.map(|(buffer, _)| buffer);
                self.complete(Completion { token, result: Err(error), buffer });
            }
        }
    }

    /// Cancels a receive or poll.
    pub(crate) fn cancel(&mut self, token: u64) {
        if let Some(index) = self.waits.iter().position(|wait| wait.token == token) {
            let wait = self.waits.swap_remove(index);
            let cancelled = Err(io::Error::from_raw_os_error(libc::ECANCELED));
            self.ready.push_back(wait.completion(cancelled));
        }
    }

    /// Adds a completion that needed no I/O.
    pub(crate) fn complete(&mut self, completion: Completion) {
        self.ready.push_back(completion);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.transfers.len() + self.waits.len() + self.ready.len()
    }

    /// Does the reads and writes, and looks which of the rest is ready.
    pub(crate) fn submit(&mut self) -> Result<()> {
        self.run_transfers();
        self.run_waits(false)
    }

    /// The same, and waits for one of the rest if there is no completion yet.
    pub(crate) fn submit_and_wait(&mut self) -> Result<()> {
        self.run_transfers();
        while self.ready.is_empty() && !self.waits.is_empty() {
            self.run_waits(true)?;
        }
        Ok(())
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    fn run_transfers(&mut self) {
        for mut transfer in self.transfers.drain(..) {
            let result = transfer.run();
            let Transfer { token, buffer, .. } = transfer;
            self.ready.push_back(Completion { token, result, buffer: Some(buffer) });
        }
    }

    /// Completes the receives and polls that are ready; `block` waits until one is.
    fn run_waits(&mut self, block: bool) -> Result<()> {
        if self.waits.is_empty() {
            return Ok(());
        }
        let mut fds: Vec<_> = self.waits.iter().map(Wait::poll_fd).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, if block { None } else { Some(&now) }) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(Error::io("I/O queue", "cannot wait", error.into())),
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        // From the end, so that removing one leaves the indices of those before it.
        for index in (0..ready.len()).rev().filter(|&index| ready[index]) {
            if let Some(result) = self.waits[index].run() {
                let wait = self.waits.remove(index);
                self.ready.push_back(wait.completion(result));
            }
        }
        Ok(())
    }
}

impl Transfer {
    /// Reads or writes all pieces: the bytes of all, or the first failure.
    fn run(&mut self) -> io::Result<usize> {
        let mut total = 0;
        for piece in &self.pieces {
            let part = &mut self.buffer[piece.part.clone()];
            run_piece(self.direction, piece, part)?;
            total += part.len();
        }
        Ok(total)
    }
}

/// Reads or writes one piece whole.
fn run_piece(direction: Direction, piece: &Piece, part: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < part.len() {
        let at = piece.at + done as u64;
        let moved = match direction {
            Direction::Read => rustix::io::pread(&*piece.fd, &mut part[done..], at),
            Direction::Write => rustix::io::pwrite(&*piece.fd, &part[done..], at),
        };
        match moved {
            Ok(0) => return Err(direction.ended()),
            Ok(moved) => done += moved,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Wait {
    fn poll_fd(&self) -> PollFd<'_> {
        let flags = match self.interest {
            Interest::Readable => PollFlags::IN,
            Interest::Writable => PollFlags::OUT,
        };
        PollFd::new(&self.fd, flags)
    }

    /// Does what the descriptor is ready for; `None` if it is not ready after all.
    fn run(&mut self) -> Option<io::Result<usize>> {
        let Some((buffer, part)) = &mut self.target else {
            return Some(Ok(0));
        };
        match recv(&self.fd, &mut buffer[part.clone()], RecvFlags::DONTWAIT) {
            Ok((received, _)) => Some(Ok(received)),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    fn completion(self, result: io::Result<usize>) -> Completion {
        Completion { token: self.token, result, buffer: self.target.map(|(buffer, _)| buffer) }
    }
}
