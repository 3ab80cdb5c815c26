//! The queue by io_uring.
//!
//! Every operation has a slot, which owns its buffer and keeps its files open until the system has
//! answered every entry of it. An entry is named by its slot and, for the pieces of a read or
//! write, the number of the piece. Only the thread that made the ring may enter it (SINGLE_ISSUER).

mod slot;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{fmt, io, mem, ptr};

use block_types::{Error, Result};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode};

use crate::AlignedBuf;
use crate::queue::{Completion, Direction, Interest, Piece};
use slot::{Progress, Slot, Work};

/// The name of entries that cancel others.
const CANCEL: u64 = u64::MAX;

/// Bits of a name that are the slot; above them is the piece.
const SLOT_BITS: u32 = 32;

/// The most bytes of one entry (the length has 32 bits); the rest of a longer piece follows as
/// after a short transfer.
const LONGEST: usize = 1 << 30;

/// One thread's ring and the operations in it.
pub(crate) struct UringQueue {
    ring: IoUring,
    slots: Vec<Slot>,
    /// Slots without an operation.
    free: Vec<usize>,
    /// Answers that were taken out of the ring and not dealt with: name and result.
    answers: VecDeque<(u64, i32)>,
    ready: VecDeque<Completion>,
    /// [`LONGEST`], or less to have everything come in short transfers.
    longest: usize,
}

/// Sets up a ring, with as many of the helpful flags as the system knows.
///
/// Not DEFER_TASKRUN: at depths from 16 it was measured to hand completions over in batches a third
/// to a half as large, and to cost a quarter more processor time for each.
fn build_ring(depth: u32) -> io::Result<IoUring> {
    let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let cooperative = || {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        builder
    };
    // Linux 6.0, then 5.19, then any.
    match cooperative().setup_single_issuer().build(depth) {
        Err(error) if invalid(&error) => {}
        built => return built,
    }
    match cooperative().build(depth) {
        Err(error) if invalid(&error) => IoUring::builder().setup_clamp().build(depth),
        built => built,
    }
}

impl UringQueue {
    /// A ring of `depth` entries, or why there cannot be one.
    pub(crate) fn new(depth: u32) -> io::Result<Self> {
        let ring = build_ring(depth.max(1))?;
        // Linux 5.7: sockets are waited for without a thread each, completions are never dropped.
        if !ring.params().is_feature_fast_poll() || !ring.params().is_feature_nodrop() {
            let problem = "the system's io_uring is older than Linux 5.7";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            answers: VecDeque::new(),
            ready: VecDeque::new(),
            longest: LONGEST,
        })
    }

    /// Queues a read or write of pieces that were checked.
    pub(crate) fn transfer(
        &mut self,
        direction: Direction,
        token: u64,
        buffer: AlignedBuf,
        pieces: impl Iterator<Item = Piece>,
    ) {
        let index = self.occupy(token, Work::Transfer(direction), Some(buffer));
        let slot = &mut self.slots[index];
        slot.pieces.extend(pieces);
        slot.result = Ok(slot.pieces.iter().map(|piece| piece.part.len()).sum());
        let count = slot.pieces.len();
        if count == 0 {
            return self.finish(index);
        }
        // All of them at once, so that the first to be answered does not complete the operation.
        slot.waiting = count;
        for piece in 0..count {
            self.push_entry(index, piece);
        }
    }

    /// Queues a receive.
    pub(crate) fn recv(
        &mut self,
        token: u64,
        socket: BorrowedFd<'_>,
        buffer: AlignedBuf,
        part: Range<usize>,
    ) {
        self.start(token, Work::Recv(socket.as_raw_fd(), part), Some(buffer));
    }

    /// Queues a poll.
    pub(crate) fn poll(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) {
        self.start(token, Work::Poll(fd.as_raw_fd(), interest), None);
    }

    /// Begins an operation of one entry.
    fn start(&mut self, token: u64, work: Work, buffer: Option<AlignedBuf>) {
        let index = self.occupy(token, work, buffer);
        self.slots[index].waiting = 1;
        self.push_entry(index, 0);
    }

    /// Cancels a receive or poll.
    pub(crate) fn cancel(&mut self, token: u64) {
        let mut slots = self.slots.iter();
        if let Some(index) = slots.position(|slot| slot.token == token && slot.work.waits()) {
            self.cancel_slot(index);
        }
    }

    fn cancel_slot(&mut self, index: usize) {
        // If the system has answered already, with a request to try again, nothing is there to be
        // cancelled: the mark keeps it from being tried again.
        self.slots[index].cancelled = true;
        let entry = opcode::AsyncCancel::new(name(index, 0)).build().user_data(CANCEL);
        // If the ring does not take it, submitting will report why.
        let _ = self.push(&entry);
    }

    /// Adds a completion that needed no I/O.
    pub(crate) fn complete(&mut self, completion: Completion) {
        self.ready.push_back(completion);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.active() + self.ready.len()
    }

    /// Operations that the system has not answered in full.
    fn active(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Hands over what is queued, and fetches completions that the system holds back.
    pub(crate) fn submit(&mut self) -> Result<()> {
        loop {
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
            drop(queue);
            self.enter(0).map_err(refused)?;
            self.reap();
        }
    }

    /// Hands over what is queued and waits for one whole operation.
    pub(crate) fn submit_and_wait(&mut self) -> Result<()> {
        self.reap();
        if !self.ready.is_empty() {
            return self.submit();
        }
        while self.ready.is_empty() && self.active() > 0 {
            self.enter(1).map_err(refused)?;
            self.reap();
        }
        Ok(())
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        if self.ready.is_empty() {
            self.reap();
        }
        self.ready.pop_front()
    }

    /// One system call: submits, and waits for `want` entries to be answered.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                // Short of memory, or answers have to be taken first.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    self.fetch();
                    std::thread::yield_now();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Finds a slot for an operation.
    fn occupy(&mut self, token: u64, work: Work, mut buffer: Option<AlignedBuf>) -> usize {
        let base = buffer.as_mut().map_or(ptr::null_mut(), |buffer| buffer.as_mut_ptr());
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::vacant());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        (slot.token, slot.work, slot.buffer, slot.base) = (token, work, buffer, base);
        (slot.waiting, slot.cancelled, slot.result) = (0, false, Ok(0));
        index
    }

    /// Queues the entry for what is left of a piece of an operation.
    fn push_entry(&mut self, index: usize, piece: usize) {
        let entry = self.slots[index].entry(piece, self.longest).user_data(name(index, piece));
        if let Err(error) = self.push(&entry) {
            self.answered(index, Err(error));
        }
    }

    /// Puts an entry in the ring, submitting what is there if it is full.
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: an entry points to nothing but the buffer of its slot. The slot owns that
            // until the entry is answered: `finish` takes it out only when no entry is waiting,
            // `Drop` waits for all of them or leaks it, and a buffer's bytes do not move.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// Takes answers out of the ring.
    fn fetch(&mut self) {
        let answers = self.ring.completion();
        self.answers.extend(answers.map(|answer| (answer.user_data(), answer.result())));
    }

    /// Deals with every answer that is there.
    fn reap(&mut self) {
        self.fetch();
        while let Some((name, result)) = self.answers.pop_front() {
            if name != CANCEL {
                self.answer(name, result);
            }
        }
    }

    /// Deals with the answer to one entry.
    fn answer(&mut self, name: u64, result: i32) {
        let index = (name & ((1 << SLOT_BITS) - 1)) as usize;
        let piece = (name >> SLOT_BITS) as usize;
        match self.slots[index].progress(piece, result) {
            Progress::Again => self.push_entry(index, piece),
            Progress::Done(result) => self.answered(index, result),
        }
    }

    /// Notes that an entry is done; completes the operation with its last one.
    fn answered(&mut self, index: usize, result: io::Result<usize>) {
        let slot = &mut self.slots[index];
        slot.waiting -= 1;
        slot.result = match (mem::replace(&mut slot.result, Ok(0)), result) {
            (Ok(sum), Ok(more)) => Ok(sum + more),
            (Err(first), _) | (Ok(_), Err(first)) => Err(first),
        };
        if slot.waiting == 0 {
            self.finish(index);
        }
    }

    /// Completes an operation of which no entry is waiting.
    fn finish(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let result = mem::replace(&mut slot.result, Ok(0));
        slot.pieces.clear();
        slot.work = Work::Nothing;
        let buffer = slot.buffer.take();
        self.ready.push_back(Completion { token: slot.token, result, buffer });
        self.free.push(index);
    }
}

/// The name of an entry.
fn name(index: usize, piece: usize) -> u64 {
    index as u64 | (piece as u64) << SLOT_BITS
}

fn refused(error: io::Error) -> Error {
    Error::io("I/O queue", "the ring cannot be entered", error)
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].work.waits() {
                self.cancel_slot(index);
            }
        }
        while self.slots.iter().any(|slot| slot.waiting > 0) {
            if self.enter(1).is_err() {
                // The system may still write to the buffers: they are never to be used again.
                mem::forget(mem::take(&mut self.slots));
                return;
            }
            self.reap();
        }
    }
}

impl fmt::Debug for UringQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringQueue({} in flight)", self.in_flight())
    }
}

#[cfg(test)]
mod tests;
