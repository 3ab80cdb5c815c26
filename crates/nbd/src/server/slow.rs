//! Requests that are *done*, through a device's blocking calls, on a worker thread.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use block_io::{AlignedBuf, Attempt, Ticket, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::context::gather;
use super::execute::HEADROOM;
use super::export::Export;
use super::negotiate::context_id;
use crate::wire::{Command, CommandFlags, Request, StatusExtent};

/// Most bytes that one CACHE request reads: it is advice only.
const MAX_CACHE: u64 = 64 << 20;
/// Bytes that CACHE reads at once.
const CACHE_STEP: u64 = 1 << 20;

/// A request to be done. Its range is checked.
pub(super) struct Job {
    pub(super) export: Arc<Export>,
    pub(super) request: Request,
    pub(super) kind: JobKind,
}

/// What a job needs beside its request.
#[derive(Debug)]
pub(super) enum JobKind {
    /// Read into the buffer, behind the headroom.
    Read(AlignedBuf),
    /// Write what the buffer begins with.
    Write(AlignedBuf),
    /// FLUSH, TRIM, WRITE_ZEROES or CACHE, as the request says.
    Bare,
    /// What lies at a range, in the contexts of these numbers.
    Status(Vec<u32>),
}

/// A job that is over.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) request: Request,
    pub(super) result: Result<Outcome>,
    /// The job's buffer, if it had one: filled by a read that succeeded.
    pub(super) buffer: Option<AlignedBuf>,
}

/// What a job came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing to return, or the data in the buffer.
    Plain,
    /// The extents of each context.
    Status(Vec<(u32, Vec<StatusExtent>)>),
}

/// What running a job came to.
pub(super) enum Run {
    Done(Done),
    /// It has to wait, with this ticket.
    Stalled(Job, Ticket),
}

enum Performed {
    Done(Outcome),
    Stalled(Ticket),
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Job {
    /// Does it, unless it would have to wait for long.
    pub(super) fn run(mut self) -> Run {
        // A panic below must not leave the client waiting for an answer, nor end the worker.
        let result = catch_unwind(AssertUnwindSafe(|| self.perform())).unwrap_or_else(|_| {
            let device = self.export.device().name();
            Err(Error::new(ErrorKind::Io, device, "failed in an unexpected way"))
        });
        let result = match result {
            Ok(Performed::Stalled(ticket)) => return Run::Stalled(self, ticket),
            Ok(Performed::Done(outcome)) => Ok(outcome),
            Err(error) => Err(error),
        };
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Stopped)
        {
            tracing::warn!(export = self.export.name(), request = ?self.request, %error, "failed");
        }
        Run::Done(self.end(result))
    }

    /// Gives it up because of `error`.
    pub(super) fn fail(self, error: Error) -> Done {
        self.end(Err(error))
    }

    fn end(self, result: Result<Outcome>) -> Done {
        let buffer = match self.kind {
            JobKind::Read(buffer) | JobKind::Write(buffer) => Some(buffer),
            JobKind::Bare | JobKind::Status(_) => None,
        };
        Done { request: self.request, result, buffer }
    }

    fn perform(&mut self) -> Result<Performed> {
        let device = self.export.device();
        let request = &self.request;
        let range = ByteRange::new(request.offset, request.length);
        match &mut self.kind {
            JobKind::Read(buffer) => {
                let data = &mut buffer[HEADROOM..HEADROOM + range.len.as_usize()];
                device.read_at(data, range.start)?;
            }
            JobKind::Write(buffer) => {
                let bytes = &buffer[..range.len.as_usize()];
                let attempt = match device.stall() {
                    Some(stall) => stall.try_write(bytes, range.start)?,
                    None => device.write_at(bytes, range.start).map(|()| Attempt::Done)?,
                };
                if let Attempt::Stalled(ticket) = attempt {
                    return Ok(Performed::Stalled(ticket));
                }
            }
            JobKind::Status(ids) => {
                return status(&self.export, ids, request, range).map(Performed::Done);
            }
            JobKind::Bare => match request.command {
                Command::TRIM => device.discard(range)?,
                Command::WRITE_ZEROES => {
                    let mode = zero_mode(request.flags);
                    let attempt = match device.stall() {
                        Some(stall) => stall.try_zero(range, mode)?,
                        None => device.zero(range, mode).map(|()| Attempt::Done)?,
                    };
                    if let Attempt::Stalled(ticket) = attempt {
                        return Ok(Performed::Stalled(ticket));
                    }
                }
                Command::CACHE => warm(&self.export, range)?,
                _ => {}
            },
        }
        let durable = request.command == Command::FLUSH
            || (writes(request.command) && request.flags.contains(CommandFlags::FUA));
        if durable {
            device.flush()?;
        }
        Ok(Performed::Done(Outcome::Plain))
    }
}

/// Whether `command` changes the export.
pub(super) fn writes(command: Command) -> bool {
    matches!(command, Command::WRITE | Command::TRIM | Command::WRITE_ZEROES)
}

fn zero_mode(flags: CommandFlags) -> ZeroMode {
    ZeroMode {
        may_unmap: !flags.contains(CommandFlags::NO_HOLE),
        only_if_fast: flags.contains(CommandFlags::FAST_ZERO),
    }
}

fn status(export: &Export, ids: &[u32], request: &Request, range: ByteRange) -> Result<Outcome> {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let mut answers = Vec::with_capacity(ids.len());
    for (index, context) in export.contexts().iter().enumerate() {
        let id = context_id(index);
        if ids.contains(&id) {
            answers.push((id, gather(context.as_ref(), range, one)?));
        }
    }
    Ok(Outcome::Status(answers))
}

/// Reads the begin of `range`, so that mappings and, where there is a cache, data are in memory.
fn warm(export: &Export, range: ByteRange) -> Result<()> {
    let len = range.len.get().min(MAX_CACHE);
    let mut scratch = AlignedBuf::zeroed(CACHE_STEP.min(len) as usize);
    let mut done = 0;
    while done < len {
        let step = CACHE_STEP.min(len - done);
        let at: ByteOffset = range.start.plus(ByteCount::new(done));
        export.device().read_at(&mut scratch[..step as usize], at)?;
        done += step;
    }
    Ok(())
}
