//! Ending connections: in good order, and by force.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use block_io::{BlockDevice, CacheMode, Limits, MemoryDevice, QueueChoice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, Result};
use common::{QUEUES, Served, at, file, pattern};
use nbd::wire::{Command, Dialect};
use nbd::{Client, Export};

const SIZE: u64 = 8 << 20;

/// Memory whose writes wait until they may go on.
struct Gate {
    memory: MemoryDevice,
    open: AtomicBool,
    waiting: AtomicUsize,
}

impl Gate {
    fn new() -> Arc<Self> {
        let memory = MemoryDevice::new("gate", ByteCount::new(SIZE));
        Arc::new(Self { memory, open: AtomicBool::new(false), waiting: AtomicUsize::new(0) })
    }

    fn waits(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

impl BlockDevice for Gate {
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

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while !self.open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.memory.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.memory.zero(range, mode)
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
}

#[test]
fn requests_in_flight_are_answered_before_the_end() {
    for queue in QUEUES {
        let gate = Gate::new();
        let served = Served::new(gate.clone(), queue);
        let mut raw = served.raw(Dialect::Structured);
        let (cookie, bytes) = raw.request(Command::WRITE, 0, 0, 4096, &[7; 4096]);
        raw.stream.write_all(&bytes).unwrap();
        common::wait_for("the write to begin", || gate.waits());
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| served.server.shutdown(Duration::from_secs(20)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!ending.is_finished(), "the write is still in flight");
            gate.open.store(true, Ordering::SeqCst);
            assert!(ending.join().unwrap(), "ended in good order");
        });
        let reply = raw.replies(1, &HashMap::new());
        assert_eq!(reply[&cookie].error, None);
        assert!(raw.is_closed());
        assert_eq!(gate.memory.to_bytes()[..4096], [7; 4096]);
        let refused = Client::connect(&served.uri()).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Io | ErrorKind::NotFound), "{refused}");
    }
}

#[test]
fn idle_clients_and_handshakes_do_not_hold_a_shutdown_up() {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(file(dir.path(), "direct", SIZE, CacheMode::Direct));
        let served = Served::new(device, queue);
        // One waits in a plain receive, one in its queue, one in the handshake.
        let idle = served.client();
        let used = served.client();
        used.write_at(&pattern(1, 4096), at(0)).unwrap();
        used.flush().unwrap();
        let _silent = common::raw::Raw::connect(&served.socket());
        common::wait_for("three clients", || served.server.clients().len() == 3);
        let begin = Instant::now();
        assert!(served.server.shutdown(Duration::from_secs(10)));
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(!served.socket().exists(), "the socket is removed");
        for client in [idle, used] {
            let error = client.flush().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::Stopped);
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off_at_the_deadline() {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(file(dir.path(), "cached", SIZE, CacheMode::Cached));
        let served = Served::new(device, queue);
        let mut raw = served.raw(Dialect::Simple);
        let (_, request) = raw.request(Command::READ, 0, 0, 1 << 20, &[]);
        raw.stream.write_all(&request.repeat(30)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        assert!(!served.server.shutdown(Duration::from_millis(300)), "not in good order");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        assert_eq!(served.server.clients(), []);
    }
}

#[test]
fn an_export_is_withdrawn_and_the_others_go_on() {
    let memory = |name| Arc::new(MemoryDevice::new(name, ByteCount::new(SIZE)));
    let served = Served::new(memory("disk"), QueueChoice::Auto);
    served.exports.insert(Export::new("other", memory("other")).unwrap());
    let victim = served.client();
    let other = Client::connect(&nbd::Uri::unix(served.socket(), "other")).unwrap();
    victim.write_at(&[1; 512], at(0)).unwrap();

    let export = served.exports.remove("disk").unwrap();
    assert!(served.server.disconnect_export("disk", Duration::from_secs(5)));
    assert_eq!(Arc::strong_count(&export), 1, "no connection uses the device any more");
    assert!(victim.flush().is_err());
    other.flush().unwrap();
    let error = Client::connect(&served.uri()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    common::wait_for("the refused one to go", || served.server.clients().len() == 1);
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_used_one_is_not() {
    let served =
        Served::new(Arc::new(MemoryDevice::new("disk", ByteCount::new(SIZE))), QueueChoice::Auto);
    let error = nbd::Listener::unix(served.socket()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let stale = served.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    drop(nbd::Listener::unix(&stale).unwrap());
    let plain = served.dir.path().join("plain");
    std::fs::write(&plain, "not a socket").unwrap();
    assert_eq!(nbd::Listener::unix(&plain).unwrap_err().kind(), ErrorKind::Exists);
}
