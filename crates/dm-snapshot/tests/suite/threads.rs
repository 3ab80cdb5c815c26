//! Many threads at an origin in the two ways an export works, resolved I/O under leases where it
//! goes and blocking calls where not, while snapshots are taken, read and dropped.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile, Intent, Place};
use block_types::{ByteCount, ByteOffset, ByteRange};
use dm_snapshot::{Mode, Origin, OriginOptions, Snapshot, SnapshotOptions, Store};

use crate::common::chunk;

const SIZE: u64 = 1 << 20;
const WRITERS: u64 = 4;

fn file(folder: &Path, name: &str, size: u64) -> Arc<HostFile> {
    let path = folder.join(name);
    File::create(&path).expect("made").set_len(size).expect("sized");
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    Arc::new(HostFile::open(&path, options).expect("opened"))
}

/// Does a request as an export does: at its places if it resolves, else by the blocking call.
/// Says whether it resolved.
fn request(device: &dyn BlockDevice, intent: Intent, bytes: &mut [u8], at: u64) -> bool {
    let range = ByteRange::new(ByteOffset::new(at), ByteCount::of(bytes));
    let mut places: Vec<Place<'_>> = Vec::new();
    let resolver = device.resolver().expect("files lie below");
    let lease = resolver.resolve(intent, range, &mut places);
    if lease.is_none() {
        match intent {
            Intent::Read => device.read_at(bytes, range.start).expect("read"),
            Intent::Write => device.write_at(bytes, range.start).expect("written"),
        }
        return false;
    }
    let mut rest = bytes;
    for place in &places {
        let (now, later) = rest.split_at_mut(place.len.as_usize());
        let file = place.file.expect("files lie below");
        match intent {
            Intent::Read => file.read_at(now, place.at).expect("read"),
            Intent::Write => file.write_at(now, place.at).expect("written"),
        }
        rest = later;
    }
    true
}

fn counter(device: &dyn BlockDevice, at: u64) -> u64 {
    let mut sector = [0; 512];
    request(device, Intent::Read, &mut sector, at);
    u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"))
}

/// Where writer `writer` keeps its two counters: in chunks that it shares with others.
fn places(writer: u64) -> (u64, u64) {
    (writer * 512, SIZE / 2 + writer * 512)
}

fn counters(snapshot: &Snapshot) -> Vec<(u64, u64)> {
    (0..WRITERS)
        .map(places)
        .map(|(first, second)| (counter(snapshot, first), counter(snapshot, second)))
        .collect()
}

/// Each writer counts in two places, the first one always first. Whatever moment a snapshot shows,
/// the second counter is the first or one behind, and it stays so (SNAPSHOT-FIXED), also while the
/// same chunks are copied and overwritten for the first time.
#[test]
fn snapshots_are_moments_and_stay() {
    const ROUNDS: u64 = 60;
    let folder = tempfile::tempdir().expect("a folder");
    let options = OriginOptions { buffer: ByteCount::new(64 << 10), ..OriginOptions::default() };
    let origin = Origin::open(file(folder.path(), "origin", SIZE), options).expect("opened");
    let (stop, resolved) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (origin, stop, resolved) = (&origin, &stop, &resolved);
            scope.spawn(move || {
                let (first, second) = places(writer);
                for count in 1u64.. {
                    let mut bytes = count.to_le_bytes().repeat(64);
                    let mut quick = u64::from(request(origin, Intent::Write, &mut bytes, first));
                    quick += u64::from(request(origin, Intent::Write, &mut bytes, second));
                    resolved.fetch_add(quick, Ordering::Relaxed);
                    assert_eq!(counter(origin, first), count, "an answered write is not read");
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let mut open: Vec<(Snapshot, Vec<(u64, u64)>)> = Vec::new();
        for round in 0..ROUNDS {
            let mode = [Mode::Sync, Mode::Deferred, Mode::Async][round as usize % 3];
            let device = file(folder.path(), &format!("store{round}"), 2 << 20);
            let store = if round % 7 == 6 {
                Store::transient(device, chunk(4096)).expect("made")
            } else {
                Store::create(device, chunk(4096)).expect("made")
            };
            let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
            let snapshot = origin.attach(format!("{round}"), store, options).expect("attached");
            let seen = counters(&snapshot);
            for (first, second) in &seen {
                assert!(first == second || *first == second + 1, "{mode}: {first} and {second}");
            }
            open.push((snapshot, seen));
            for _ in 0..20 {
                for (snapshot, seen) in &open {
                    assert_eq!(&counters(snapshot), seen, "{:?}", snapshot.status());
                }
            }
            if open.len() > 3 {
                let (oldest, _) = open.remove(0);
                origin.drop_snapshot(&oldest).expect("dropped");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(resolved.load(Ordering::Relaxed) > 100, "hardly anything resolved");
    origin.close().expect("closed");
}

/// Writers of the origin and of the snapshot meet in the same chunks for the first time.
#[test]
fn first_writes_of_both_sides_meet() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = file(folder.path(), "origin", SIZE);
    let origin = Origin::open(base, OriginOptions::default()).expect("opened");
    for (round, mode) in
        [Mode::Sync, Mode::Deferred, Mode::Async].into_iter().cycle().take(12).enumerate()
    {
        let chunks = SIZE / 4096;
        for number in 0..chunks {
            origin.write_at(&[1; 4096], ByteOffset::new(number * 4096)).expect("written");
        }
        let device = file(folder.path(), &format!("store{round}"), 2 << 20);
        let store = Store::create(device, chunk(4096)).expect("made");
        let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
        let snapshot = origin.attach("snapshot", store, options).expect("attached");
        std::thread::scope(|scope| {
            for half in 0..2u64 {
                let (origin, snapshot) = (&origin, &snapshot);
                // Each side fills its own sector of every chunk, and its writers the same chunks.
                scope.spawn(move || {
                    for number in 0..chunks {
                        let at = number * 4096 + half * 512;
                        request(origin, Intent::Write, &mut [2; 512], at);
                    }
                });
                scope.spawn(move || {
                    for number in 0..chunks {
                        let at = number * 4096 + 1024 + half * 512;
                        request(snapshot, Intent::Write, &mut [3; 512], at);
                    }
                });
            }
        });
        let mut now = vec![0; SIZE as usize];
        origin.read_at(&mut now, ByteOffset::ZERO).expect("read");
        let mut past = vec![0; SIZE as usize];
        snapshot.read_at(&mut past, ByteOffset::ZERO).expect("read");
        for (number, (now, past)) in now.chunks(4096).zip(past.chunks(4096)).enumerate() {
            let sectors = |chunk: &[u8]| chunk.iter().step_by(512).copied().collect::<Vec<_>>();
            assert_eq!(sectors(now), [2, 2, 1, 1, 1, 1, 1, 1], "{mode}, chunk {number}");
            assert_eq!(sectors(past), [1, 1, 3, 3, 1, 1, 1, 1], "{mode}, chunk {number}");
        }
        origin.drop_snapshot(&snapshot).expect("dropped");
    }
}
