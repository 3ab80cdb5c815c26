//! Metadata snapshots: what is read beside a pool stays what it was while the pool is written, and
//! nothing of it is left once it is released.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, CrashWorld, FileOptions, HostFile, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_thin::{BlockSize, Change, OpenOptions, Pool};
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::thin_tools;

use crate::common::{BLOCK, Model, Session, formatted, id, open};

/// A pool in two files.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(data_blocks: u64) -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        for (name, size) in [("metadata", 4 << 20), ("data", data_blocks * BLOCK)] {
            let file = std::fs::File::create(files.path(name)).expect("made");
            file.set_len(size).expect("sized");
        }
        let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        Pool::format(&files.device("metadata"), &*files.device("data"), size).expect("formatted");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn device(&self, name: &str) -> Arc<dyn BlockDevice> {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&self.path(name), options).expect("opened"))
    }

    fn open(&self) -> Arc<Pool> {
        let options = OpenOptions { background: false, ..OpenOptions::default() };
        Pool::open("pool", self.device("metadata"), self.device("data"), options).expect("opened")
    }

    fn check(&self) {
        thin_tools::check(&self.path("metadata"));
        sound(self.device("metadata"));
    }
}

fn sound(metadata: Arc<dyn BlockDevice>) {
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}

/// The metadata snapshot as the thin tools read it.
fn held(metadata: &Path) -> String {
    peer("thin_dump").arg("-m").arg(metadata).ok()
}

fn write(pool: &Pool, device: u32, blocks: impl Iterator<Item = u64>) {
    let size = ByteCount::new(4096 * BLOCK);
    let volume = pool.open_volume(id(device), "thin", size, false).expect("opened");
    for block in blocks {
        volume.write_at(&[7; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
}

#[test]
fn thin_dump_reads_it_while_the_pool_is_written() {
    let files = Files::new(4096);
    let pool = files.open();
    let fresh = pool.status();
    for number in 0..3 {
        pool.change(&[Change::CreateThin(id(number))]).expect("made");
        write(&pool, number, 0..600);
    }
    pool.change(&[Change::CreateSnapshot { id: id(10), origin: id(0) }]).expect("taken");
    pool.commit().expect("committed");
    // A metadata snapshot has no space maps, by which thin_dump knows how large the pool is.
    let before = thin_tools::dump(&files.path("metadata"));
    let before = before.replace("nr_data_blocks=\"4096\"", "nr_data_blocks=\"0\"");
    pool.change(&[Change::ReserveMetadataSnapshot]).expect("reserved");
    let at = pool.status().held_root.expect("held");
    assert_eq!(held(&files.path("metadata")), before);

    // Overwritten, mapped anew, discarded, exchanged, deleted: the snapshot stays what it was.
    write(&pool, 0, (0..600).step_by(50));
    write(&pool, 1, 600..700);
    let volume = pool.open_volume(id(2), "thin", ByteCount::new(4096 * BLOCK), false);
    let some = ByteRange::new(ByteOffset::ZERO, ByteCount::new(300 * BLOCK));
    volume.expect("opened").discard(some).expect("discarded");
    pool.commit().expect("committed");
    for change in [
        Change::Rollback { id: id(0), source: id(10) },
        Change::CreateSnapshot { id: id(11), origin: id(1) },
        Change::Delete(id(2)),
        Change::CreateThin(id(2)),
        Change::Delete(id(10)),
    ] {
        pool.change(&[change]).expect("changed");
        assert_eq!(held(&files.path("metadata")), before);
        files.check();
    }
    pool.close().expect("closed");

    let pool = files.open();
    assert_eq!(pool.status().held_root, Some(at));
    let error = pool.change(&[Change::ReserveMetadataSnapshot]).expect_err("one at a time");
    assert_eq!(error.kind(), ErrorKind::Busy);
    for (device, _) in pool.devices() {
        pool.change(&[Change::Delete(device)]).expect("deleted");
    }
    assert_eq!(held(&files.path("metadata")), before);
    assert!(pool.status().data_used >= 1800, "the snapshot keeps its data blocks");
    pool.change(&[Change::ReleaseMetadataSnapshot]).expect("released");
    let status = pool.status();
    assert_eq!((status.held_root, status.data_used), (None, 0));
    assert_eq!(status.metadata_used, fresh.metadata_used);
    let error = pool.change(&[Change::ReleaseMetadataSnapshot]).expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    pool.close().expect("closed");
    files.check();
}

/// In one change, where all of it happens or nothing: each is answered as if it were alone.
#[test]
fn several_in_one_change_come_to_what_they_say() {
    let files = Files::new(64);
    let pool = files.open();
    let [reserve, release] = [Change::ReserveMetadataSnapshot, Change::ReleaseMetadataSnapshot];
    pool.change(&[Change::CreateThin(id(0)), reserve, release]).expect("nothing is left");
    assert_eq!(pool.status().held_root, None);
    pool.change(&[reserve, Change::CreateThin(id(1))]).expect("held");
    let empty = held(&files.path("metadata"));
    // It is of what the change comes to.
    assert!(empty.contains("dev_id=\"1\""), "{empty}");
    write(&pool, 1, 0..8);
    let error = pool.change(&[release, reserve, reserve]).expect_err("the last is one too many");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(held(&files.path("metadata")), empty, "nothing of it happened");
    pool.change(&[release, reserve]).expect("exchanged");
    assert_ne!(held(&files.path("metadata")), empty);
    pool.change(&[release]).expect("released");
    pool.close().expect("closed");
    files.check();
}

/// A pool of another kind than [`Files`]: the model at work, a metadata snapshot coming and going.
fn steps(model: &mut Model, session: &mut Session, rng: &mut Rng, count: usize) -> bool {
    for _ in 0..count {
        let done = if rng.chance(1, 8) {
            let held = session.pool.status().held_root.is_some();
            let change = match held {
                true => Change::ReleaseMetadataSnapshot,
                false => Change::ReserveMetadataSnapshot,
            };
            // Its commit makes everything durable, whatever the model thinks may yet be lost.
            session.pool.change(&[change])
        } else {
            model.step(session, rng)
        };
        match done {
            Err(error) if error.kind() == ErrorKind::OutOfSpace => {}
            Err(error) if error.kind() == ErrorKind::Stopped => return false,
            done => done.unwrap_or_else(|error| panic!("{error}")),
        }
    }
    true
}

#[test]
fn the_model_holds_with_metadata_snapshots_across_power_failures() {
    let (metadata_image, data_image) = formatted(1 << 20, 96);
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 2000 } else { 100 };
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let world = CrashWorld::new(seed);
        let metadata = world.device("metadata", metadata_image.clone());
        let data = world.device("data", data_image.clone());
        world.crash_at(rng.within(1..500));
        let mut model = Model::default();
        let mut session = Session::new(open(metadata, data).expect("opened"));
        steps(&mut model, &mut session, &mut rng, 300);
        drop(session);
        let mut images = world.images(0).into_iter();
        let mut image = || {
            let (name, bytes) = images.next().expect("two devices");
            Arc::new(MemoryDevice::from_bytes(name, bytes))
        };
        let (metadata, data) = (image(), image());
        sound(metadata.clone());
        let pool = open(metadata.clone(), data).expect("opened");
        model.survive(&pool).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        let mut session = Session::new(Arc::clone(&pool));
        assert!(steps(&mut model, &mut session, &mut rng, 20), "seed {seed}");
        model.compare_live(&pool);
        drop(session);
        pool.close().expect("closed");
        sound(metadata);
    }
}
