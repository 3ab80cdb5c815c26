//! Volumes over an external origin, against bytes in memory. The names are those of the kernel's
//! own tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use block_io::{
    BlockDevice, CacheMode, FaultCalls, FaultPlan, FaultyDevice, FileOptions, HostFile, Intent,
    MemoryDevice, ZeroMode,
};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_thin::{
    BlockSize, Change, DeviceId, Discards, ExternalOrigin, OpenOptions, Pool, ThinVolume,
};
use testkit::rng::Rng;

use crate::common::{BLOCK, id};

const SECTOR: u64 = 512;

/// A pool in files, so that its volumes resolve, and an origin.
pub(crate) struct Rig {
    folder: tempfile::TempDir,
    pub(crate) metadata: Arc<MemoryDevice>,
    pub(crate) origin: Arc<dyn BlockDevice>,
    /// What the origin holds.
    pub(crate) base: Vec<u8>,
    pub(crate) size: u64,
    passdown: bool,
}

impl Rig {
    /// A volume of `size` to come over an origin of `base` bytes, with data, zeros and holes.
    pub(crate) fn new(seed: u64, size: u64, base: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rng = Rng::new(seed);
        let mut bytes = vec![0; base as usize];
        let file = File::create(folder.path().join("origin")).expect("made");
        file.set_len(base).expect("sized");
        for (number, piece) in bytes.chunks_mut(20 << 10).enumerate() {
            if rng.chance(2, 3) {
                rng.fill(piece);
            }
            // Written zeros, too: data that reads as zeros.
            if rng.chance(3, 4) {
                file.write_all_at(piece, number as u64 * (20 << 10)).expect("written");
            } else {
                piece.fill(0);
            }
        }
        let cache = if seed.is_multiple_of(3) { CacheMode::Direct } else { CacheMode::Cached };
        let options = FileOptions { cache, read_only: true };
        let path = folder.path().join("origin");
        let origin: Arc<dyn BlockDevice> = match seed % 3 {
            2 => Arc::new(MemoryDevice::from_bytes("origin", bytes.clone())),
            _ => Arc::new(HostFile::open(&path, options).expect("opened")),
        };
        let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(1 << 20)));
        File::create(folder.path().join("data")).expect("made").set_len(8 << 20).expect("sized");
        let rig =
            Self { folder, metadata, origin, base: bytes, size, passdown: seed.is_multiple_of(2) };
        let block = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        let device: Arc<dyn BlockDevice> = rig.metadata.clone();
        Pool::format(&device, &*rig.data(), block).expect("formatted");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> Arc<HostFile> {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&self.path("data"), options).expect("opened"))
    }

    pub(crate) fn open(&self) -> Arc<Pool> {
        let mut options = OpenOptions { background: false, ..OpenOptions::default() };
        if !self.passdown {
            options.settings.features.discards = Discards::Kept;
        }
        Pool::open("pool", self.metadata.clone(), self.data(), options).expect("opened")
    }

    pub(crate) fn shown(&self) -> ByteCount {
        ByteCount::new(self.size.min(self.base.len() as u64))
    }

    pub(crate) fn volume(&self, pool: &Pool, id: DeviceId) -> ThinVolume {
        self.volume_over(pool, id, Arc::clone(&self.origin))
    }

    fn volume_over(&self, pool: &Pool, id: DeviceId, origin: Arc<dyn BlockDevice>) -> ThinVolume {
        let origin = ExternalOrigin::new(origin, self.shown()).expect("long enough");
        let size = ByteCount::new(self.size);
        pool.open_volume_over(id, &format!("thin {id}"), size, false, Some(origin)).expect("opened")
    }

    /// What a new volume reads as.
    pub(crate) fn fresh(&self) -> Vec<u8> {
        let mut bytes = self.base.clone();
        bytes.resize(self.size as usize, 0);
        bytes
    }

    pub(crate) fn check(&self) {
        let report = dm_thin::check(self.metadata.clone()).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    }
}

pub(crate) fn read(volume: &ThinVolume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size().as_usize()];
    volume.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

/// Reads what resolves at `range` by its places, or nothing.
fn read_resolved(volume: &ThinVolume, range: ByteRange) -> Option<Vec<u8>> {
    let mut places = Vec::new();
    let _lease = volume.resolver()?.resolve(Intent::Read, range, &mut places)?;
    let mut bytes = Vec::new();
    for place in places {
        let from = bytes.len();
        bytes.resize(from + place.len.as_usize(), 0);
        if let Some(file) = place.file {
            file.read_at(&mut bytes[from..], place.at).expect("read");
        }
    }
    Some(bytes)
}

/// What is said of the content is true of it, and covers all of it.
fn check_extents(volume: &ThinVolume, content: &[u8]) {
    let mut at = 0;
    let whole = ByteRange::new(ByteOffset::ZERO, volume.size());
    volume
        .extents(whole, &mut |extent| {
            assert_eq!(extent.range.start.get(), at);
            at = extent.range.end().get();
            let held = &content[extent.range.start.get() as usize..at as usize];
            assert!(!extent.state.reads_zero() || held.iter().all(|byte| *byte == 0), "{extent:?}");
            std::ops::ControlFlow::Continue(())
        })
        .expect("told");
    assert_eq!(at, content.len() as u64);
}

/// A random run of sectors of a device of `size`: small, large, or whole blocks.
pub(crate) fn some_range(rng: &mut Rng, size: u64) -> ByteRange {
    let (start, end) = match rng.within(0..3) {
        0 => {
            let start = rng.within(0..size / SECTOR) * SECTOR;
            (start, start + rng.within(1..9) * SECTOR)
        }
        1 => {
            let start = rng.within(0..size / SECTOR) * SECTOR;
            (start, start + rng.within(1..3 * BLOCK / SECTOR) * SECTOR)
        }
        _ => {
            let start = rng.within(0..size.div_ceil(BLOCK)) * BLOCK;
            (start, start + rng.within(1..4) * BLOCK)
        }
    };
    ByteRange::between(ByteOffset::new(start), ByteOffset::new(end.min(size)))
}

/// Writes, zeroes or discards at random, and does the same to `content`.
pub(crate) fn change(volume: &ThinVolume, content: &mut [u8], rng: &mut Rng) {
    let range = some_range(rng, volume.size().get());
    let part = &mut content[range.start.get() as usize..range.end().get() as usize];
    match rng.within(0..6) {
        0..3 => {
            rng.fill(part);
            volume.write_at(part, range.start).expect("written");
        }
        3 => {
            part.fill(0);
            let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
            volume.zero(range, mode).expect("zeroed");
        }
        4 => {
            let mode = ZeroMode { may_unmap: true, only_if_fast: true };
            match volume.zero(range, mode) {
                Ok(()) => part.fill(0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
            }
        }
        _ => {
            volume.discard(range).expect("discarded");
            let mut read = vec![0; part.len()];
            volume.read_at(&mut read, range.start).expect("read");
            let sectors = part.chunks_mut(SECTOR as usize).zip(read.chunks(SECTOR as usize));
            for (held, read) in sectors {
                let zeros = read.iter().all(|byte| *byte == 0);
                assert!(zeros || held == read, "a discard uncovered what the origin holds");
                held.copy_from_slice(read);
            }
        }
    }
}

/// Random operations on a volume over an origin, its snapshots and clones.
fn run(seed: u64, size: u64, base: u64) {
    let rig = Rig::new(seed, size, base);
    let mut rng = Rng::new(seed);
    let mut contents: BTreeMap<DeviceId, Vec<u8>> = BTreeMap::from([(id(0), rig.fresh())]);
    let pool = rig.open();
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    pool.close().expect("closed");
    for round in 0..6 {
        let pool = rig.open();
        let volumes: Vec<_> = contents.keys().map(|id| rig.volume(&pool, *id)).collect();
        for _ in 0..25 {
            let volume = rng.pick(&volumes);
            let content = contents.get_mut(&volume.id()).expect("known");
            change(volume, content, &mut rng);
            let range = some_range(&mut rng, size);
            if let Some(bytes) = read_resolved(volume, range) {
                let held = &content[range.start.get() as usize..range.end().get() as usize];
                assert!(bytes == held, "seed {seed}: {range} resolves to something else");
            }
        }
        for volume in &volumes {
            let content = &contents[&volume.id()];
            assert!(read(volume) == *content, "seed {seed}, round {round}: {}", volume.name());
            check_extents(volume, content);
        }
        let ids: Vec<_> = contents.keys().copied().collect();
        let (old, new) = (*rng.pick(&ids), id(round + 1));
        pool.change(&[Change::CreateSnapshot { id: new, origin: old }]).expect("made");
        contents.insert(new, contents[&old].clone());
        let target = *rng.pick(&ids);
        pool.change(&[Change::Rollback { id: target, source: new }]).expect("rolled back");
        contents.insert(target, contents[&new].clone());
        let rolled_back = rig.volume(&pool, target);
        assert!(read(&rolled_back) == contents[&target], "seed {seed}: rolled back");
        drop((volumes, rolled_back));
        pool.close().expect("closed");
        rig.check();
    }
}

const SEEDS: u64 = 6;

#[test]
fn snap_equal_size() {
    (0..SEEDS).for_each(|seed| run(seed, 8 * BLOCK, 8 * BLOCK));
}

#[test]
fn snap_smaller_than_origin() {
    (0..SEEDS).for_each(|seed| run(seed, 6 * BLOCK + 4096, 9 * BLOCK));
}

#[test]
fn snap_bigger_than_origin() {
    (0..SEEDS).for_each(|seed| run(seed, 9 * BLOCK, 5 * BLOCK));
}

#[test]
fn snap_fractional_tail_block() {
    (0..SEEDS).for_each(|seed| run(seed, 8 * BLOCK, 5 * BLOCK + 4096 + 512));
    (0..SEEDS).for_each(|seed| run(seed, 6 * BLOCK + 1024, 6 * BLOCK + 512));
}

/// The mapping of a discarded block stays, and its space goes back to the file system.
#[test]
fn a_discard_gives_space_back_and_uncovers_nothing() {
    let rig = Rig { passdown: true, ..Rig::new(4, 8 * BLOCK, 8 * BLOCK) };
    let pool = rig.open();
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = rig.volume(&pool, id(0));
    let whole = ByteRange::new(ByteOffset::ZERO, volume.size());
    volume.write_at(&vec![7; volume.size().as_usize()], ByteOffset::ZERO).expect("written");
    volume.flush().expect("flushed");
    let used = || {
        use std::os::unix::fs::MetadataExt;
        rig.path("data").metadata().expect("there").blocks() * 512
    };
    let before = used();
    volume.discard(whole).expect("discarded");
    assert!(read(&volume).iter().all(|byte| *byte == 0));
    assert!(used() + 6 * BLOCK <= before, "{} of {before} are left", used());
}

/// What a volume was cut off from does not come back, whatever the origin holds there.
#[test]
fn a_volume_that_grows_again_shows_zeros() {
    let rig = Rig::new(1, 8 * BLOCK, 8 * BLOCK);
    let pool = rig.open();
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volume = rig.volume(&pool, id(0));
    let cut = 3 * BLOCK + 1024;
    pool.resize_volume(&volume, ByteCount::new(cut)).expect("shrunk");
    pool.resize_volume(&volume, ByteCount::new(rig.size)).expect("grown");
    let mut expected = rig.fresh();
    expected[cut as usize..].fill(0);
    assert!(read(&volume) == expected);
    check_extents(&volume, &expected);
    volume.write_at(&[9; 512], ByteOffset::new(3 * BLOCK + 8192)).expect("written");
    expected[(3 * BLOCK + 8192) as usize..][..512].fill(9);
    assert!(read(&volume) == expected);
}

#[test]
fn an_origin_that_is_too_short_is_refused() {
    let origin: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("origin", ByteCount::new(4096)));
    assert!(ExternalOrigin::new(Arc::clone(&origin), ByteCount::new(4096)).is_ok());
    let error = ExternalOrigin::new(origin, ByteCount::new(4608)).map(drop).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}

/// A failure of the origin fails the request that needed it, and nothing else.
#[test]
fn a_read_error_of_the_origin_fails_that_request_only() {
    let calls = FaultCalls { reads: true, extents: true, ..FaultCalls::default() };
    for fail_at in 1..12 {
        let rig = Rig::new(2, 8 * BLOCK, 8 * BLOCK);
        let pool = rig.open();
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        let plan = FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky: false };
        let faulty = FaultyDevice::new(Arc::clone(&rig.origin), plan);
        let volume = rig.volume_over(&pool, id(0), faulty);
        let mut content = rig.fresh();
        let mut failed = 0;
        let mut fails = |result: block_types::Result<()>| {
            let failure = result.err();
            failed += u32::from(failure.is_some());
            failure.inspect(|error| assert_eq!(error.kind(), ErrorKind::Io)).is_some()
        };
        let bytes = [5; 512];
        for block in 0..8 {
            let at = block * BLOCK + 4096;
            if !fails(volume.write_at(&bytes, ByteOffset::new(at))) {
                content[at as usize..][..512].copy_from_slice(&bytes);
            }
            let part = ByteRange::new(ByteOffset::new(block * BLOCK), ByteCount::new(1024));
            if !fails(volume.zero(part, ZeroMode { may_unmap: true, only_if_fast: false })) {
                content[part.start.get() as usize..][..1024].fill(0);
            }
        }
        assert_eq!(failed, 1, "call {fail_at}");
        assert!(read(&volume) == content, "call {fail_at}");
        drop(volume);
        pool.close().expect("closed");
        rig.check();
    }
}
