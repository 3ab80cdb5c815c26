use std::sync::Arc;

use block_io::{BlockDevice, CrashDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, DirtyBitmap, Granularity, Result};
use parking_lot::Mutex;
use testkit::rng::Rng;

use super::{BitmapPart, BitmapStore, Recorder, Tracked};

const UNIT: u64 = 512;
/// A bitmap of a little more than three regions.
const GRANULES: u64 = 3 * 1024 + 77;
const SIZE: u64 = GRANULES * UNIT;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

fn clean() -> DirtyBitmap {
    let unit = Granularity::new(ByteCount::new(UNIT)).unwrap();
    DirtyBitmap::new(ByteCount::new(SIZE), unit).unwrap()
}

/// Keeps the bits on a device of their own.
struct DeviceStore<D>(Arc<D>);

impl<D: BlockDevice> BitmapStore for DeviceStore<D> {
    fn put(&self, parts: &[BitmapPart]) -> Result<()> {
        for part in parts {
            self.0.write_at(&part.bytes, ByteOffset::new(part.at))?;
        }
        self.0.flush()
    }
}

/// Says that parts are there, and brings them there with the next ones: the fault that the crash
/// simulation has to find.
struct LateStore<D> {
    store: DeviceStore<D>,
    late: Mutex<Vec<BitmapPart>>,
}

impl<D: BlockDevice> BitmapStore for LateStore<D> {
    fn put(&self, parts: &[BitmapPart]) -> Result<()> {
        let late = std::mem::replace(&mut *self.late.lock(), parts.to_vec());
        self.store.put(&late)
    }
}

fn store_bytes() -> usize {
    clean().byte_len().next_multiple_of(512) as usize
}

fn tracked(data: Arc<dyn BlockDevice>, store: Box<dyn BitmapStore>) -> Tracked {
    let tracked = Tracked::new(data);
    tracked.begin(&[Arc::new(Recorder::new("daily", clean(), store).unwrap())]).unwrap();
    tracked
}

#[test]
fn a_region_is_put_once() {
    let data = Arc::new(MemoryDevice::new("disk", ByteCount::new(SIZE)));
    let world = CrashWorld::new(1);
    let bits = world.device("bits", vec![0; store_bytes()]);
    let tracked = tracked(data, Box::new(DeviceStore(Arc::clone(&bits))));
    tracked.write_at(&[1; 512], ByteOffset::new(UNIT)).unwrap();
    let once = world.ops();
    assert!(once > 0, "the region is not on the disk");
    for granule in 0..1024 {
        tracked.write_at(&[1; 512], ByteOffset::new(granule * UNIT)).unwrap();
    }
    assert_eq!(world.ops(), once, "a region is put there again");
    tracked.write_at(&[1; 512], ByteOffset::new(1024 * UNIT)).unwrap();
    assert!(world.ops() > once);
    let recorder = &tracked.recorders()[0];
    assert_eq!(recorder.bits().dirty().get(), 1025 * UNIT);
    assert_eq!(recorder.consistent_level().get(), 1024 * UNIT);
    tracked.refine().unwrap();
    let mut exact = vec![0; store_bytes()];
    recorder.bits().export(0, &mut exact);
    let mut found = vec![0; store_bytes()];
    bits.read_at(&mut found, ByteOffset::ZERO).unwrap();
    assert_eq!(found, exact, "what is kept is exact after a lull");
    let refined = world.ops();
    tracked.write_at(&[1; 512], ByteOffset::new(5 * UNIT)).unwrap();
    assert_eq!(world.ops(), refined, "what is dirty already changes nothing");
}

#[test]
fn reads_and_idle_disks_put_nothing() {
    let data = Arc::new(MemoryDevice::new("disk", ByteCount::new(SIZE)));
    let world = CrashWorld::new(1);
    let bits = world.device("bits", vec![0; store_bytes()]);
    let tracked = tracked(data, Box::new(DeviceStore(bits)));
    tracked.read_at(&mut [0; 512], ByteOffset::ZERO).unwrap();
    tracked.flush().unwrap();
    tracked.refine().unwrap();
    assert!(tracked.write_at(&[0; 512], ByteOffset::new(SIZE)).is_err(), "past the end");
    assert_eq!(world.ops(), 0);
    assert!(tracked.recorders()[0].bits().is_clean());
}

#[test]
fn recorders_come_and_go() {
    let data = Arc::new(MemoryDevice::new("disk", ByteCount::new(SIZE)));
    let memory = || Arc::new(MemoryDevice::new("bits", ByteCount::new(store_bytes() as u64)));
    let recorder = |name: &str| {
        Arc::new(Recorder::new(name, clean(), Box::new(DeviceStore(memory()))).unwrap())
    };
    let tracked = Tracked::new(data);
    tracked.write_at(&[1; 512], ByteOffset::ZERO).unwrap();
    tracked.begin(&[recorder("a"), recorder("b")]).unwrap();
    assert!(tracked.begin(&[recorder("a")]).is_err());
    tracked.write_at(&[1; 512], ByteOffset::new(UNIT)).unwrap();
    let a = tracked.end("a").unwrap();
    assert!(tracked.end("a").is_none());
    tracked.discard(range(7 * UNIT, UNIT)).unwrap();
    tracked.zero(range(9 * UNIT, UNIT), block_io::ZeroMode::default()).unwrap();
    assert_eq!(a.bits().dirty().get(), UNIT);
    assert_eq!(tracked.recorders()[0].bits().dirty().get(), 3 * UNIT);
}

/// What one run of random work came to before the power failed.
struct Run {
    /// Granules that a write was begun to since the bitmap was made.
    touched: Vec<bool>,
    data: Vec<u8>,
    bits: Vec<u8>,
}

/// Writes at random, with lulls in between, until the power fails at operation `crash`.
fn run(seed: u64, crash: u64, late: bool) -> Run {
    let mut random = Rng::new(seed);
    let world = CrashWorld::new(seed);
    let data = world.device("disk", vec![0; SIZE as usize]);
    let bits = world.device("bits", vec![0; store_bytes()]);
    let store = DeviceStore::<CrashDevice>(Arc::clone(&bits));
    let store: Box<dyn BitmapStore> = match late {
        true => Box::new(LateStore { store, late: Mutex::default() }),
        false => Box::new(store),
    };
    let tracked = tracked(data, store);
    world.crash_at(crash);
    let mut touched = vec![false; GRANULES as usize];
    while !world.crashed() {
        let granule = random.within(0..GRANULES);
        match random.within(0..10) {
            0 => drop(tracked.flush()),
            1 => drop(tracked.refine()),
            _ => {
                touched[granule as usize] = true;
                let _ = tracked.write_at(&[0xa5; 512], ByteOffset::new(granule * UNIT));
            }
        }
    }
    let mut images = world.after_crash().into_iter().map(|(_, bytes)| bytes);
    let (data, bits) = (images.next().unwrap(), images.next().unwrap());
    Run { touched, data, bits }
}

impl Run {
    /// Granules that have changed and are not reported.
    fn missed(&self) -> usize {
        let restored = self.restored();
        let changed = |granule: &u64| self.data[(granule * UNIT) as usize] != 0;
        let missed = |granule: &u64| !restored.is_dirty(range(granule * UNIT, 1));
        (0..GRANULES).filter(changed).filter(missed).count()
    }

    /// Whether a region is reported in which nothing was touched.
    fn is_excessive(&self) -> bool {
        let restored = self.restored();
        self.touched.chunks(1024).enumerate().any(|(region, touched)| {
            let start = region as u64 * 1024 * UNIT;
            let len = (SIZE - start).min(1024 * UNIT);
            !touched.contains(&true) && restored.is_dirty(range(start, len))
        })
    }

    fn restored(&self) -> DirtyBitmap {
        let restored = clean();
        restored.import(0, &self.bits);
        restored
    }
}

fn seeds() -> u64 {
    if std::env::var_os("FIRN_LONG").is_some() { 50_000 } else { 2000 }
}

#[test]
fn a_crash_never_leaves_too_little() {
    for seed in 0..seeds() {
        let run = run(seed, 1 + seed % 61, false);
        assert_eq!(run.missed(), 0, "seed {seed}: changed and not reported");
        assert!(!run.is_excessive(), "seed {seed}: more than the level implies");
    }
}

#[test]
fn a_level_that_is_put_too_late_is_found() {
    let found = (0..200).filter(|&seed| run(seed, 1 + seed % 61, true).missed() > 0).count();
    assert!(found > 10, "only {found} of 200 crashes showed it");
}

/// Writers, lulls and a backup that clears and reads, side by side: what the backup has read is
/// what was written, or it is dirty again.
#[test]
fn what_is_cleared_has_been_read_or_is_dirty_again() {
    let data = Arc::new(MemoryDevice::new("disk", ByteCount::new(SIZE)));
    let bits = Arc::new(MemoryDevice::new("bits", ByteCount::new(store_bytes() as u64)));
    let tracked = tracked(Arc::clone(&data) as Arc<dyn BlockDevice>, Box::new(DeviceStore(bits)));
    let recorder = Arc::clone(&tracked.recorders()[0]);
    let backup = MemoryDevice::new("backup", ByteCount::new(SIZE));
    let copy = |run: ByteRange| {
        let mut bytes = vec![0; run.len.as_usize()];
        data.read_at(&mut bytes, run.start).unwrap();
        backup.write_at(&bytes, run.start).unwrap();
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let tracked = &tracked;
                scope.spawn(move || {
                    let mut random = Rng::new(writer);
                    for round in 0..4000u64 {
                        let at = ByteOffset::new(random.within(0..GRANULES) * UNIT);
                        tracked.write_at(&[(round % 251) as u8; 512], at).unwrap();
                    }
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            tracked.refine().unwrap();
            let dirty: Vec<_> = recorder.bits().dirty_runs().collect();
            dirty.iter().for_each(|run| recorder.bits().clear(*run));
            tracked.drain();
            dirty.into_iter().for_each(copy);
        }
    });
    recorder.bits().dirty_runs().for_each(copy);
    assert!(backup.to_bytes() == data.to_bytes(), "the backup has missed a write");
}
