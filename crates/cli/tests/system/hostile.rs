//! Clients that misbehave, beside one that does not.

use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use block_io::BlockDevice;
use block_types::ByteOffset;
use nbd::Client;

use crate::lab::{Lab, MIB};
use crate::raw::{READ, Raw, WRITE, request};

/// How long a snapshot may take, whatever others do.
const SOON: Duration = Duration::from_secs(1);

/// The good client: what it writes it reads, soon.
#[track_caller]
fn assert_served(client: &Client, byte: u8) {
    let begun = Instant::now();
    let at = ByteOffset::new(u64::from(byte) * MIB);
    client.write_at(&[byte; 100 * 512], at).unwrap();
    let mut back = [0; 100 * 512];
    client.read_at(&mut back, at).unwrap();
    client.flush().unwrap();
    assert!(back.iter().all(|&read| read == byte));
    assert!(begun.elapsed() < SOON, "took {:?}", begun.elapsed());
}

#[track_caller]
fn snapshot_soon(lab: &Lab, name: &str) {
    let begun = Instant::now();
    lab.ok(&format!("snapshot create lab/db@{name}"));
    assert!(begun.elapsed() < SOON, "the snapshot took {:?}", begun.elapsed());
}

#[test]
fn one_bad_client_is_nobody_elses_trouble() {
    let lab = Lab::new(&["db"], "64M");
    let server = lab.serve("");
    let socket = lab.path("lab/nbd.sock");
    let good = lab.connect("db");
    assert_served(&good, 1);

    let silent: Vec<_> = (0..20).map(|_| Raw::connect(&socket)).collect();
    let mut half_way = Raw::connect(&socket);
    half_way.send(b"\0\0\0\x03IHAVEOPT\0\0");
    assert_served(&good, 2);

    // Half a request, half a payload, and an end of the stream in the middle of one.
    let mut half_request = Raw::open(&socket, "db");
    half_request.send(&request(READ, 1, 0, 4096, &[])[..13]);
    let mut half_payload = Raw::open(&socket, "db");
    half_payload.send(&request(WRITE, 1, 0, 1 << 20, &[9; 5000]));
    let mut half_open = Raw::open(&socket, "db");
    half_open.send(&request(WRITE, 1, 60 * MIB, 4096, &[9; 1000]));
    half_open.stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    half_open.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "half a request was answered");
    assert_served(&good, 3);
    snapshot_soon(&lab, "monday");

    let mut nonsense = Raw::open(&socket, "db");
    nonsense.send(&[0xA5; 10_000]);
    drop(nonsense);
    let mut garbage = Raw::connect(&socket);
    garbage.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_served(&good, 4);

    let all = lab.content("db");
    assert!(all[..MIB as usize].iter().all(|&byte| byte == 0), "half a write was written");
    assert!(all[60 * MIB as usize..].iter().all(|&byte| byte == 0), "half a write was written");
    drop((silent, half_way, half_request, half_payload, garbage, good));
    assert!(server.stop().success());
    lab.assert_sound();
}

/// Its replies fill the socket, and requests wait behind them; a snapshot waits for neither.
#[test]
fn a_client_that_does_not_read_holds_up_no_snapshot() {
    let lab = Lab::new(&["db"], "64M");
    let server = lab.serve("");
    let good = lab.connect("db");
    good.write_at(&vec![7; 32 << 20], ByteOffset::new(0)).unwrap();
    let socket = lab.path("lab/nbd.sock");
    let mut deaf: Vec<_> = (0..3).map(|_| Raw::open(&socket, "db")).collect();
    for raw in &mut deaf {
        for index in 0..200 {
            raw.send(&request(READ, index, (index % 32) * MIB, 1 << 20, &[]));
        }
    }
    for (byte, name) in [(40, "monday"), (41, "tuesday"), (42, "wednesday")] {
        snapshot_soon(&lab, name);
        assert_served(&good, byte);
    }
    // It had its reasons, and reads at last: the first reply is whole.
    let raw = &mut deaf[0];
    let head = raw.take::<16>();
    assert_eq!(head[4..8], [0; 4], "an error");
    let mut data = vec![0; 1 << 20];
    raw.stream.read_exact(&mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 7));
    drop(good);
    // It ends although the deaf ones are still there: they are cut off.
    assert!(server.stop().success());
    drop(deaf);
    lab.assert_sound();
}
