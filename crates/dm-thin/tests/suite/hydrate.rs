//! Hydration: whatever it is done beside, and wherever it is cut off, the volumes read the same;
//! and once it is done, they do without their origin.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use block_io::{
    BlockDevice, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, Intent, Limits, MemoryDevice,
    ZeroMode,
};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, Result};
use dm_thin::{Change, DeviceId, ExternalOrigin, OpenOptions, Pool, ThinVolume};
use testkit::rng::Rng;

use crate::common::{BLOCK, formatted, id, open};
use crate::origin::{Rig, change, read, some_range};

const SIZE: u64 = 8 * BLOCK;

fn whole(size: u64) -> ByteRange {
    ByteRange::new(ByteOffset::ZERO, ByteCount::new(size))
}

fn refs(volumes: &[ThinVolume]) -> Vec<&ThinVolume> {
    volumes.iter().collect()
}

/// Guests and hydration by turns, with snapshots in between; then the origin is taken away.
fn run(seed: u64, size: u64, base: u64) {
    let rig = Rig::new(seed, size, base);
    let mut rng = Rng::new(seed);
    let mut contents: BTreeMap<DeviceId, Vec<u8>> = BTreeMap::from([(id(0), rig.fresh())]);
    let pool = rig.open();
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let mut volumes = vec![rig.volume(&pool, id(0))];
    for round in 1..4 {
        for _ in 0..6 {
            let volume = rng.pick(&volumes);
            change(volume, contents.get_mut(&volume.id()).expect("known"), &mut rng);
            if rng.chance(1, 2) {
                pool.hydrate(&refs(&volumes), some_range(&mut rng, size)).expect("hydrated");
            }
        }
        let origin = rng.pick(&volumes).id();
        pool.change(&[Change::CreateSnapshot { id: id(round), origin }]).expect("made");
        contents.insert(id(round), contents[&origin].clone());
        volumes.push(rig.volume(&pool, id(round)));
        if rng.chance(1, 2) {
            pool.commit().expect("committed");
        }
    }
    pool.hydrate(&refs(&volumes), whole(size)).expect("hydrated");
    pool.commit().expect("committed");
    pool.free_from_origin(&refs(&volumes));
    assert_eq!(pool.hydrate(&refs(&volumes), whole(size)).expect("nothing"), ByteCount::ZERO);
    for volume in &volumes {
        assert!(read(volume) == contents[&volume.id()], "seed {seed}: {}", volume.name());
    }
    volumes[0].discard(whole(size)).expect("discarded");
    let mapped = pool.thin_status(id(0), ByteCount::new(size)).expect("told").mapped;
    assert_eq!(mapped, 0, "a volume without an origin gives discarded blocks up");
    contents.insert(id(0), vec![0; size as usize]);
    drop(volumes);
    pool.close().expect("closed");
    rig.check();
    let pool = rig.open();
    for (device, content) in &contents {
        let alone = pool.open_volume(*device, "alone", ByteCount::new(size), true).expect("opened");
        assert!(read(&alone) == *content, "seed {seed}: device {device} without its origin");
    }
}

#[test]
fn a_hydrated_family_does_without_its_origin() {
    for seed in 0..8 {
        run(seed, SIZE, SIZE);
        run(seed, 6 * BLOCK + 1024, 5 * BLOCK + 4096 + 512);
        run(seed, 5 * BLOCK + 512, 9 * BLOCK);
    }
}

/// A pool over `origin` with a volume and two snapshots that nobody has written.
fn family(metadata: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Result<Arc<Pool>> {
    let pool = open(metadata, data)?;
    if pool.devices().is_empty() {
        pool.change(&[Change::CreateThin(id(0))])?;
        for snapshot in [1, 2] {
            pool.change(&[Change::CreateSnapshot { id: id(snapshot), origin: id(0) }])?;
        }
    }
    Ok(pool)
}

fn members(pool: &Pool, origin: &Arc<dyn BlockDevice>) -> Result<Vec<ThinVolume>> {
    let size = ByteCount::new(SIZE);
    let open = |number| {
        let origin = ExternalOrigin::new(Arc::clone(origin), origin.size())?;
        pool.open_volume_over(id(number), "thin", size, false, Some(origin))
    };
    (0..3).map(open).collect()
}

/// An origin with a hole, zeros, and a fraction at its end.
fn base() -> (Vec<u8>, Arc<dyn BlockDevice>) {
    let mut bytes = vec![0; (6 * BLOCK + 1536) as usize];
    Rng::new(5).fill(&mut bytes);
    bytes[BLOCK as usize..2 * BLOCK as usize].fill(0);
    bytes[(3 * BLOCK + 100) as usize..4 * BLOCK as usize].fill(0);
    let device = Arc::new(MemoryDevice::from_bytes("origin", bytes.clone()));
    bytes.resize(SIZE as usize, 0);
    (bytes, device)
}

/// The volume and its snapshots keep sharing what they share through the origin.
#[test]
fn what_a_family_shares_is_copied_once() {
    let (metadata, data) = formatted(1 << 20, 64);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let (content, origin) = base();
    let pool = family(metadata.clone(), data).expect("opened");
    let volumes = members(&pool, &origin).expect("opened");
    let copied = pool.hydrate(&refs(&volumes), whole(SIZE)).expect("hydrated");
    assert_eq!(copied, ByteCount::new(6 * BLOCK), "seven blocks, one of them zeros");
    assert_eq!(pool.status().data_used, 6);
    // One of them gives a block up that the others have got in the same commit.
    volumes[0].write_at(&[1; 512], ByteOffset::new(BLOCK * 4)).expect("written");
    pool.commit().expect("committed");
    volumes[1].write_at(&[2; 512], ByteOffset::new(BLOCK * 5)).expect("written");
    assert_eq!(pool.status().data_used, 8);
    assert!(read(&volumes[2]) == content);
    drop(volumes);
    pool.close().expect("closed");
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}

/// Takes the power away at every operation of a hydration that runs to its end: the record that the
/// volumes are free of their origin is the transaction id.
#[test]
fn a_hydration_may_be_cut_off_anywhere() {
    const FREE: u64 = 1;
    let (content, origin) = base();
    let (metadata, data) = formatted(1 << 20, 48);
    let (metadata, data) = prepare(metadata, data);
    let hydrate = |pool: &Pool| -> Result<()> {
        let volumes = members(pool, &origin)?;
        for piece in whole(SIZE).pieces(ByteCount::new(2 * BLOCK)) {
            pool.hydrate(&refs(&volumes), piece)?;
            if piece.start.get() == 2 * BLOCK {
                pool.commit()?;
            }
        }
        pool.change(&[Change::SetTransaction { current: 0, new: FREE }])?;
        pool.free_from_origin(&refs(&volumes));
        Ok(())
    };
    let check = |pool: &Pool| {
        let size = ByteCount::new(SIZE);
        let volumes = match pool.transaction() {
            FREE => (0..3).map(|number| pool.open_volume(id(number), "thin", size, true)).collect(),
            _ => members(pool, &origin),
        };
        volumes.expect("opened").iter().all(|volume| read(volume) == content)
    };
    let mut finished = false;
    for crash_at in 1.. {
        let world = CrashWorld::new(crash_at);
        let devices =
            (world.device("metadata", metadata.clone()), world.device("data", data.clone()));
        world.crash_at(crash_at);
        let done = open(devices.0, devices.1).and_then(|pool| hydrate(&pool));
        finished |= done.is_ok();
        for draw in 0..3 {
            let mut images = world.images(draw).into_iter().map(|(_, bytes)| bytes);
            let mut device =
                |name| Arc::new(MemoryDevice::from_bytes(name, images.next().expect("an image")));
            let (metadata, data) = (device("metadata"), device("data"));
            let report = dm_thin::check(metadata.clone()).expect("checked");
            assert!(report.errors.is_empty() && report.leaks.is_empty(), "{crash_at}: {report:#?}");
            let pool = open(metadata.clone(), data).expect("opened");
            assert!(check(&pool), "cut off at operation {crash_at}, draw {draw}");
            assert!(done.is_err() || pool.transaction() == FREE);
            if pool.transaction() != FREE {
                hydrate(&pool).expect("resumed");
                assert!(check(&pool), "resumed after operation {crash_at}, draw {draw}");
            }
        }
        if !world.crashed() {
            break;
        }
    }
    assert!(finished);
}

/// The pool of [`family`], closed, with some blocks written.
fn prepare(metadata: Vec<u8>, data: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    family(metadata.clone(), data.clone()).expect("made").close().expect("closed");
    (metadata.to_bytes(), data.to_bytes())
}

/// Every call of the origin, the data device and the metadata fails in turn; what was copied stays,
/// the volumes read the same, and another attempt finishes.
#[test]
fn a_failure_leaves_the_volumes_as_they_read() {
    let (content, origin) = base();
    for broken in 0..3 {
        for fail_at in 1.. {
            let (metadata, data) = formatted(1 << 20, 48);
            let (metadata, data) = prepare(metadata, data);
            let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
            let data = Arc::new(MemoryDevice::from_bytes("data", data));
            let mut devices: [Arc<dyn BlockDevice>; 3] =
                [metadata.clone(), data.clone(), Arc::clone(&origin)];
            let plan =
                FaultPlan { fail_at, calls: FaultCalls::ALL, kind: ErrorKind::Io, sticky: false };
            let faulty = FaultyDevice::new(Arc::clone(&devices[broken]), plan);
            devices[broken] = faulty.clone();
            let [meta, store, source] = devices;
            let done = open(meta, store).and_then(|pool| {
                let volumes = members(&pool, &source)?;
                pool.hydrate(&refs(&volumes), whole(SIZE))?;
                pool.commit()
            });
            if done.is_ok() && fail_at > 40 {
                break;
            }
            // A pool that stopped wants its metadata to be looked at before it is written again.
            let stopped: Arc<dyn BlockDevice> = metadata.clone();
            let report = dm_thin::clear_needs_check(&stopped).expect("cleared");
            assert!(report.errors.is_empty(), "{broken}, {fail_at}: {report:#?}");
            let pool = open(metadata, data).expect("opened");
            let volumes = members(&pool, &origin).expect("opened");
            assert!(volumes.iter().all(|volume| read(volume) == content), "{broken}, {fail_at}");
            pool.hydrate(&refs(&volumes), whole(SIZE)).expect("resumed");
            pool.commit().expect("committed");
            pool.free_from_origin(&refs(&volumes));
            assert!(volumes.iter().all(|volume| read(volume) == content), "{broken}, {fail_at}");
        }
    }
}

/// Guests write, read and take snapshots while everything is hydrated and freed beside them.
#[test]
fn guests_write_beside_a_hydration() {
    for seed in 0..4 {
        let rig = Rig::new(3 * seed + 1, 40 * BLOCK, 40 * BLOCK);
        let options = OpenOptions::default();
        let (metadata, data) = formatted(1 << 20, 256);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data = Arc::new(MemoryDevice::from_bytes("data", data));
        let pool = Pool::open("pool", metadata.clone(), data, options).expect("opened");
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        pool.change(&[Change::CreateSnapshot { id: id(1), origin: id(0) }]).expect("made");
        let volumes = [rig.volume(&pool, id(0)), rig.volume(&pool, id(1))];
        let free = AtomicBool::new(false);
        let content = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut rng = Rng::new(seed);
                let mut content = rig.fresh();
                let mut last_rounds = 20;
                while last_rounds > 0 {
                    last_rounds -= u32::from(free.load(Ordering::SeqCst));
                    let range = some_range(&mut rng, rig.size);
                    let part = range.start.get() as usize..range.end().get() as usize;
                    if rng.chance(1, 3) {
                        let mode = ZeroMode { may_unmap: true, only_if_fast: false };
                        content[part].fill(0);
                        volumes[0].zero(range, mode).expect("zeroed");
                    } else {
                        rng.fill(&mut content[part.clone()]);
                        volumes[0].write_at(&content[part], range.start).expect("written");
                    }
                    let range = some_range(&mut rng, rig.size);
                    let mut bytes = vec![0; range.len.as_usize()];
                    volumes[0].read_at(&mut bytes, range.start).expect("read");
                    let held = &content[range.start.get() as usize..range.end().get() as usize];
                    assert!(bytes == held, "seed {seed}: {range}");
                }
                content
            });
            for piece in whole(rig.size).pieces(ByteCount::new(BLOCK)) {
                pool.hydrate(&refs_of(&volumes), piece).expect("hydrated");
            }
            pool.commit().expect("committed");
            pool.free_from_origin(&refs_of(&volumes));
            free.store(true, Ordering::SeqCst);
            writer.join().expect("no panic")
        });
        assert!(read(&volumes[0]) == content, "seed {seed}");
        assert!(read(&volumes[1]) == rig.fresh(), "seed {seed}: the snapshot");
        drop(volumes);
        pool.close().expect("closed");
        let report = dm_thin::check(metadata).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    }
}

fn refs_of(volumes: &[ThinVolume; 2]) -> [&ThinVolume; 2] {
    [&volumes[0], &volumes[1]]
}

/// A device whose first read waits until it is let through.
struct Gate {
    inner: Arc<dyn BlockDevice>,
    reached: Mutex<Option<Sender<()>>>,
    open: Mutex<Receiver<()>>,
}

impl BlockDevice for Gate {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> ByteCount {
        self.inner.size()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let reached = self.reached.lock().expect("no panic").take();
        if let Some(reached) = reached {
            reached.send(()).expect("somebody waits");
            self.open.lock().expect("no panic").recv().expect("let through");
        }
        self.inner.read_at(buffer, at)
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> Result<()> {
        unreachable!("an origin is not written")
    }

    fn zero(&self, _: ByteRange, _: ZeroMode) -> Result<()> {
        unreachable!("an origin is not written")
    }

    fn discard(&self, _: ByteRange) -> Result<()> {
        unreachable!("an origin is not written")
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.inner.extents(range, each)
    }
}

/// An origin that does not answer holds up who reads it, and nobody else in the pool.
#[test]
fn an_origin_that_hangs_holds_no_commit_up() {
    let (metadata, data) = formatted(1 << 20, 48);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let (content, inner) = base();
    let (reached, arrivals) = channel();
    let (let_through, open) = channel();
    let gate = Gate { inner, reached: Mutex::new(Some(reached)), open: Mutex::new(open) };
    let gate: Arc<dyn BlockDevice> = Arc::new(gate);
    let pool = family(metadata, data).expect("opened");
    pool.change(&[Change::CreateThin(id(3))]).expect("made");
    let volumes = members(&pool, &gate).expect("opened");
    let other = pool.open_volume(id(3), "other", ByteCount::new(SIZE), false).expect("opened");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&volumes[0]));
        arrivals.recv().expect("it reads the origin");
        let (done, finished) = channel();
        scope.spawn(move || {
            // Its commit frees blocks, which it gives back once no lease is on them.
            other.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
            other.flush().expect("flushed");
            other.discard(whole(SIZE)).expect("discarded");
            other.flush().expect("flushed");
            done.send(()).expect("somebody waits");
        });
        let finished = finished.recv_timeout(std::time::Duration::from_secs(10));
        let_through.send(()).expect("it waits");
        assert_eq!(finished, Ok(()), "a flush waited for the origin of another volume");
        assert!(reader.join().expect("no panic") == content);
    });
}

/// A block that a guest is about to map, copying from the origin, is the guest's.
#[test]
fn a_first_write_that_is_under_way_is_not_overtaken() {
    let (metadata, data) = formatted(1 << 20, 48);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let (mut content, inner) = base();
    let (reached, arrivals) = channel();
    let (let_through, open) = channel();
    let gate = Gate { inner, reached: Mutex::new(Some(reached)), open: Mutex::new(open) };
    let gate: Arc<dyn BlockDevice> = Arc::new(gate);
    let pool = family(metadata, data).expect("opened");
    let volumes = members(&pool, &gate).expect("opened");
    std::thread::scope(|scope| {
        let write = scope.spawn(|| volumes[0].write_at(&[3; 512], ByteOffset::ZERO));
        arrivals.recv().expect("the write reads the origin");
        let hydrate = scope.spawn(|| pool.hydrate(&refs(&volumes), whole(SIZE)));
        // Time for it to find the block unmapped, and to wait for it.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let_through.send(()).expect("it waits");
        write.join().expect("no panic").expect("written");
        hydrate.join().expect("no panic").expect("hydrated");
    });
    assert!(read(&volumes[1]) == content);
    content[..512].fill(3);
    assert!(read(&volumes[0]) == content, "the write was lost");
}

/// Who was told where bytes of the origin lie reads them to the end before it is let go.
#[test]
fn the_origin_stays_for_reads_that_resolved_to_it() {
    let rig = Rig::new(1, SIZE, SIZE);
    let pool = rig.open();
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let volumes = [rig.volume(&pool, id(0))];
    let mut places = Vec::new();
    volumes[0].read_at(&mut [0; 512], ByteOffset::ZERO).expect("its page is loaded");
    let resolver = volumes[0].resolver().expect("it resolves");
    let lease = resolver.resolve(Intent::Read, whole(SIZE), &mut places).expect("resolved");
    pool.hydrate(&refs(&volumes), whole(SIZE)).expect("hydrated");
    pool.commit().expect("committed");
    let freed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pool.free_from_origin(&refs(&volumes));
            freed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!freed.load(Ordering::SeqCst), "it was let go under a lease");
        drop(lease);
    });
    assert!(read(&volumes[0]) == rig.fresh());
}
