//! The transmission phase of one connection: one thread, one queue.
//!
//! With nothing in flight the thread waits in a plain receive, executes all that came, and answers
//! in one send. While something is in flight it waits in its queue, for completions, for the
//! workers, for more requests and for room in the socket, whichever is first. Sending never waits
//! while leases are held, so a client that does not read holds up nobody but itself.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use block_io::{AlignedBuf, Completion, Interest};
use block_types::{Error, ErrorKind, Result};
use rustix::net::{RecvFlags, recv};

use super::execute::{Engine, Equipment};
use super::input::{Arrival, Input, Scanner};
use crate::wire::{Command, MAX_PAYLOAD, Request};

/// Tokens that are no slot's.
const RECV: u64 = u64::MAX;
const EVENT: u64 = u64::MAX - 1;
const WRITABLE: u64 = u64::MAX - 2;

/// One connection after its handshake.
pub(super) struct Session<'d> {
    engine: Engine<'d>,
    input: Input,
    socket: BorrowedFd<'d>,
    /// Set from outside when the session is to end.
    stop: &'d AtomicBool,
    armed: Armed,
    /// Nothing more is received.
    closed: bool,
    /// Nothing more is executed either, whatever is here.
    over: bool,
    /// More has to be received before anything more can be executed.
    starved: bool,
}

/// What the queue waits for beside I/O.
#[derive(Default)]
struct Armed {
    recv: bool,
    event: bool,
    writable: bool,
}

impl<'d> Session<'d> {
    pub(super) fn new(with: Equipment<'d>, stop: &'d AtomicBool) -> Result<Self> {
        let (socket, dialect) = (with.socket, with.dialect);
        Ok(Self {
            engine: Engine::new(with)?,
            input: Input::new(dialect),
            socket,
            stop,
            armed: Armed::default(),
            closed: false,
            over: false,
            starved: true,
        })
    }

    /// Serves the client until it leaves or is made to; what was executed is answered.
    ///
    /// # Errors
    /// If the client broke the protocol, or the queue failed.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        loop {
            if let Err(error) = self.execute_received() {
                // The stream is out of step, but what was understood is answered.
                self.end();
                outcome = Err(error);
            }
            self.engine.send();
            let quiet = self.engine.is_idle() && self.engine.outbox.is_empty();
            if quiet && (self.over || (self.closed && self.starved)) {
                return outcome;
            }
            if quiet && !self.starved {
                // There was no room for what is here; now there is.
                continue;
            }
            if quiet && !self.armed.recv {
                self.receive_alone();
            } else {
                self.wait_in_queue()?;
            }
            self.closed |= self.stop.load(Ordering::Acquire);
            if self.engine.is_broken() {
                self.end();
            }
            if self.closed {
                self.engine.give_up_waiting();
            }
        }
    }

    /// Executes nothing more.
    fn end(&mut self) {
        self.closed = true;
        self.over = true;
    }

    /// Executes every request that is here, as far as there is room.
    fn execute_received(&mut self) -> Result<()> {
        if self.over {
            return Ok(());
        }
        if let Some((request, buffer)) = self.input.take_payload() {
            self.engine.write_owned(request, buffer);
        }
        let Self { engine, input, .. } = self;
        let Some((received, scanner)) = input.scan() else {
            engine.end_batch(&[]);
            return Ok(());
        };
        let outcome = execute_batch(engine, received, scanner);
        // Also after an error: what was understood is in execution.
        engine.end_batch(received);
        let stop = outcome?;
        self.starved = matches!(stop, Stop::Starved | Stop::Large(_));
        match stop {
            Stop::Large(request) => {
                let buffer = self.engine.pool.take(request.length.as_usize());
                self.input.begin_payload(request, buffer);
            }
            Stop::Disconnected => self.end(),
            Stop::Starved | Stop::Full => {}
        }
        Ok(())
    }

    /// Waits for requests with nothing else to wait for.
    fn receive_alone(&mut self) {
        let (mut buffer, part) = self.input.lend();
        let result = loop {
            match recv(self.socket, &mut buffer[part.clone()], RecvFlags::empty()) {
                Ok((_, count)) => break Ok(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => break Err(error.into()),
            }
        };
        self.received(buffer, result);
    }

    /// Waits for whatever is first.
    fn wait_in_queue(&mut self) -> Result<()> {
        self.arm();
        self.engine.queue.submit_and_wait()?;
        while let Some(completion) = self.engine.queue.next() {
            self.dispatch(completion);
        }
        Ok(())
    }

    fn arm(&mut self) {
        if self.starved && !self.closed && !self.armed.recv {
            let (buffer, part) = self.input.lend();
            self.engine.queue.recv(RECV, self.socket, buffer, part);
            self.armed.recv = true;
        }
        if self.engine.awaits_workers() && !self.armed.event {
            self.engine.poll_workers(EVENT);
            self.armed.event = true;
        }
        if self.engine.is_blocked() && !self.armed.writable {
            self.engine.queue.poll(WRITABLE, self.socket, Interest::Writable);
            self.armed.writable = true;
        }
    }

    fn dispatch(&mut self, completion: Completion) {
        match completion.token {
            RECV => {
                self.armed.recv = false;
                if let Some(buffer) = completion.buffer {
                    self.received(buffer, completion.result);
                }
            }
            EVENT => {
                self.armed.event = false;
                self.engine.collect();
            }
            WRITABLE => {
                self.armed.writable = false;
                self.engine.unblock();
            }
            _ => self.engine.complete(completion),
        }
    }

    /// Takes in what a receive brought.
    fn received(&mut self, buffer: AlignedBuf, result: io::Result<usize>) {
        match result {
            Ok(count) => {
                self.closed |= count == 0;
                self.input.receive(buffer, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.input.receive(buffer, 0);
            }
            Err(error) => {
                tracing::debug!(%error, "client is gone");
                self.input.receive(buffer, 0);
                self.engine.abandon();
            }
        }
    }
}

/// Why no more of what was received is executed now.
enum Stop {
    /// The rest is no whole request.
    Starved,
    /// The next one has a large payload, which is not whole.
    Large(Request),
    /// The connection holds as much as it may.
    Full,
    /// The client has said good-bye.
    Disconnected,
}

/// Executes the requests that `scanner` finds in `received`.
fn execute_batch(engine: &mut Engine<'_>, received: &[u8], scanner: &mut Scanner) -> Result<Stop> {
    while let Some(request) = scanner.peek(received)? {
        let len = request.payload_len(engine.dialect());
        if len.get() > MAX_PAYLOAD.into() {
            let problem = "sends more than 32 MiB in one request";
            return Err(Error::new(ErrorKind::Invalid, "NBD client", problem));
        }
        if !engine.has_room(data_len(&request)) {
            return Ok(Stop::Full);
        }
        if let Err((errno, reason)) = engine.bounds.check(&request) {
            scanner.refuse(len.get());
            engine.refuse(&request, errno, reason);
            continue;
        }
        match scanner.advance(len.as_usize()) {
            Arrival::Whole(_) if request.command == Command::DISC => return Ok(Stop::Disconnected),
            Arrival::Whole(payload) => engine.execute(request, received, payload),
            Arrival::Later => return Ok(Stop::Starved),
            Arrival::Large => return Ok(Stop::Large(request)),
        }
    }
    Ok(Stop::Starved)
}

/// Bytes of data that a request moves, or claims to.
fn data_len(request: &Request) -> usize {
    match request.command {
        Command::READ | Command::WRITE => request.length.as_usize(),
        _ => 0,
    }
}
