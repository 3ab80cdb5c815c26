//! The replies of a connection, on their way into its socket.
//!
//! Small replies gather in one run of bytes, data go from the buffers they were read into: with the
//! header right before the data, a reply is one piece. All that is ready goes out in one call,
//! which never waits: while a socket is full, replies stay here, and their bytes count against what
//! the connection may hold.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::pool::Pool;
use block_io::AlignedBuf;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

/// Pieces in one call.
const BATCH: usize = 64;
/// Bytes of small replies already sent that are kept before the rest moves to the front.
const SLACK: usize = 64 << 10;

/// Replies to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    /// Bytes of all pieces that are not sent.
    unsent: usize,
    /// Bytes of the buffers that are kept.
    kept: usize,
    /// Small replies; pieces count from the first byte that ever was in it.
    small: Vec<u8>,
    small_base: usize,
    /// Buffers of data pieces, in order of their last pieces.
    buffers: VecDeque<AlignedBuf>,
    first_buffer: usize,
}

#[derive(Debug)]
struct Piece {
    source: Source,
    range: Range<usize>,
}

#[derive(Debug)]
enum Source {
    Small,
    /// A part of the buffer called so, perhaps its last.
    Buffer {
        number: usize,
        last: bool,
    },
}

impl Outbox {
    /// Bytes that are not sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Bytes of memory that replies hold.
    pub(super) fn held(&self) -> usize {
        self.kept + self.small.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a small reply, which `write` appends.
    pub(super) fn small(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.small.len();
        write(&mut self.small);
        let range = self.small_base + before..self.small_base + self.small.len();
        self.unsent += range.len();
        // Neighbours join, so that a batch of acknowledgements is one piece.
        match self.pieces.back_mut() {
            Some(Piece { source: Source::Small, range: last }) if last.end == range.start => {
                last.end = range.end;
            }
            _ => self.pieces.push_back(Piece { source: Source::Small, range }),
        }
    }

    /// Adds part `range` of `buffer`.
    pub(super) fn data(&mut self, buffer: AlignedBuf, range: Range<usize>) {
        let number = self.keep(buffer);
        self.part(number, range, true);
    }

    /// Keeps `buffer` for the parts of it that follow; returns its number.
    pub(super) fn keep(&mut self, buffer: AlignedBuf) -> usize {
        self.kept += buffer.len();
        self.buffers.push_back(buffer);
        self.first_buffer + self.buffers.len() - 1
    }

    /// Adds part `range` of the buffer that was kept last.
    pub(super) fn part(&mut self, number: usize, range: Range<usize>, last: bool) {
        self.unsent += range.len();
        self.pieces.push_back(Piece { source: Source::Buffer { number, last }, range });
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, pool: &mut Pool) -> io::Result<()> {
        while !self.pieces.is_empty() {
            match self.send_once(socket) {
                Ok(count) => self.retire(count, pool),
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.retire(self.unsent, pool);
    }

    fn send_once(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if self.pieces.len() == 1 {
            return send(socket, &self.bytes(&self.pieces[0])[self.sent..], flags);
        }
        let mut slices = [IoSlice::new(&[]); BATCH];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let skip = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&self.bytes(piece)[skip..]);
            count += 1;
        }
        sendmsg(socket, &slices[..count], &mut SendAncillaryBuffer::default(), flags)
    }

    fn bytes(&self, piece: &Piece) -> &[u8] {
        match piece.source {
            Source::Small => {
                let base = self.small_base;
                &self.small[piece.range.start - base..piece.range.end - base]
            }
            Source::Buffer { number, .. } => {
                &self.buffers[number - self.first_buffer][piece.range.clone()]
            }
        }
    }

    /// Forgets the first `count` bytes.
    fn retire(&mut self, count: usize, pool: &mut Pool) {
        self.unsent -= count;
        self.sent += count;
        while let Some(piece) = self.pieces.front() {
            let len = piece.range.len();
            if self.sent < len {
                break;
            }
            self.sent -= len;
            match piece.source {
                Source::Small => self.forget_small(piece.range.end),
                Source::Buffer { last: true, .. } => {
                    let buffer = self.buffers.pop_front().expect("a piece's buffer is kept");
                    self.first_buffer += 1;
                    self.kept -= buffer.len();
                    pool.give(buffer);
                }
                Source::Buffer { last: false, .. } => {}
            }
            self.pieces.pop_front();
        }
    }

    /// Gives up small replies before `end`, now and then.
    fn forget_small(&mut self, end: usize) {
        let gone = end - self.small_base;
        if gone == self.small.len() {
            self.small.clear();
            self.small_base = end;
        } else if gone >= SLACK {
            self.small.drain(..gone);
            self.small_base = end;
        }
    }
}
