//! Many threads at one volume, in the two ways an export works: resolved I/O under leases where it
//! goes, blocking calls where not; and snapshots, rollbacks and discards in between.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block_io::{
    BlockDevice, CacheMode, FileOptions, HostFile, Intent, Limits, MemoryDevice, Place, ZeroMode,
};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use dm_thin::{BlockSize, Change, OpenOptions, Pool, ThinVolume};

use crate::common::{BLOCK, id};

const SIZE: ByteCount = ByteCount::new(64 * BLOCK);
const WRITERS: u64 = 4;
const SNAPSHOTS: u32 = 60;

/// Writes as an export does: to the resolved place if there is one, else by the blocking call.
fn write(volume: &ThinVolume, bytes: &[u8], at: u64) -> bool {
    let range = ByteRange::new(ByteOffset::new(at), ByteCount::of(bytes));
    let mut places: Vec<Place<'_>> = Vec::new();
    let lease =
        volume.resolver().expect("thin volumes resolve").resolve(Intent::Write, range, &mut places);
    if lease.is_none() {
        volume.write_at(bytes, range.start).expect("written");
        return false;
    }
    for place in &places {
        let file = place.file.expect("writes resolve to files");
        file.write_at(bytes, place.at).expect("written");
    }
    true
}

fn counter(volume: &ThinVolume, at: u64) -> u64 {
    let mut sector = [0; 512];
    volume.read_at(&mut sector, ByteOffset::new(at)).expect("read");
    u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"))
}

fn pool(folder: &std::path::Path) -> Arc<Pool> {
    let device = |name: &str, size| -> Arc<dyn BlockDevice> {
        let path = folder.join(name);
        File::create(&path).expect("made").set_len(size).expect("sized");
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&path, options).expect("opened"))
    };
    let (metadata, data) = (device("metadata", 4 << 20), device("data", 4096 * BLOCK));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &*data, size).expect("formatted");
    Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened")
}

/// Where writer `writer` keeps its two counters: in different blocks, which it shares with others.
fn places(writer: u64) -> (u64, u64) {
    (writer * 512, 7 * BLOCK + writer * 512)
}

/// Each writer counts in two places, the first one always first. Whatever moment a snapshot shows,
/// the second counter is the first or one behind, and it stays so.
#[test]
fn snapshots_are_moments_and_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = pool(folder.path());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = pool.open_volume(id(0), "thin", SIZE, false).expect("opened");
    let (stop, resolved) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (volume, stop, resolved) = (&volume, &stop, &resolved);
            scope.spawn(move || {
                let (first, second) = places(writer);
                for count in 1u64.. {
                    let bytes = count.to_le_bytes().repeat(64);
                    let mut quick = u64::from(write(volume, &bytes, first));
                    quick += u64::from(write(volume, &bytes, second));
                    resolved.fetch_add(quick, Ordering::Relaxed);
                    if count % 64 == 0 {
                        volume.flush().expect("flushed");
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for number in 1..=SNAPSHOTS {
            std::thread::sleep(std::time::Duration::from_millis(3));
            pool.change(&[Change::CreateSnapshot { id: id(number), origin: id(0) }]).expect("made");
            let snapshot = pool.open_volume(id(number), "snapshot", SIZE, true).expect("opened");
            let counters: Vec<(u64, u64)> = (0..WRITERS)
                .map(places)
                .map(|(first, second)| (counter(&snapshot, first), counter(&snapshot, second)))
                .collect();
            for (first, second) in &counters {
                assert!(first == second || *first == second + 1, "{first} and {second}");
            }
            seen.push((number, counters));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(resolved.load(Ordering::Relaxed) > 1000, "hardly anything resolved");
    for (number, counters) in seen {
        let snapshot = pool.open_volume(id(number), "snapshot", SIZE, true).expect("opened");
        for (writer, (first, second)) in counters.into_iter().enumerate() {
            let at = places(writer as u64);
            let now = (counter(&snapshot, at.0), counter(&snapshot, at.1));
            assert_eq!(now, (first, second), "snapshot {number} has changed");
        }
    }
    assert!(pool.check().expect("checked").errors.is_empty());
}

/// A rollback under load: what was answered before it is gone, what was answered after it is there,
/// and no block is a mixture of both times.
#[test]
fn a_rollback_under_load_mixes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = pool(folder.path());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = pool.open_volume(id(0), "thin", SIZE, false).expect("opened");
    // The marker stands in the same block as the counters, and is never written again.
    for block in [0, 7] {
        let marker = 1u64.to_le_bytes().repeat(64);
        volume.write_at(&marker, ByteOffset::new(block * BLOCK + 32768)).expect("written");
    }
    pool.change(&[Change::CreateSnapshot { id: id(1), origin: id(0) }]).expect("made");
    for round in 2..20u64 {
        let rolled_back = AtomicBool::new(false);
        let written_after: Vec<u64> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (volume, rolled_back) = (&volume, &rolled_back);
                    scope.spawn(move || {
                        let (first, _) = places(writer);
                        let mut last = 0;
                        for count in 1..400u64 {
                            let after = rolled_back.load(Ordering::SeqCst);
                            let value = round << 32 | count;
                            write(volume, &value.to_le_bytes().repeat(64), first);
                            last = if after { value } else { 0 };
                        }
                        last
                    })
                })
                .collect();
            // Old content that a rollback must not let through again.
            let stale = (round << 40).to_le_bytes().repeat(64);
            write(&volume, &stale, 32768);
            pool.change(&[Change::Rollback { id: id(0), source: id(1) }]).expect("rolled back");
            rolled_back.store(true, Ordering::SeqCst);
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        assert_eq!(counter(&volume, 32768), 1, "round {round}: bytes from before the rollback");
        assert_eq!(counter(&volume, 7 * BLOCK + 32768), 1);
        for (writer, last) in written_after.into_iter().enumerate() {
            let now = counter(&volume, places(writer as u64).0);
            assert!(last == 0 || now == last, "round {round}: a write after the rollback is gone");
        }
    }
    drop(volume);
    pool.close().expect("closed");
}

/// A write that is on its way to an unshared block, a snapshot, and then a write to another part of
/// the block, which copies it. A copy that does not wait for the first one would lose it from the
/// volume: it would be in the snapshot alone.
#[test]
fn a_copy_has_the_writes_that_a_snapshot_overtook() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = pool(folder.path());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = pool.open_volume(id(0), "thin", SIZE, false).expect("opened");
    volume.write_at(&[1; BLOCK as usize], ByteOffset::ZERO).expect("written");
    let range = ByteRange::new(ByteOffset::ZERO, ByteCount::new(512));
    let mut places: Vec<Place<'_>> = Vec::new();
    let resolver = volume.resolver().expect("thin volumes resolve");
    let lease = resolver.resolve(Intent::Write, range, &mut places).expect("unshared");
    std::thread::scope(|scope| {
        let snapshot = [Change::CreateSnapshot { id: id(1), origin: id(0) }];
        let (pool, volume) = (&pool, &volume);
        let snapshot = scope.spawn(move || pool.change(&snapshot));
        while pool.devices().len() < 2 {
            std::thread::yield_now();
        }
        let neighbour = scope.spawn(|| volume.write_at(&[3; 512], ByteOffset::new(4096)));
        // Time for it to make the mistake; nothing is wrong if it has not begun by then.
        std::thread::sleep(Duration::from_millis(50));
        let file = places[0].file.expect("writes resolve to files");
        file.write_at(&[2; 512], places[0].at).expect("written");
        drop(lease);
        neighbour.join().expect("no panic").expect("written");
        snapshot.join().expect("no panic").expect("taken");
    });
    let byte = |at| {
        let mut sector = [0; 512];
        volume.read_at(&mut sector, ByteOffset::new(at)).expect("read");
        sector[0]
    };
    assert_eq!((byte(0), byte(4096), byte(8192)), (2, 3, 1));
    drop(volume);
    pool.close().expect("closed");
}

/// A data device whose flushes can be held up.
struct Slow {
    device: MemoryDevice,
    begun: AtomicU64,
    /// Flushes beyond this many wait.
    allowed: AtomicU64,
}

impl Slow {
    fn wait_for(&self, flushes: u64) {
        while self.begun.load(Ordering::SeqCst) < flushes {
            std::thread::yield_now();
        }
    }
}

impl BlockDevice for Slow {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> ByteCount {
        self.device.size()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.device.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.device.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.device.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.device.discard(range)
    }

    fn flush(&self) -> Result<()> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        while self.allowed.load(Ordering::SeqCst) <= number {
            std::thread::yield_now();
        }
        self.device.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.device.extents(range, each)
    }
}

/// FLUSH-HOLDS: a write in place that a running commit's flush of the data may have missed is
/// flushed by whoever asks for it after.
#[test]
fn a_flush_covers_what_was_written_while_a_commit_ran() {
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::new("metadata", ByteCount::new(4 << 20)));
    let slow = Arc::new(Slow {
        device: MemoryDevice::new("data", ByteCount::new(64 * BLOCK)),
        begun: AtomicU64::new(0),
        allowed: AtomicU64::new(u64::MAX),
    });
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &*slow, size).expect("formatted");
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("pool", metadata, slow.clone(), options).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = pool.open_volume(id(0), "thin", SIZE, false).expect("opened");
    volume.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    volume.flush().expect("flushed");
    // A new mapping, whose commit gets as far as the flush of the data.
    volume.write_at(&[1; 512], ByteOffset::new(BLOCK)).expect("written");
    let before = slow.begun.load(Ordering::SeqCst);
    slow.allowed.store(before, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| volume.flush().expect("flushed"));
        slow.wait_for(before + 1);
        volume.write_at(&[2; 512], ByteOffset::ZERO).expect("written in place");
        let other = scope.spawn(|| volume.flush().expect("flushed"));
        slow.allowed.store(u64::MAX, Ordering::SeqCst);
        one.join().expect("no panic");
        other.join().expect("no panic");
    });
    assert!(slow.begun.load(Ordering::SeqCst) >= before + 2, "no flush began after the write");
}
