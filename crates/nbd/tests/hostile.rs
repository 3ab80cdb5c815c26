//! Clients that do what no honest client does. Each costs its own connection, and nothing else: in
//! the end of every test an honest client is served as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_io::{BlockDevice, CacheMode, MemoryDevice, QueueChoice};
use block_types::ByteCount;
use common::patchwork::{BLOCK, Patchwork};
use common::raw::{Raw, answers, closed};
use common::{DIALECTS, QUEUES, Served, at, file, pattern};
use nbd::wire::{
    Answer, ClientOption, Command, Dialect, Errno, GREETING_LEN, InfoQuery, ReplyType,
};

const SIZE: u64 = 8 << 20;

fn memory() -> (Served, Arc<MemoryDevice>) {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    device.write_at(&pattern(1, 1 << 20), at(0)).unwrap();
    (Served::new(device.clone(), QueueChoice::Auto), device)
}

/// An honest client finds what was written when the test began.
fn still_serves(served: &Served) {
    let mut bytes = vec![0; 1 << 20];
    served.client().read_at(&mut bytes, at(0)).unwrap();
    assert!(bytes == pattern(1, 1 << 20));
    served.wait_until_alone();
}

/// A connection that has read the greeting.
fn greeted(served: &Served) -> UnixStream {
    let mut stream = Raw::connect(&served.socket());
    stream.read_exact(&mut [0; GREETING_LEN]).unwrap();
    stream
}

fn option(code: u32, claimed: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&claimed.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn nonsense_instead_of_a_handshake() {
    let (served, _) = memory();
    for nonsense in [
        &b"\xff\xff\xff\xff"[..],                        // unknown flags
        b"\0\0\0\0",                                     // not fixed newstyle
        b"\0\0\0\x01GET / HTTP/1.1\r\n\r\n",             // another protocol
        b"\0\0\0\x01IHAVEOPT\0\0\0\x03\xff\xff\xff\xff", // 4 GiB of option
        b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\x04nope",   // EXPORT_NAME of nothing
    ] {
        let mut stream = greeted(&served);
        stream.write_all(nonsense).unwrap();
        assert!(closed(&mut stream), "{nonsense:?}");
    }
    still_serves(&served);
}

#[test]
fn an_option_that_is_too_long_is_answered_and_the_next_one_read() {
    let (served, _) = memory();
    let mut stream = greeted(&served);
    stream.write_all(b"\0\0\0\x03").unwrap();
    let long = vec![b'x'; 1 << 20];
    stream.write_all(&option(9, 1 << 20, &long)).unwrap();
    let Some(Answer::Error(error)) = answers(&mut stream).pop() else { panic!("no error") };
    assert_eq!(error.reply, ReplyType::ERR_TOO_BIG);
    let mut go = Vec::new();
    let query = InfoQuery { name: "disk".to_owned(), wanted: Vec::new() };
    ClientOption::Go(query).push(&mut go);
    stream.write_all(&go).unwrap();
    assert_eq!(answers(&mut stream).pop(), Some(Answer::Ack));
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended() {
    let (served, _) = memory();
    let begin = Instant::now();
    let mut silent = Raw::connect(&served.socket());
    let mut half = greeted(&served);
    half.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x10\0half").unwrap();
    // One that sends a byte now and then gets no more time.
    let mut slow = greeted(&served);
    let dripping = std::thread::spawn(move || {
        while slow.write_all(b"\0").is_ok() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    still_serves_beside(&served);
    assert!(closed(&mut silent) && closed(&mut half));
    dripping.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    still_serves(&served);
}

fn still_serves_beside(served: &Served) {
    let mut bytes = vec![0; 4096];
    served.client().read_at(&mut bytes, at(0)).unwrap();
    assert!(bytes == pattern(1, 4096));
}

#[test]
fn a_wrong_magic_ends_the_connection_after_what_came_before() {
    let (served, _) = memory();
    for dialect in DIALECTS {
        let mut raw = served.raw(dialect);
        let (cookie, mut bytes) = raw.request(Command::FLUSH, 0, 0, 0, &[]);
        bytes.extend_from_slice(&[0x5a; 64]);
        raw.stream.write_all(&bytes).unwrap();
        assert!(raw.replies(1, &Default::default()).contains_key(&cookie));
        assert!(raw.is_closed(), "{dialect:?}");
    }
    still_serves(&served);
}

#[test]
fn requests_that_are_refused_leave_the_stream_in_step() {
    let (served, device) = memory();
    for dialect in DIALECTS {
        let mut raw = served.raw(dialect);
        let payload = pattern(9, 1 << 20);
        for (command, flags, offset, length, errno) in [
            (Command::READ, 0, SIZE, 1, Errno::Invalid),
            (Command::READ, 0, u64::MAX, 512, Errno::Invalid),
            (Command::READ, 0, 0, (32 << 20) + 1, Errno::Invalid),
            (Command::READ, 0x8000, 0, 512, Errno::Invalid),
            (Command::WRITE, 0, SIZE - 100, 101, Errno::NoSpace),
            (Command::WRITE, 0, u64::MAX - 5, 1 << 20, Errno::NoSpace),
            (Command::WRITE, 2, 0, 300_000, Errno::Invalid),
            (Command::TRIM, 0, SIZE, 1, Errno::Invalid),
            (Command::WRITE_ZEROES, 0, SIZE, 1, Errno::NoSpace),
            (Command::WRITE_ZEROES, 8, 0, 1, Errno::Invalid),
            (Command(8), 0, 0, 512, Errno::Invalid),
            (Command(0xffff), 0, 0, 512, Errno::Invalid),
        ] {
            let sent = if command == Command::WRITE { &payload[..length as usize] } else { &[] };
            let reply = raw.call_with(command, flags, offset, length, sent);
            assert_eq!(reply.error, Some(errno), "{command:?} {flags} {offset} {length}");
        }
        assert_eq!(raw.call(Command::READ, 0, 0, 512).bytes(0, 512), pattern(1, 512));
    }
    assert_eq!(device.to_bytes()[..1 << 20], pattern(1, 1 << 20), "nothing was written");
    still_serves(&served);
}

#[test]
fn a_payload_nobody_could_mean_ends_the_connection() {
    let (served, _) = memory();
    for dialect in DIALECTS {
        let mut raw = served.raw(dialect);
        let (_, bytes) = raw.request(Command::WRITE, 0, 0, u32::MAX.into(), &[1; 100]);
        raw.stream.write_all(&bytes).unwrap();
        assert!(raw.is_closed(), "{dialect:?}");
    }
    // Extended headers can claim a payload for any command, of any length.
    let mut raw = served.raw(Dialect::Extended);
    let (_, bytes) = raw.request(Command::READ, 32, 0, u64::MAX, &[1; 100]);
    raw.stream.write_all(&bytes).unwrap();
    assert!(raw.is_closed());
    let mut raw = served.raw(Dialect::Extended);
    let reply = raw.call_with(Command::BLOCK_STATUS, 32, 0, 12, &[1; 12]);
    assert_eq!(reply.error, Some(Errno::Invalid), "effect lengths were not negotiated");
    assert_eq!(raw.call(Command::FLUSH, 0, 0, 0).error, None);
    drop(raw);
    still_serves(&served);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_payload_writes_nothing() {
    let (served, device) = memory();
    for dialect in DIALECTS {
        for (length, sent) in [(4096, 100), (128 << 10, 70 << 10), (16 << 20, 5 << 20), (4096, 0)] {
            let mut raw = served.raw(dialect);
            let (_, bytes) = raw.request(Command::WRITE, 0, 0, length, &vec![0xEE; sent]);
            let _ = raw.stream.write_all(&bytes);
        }
        // In the middle of a head.
        let mut raw = served.raw(dialect);
        let (_, bytes) = raw.request(Command::WRITE, 0, 0, 512, &[0xEE; 512]);
        raw.stream.write_all(&bytes[..10]).unwrap();
    }
    served.wait_until_alone();
    assert_eq!(device.to_bytes()[..1 << 20], pattern(1, 1 << 20));
    still_serves(&served);
}

#[test]
fn a_half_open_client_gets_its_answers() {
    let (served, _) = memory();
    for queue_depth in [1, 40] {
        let mut raw = served.raw(Dialect::Structured);
        let mut reads = std::collections::HashMap::new();
        let mut all = Vec::new();
        for number in 0..queue_depth {
            let offset = number * 4096;
            let (cookie, bytes) = raw.request(Command::READ, 0, offset, 4096, &[]);
            reads.insert(cookie, (offset, 4096));
            all.extend_from_slice(&bytes);
        }
        raw.stream.write_all(&all).unwrap();
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(raw.replies(reads.len(), &reads).len(), reads.len());
        assert!(raw.is_closed());
    }
    still_serves(&served);
}

#[test]
fn a_client_that_sends_by_drops_is_served() {
    let (served, device) = memory();
    for dialect in DIALECTS {
        for (length, drop) in [(512, 7), (4096, 1000), (100 << 10, 9999), (1 << 20, 70_000)] {
            let mut raw = served.raw(dialect);
            let payload = pattern(length, length as usize);
            let (cookie, bytes) = raw.request(Command::WRITE, 0, 2 << 20, length, &payload);
            for part in bytes.chunks(drop) {
                raw.stream.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(raw.replies(1, &Default::default())[&cookie].error, None);
            assert!(device.to_bytes()[2 << 20..][..payload.len()] == payload, "{dialect:?}");
        }
    }
    still_serves(&served);
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_client_that_does_not_read_is_held_to_its_share() {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        let pair = [CacheMode::Cached, CacheMode::Direct];
        let files = pair.map(|cache| file(dir.path(), &format!("{cache:?}"), SIZE, cache));
        let device = Arc::new(Patchwork::new(files, SIZE / BLOCK));
        device.write_at(&pattern(1, 4 << 20), at(0)).unwrap();
        let served = Served::new(device.clone(), queue);
        let before = resident();
        for length in [1, 512, 1 << 20] {
            let mut raw = served.raw(Dialect::Simple);
            let aligned = if length == 1 { 512 } else { length };
            let (_, request) = raw.request(Command::READ, 0, 0, aligned, &[]);
            let requests = request.repeat(2000);
            raw.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // Until the server takes no more, or for some rounds.
            for _ in 0..20 {
                if raw.stream.write_all(&requests).is_err() {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(200));
            let grown = resident().saturating_sub(before);
            assert!(grown < 200 << 20, "{grown} bytes for reads of {aligned}, {queue:?}");
            // The leases are back although nothing was read: a discard does not wait.
            let begin = Instant::now();
            served.client().discard(common_range(4 << 20)).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            device.write_at(&pattern(1, 4 << 20), at(0)).unwrap();
        }
        served.wait_until_alone();
    }
}

fn common_range(len: u64) -> block_types::ByteRange {
    block_types::ByteRange::new(at(0), ByteCount::new(len))
}

#[test]
fn refusals_are_bounded_too() {
    let (served, _) = memory();
    let mut raw = served.raw(Dialect::Structured);
    let (_, request) = raw.request(Command(99), 0, 0, 0, &[]);
    let requests = request.repeat(10_000);
    raw.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let before = resident();
    let mut sent = 0u64;
    while sent < 200 << 20 && raw.stream.write_all(&requests).is_ok() {
        sent += requests.len() as u64;
    }
    assert!(sent < 200 << 20, "the server goes on reading from a client that does not");
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes");
    drop(raw);
    still_serves(&served);
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let device = Arc::new(MemoryDevice::new("memory", ByteCount::new(SIZE)));
    let export = nbd::Export::new("disk", device).unwrap();
    let options = nbd::ServerOptions { max_connections: 3, ..common::options(QueueChoice::Auto) };
    let served = Served::with(export, options);
    let clients: Vec<_> = (0..3).map(|_| served.client()).collect();
    let mut surplus = Raw::connect(&served.socket());
    assert!(closed(&mut surplus));
    drop(clients);
    served.wait_until_alone();
    served.client();
}
