//! What a connection has received and not yet executed.
//!
//! One buffer takes whatever the socket has. Requests are read from its front; what is left of an
//! incomplete one moves to the front before the next receive. The payload of a large write gets a
//! buffer of its own, page-aligned, and the rest of it is received straight into that.

use std::ops::Range;

use block_io::AlignedBuf;
use block_types::Result;

use crate::wire::{Dialect, Request};

/// Bytes that one receive takes.
const RECEIVE: usize = 256 << 10;
/// Payloads from this size on, if not here whole, get a buffer of their own.
const LARGE: usize = 64 << 10;
/// Bytes to receive behind a large payload: enough for the next head, little to copy if that is
/// the head of another large one.
const SHORT_RECEIVE: usize = 4 << 10;

/// The receiving side of a connection.
#[derive(Debug)]
pub(super) struct Input {
    /// `None` while a receive into it is in flight.
    buffer: Option<AlignedBuf>,
    scanner: Scanner,
    /// The large payload that is being received, and whether its buffer is out.
    payload: Option<Partial>,
    short: bool,
}

/// Where in the receive buffer the next request begins.
#[derive(Debug)]
pub(super) struct Scanner {
    dialect: Dialect,
    head: usize,
    filled: usize,
    /// Bytes of a refused payload that are still to come.
    skip: u64,
}

/// A large payload, as far as it is here.
#[derive(Debug)]
struct Partial {
    request: Request,
    /// `None` while a receive into it is in flight.
    buffer: Option<AlignedBuf>,
    filled: usize,
    len: usize,
}

/// Where the payload of a request is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Here, at this part of the receive buffer.
    Whole(Range<usize>),
    /// Not whole; it is small, so wait for the rest.
    Later,
    /// Not whole, and large: give it a buffer.
    Large,
}

impl Input {
    pub(super) fn new(dialect: Dialect) -> Self {
        let scanner = Scanner { dialect, head: 0, filled: 0, skip: 0 };
        let buffer = Some(AlignedBuf::zeroed(RECEIVE));
        Self { buffer, scanner, payload: None, short: false }
    }

    /// The bytes received and the scanner over them; `None` while a receive is in flight.
    pub(super) fn scan(&mut self) -> Option<(&[u8], &mut Scanner)> {
        let buffer = self.buffer.as_deref()?;
        // Requests behind a payload that is still arriving are not here yet.
        self.payload.is_none().then_some((buffer, &mut self.scanner))
    }

    /// Begins to receive the large payload of `request`, which is the next one, into `buffer`.
    pub(super) fn begin_payload(&mut self, request: Request, mut buffer: AlignedBuf) {
        let received = self.buffer.as_deref().expect("no receive is in flight while scanning");
        let start = self.scanner.head + Request::wire_len(self.scanner.dialect);
        let here = &received[start..self.scanner.filled];
        buffer[..here.len()].copy_from_slice(here);
        let filled = here.len();
        self.scanner.head = self.scanner.filled;
        let len = request.length.as_usize();
        self.payload = Some(Partial { request, buffer: Some(buffer), filled, len });
    }

    /// The large write whose payload has become whole.
    pub(super) fn take_payload(&mut self) -> Option<(Request, AlignedBuf)> {
        let whole = |partial: &mut Partial| partial.filled == partial.len;
        let partial = self.payload.take_if(whole)?;
        self.short = true;
        let buffer = partial.buffer.expect("a receive that is in flight fills no more bytes");
        Some((partial.request, buffer))
    }

    /// The buffer to receive into next, and the part that is free.
    pub(super) fn lend(&mut self) -> (AlignedBuf, Range<usize>) {
        if let Some(partial) = &mut self.payload {
            let buffer = partial.buffer.take().expect("one receive at a time");
            return (buffer, partial.filled..partial.len);
        }
        let mut buffer = self.buffer.take().expect("one receive at a time");
        self.scanner.compact(&mut buffer);
        let start = self.scanner.filled;
        let end = if self.short { buffer.len().min(start + SHORT_RECEIVE) } else { buffer.len() };
        self.short = false;
        (buffer, start..end)
    }

    /// Takes back what was lent, with `count` more bytes in it.
    pub(super) fn receive(&mut self, buffer: AlignedBuf, count: usize) {
        if let Some(partial) = &mut self.payload {
            partial.buffer = Some(buffer);
            partial.filled += count;
        } else {
            self.buffer = Some(buffer);
            self.scanner.filled += count;
        }
    }
}

impl Scanner {
    /// The next request whose head is here.
    ///
    /// # Errors
    /// If the stream is out of step.
    pub(super) fn peek(&mut self, bytes: &[u8]) -> Result<Option<Request>> {
        let step = self.skip.min((self.filled - self.head) as u64);
        self.head += step as usize;
        self.skip -= step;
        Request::parse(self.dialect, &bytes[self.head..self.filled])
    }

    /// Steps behind the request that was peeked and its payload of `len` bytes, if that is here.
    pub(super) fn advance(&mut self, len: usize) -> Arrival {
        let start = self.head + Request::wire_len(self.dialect);
        if self.filled - start >= len {
            self.head = start + len;
            return Arrival::Whole(start..self.head);
        }
        if len >= LARGE { Arrival::Large } else { Arrival::Later }
    }

    /// Steps behind the request that was peeked, and forgets its payload of `len` bytes, also what
    /// of it is still to come.
    pub(super) fn refuse(&mut self, len: u64) {
        self.head += Request::wire_len(self.dialect);
        self.skip = len;
    }

    /// Moves what is left to the front.
    fn compact(&mut self, buffer: &mut [u8]) {
        if self.head > 0 {
            buffer.copy_within(self.head..self.filled, 0);
            self.filled -= self.head;
            self.head = 0;
        }
    }
}
