//! States of the metadata that are held for readers, any number at once: each stays what it was
//! while the pool is written, however holds overlap, and nothing of them is ever on the disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_io::{
    BlockDevice, CacheMode, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, FileOptions, HostFile,
    MemoryDevice,
};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::dump::{Options, dump};
use dm_thin::{BlockSize, Change, HeldMetadata, OpenOptions, Pool};
use testkit::peer::peer;
use testkit::rng::Rng;

use crate::common::{BLOCK, Model, Session, formatted, id, open};

fn sound(metadata: Arc<dyn BlockDevice>) {
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}

fn text(metadata: Arc<dyn BlockDevice>) -> String {
    let mut text = Vec::new();
    dump(metadata, &Options::default(), &mut text).expect("dumped");
    String::from_utf8(text).expect("text")
}

/// A hold, and what a copy of the metadata made at the same moment says.
struct Witness {
    held: Arc<HeldMetadata>,
    expected: String,
}

impl Witness {
    fn take(pool: &Pool, metadata: &dyn BlockDevice) -> Self {
        let held = Arc::new(pool.hold_metadata().expect("held"));
        let mut bytes = vec![0; metadata.size().as_usize()];
        metadata.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        let copy = Arc::new(MemoryDevice::from_bytes("copy", bytes));
        Self { held, expected: text(copy) }
    }

    fn check(&self) {
        assert_eq!(text(self.held.clone()), self.expected);
        sound(self.held.clone());
    }
}

/// Metadata that cannot grow, so that what is freed is soon used again.
fn fixed(metadata: Arc<MemoryDevice>) -> Arc<dyn BlockDevice> {
    let calls = FaultCalls { provisions: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::OutOfSpace, sticky: true };
    FaultyDevice::new(metadata, plan)
}

#[test]
fn each_stays_what_it_was_however_they_overlap() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let (metadata, data) = formatted(1 << 20, 96);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data = Arc::new(MemoryDevice::from_bytes("data", data));
        let pool = open(fixed(metadata.clone()), data).expect("opened");
        let mut model = Model::default();
        let mut session = Session::new(Arc::clone(&pool));
        let mut witnesses: Vec<Witness> = Vec::new();
        for _ in 0..400 {
            match rng.within(0..10) {
                0 if witnesses.len() < 3 => witnesses.push(Witness::take(&pool, &*metadata)),
                1 if !witnesses.is_empty() && rng.chance(1, 3) => {
                    let gone = witnesses.swap_remove(rng.index(witnesses.len()));
                    gone.check();
                }
                _ => model.step(&mut session, &mut rng).expect("done"),
            }
        }
        witnesses.iter().for_each(Witness::check);
        model.compare_live(&pool);
        drop(witnesses);
        let error = pool.hold_metadata().expect("held").write_at(&[0; 4096], ByteOffset::ZERO);
        assert_eq!(error.expect_err("the past is fixed").kind(), ErrorKind::ReadOnly);
        drop(session);
        pool.close().expect("closed");
        sound(metadata);
    }
}

/// What nobody holds any more is used again: a pool does not grow by being looked at.
#[test]
fn what_was_held_is_used_again() {
    let (metadata, data) = formatted(1 << 20, 96);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let pool = open(metadata, data).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let total = pool.status().metadata_total;
    for round in 0..400 {
        let held = pool.hold_metadata().expect("held");
        pool.change(&[Change::CreateSnapshot { id: id(1), origin: id(0) }]).expect("taken");
        pool.change(&[Change::Delete(id(1))]).expect("deleted");
        drop(held);
        assert_eq!(pool.status().metadata_total, total, "round {round}");
    }
}

#[test]
fn power_failures_leave_nothing_of_them() {
    let (metadata_image, data_image) = formatted(1 << 20, 96);
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 1000 } else { 60 };
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let world = CrashWorld::new(seed);
        let metadata = world.device("metadata", metadata_image.clone());
        let data = world.device("data", data_image.clone());
        world.crash_at(rng.within(1..400));
        let mut model = Model::default();
        let pool = open(metadata, data).expect("opened");
        let mut session = Session::new(Arc::clone(&pool));
        let mut held = Vec::new();
        while !world.crashed() {
            let done = match rng.within(0..12) {
                // The commit of a hold makes everything durable, whatever the model thinks may yet
                // be lost.
                0 => pool.hold_metadata().map(|hold| held.push(hold)),
                1 => {
                    held.clear();
                    Ok(())
                }
                _ => model.step(&mut session, &mut rng),
            };
            match done {
                Err(error) if error.kind() == ErrorKind::OutOfSpace => {}
                Err(error) if world.crashed() => assert_eq!(error.kind(), ErrorKind::Stopped),
                done => done.expect("done"),
            }
        }
        drop((held, session, pool));
        let mut images = world.images(0).into_iter();
        let mut image = || {
            let (name, bytes) = images.next().expect("two devices");
            Arc::new(MemoryDevice::from_bytes(name, bytes))
        };
        let (metadata, data) = (image(), image());
        sound(metadata.clone());
        let pool = open(metadata, data).expect("opened");
        model.survive(&pool).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}

/// FULL-IS-NOT-BROKEN: a reader does not keep writers from the last metadata block.
#[test]
fn writers_come_before_readers_where_metadata_ends() {
    let (metadata, data) = formatted(1 << 20, 4096);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let pool = open(fixed(metadata.clone()), data).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let size = ByteCount::new(4096 * BLOCK);
    let volume = pool.open_volume(id(0), "thin", size, false).expect("opened");
    let write = |at: u64| volume.write_at(&[7; 512], ByteOffset::new(at * BLOCK));
    let held = Arc::new(pool.hold_metadata().expect("held"));
    let expected = text(held.clone());
    // A new state is held after each commit, so that all that is freed is withheld.
    let (mut states, mut broken) = (Vec::new(), None);
    for round in 0..3000 {
        states.push(pool.hold_metadata().expect("held"));
        write(round * 97 % 4096).expect("no writer is refused for the sake of a reader");
        if let Err(error) = held.read_at(&mut [0; 4096], ByteOffset::new(4096)) {
            broken = Some(error);
            break;
        }
        assert_eq!(text(held.clone()), expected);
    }
    let error = broken.expect("the metadata is small");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
    for round in 0..50 {
        write(round).expect("written");
        pool.commit().expect("committed");
    }
    pool.close().expect("closed");
    sound(metadata);
}

fn pool_in(folder: &Path) -> Arc<Pool> {
    let device = |name: &str, size| -> Arc<dyn BlockDevice> {
        let path = folder.join(name);
        std::fs::File::create(&path).expect("made").set_len(size).expect("sized");
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&path, options).expect("opened"))
    };
    let (metadata, data) = (device("metadata", 4 << 20), device("data", 4096 * BLOCK));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &*data, size).expect("formatted");
    Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened")
}

/// With the threads of a real pool: writers, snapshots coming and going, and readers of held states
/// and of the kernel's metadata snapshot beside them.
#[test]
fn readers_and_writers_side_by_side() {
    let folder = tempfile::tempdir().expect("a folder");
    let pool = pool_in(folder.path());
    let size = ByteCount::new(4096 * BLOCK);
    for number in 0..2 {
        pool.change(&[Change::CreateThin(id(number))]).expect("made");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || {
                let volume = pool.open_volume(id(number), "thin", size, false).expect("opened");
                let mut rng = Rng::new(u64::from(number));
                while !stop.load(Ordering::Relaxed) {
                    let at = ByteOffset::new(rng.within(0..1500) * BLOCK);
                    volume.write_at(&[1; 512], at).expect("written");
                    if rng.chance(1, 20) {
                        volume.flush().expect("flushed");
                    }
                    if rng.chance(1, 200) {
                        let snapshot = id(number + 10);
                        let origin = id(number);
                        pool.change(&[Change::CreateSnapshot { id: snapshot, origin }])
                            .expect("taken");
                        pool.change(&[Change::Delete(snapshot)]).expect("deleted");
                    }
                }
            });
        }
        for round in 0..8 {
            let held = Arc::new(pool.hold_metadata().expect("held"));
            let first = text(held.clone());
            if round % 2 == 0 {
                pool.change(&[Change::ReserveMetadataSnapshot]).expect("reserved");
                let read = || peer("thin_dump").arg("-m").arg(folder.path().join("metadata")).ok();
                let dumped = read();
                std::thread::sleep(std::time::Duration::from_millis(20));
                assert_eq!(read(), dumped, "the kernel's tools read one state");
                pool.change(&[Change::ReleaseMetadataSnapshot]).expect("released");
            }
            sound(held.clone());
            assert_eq!(text(held), first);
        }
        stop.store(true, Ordering::Relaxed);
    });
    pool.close().expect("closed");
    testkit::thin_tools::check(&folder.path().join("metadata"));
}
