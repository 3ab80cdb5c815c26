//! Many clients at once, and many requests at once from one client, against a model.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, MemoryDevice, QueueChoice, ZeroMode};
use block_types::{ByteCount, ByteRange};
use common::patchwork::{BLOCK, Patchwork};
use common::raw::Raw;
use common::{DIALECTS, QUEUES, Random, Served, at, file, pattern};
use nbd::wire::{Command, Dialect};

const SIZE: u64 = 8 << 20;

/// All kinds of devices; a discarded block of the patchwork is used again at once by another.
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

fn everywhere(test: impl Fn(&str, &Served, QueueChoice)) {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        for (name, device) in devices(dir.path()) {
            test(&format!("{name}, {queue:?}"), &Served::new(device, queue), queue);
        }
    }
}

/// One client's part of the device, and what it should hold. A discarded range may read as what it
/// was or as zeros, so it is written at once after.
fn work(client: &nbd::Client, start: u64, len: u64, seed: u64, what: &str) {
    let mut random = Random(seed);
    let mut model = vec![0; len as usize];
    client.zero(ByteRange::new(at(start), ByteCount::new(len)), ZeroMode::default()).unwrap();
    for step in 0..150 {
        let most = if random.below(10) == 0 { 1000 } else { 64 };
        let sectors = 1 + random.below(most);
        let size = (sectors * 512).min(len);
        let offset = random.below((len - size) / 512 + 1) * 512;
        let span = offset as usize..(offset + size) as usize;
        let range = ByteRange::new(at(start + offset), ByteCount::new(size));
        match random.below(10) {
            0..=3 => {
                let bytes = pattern(random.next(), size as usize);
                client.write_at(&bytes, range.start).unwrap();
                model[span].copy_from_slice(&bytes);
            }
            4 => {
                let may_unmap = random.below(2) == 0;
                client.zero(range, ZeroMode { may_unmap, only_if_fast: false }).unwrap();
                model[span].fill(0);
            }
            5 => {
                client.discard(range).unwrap();
                let bytes = pattern(random.next(), size as usize);
                client.write_at(&bytes, range.start).unwrap();
                model[span].copy_from_slice(&bytes);
            }
            6 => client.flush().unwrap(),
            _ => {
                let mut bytes = vec![0; size as usize];
                client.read_at(&mut bytes, range.start).unwrap();
                assert!(bytes == model[span], "{what}: step {step}, seed {seed}");
            }
        }
    }
    let mut bytes = vec![0; len as usize];
    client.read_at(&mut bytes, at(start)).unwrap();
    assert!(bytes == model, "{what}: seed {seed}");
}

#[test]
fn many_clients_each_in_its_own_part() {
    everywhere(|what, served, _| {
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    let client = served.client_of(DIALECTS[number as usize % 3]);
                    // Parts do not begin at blocks, so neighbours share some.
                    let (start, len) = (number * (2 << 20) + 512, (2 << 20) - 1024);
                    work(&client, start, len, number + 17, what);
                });
            }
        });
        served.wait_until_alone();
    });
}

/// Sends a batch of requests that do not overlap in one go, reads all replies in whatever order.
fn batch(raw: &mut Raw, random: &mut Random, model: &mut [u8], what: &str) {
    let count = 1 + random.below(90);
    let share = SIZE / count / 512 * 512;
    let (mut sent, mut reads, mut expected) = (Vec::new(), HashMap::new(), HashMap::new());
    for number in 0..count {
        let most = if random.below(12) == 0 { share } else { share.min(64 << 10) };
        let length = (1 + random.below(most / 512)) * 512;
        let offset = number * share + random.below((share - length) / 512 + 1) * 512;
        let span = offset as usize..(offset + length) as usize;
        let (cookie, bytes) = match random.below(8) {
            0..=2 => {
                let payload = pattern(random.next(), length as usize);
                model[span].copy_from_slice(&payload);
                raw.request(Command::WRITE, 0, offset, length, &payload)
            }
            3 => {
                model[span].fill(0);
                raw.request(Command::WRITE_ZEROES, 2, offset, length, &[])
            }
            4 => raw.request(Command::FLUSH, 0, 0, 0, &[]),
            _ => {
                let (cookie, bytes) = raw.request(Command::READ, 0, offset, length, &[]);
                reads.insert(cookie, (offset, length as usize));
                expected.insert(cookie, model[span].to_vec());
                (cookie, bytes)
            }
        };
        expected.entry(cookie).or_default();
        sent.extend_from_slice(&bytes);
    }
    // Sent and read at once, as every client must that does not count on the socket's room.
    let mut stream = raw.stream.try_clone().unwrap();
    let replies = std::thread::scope(|scope| {
        scope.spawn(move || stream.write_all(&sent).unwrap());
        raw.replies(expected.len(), &reads)
    });
    for (cookie, bytes) in expected {
        let reply = &replies[&cookie];
        assert_eq!(reply.error, None, "{what}: {}", reply.message);
        if let Some(&(offset, len)) = reads.get(&cookie) {
            assert!(reply.bytes(offset, len) == bytes, "{what}: {len} bytes at {offset}");
        }
    }
}

#[test]
fn many_requests_at_once() {
    everywhere(|what, served, queue| {
        let mut model = vec![0; SIZE as usize];
        let mut random = Random(23);
        served
            .client()
            .zero(ByteRange::new(at(0), ByteCount::new(SIZE)), ZeroMode::default())
            .unwrap();
        for dialect in DIALECTS {
            let mut raw = served.raw(dialect);
            for _ in 0..25 {
                batch(
                    &mut raw,
                    &mut random,
                    &mut model,
                    &format!("{what}, {dialect:?}, {queue:?}"),
                );
            }
        }
        let mut bytes = vec![0; SIZE as usize];
        served.client().read_at(&mut bytes, at(0)).unwrap();
        assert!(bytes == model, "{what}");
    });
}

#[test]
fn adjacent_writes_that_are_joined_arrive_whole() {
    let dir = tempfile::tempdir().unwrap();
    let device = Arc::new(file(dir.path(), "cached", SIZE, CacheMode::Cached));
    let served = Served::new(device.clone(), QueueChoice::Auto);
    for dialect in DIALECTS {
        let mut raw = served.raw(dialect);
        // 300 writes of 512 bytes: more than one run holds, and a gap in the middle.
        let bytes = pattern(dialect as u64 + 40, 300 * 512);
        let mut sent = Vec::new();
        for (number, sector) in bytes.chunks(512).enumerate() {
            let gap = if number >= 150 { 4096 } else { 0 };
            let offset = number as u64 * 512 + gap;
            sent.extend_from_slice(&raw.request(Command::WRITE, 0, offset, 512, sector).1);
        }
        raw.stream.write_all(&sent).unwrap();
        let replies = raw.replies(300, &HashMap::new());
        assert!(replies.values().all(|reply| reply.error.is_none()));
        let mut behind = vec![0; bytes.len()];
        device.read_at(&mut behind[..150 * 512], at(0)).unwrap();
        device.read_at(&mut behind[150 * 512..], at(150 * 512 + 4096)).unwrap();
        assert!(behind == bytes, "{dialect:?}");
    }
}

/// Leases of reads that are in flight hold a discard up; without them a read finds what was written
/// into the freed block. Readers and a discarder fight over the same blocks.
#[test]
fn readers_never_see_a_block_after_it_was_freed() {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        let pair = [CacheMode::Cached, CacheMode::Direct];
        let files = pair.map(|cache| file(dir.path(), &format!("{cache:?}"), SIZE, cache));
        let device = Arc::new(Patchwork::new(files, SIZE / BLOCK));
        let served = Served::new(device.clone(), queue);
        let blocks = 16;
        std::thread::scope(|scope| {
            let served = &served;
            let reader = |seed| {
                let mut raw = served.raw(Dialect::Structured);
                let mut random = Random(seed);
                for _ in 0..60 {
                    let (mut sent, mut reads) = (Vec::new(), HashMap::new());
                    for _ in 0..32 {
                        let offset = random.below(blocks) * BLOCK;
                        let (cookie, bytes) = raw.request(Command::READ, 0, offset, BLOCK, &[]);
                        reads.insert(cookie, (offset, BLOCK as usize));
                        sent.extend_from_slice(&bytes);
                    }
                    raw.stream.write_all(&sent).unwrap();
                    for (cookie, reply) in raw.replies(32, &reads) {
                        let (offset, len) = reads[&cookie];
                        let bytes = reply.bytes(offset, len);
                        let own = (offset / BLOCK) as u8 + 1;
                        let sound = bytes.iter().all(|&byte| byte == own || byte == 0);
                        assert!(sound, "another block's bytes at {offset}: {}", bytes[0]);
                    }
                }
            };
            let readers = [scope.spawn(move || reader(5)), scope.spawn(move || reader(6))];
            let writer = served.client();
            let mut random = Random(7);
            while readers.iter().any(|reader| !reader.is_finished()) {
                let block = random.below(blocks);
                let range = ByteRange::new(at(block * BLOCK), ByteCount::new(BLOCK));
                writer.discard(range).unwrap();
                writer.write_at(&[block as u8 + 1; BLOCK as usize], range.start).unwrap();
            }
        });
        assert!(device.drains.load(std::sync::atomic::Ordering::Relaxed) > 0);
    }
}
