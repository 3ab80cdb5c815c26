//! Server and own client, in every dialect, on every kind of device, with both I/O backends.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_io::{
    BlockDevice, CacheMode, FaultCalls, FaultPlan, FaultyDevice, FileOptions, HostFile, Limits,
    MemoryDevice, QueueChoice, ZeroMode,
};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, ExtentState, Result};
use common::patchwork::{BLOCK, Patchwork};
use common::raw::Raw;
use common::{DIALECTS, QUEUES, Served, at, file, options, pattern};
use nbd::wire::{Command, Dialect, Errno, TransmissionFlags};
use nbd::{Client, Export, ExportSource, ExportTable, Listener, Server, Transport, Uri};

const SIZE: u64 = 8 << 20;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(at(start), ByteCount::new(len))
}

fn extents(device: &dyn BlockDevice, range: ByteRange) -> Vec<(u64, u64, ExtentState)> {
    let mut found: Vec<(u64, u64, ExtentState)> = Vec::new();
    device
        .extents(range, &mut |Extent { range, state }| {
            match found.last_mut() {
                Some(last) if last.2 == state => last.1 += range.len.get(),
                _ => found.push((range.start.get(), range.len.get(), state)),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

/// The devices that a server sees as different: resolving or not, cached or direct, whole or torn.
fn devices(dir: &std::path::Path) -> Vec<(&'static str, Arc<dyn BlockDevice>)> {
    let pair = [CacheMode::Cached, CacheMode::Direct];
    let patches = pair.map(|cache| file(dir, &format!("patch-{cache:?}"), SIZE, cache));
    vec![
        ("memory", Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)))),
        ("cached", Arc::new(file(dir, "cached", SIZE, CacheMode::Cached))),
        ("direct", Arc::new(file(dir, "direct", SIZE, CacheMode::Direct))),
        ("patchwork", Arc::new(Patchwork::new(patches, SIZE / BLOCK))),
    ]
}

/// Calls `test` with a client for every device, backend and dialect.
fn everywhere(test: impl Fn(&str, &Client, &dyn BlockDevice)) {
    for queue in QUEUES {
        for dialect in DIALECTS {
            let dir = tempfile::tempdir().unwrap();
            for (name, device) in devices(dir.path()) {
                let served = Served::new(Arc::clone(&device), queue);
                let client = served.client_of(dialect);
                test(&format!("{name}, {queue:?}, {dialect:?}"), &client, &*device);
            }
        }
    }
}

#[test]
fn what_is_written_is_read() {
    everywhere(|what, client, device| {
        // Sizes on both sides of every threshold: inline, joined, receive buffer, queue, payload.
        for (index, len) in [512, 4096, 12 << 10, 60 << 10, 68 << 10, 200 << 10, 256 << 10, 1 << 20]
            .into_iter()
            .enumerate()
        {
            let offset = index as u64 * (1 << 20) - index as u64 * 512;
            let bytes = pattern(offset + 7, len);
            client.write_at(&bytes, at(offset)).unwrap();
            let mut through = vec![0; len];
            client.read_at(&mut through, at(offset)).unwrap();
            assert!(through == bytes, "{what}: {len} bytes through the client");
            let mut behind = vec![0; len];
            device.read_at(&mut behind, at(offset)).unwrap();
            assert!(behind == bytes, "{what}: {len} bytes behind the server");
        }
        client.flush().unwrap();
    });
}

#[test]
fn a_request_longer_than_a_payload_is_cut() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(80 << 20)));
    let served = Served::new(device.clone(), QueueChoice::Auto);
    let bytes = pattern(3, 70 << 20);
    let client = served.client();
    client.write_at(&bytes, at(1)).unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_at(&mut back, at(1)).unwrap();
    assert!(back == bytes && device.to_bytes()[1..][..bytes.len()] == bytes);
}

#[test]
fn zero_and_discard() {
    everywhere(|what, client, device| {
        client.write_at(&pattern(1, 256 << 10), at(0)).unwrap();
        for (start, may_unmap) in [(0, true), (64 << 10, false)] {
            client
                .zero(range(start, 32 << 10), ZeroMode { may_unmap, only_if_fast: false })
                .unwrap();
        }
        client.discard(range(128 << 10, 64 << 10)).unwrap();
        let mut bytes = vec![1; 256 << 10];
        client.read_at(&mut bytes, at(0)).unwrap();
        for (start, end) in [(0, 32), (64, 96)] {
            assert!(bytes[start << 10..end << 10].iter().all(|&byte| byte == 0), "{what}");
        }
        assert!(bytes[192 << 10..] == pattern(1, 256 << 10)[192 << 10..], "{what}");
        let mut behind = vec![1; 256 << 10];
        device.read_at(&mut behind, at(0)).unwrap();
        assert!(bytes == behind, "{what}");
    });
}

#[test]
fn extents_are_the_devices() {
    everywhere(|what, client, device| {
        for block in [0, 1, 5, 100] {
            client.write_at(&pattern(block, BLOCK as usize), at(block * BLOCK)).unwrap();
        }
        let whole = range(0, SIZE);
        let expected = extents(device, whole);
        if client.dialect() == Dialect::Simple {
            assert_eq!(extents(client, whole), [(0, SIZE, ExtentState::Data)], "{what}");
        } else {
            assert!(expected.len() >= 6, "{what}: {expected:?}");
            assert_eq!(extents(client, whole), expected, "{what}");
            let inside = range(BLOCK + 512, 5 * BLOCK);
            assert_eq!(extents(client, inside), extents(device, inside), "{what}");
        }
    });
}

#[test]
fn errors_come_through_with_their_kind() {
    for dialect in DIALECTS {
        for (kind, expected) in [
            (ErrorKind::Io, ErrorKind::Io),
            (ErrorKind::OutOfSpace, ErrorKind::OutOfSpace),
            (ErrorKind::ReadOnly, ErrorKind::ReadOnly),
            (ErrorKind::Unsupported, ErrorKind::Unsupported),
            (ErrorKind::Stopped, ErrorKind::Io),
            (ErrorKind::Corrupt, ErrorKind::Io),
            (ErrorKind::Cancelled, ErrorKind::Stopped),
        ] {
            let memory = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
            let plan = FaultPlan { fail_at: 1, calls: FaultCalls::ALL, kind, sticky: false };
            let faulty = FaultyDevice::new(memory, plan);
            let served = Served::new(faulty.clone(), QueueChoice::Auto);
            let client = served.client_of(dialect);
            let calls: [&dyn Fn() -> block_types::Result<()>; 6] = [
                &|| client.read_at(&mut [0; 4096], at(0)),
                &|| client.write_at(&[1; 4096], at(0)),
                &|| client.zero(range(0, 4096), ZeroMode::default()),
                &|| client.discard(range(0, 4096)),
                &|| client.flush(),
                &|| client.write_at(&vec![1; 1 << 20], at(0)),
            ];
            for (number, call) in calls.iter().enumerate() {
                faulty.arm(plan);
                let error = call().expect_err("the device failed");
                assert_eq!(error.kind(), expected, "call {number}, {dialect:?}: {error}");
                if dialect != Dialect::Simple {
                    assert!(error.to_string().contains("as planned"), "{error}");
                }
                call().expect("the connection goes on");
            }
        }
    }
}

#[test]
fn a_forced_write_is_flushed_before_its_answer() {
    let memory = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 0, calls, kind: ErrorKind::Io, sticky: false };
    let device = FaultyDevice::new(memory, plan);
    let served = Served::new(device.clone(), QueueChoice::Auto);
    let mut raw = served.raw(Dialect::Structured);
    for (command, payload) in
        [(Command::WRITE, &[7; 4096][..]), (Command::TRIM, &[]), (Command::WRITE_ZEROES, &[])]
    {
        let before = device.counted();
        assert_eq!(raw.call_with(command, 0, 0, 4096, payload).error, None);
        assert_eq!(device.counted(), before, "{command:?} without FUA");
        assert_eq!(raw.call_with(command, 1, 0, 4096, payload).error, None);
        assert_eq!(device.counted(), before + 1, "{command:?} with FUA");
    }
    assert_eq!(raw.call(Command::READ, 1, 0, 4096).error, None);
    assert_eq!(device.counted(), 3, "FUA means nothing on a read");
}

#[test]
fn a_forced_write_to_places_of_files_is_flushed_too() {
    // I/O on places goes past the device, and so past its flush: FUA must not take that path.
    let dir = tempfile::tempdir().unwrap();
    let pair = [CacheMode::Cached, CacheMode::Direct];
    let files = pair.map(|cache| file(dir.path(), &format!("{cache:?}"), SIZE, cache));
    let device = Arc::new(Patchwork::new(files, SIZE / BLOCK));
    device.write_at(&pattern(1, 2 << 20), at(0)).unwrap();
    let served = Served::new(device.clone(), QueueChoice::Auto);
    let mut raw = served.raw(Dialect::Extended);
    for len in [4096, BLOCK, 128 << 10, 1 << 20] {
        for flags in [0, 1] {
            let before = device.flushes.load(Ordering::SeqCst);
            let bytes = pattern(len + u64::from(flags), len as usize);
            assert_eq!(raw.call_with(Command::WRITE, flags, 0, len, &bytes).error, None);
            let flushes = device.flushes.load(Ordering::SeqCst) - before;
            assert_eq!(flushes, u64::from(flags), "{len} bytes");
            let mut behind = vec![0; len as usize];
            device.read_at(&mut behind, at(0)).unwrap();
            assert!(behind == bytes, "{len} bytes");
        }
    }
}

#[test]
fn limits_and_flags_are_the_devices() {
    let dir = tempfile::tempdir().unwrap();
    let direct = file(dir.path(), "direct", SIZE, CacheMode::Direct);
    let limits = direct.limits();
    let served = Served::new(Arc::new(direct), QueueChoice::Auto);
    let client = served.client();
    assert_eq!(client.limits(), limits);
    assert_eq!(client.size(), ByteCount::new(SIZE));

    let path = dir.path().join("direct");
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    let read_only = HostFile::open(&path, options).unwrap();
    let served = Served::new(Arc::new(read_only), QueueChoice::Auto);
    let client = served.client();
    assert!(client.limits().read_only && client.flags().contains(TransmissionFlags::READ_ONLY));
    assert_eq!(client.write_at(&[0; 512], at(0)).unwrap_err().kind(), ErrorKind::ReadOnly);
    let mut raw = served.raw(Dialect::Structured);
    for command in [Command::TRIM, Command::WRITE_ZEROES] {
        assert_eq!(raw.call(command, 0, 0, 512).error, Some(Errno::Perm));
    }
}

#[test]
fn a_broken_last_block_is_left_out_and_unaligned_requests_are_refused() {
    let memory = MemoryDevice::new("memory", ByteCount::new(SIZE + 100));
    let served = Served::new(Arc::new(Coarse(memory)), QueueChoice::Auto);
    let client = served.client();
    assert_eq!(
        (client.size(), client.limits().minimum),
        (ByteCount::new(SIZE), ByteCount::new(512))
    );
    for (offset, len) in [(1, 512), (512, 100), (256, 256)] {
        let error = client.read_at(&mut vec![0; len], at(offset)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = client.write_at(&vec![0; len], at(offset)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let zeroes = client.zero(range(offset, len as u64), ZeroMode::default());
        assert_eq!(zeroes.unwrap_err().kind(), ErrorKind::Invalid);
    }
    client.write_at(&[1; 512], at(SIZE - 512)).expect("the connection goes on");
}

/// Memory with blocks of 512 bytes.
struct Coarse(MemoryDevice);

impl BlockDevice for Coarse {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn size(&self) -> ByteCount {
        self.0.size()
    }

    fn limits(&self) -> Limits {
        Limits { minimum: ByteCount::new(512), ..self.0.limits() }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.0.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.0.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.0.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.0.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.0.extents(range, each)
    }
}

#[test]
fn a_writable_device_can_be_served_read_only() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    let export = Export::new("disk", device.clone()).unwrap().read_only();
    let served = Served::with(export, options(QueueChoice::Auto));
    let reply = served.raw(Dialect::Simple).call_with(Command::WRITE, 0, 0, 512, &[9; 512]);
    assert_eq!(reply.error, Some(Errno::Perm));
    assert!(device.to_bytes().iter().all(|&byte| byte == 0));
}

#[test]
fn exports_are_found_listed_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let exports = Arc::new(ExportTable::new());
    for (name, size) in [("a", 1 << 20), ("b", 2 << 20)] {
        let device = Arc::new(MemoryDevice::new(name, ByteCount::new(size)));
        exports.insert(Export::new(name, device).unwrap().described(format!("disk {name}")));
    }
    let tcp = Listener::tcp("127.0.0.1:0").unwrap();
    let port = tcp.tcp_address().unwrap().port();
    let listeners = vec![Listener::unix(&socket).unwrap(), tcp];
    let source: Arc<dyn ExportSource> = exports.clone();
    let server = Server::start(listeners, source, options(QueueChoice::Auto)).unwrap();

    let transports =
        [Transport::Unix(socket), Transport::Tcp { host: "127.0.0.1".to_owned(), port }];
    for transport in transports {
        let listed = Client::list(&transport).unwrap();
        let names: Vec<_> =
            listed.iter().map(|entry| (&*entry.name, &*entry.description)).collect();
        assert_eq!(names, [("a", "disk a"), ("b", "disk b")]);
        let uri = |export: &str| Uri { transport: transport.clone(), export: export.to_owned() };
        let client = Client::connect(&uri("b")).unwrap();
        assert_eq!(client.size(), ByteCount::new(2 << 20));
        client.write_at(&[5; 4096], at(4096)).unwrap();
        for missing in ["", "c"] {
            let error = Client::connect(&uri(missing)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
        let shown: Vec<_> =
            server.clients().into_iter().filter_map(|client| client.export).collect();
        assert_eq!(shown, ["b"]);
        drop(client);
        common::wait_for("the client to go", || server.clients().is_empty());
    }
}

#[test]
fn a_socket_pair_is_a_connection_too() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    let export = Export::new("", device).unwrap();
    let source = Arc::new(ExportTable::single(export));
    let server = Server::start(Vec::new(), source, options(QueueChoice::Auto)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.serve(theirs.into(), "the other end").unwrap();
    let client = Client::over(ours.into(), "", "pair", Dialect::Extended).unwrap();
    client.write_at(&[1; 100], at(100)).unwrap();
    assert_eq!(server.clients()[0].peer, "the other end");
}

#[test]
fn holes_are_told_apart_only_if_the_client_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    for queue in QUEUES {
        let pair = [CacheMode::Cached, CacheMode::Direct];
        let files =
            pair.map(|cache| file(dir.path(), &format!("{queue:?}-{cache:?}"), SIZE, cache));
        let device = Arc::new(Patchwork::new(files, SIZE / BLOCK));
        let bytes = pattern(11, 3 * BLOCK as usize);
        for block in [1, 2, 4] {
            let part = &bytes[..BLOCK as usize];
            device.write_at(part, at(block * BLOCK)).unwrap();
        }
        let served = Served::new(device.clone(), queue);
        let (start, len) = (512, 6 * BLOCK - 1024);
        let mut expected = vec![0; len as usize];
        device.read_at(&mut expected, at(start)).unwrap();
        for dialect in DIALECTS {
            let mut raw = served.raw(dialect);
            let reply = raw.call(Command::READ, 0, start, len);
            assert!(reply.bytes(start, len as usize) == expected, "{dialect:?}");
            let runs = (reply.data.len(), reply.holes.len());
            if dialect == Dialect::Simple {
                assert_eq!(runs, (1, 0));
                continue;
            }
            assert_eq!(runs, (2, 3), "{dialect:?}");
            assert_eq!(reply.holes[0], (start, BLOCK - 512));
            // DF: one run of data.
            let reply = raw.call(Command::READ, 4, start, len);
            assert!(reply.bytes(start, len as usize) == expected, "{dialect:?}");
            assert_eq!((reply.data.len(), reply.holes.len()), (1, 0));
            // Nothing but a hole.
            let reply = raw.call(Command::READ, 0, 8 * BLOCK, 4 * BLOCK);
            assert_eq!(reply.holes, [(8 * BLOCK, 4 * BLOCK)]);
        }
    }
}

#[test]
fn block_status_of_one_extent() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    device.write_at(&pattern(1, 8192), at(4096)).unwrap();
    let served = Served::new(device, QueueChoice::Auto);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut raw = served.raw(dialect);
        let all = raw.call(Command::BLOCK_STATUS, 0, 0, SIZE);
        let lengths = |reply: &common::raw::Reply| -> Vec<(u64, u64)> {
            assert_eq!(reply.status.len(), 1);
            reply.status[0].1.iter().map(|extent| (extent.length.get(), extent.flags)).collect()
        };
        assert_eq!(lengths(&all), [(4096, 2), (8192, 0), (SIZE - 12288, 2)]);
        let one = raw.call(Command::BLOCK_STATUS, 8, 4096, SIZE - 4096);
        assert_eq!(lengths(&one), [(8192, 0)]);
        // Without contexts there is no such command.
        let mut raw = Raw::begin(&served.socket(), dialect, &[]);
        let refused = raw.call(Command::BLOCK_STATUS, 0, 0, SIZE);
        assert_eq!(refused.error, Some(Errno::Invalid));
    }
}

#[test]
fn empty_requests_are_answered() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    let served = Served::new(device, QueueChoice::Auto);
    for dialect in DIALECTS {
        let mut raw = served.raw(dialect);
        for command in [Command::READ, Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
            assert_eq!(raw.call(command, 0, 512, 0).error, None, "{command:?}");
        }
        assert_eq!(raw.call(Command::CACHE, 0, 0, SIZE).error, None);
    }
}
