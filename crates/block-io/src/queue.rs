//! One thread's I/O queue: io_uring where the system has it, plain system calls where not.
//!
//! A queue owns the buffers of the operations in it, and keeps the files of reads and writes open.
//! Sockets and other descriptors that are received from or polled stay the caller's: they must not
//! be closed before the completion has come.

use std::ffi::OsString;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use crate::blocking::BlockingQueue;
use crate::uring::UringQueue;
use crate::{AlignedBuf, BlockDevice, HostFile};

/// The environment variable that overrides [`QueueChoice::Auto`]: `uring` or `blocking`.
const CHOICE_VARIABLE: &str = "FIRN_IO";

/// Which backend to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QueueChoice {
    /// What `FIRN_IO` says (`uring` or `blocking`); else io_uring if the system has it.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain system calls.
    Blocking,
}

/// The backend in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueBackend {
    /// io_uring.
    Uring,
    /// Plain system calls: reads and writes are done while they are submitted.
    Blocking,
}

/// A part of a buffer and the place in a file that it is read from or written to.
#[derive(Clone, Debug)]
pub struct Segment<'f> {
    /// The file.
    pub file: &'f HostFile,
    /// Where in the file.
    pub at: ByteOffset,
    /// Which bytes of the buffer; for a direct file its start and length are aligned like `at`.
    pub part: Range<usize>,
}

/// An operation that is complete.
#[derive(Debug)]
pub struct Completion {
    /// What the caller named it by.
    pub token: u64,
    /// The bytes transferred; 0 for a poll. A read or write that succeeded is whole.
    pub result: io::Result<usize>,
    /// The operation's buffer, if it had one.
    pub buffer: Option<AlignedBuf>,
}

/// What to poll for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, a connection or a hang-up are there.
    Readable,
    /// Bytes are taken.
    Writable,
}

/// Reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// The error of a transfer that gets no further.
    pub(crate) fn ended(self) -> io::Error {
        match self {
            Self::Read => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends before its size: it was truncated",
            ),
            Self::Write => io::Error::new(io::ErrorKind::WriteZero, "the file takes no more bytes"),
        }
    }
}

/// A segment that holds its file open.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) at: u64,
    pub(crate) part: Range<usize>,
}

/// One thread's queue of I/O. It stays on the thread that made it.
///
/// Operations begin when they are submitted and complete in any order. Tokens are the caller's; no
/// two receives or polls in flight should share one, or [`cancel`](Self::cancel) does not know
/// which is meant. Dropping the queue cancels what waits for a peer and waits for the rest, so that
/// no buffer is freed while the system uses it.
#[derive(Debug)]
pub struct IoQueue {
    backend: Backend,
    /// A ring belongs to the thread that made it.
    stays: PhantomData<*const ()>,
}

#[derive(Debug)]
enum Backend {
    Uring(Box<UringQueue>),
    Blocking(BlockingQueue),
}

impl IoQueue {
    /// A queue that takes `depth` entries (segments, receives, polls) per submission; more are
    /// submitted in several goes.
    ///
    /// # Errors
    /// What the system says if io_uring was chosen and cannot be had, [`ErrorKind::Invalid`] if
    /// `FIRN_IO` holds anything else than `uring`, `blocking`, `auto` or nothing.
    pub fn new(choice: QueueChoice, depth: u32) -> Result<Self> {
        let choice = match choice {
            QueueChoice::Auto => choice_of(std::env::var_os(CHOICE_VARIABLE))?,
            chosen => chosen,
        };
        let backend = match choice {
            QueueChoice::Blocking => Backend::Blocking(BlockingQueue::default()),
            QueueChoice::Uring | QueueChoice::Auto => match UringQueue::new(depth) {
                Ok(queue) => Backend::Uring(Box::new(queue)),
                Err(error) if choice == QueueChoice::Uring => {
                    return Err(Error::io("I/O queue", "cannot have an io_uring", error)
                        .advise(format!("set {CHOICE_VARIABLE}=blocking to do without")));
                }
                Err(reason) => {
                    tracing::info!(%reason, "I/O by plain system calls instead of io_uring");
                    Backend::Blocking(BlockingQueue::default())
                }
            },
        };
        Ok(Self { backend, stays: PhantomData })
    }

    /// The backend in use.
    pub fn backend(&self) -> QueueBackend {
        match &self.backend {
            Backend::Uring(_) => QueueBackend::Uring,
            Backend::Blocking(_) => QueueBackend::Blocking,
        }
    }

    /// Queues a read into `buffer`: all segments together are one operation with one completion,
    /// whose result is the bytes of all. The end of a file inside a segment is an error.
    pub fn read(&mut self, token: u64, buffer: AlignedBuf, segments: &[Segment<'_>]) {
        self.transfer(Direction::Read, token, buffer, segments);
    }

    /// Queues a write from `buffer`: all segments together are one operation with one completion,
    /// whose result is the bytes of all. After a failure any part of them may be written.
    pub fn write(&mut self, token: u64, buffer: AlignedBuf, segments: &[Segment<'_>]) {
        self.transfer(Direction::Write, token, buffer, segments);
    }

    fn transfer(
        &mut self,
        direction: Direction,
        token: u64,
        buffer: AlignedBuf,
        segments: &[Segment<'_>],
    ) {
        for segment in segments {
            if let Err(error) = check(direction, segment, &buffer) {
                return self.complete(token, Err(error), Some(buffer));
            }
        }
        let pieces = segments.iter().filter(|segment| !segment.part.is_empty()).map(Piece::of);
        match &mut self.backend {
            Backend::Uring(queue) => queue.transfer(direction, token, buffer, pieces),
            Backend::Blocking(queue) => queue.transfer(direction, token, buffer, pieces.collect()),
        }
    }

    /// Queues one receive from `socket` into `part` of `buffer`. It completes with as many bytes as
    /// are there, 0 when the peer has closed.
    pub fn recv(
        &mut self,
        token: u64,
        socket: BorrowedFd<'_>,
        buffer: AlignedBuf,
        part: Range<usize>,
    ) {
        if part.is_empty() {
            // To receive nothing would look like the peer's end.
            return self.complete(token, Err(invalid("no room to receive into")), Some(buffer));
        }
        if let Err(error) = check_part(&part, &buffer) {
            return self.complete(token, Err(error), Some(buffer));
        }
        match &mut self.backend {
            Backend::Uring(queue) => queue.recv(token, socket, buffer, part),
            Backend::Blocking(queue) => queue.recv(token, socket, buffer, part),
        }
    }

    /// Queues a wait until `fd` is ready; a hang-up or an error at `fd` counts as ready.
    pub fn poll(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) {
        match &mut self.backend {
            Backend::Uring(queue) => queue.poll(token, fd, interest),
            Backend::Blocking(queue) => queue.poll(token, fd, interest),
        }
    }

    /// Cancels the receive or poll called `token`, if it is still in flight. Its completion comes
    /// in any case: `ECANCELED`, or what it came to before.
    pub fn cancel(&mut self, token: u64) {
        match &mut self.backend {
            Backend::Uring(queue) => queue.cancel(token),
            Backend::Blocking(queue) => queue.cancel(token),
        }
    }

    /// Operations queued whose completion was not taken yet.
    pub fn in_flight(&self) -> usize {
        match &self.backend {
            Backend::Uring(queue) => queue.in_flight(),
            Backend::Blocking(queue) => queue.in_flight(),
        }
    }

    /// Hands everything queued to the system in one call, without waiting for any of it. (The
    /// blocking backend does the reads and writes here.)
    ///
    /// # Errors
    /// If the system refuses; the queue is of no more use then.
    pub fn submit(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Uring(queue) => queue.submit(),
            Backend::Blocking(queue) => queue.submit(),
        }
    }

    /// Hands everything queued to the system and waits, in the same call, until at least one
    /// completion can be taken. Does not wait if one already can, or if nothing is in flight.
    ///
    /// # Errors
    /// If the system refuses; the queue is of no more use then.
    pub fn submit_and_wait(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Uring(queue) => queue.submit_and_wait(),
            Backend::Blocking(queue) => queue.submit_and_wait(),
        }
    }

    /// Takes a completion that has come. No system call; `None` says that no more have come yet.
    #[expect(clippy::should_implement_trait, reason = "more may come after a None")]
    pub fn next(&mut self) -> Option<Completion> {
        match &mut self.backend {
            Backend::Uring(queue) => queue.next(),
            Backend::Blocking(queue) => queue.next(),
        }
    }

    /// Completes an operation that needed no I/O.
    fn complete(&mut self, token: u64, result: io::Result<usize>, buffer: Option<AlignedBuf>) {
        let completion = Completion { token, result, buffer };
        match &mut self.backend {
            Backend::Uring(queue) => queue.complete(completion),
            Backend::Blocking(queue) => queue.complete(completion),
        }
    }
}

impl Piece {
    fn of(segment: &Segment<'_>) -> Self {
        let fd = Arc::clone(&segment.file.fd);
        Self { fd, at: segment.at.get(), part: segment.part.clone() }
    }
}

/// Refuses a segment that does not fit its buffer or its file.
fn check(direction: Direction, segment: &Segment<'_>, buffer: &[u8]) -> io::Result<()> {
    let Segment { file, at, part } = segment;
    check_part(part, buffer)?;
    let range = ByteRange::checked(*at, ByteCount::new(part.len() as u64));
    let Some(range) = range.filter(|range| range.end().get() <= file.size().get()) else {
        return Err(invalid("a segment lies past the end of its file"));
    };
    if direction == Direction::Write && file.limits().read_only {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    // Some file systems take what is not aligned, and silently move it through the page cache.
    let unit = file.alignment();
    if !range.is_aligned(unit) || !part.start.is_multiple_of(unit.as_usize()) {
        return Err(invalid("a segment is not aligned as O_DIRECT demands"));
    }
    Ok(())
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// Refuses a part that does not lie in its buffer.
fn check_part(part: &Range<usize>, buffer: &[u8]) -> io::Result<()> {
    if part.start <= part.end && part.end <= buffer.len() {
        return Ok(());
    }
    Err(invalid("a segment lies outside its buffer"))
}

/// The choice that the environment makes.
fn choice_of(value: Option<OsString>) -> Result<QueueChoice> {
    let Some(value) = value else {
        return Ok(QueueChoice::Auto);
    };
    match value.to_str() {
        Some("" | "auto") => Ok(QueueChoice::Auto),
        Some("uring") => Ok(QueueChoice::Uring),
        Some("blocking") => Ok(QueueChoice::Blocking),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!("environment variable {CHOICE_VARIABLE}"),
            format!("is {value:?}, which is no way of doing I/O"),
        )
        .advise("set it to uring or blocking, or not at all")),
    }
}

#[cfg(test)]
mod tests;
