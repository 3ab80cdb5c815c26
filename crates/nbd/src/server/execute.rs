//! Executes the requests of one connection.
//!
//! A request goes one of three ways. Page-cache hits and buffered writes are done at once. Other
//! I/O on resolved places goes to the connection's queue, and its lease is kept until it completes.
//! What does not resolve is handed to the workers, a batch at a time. Replies gather in the outbox.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block_io::{AlignedBuf, Completion, Interest, IoQueue, Lease, Place, Resolve, Segment};
use block_types::{Error, ErrorKind, Result};

use super::export::Export;
use super::outbox::Outbox;
use super::pool::Pool;
use super::read::Part;
use super::slots::Slots;
use super::slow::{Done, Job, JobKind, Outcome};
use super::status::{device_error, errno_of};
use super::vet::Bounds;
use super::workers::{Mailbox, Workers};
use super::write::WriteRun;
use crate::wire::{
    Command, CommandFlags, Dialect, Errno, Request, push_ack, push_error_reply, push_status,
};

/// Room for a reply's header before page-aligned data.
pub(super) const HEADROOM: usize = 4096;
/// Replies of this size are sent while a batch is still being executed.
const SEND_EARLY: usize = 128 << 10;
/// Most requests of a connection in execution.
pub(super) const MAX_REQUESTS: usize = 256;
/// Most memory that requests and replies of a connection hold, in bytes.
const MAX_HELD: usize = 64 << 20;
/// What a BLOCK_STATUS counts for until its answer is there.
const STATUS_COST: usize = 256 << 10;

/// The executing side of a connection to a device that lives for `'d`.
pub(super) struct Engine<'d> {
    // First, so that it is dropped first: leases may go only when no I/O is in flight any more.
    pub(super) queue: IoQueue,
    pub(super) in_flight: Slots<InFlight<'d>>,
    pub(super) export: &'d Arc<Export>,
    pub(super) resolver: Option<&'d dyn Resolve>,
    pub(super) bounds: Bounds,
    contexts: Vec<u32>,
    socket: BorrowedFd<'d>,
    pub(super) outbox: Outbox,
    pub(super) pool: Pool,
    pub(super) run: WriteRun<'d>,
    /// Empty between requests; kept for their memory.
    pub(super) places: Vec<Place<'d>>,
    pub(super) segments: Vec<Segment<'d>>,
    workers: &'d Workers,
    mailbox: Arc<Mailbox>,
    jobs: Vec<Job>,
    done: Vec<Done>,
    /// Jobs that the workers have.
    outstanding: usize,
    /// What requests in execution count for.
    held: usize,
    /// The socket took no more.
    blocked: bool,
    /// The client cannot be reached.
    broken: bool,
}

/// A request whose I/O is in the queue.
#[derive(Debug)]
pub(super) struct InFlight<'d> {
    pub(super) request: Request,
    /// Bytes the I/O has to transfer.
    pub(super) expected: usize,
    /// How a read with holes is answered; empty for one run of data.
    pub(super) parts: Vec<Part>,
    /// Keeps the places where they are.
    pub(super) lease: Lease<'d>,
}

/// What a connection executes requests with.
pub(super) struct Equipment<'d> {
    pub(super) queue: IoQueue,
    pub(super) export: &'d Arc<Export>,
    pub(super) dialect: Dialect,
    pub(super) contexts: Vec<u32>,
    pub(super) socket: BorrowedFd<'d>,
    pub(super) workers: &'d Workers,
    /// Set from outside when the connection is to end.
    pub(super) stop: Arc<AtomicBool>,
}

impl<'d> Engine<'d> {
    pub(super) fn new(with: Equipment<'d>) -> Result<Self> {
        Ok(Self {
            queue: with.queue,
            in_flight: Slots::new(),
            export: with.export,
            resolver: with.export.device().resolver(),
            bounds: Bounds::of(with.export, with.dialect, !with.contexts.is_empty()),
            contexts: with.contexts,
            socket: with.socket,
            outbox: Outbox::default(),
            pool: Pool::default(),
            run: WriteRun::default(),
            places: Vec::new(),
            segments: Vec::new(),
            workers: with.workers,
            mailbox: Arc::new(Mailbox::new(with.stop)?),
            jobs: Vec::new(),
            done: Vec::new(),
            outstanding: 0,
            held: 0,
            blocked: false,
            broken: false,
        })
    }

    /// The form of requests and replies.
    pub(super) fn dialect(&self) -> Dialect {
        self.bounds.dialect
    }

    /// Whether no request is in execution.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.len() == 0 && self.outstanding == 0
    }

    /// Whether workers have jobs of this connection.
    pub(super) fn awaits_workers(&self) -> bool {
        self.outstanding > 0
    }

    /// Gives up what waits for long: nobody would read the answer.
    pub(super) fn give_up_waiting(&self) {
        self.mailbox.leave();
    }

    /// Queues a wait, called `token`, for what the workers do for this connection.
    pub(super) fn poll_workers(&mut self, token: u64) {
        self.queue.poll(token, self.mailbox.event().as_fd(), Interest::Readable);
    }

    /// Whether replies wait for the socket to take more.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the client cannot be reached any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether a request with `len` bytes of data may begin.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let held = self.held + self.outbox.held();
        let executing = self.in_flight.len() + self.outstanding;
        executing < MAX_REQUESTS && (held == 0 || held + len <= MAX_HELD)
    }

    /// Executes a request without payload, or with its payload at `payload` of `received`.
    pub(super) fn execute(
        &mut self,
        request: Request,
        received: &[u8],
        payload: std::ops::Range<usize>,
    ) {
        let empty = request.length.is_zero() && request.command != Command::FLUSH;
        match request.command {
            _ if empty => self.answer(&request, Ok(())),
            Command::READ => self.read(request),
            Command::WRITE => self.write(request, received, payload),
            Command::BLOCK_STATUS => {
                let contexts = self.contexts.clone();
                self.hand_over(request, JobKind::Status(contexts));
            }
            _ => self.hand_over(request, JobKind::Bare),
        }
        if self.outbox.unsent() >= SEND_EARLY {
            self.send();
        }
    }

    /// Ends a batch of requests whose payloads are in `received`.
    pub(super) fn end_batch(&mut self, received: &[u8]) {
        self.finish_run(received);
        if !self.jobs.is_empty() {
            self.workers.hand_over(&mut self.jobs, &self.mailbox);
        }
    }

    /// Leaves `request` to the workers.
    pub(super) fn hand_over(&mut self, request: Request, kind: JobKind) {
        self.held += cost(&request);
        self.outstanding += 1;
        self.jobs.push(Job { export: Arc::clone(self.export), request, kind });
    }

    /// Keeps what the completion of a queued operation needs; returns its token.
    pub(super) fn launch(&mut self, entry: InFlight<'d>) -> u64 {
        self.held += cost(&entry.request);
        self.in_flight.insert(entry)
    }

    /// Answers a request whose I/O is complete.
    pub(super) fn complete(&mut self, completion: Completion) {
        let Some(entry) = self.in_flight.remove(completion.token) else { return };
        drop(entry.lease);
        let request = entry.request;
        self.held -= cost(&request);
        let result = match completion.result {
            Ok(count) if count == entry.expected => Ok(()),
            // Never answer with bytes that were not read.
            Ok(_) => Err(self.device_error(&request, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.device_error(&request, error)),
        };
        match (result, completion.buffer) {
            (Ok(()), Some(buffer)) if request.command == Command::READ => {
                self.answer_data(&request, buffer, &entry.parts);
            }
            (result, buffer) => {
                self.recycle(buffer);
                self.answer(&request, result);
            }
        }
    }

    /// Answers what the workers have done.
    pub(super) fn collect(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.mailbox.collect(&mut done);
        for job in done.drain(..) {
            self.finish(job);
        }
        self.done = done;
    }

    fn finish(&mut self, job: Done) {
        let request = job.request;
        self.outstanding -= 1;
        self.held -= cost(&request);
        match (job.result, job.buffer) {
            (Ok(Outcome::Plain), Some(buffer)) if request.command == Command::READ => {
                self.answer_data(&request, buffer, &[]);
            }
            (Ok(Outcome::Status(answers)), _) => {
                let dialect = self.dialect();
                for (index, (id, extents)) in answers.iter().enumerate() {
                    let done = index + 1 == answers.len();
                    self.outbox
                        .small(|out| push_status(out, dialect, &request, *id, extents, done));
                }
            }
            (result, buffer) => {
                self.recycle(buffer);
                self.answer(&request, result.map(drop));
            }
        }
    }

    /// Answers a request that has nothing to return.
    pub(super) fn answer(&mut self, request: &Request, result: Result<()>) {
        match result {
            Ok(()) => {
                let dialect = self.dialect();
                self.outbox.small(|out| push_ack(out, dialect, request));
            }
            Err(error) => {
                self.refuse(request, errno_of(request.command, error.kind()), error.problem());
            }
        }
    }

    /// Answers a request that failed.
    pub(super) fn refuse(&mut self, request: &Request, errno: Errno, message: &str) {
        let dialect = self.dialect();
        self.outbox.small(|out| push_error_reply(out, dialect, request, errno, message));
    }

    /// Sends what is ready, as far as the socket takes it.
    pub(super) fn send(&mut self) {
        if self.broken {
            self.outbox.clear(&mut self.pool);
        }
        if self.blocked || self.outbox.is_empty() {
            return;
        }
        match self.outbox.send(self.socket, &mut self.pool) {
            Ok(()) => self.blocked = !self.outbox.is_empty(),
            Err(error) => {
                tracing::debug!(export = self.export.name(), %error, "client is gone");
                self.abandon();
            }
        }
    }

    /// The socket takes more again.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Answers nothing any more: the client is gone.
    pub(super) fn abandon(&mut self) {
        self.broken = true;
        self.blocked = false;
        self.outbox.clear(&mut self.pool);
    }

    /// Keeps a buffer for later.
    pub(super) fn recycle(&mut self, buffer: Option<AlignedBuf>) {
        if let Some(buffer) = buffer {
            self.pool.give(buffer);
        }
    }

    /// What failed I/O on resolved places of the device means; it is logged here.
    pub(super) fn device_error(&self, request: &Request, source: io::Error) -> Error {
        let device = self.export.device().name();
        let error = device_error(device, request.command, source);
        if error.kind() != ErrorKind::OutOfSpace {
            tracing::warn!(export = self.export.name(), ?request, %error, "failed");
        }
        error
    }

    /// Whether `request` has to be durable before it is answered.
    pub(super) fn is_forced(request: &Request) -> bool {
        request.flags.contains(CommandFlags::FUA)
    }
}

/// What a request in execution counts for, in bytes.
fn cost(request: &Request) -> usize {
    match request.command {
        Command::READ | Command::WRITE => request.length.as_usize() + HEADROOM,
        Command::BLOCK_STATUS => STATUS_COST,
        _ => 0,
    }
}
