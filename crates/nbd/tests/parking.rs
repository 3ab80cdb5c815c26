//! Writes that have to wait for space are put aside: they cost no worker, and end with the space,
//! with their client and with the server.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_io::{Attempt, BlockDevice, Limits, MemoryDevice, QueueChoice, Stall, Ticket, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use common::raw::Raw;
use common::{QUEUES, Served};
use nbd::wire::{Command, Dialect, Errno};

const SIZE: u64 = 8 << 20;
/// More than any server has workers.
const WRITES: u64 = 40;
/// What is there from the start.
const ROOM: u64 = 1 << 20;

/// Memory with room for so many bytes only: writes behind that have to wait.
struct Tight {
    memory: MemoryDevice,
    room: AtomicU64,
}

impl Tight {
    fn new() -> Arc<Self> {
        let memory = MemoryDevice::new("tight", ByteCount::new(SIZE));
        Arc::new(Self { memory, room: AtomicU64::new(ROOM) })
    }

    fn try_at(&self, range: ByteRange, work: impl FnOnce() -> Result<()>) -> Result<Attempt> {
        let room = self.room.load(Ordering::SeqCst);
        if range.end().get() > room {
            return Ok(Attempt::Stalled(Ticket(room)));
        }
        work().map(|()| Attempt::Done)
    }
}

impl Stall for Tight {
    fn try_write(&self, bytes: &[u8], at: ByteOffset) -> Result<Attempt> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        self.try_at(range, || self.memory.write_at(bytes, at))
    }

    fn try_zero(&self, range: ByteRange, mode: ZeroMode) -> Result<Attempt> {
        self.try_at(range, || self.memory.zero(range, mode))
    }

    fn await_change(&self, ticket: Ticket, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.room.load(Ordering::SeqCst) == ticket.0 {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl BlockDevice for Tight {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn size(&self) -> ByteCount {
        self.memory.size()
    }

    fn limits(&self) -> Limits {
        self.memory.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.memory.read_at(buffer, at)
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> Result<()> {
        panic!("a server tries writes, and does not wait in them");
    }

    fn zero(&self, _: ByteRange, _: ZeroMode) -> Result<()> {
        panic!("a server tries zeroing, and does not wait in it");
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.memory.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.memory.extents(range, each)
    }

    fn stall(&self) -> Option<&dyn Stall> {
        Some(self)
    }
}

/// A client with many writes that have to wait, and their cookies.
fn waiting(served: &Served) -> (Raw, Vec<u64>) {
    let mut raw = served.raw(Dialect::Structured);
    let mut cookies = Vec::new();
    for number in 0..WRITES {
        let offset = ROOM + number * 4096;
        let (command, bytes) = match number % 4 {
            0 => (Command::WRITE_ZEROES, Vec::new()),
            _ => (Command::WRITE, vec![number as u8; 4096]),
        };
        let (cookie, bytes) = raw.request(command, 0, offset, 4096, &bytes);
        raw.stream.write_all(&bytes).unwrap();
        cookies.push(cookie);
    }
    (raw, cookies)
}

fn go_on(served: &Served) {
    let other = served.client();
    other.write_at(&[9; 4096], ByteOffset::ZERO).unwrap();
    other.flush().unwrap();
    let mut bytes = [0; 4096];
    other.read_at(&mut bytes, ByteOffset::ZERO).unwrap();
    assert_eq!(bytes, [9; 4096]);
}

#[test]
fn writes_that_wait_hold_nobody_up_and_end_with_the_space() {
    for queue in QUEUES {
        let tight = Tight::new();
        let served = Served::new(tight.clone(), queue);
        let (mut raw, cookies) = waiting(&served);
        go_on(&served);
        // The same connection goes on, too.
        let read = raw.call(Command::READ, 0, 0, 4096);
        assert_eq!(read.error, None);
        // Space comes in two steps.
        for room in [ROOM + 10 * 4096, SIZE] {
            tight.room.store(room, Ordering::SeqCst);
            let part = if room == SIZE { &cookies[10..] } else { &cookies[..10] };
            let replies = raw.replies(part.len(), &HashMap::new());
            for cookie in part {
                assert_eq!(replies[cookie].error, None);
            }
        }
        for number in 0..WRITES {
            let expected = if number % 4 == 0 { 0 } else { number as u8 };
            let start = (ROOM + number * 4096) as usize;
            assert_eq!(tight.memory.to_bytes()[start..start + 4096], [expected; 4096]);
        }
    }
}

#[test]
fn writes_that_wait_are_given_up_when_the_server_ends() {
    let served = Served::new(Tight::new(), QueueChoice::Auto);
    let (mut raw, cookies) = waiting(&served);
    go_on(&served);
    let begin = Instant::now();
    assert!(served.server.shutdown(Duration::from_secs(20)), "in good order");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let replies = raw.replies(cookies.len(), &HashMap::new());
    for cookie in cookies {
        assert_eq!(replies[&cookie].error, Some(Errno::Shutdown));
    }
}

#[test]
fn writes_that_wait_are_given_up_when_their_client_leaves() {
    let served = Served::new(Tight::new(), QueueChoice::Auto);
    let (raw, _) = waiting(&served);
    go_on(&served);
    drop(raw);
    served.wait_until_alone();
}
