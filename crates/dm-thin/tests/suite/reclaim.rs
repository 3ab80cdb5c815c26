//! Deleting in a moment, and taking down in steps what is left: the metadata is sound after each
//! step and each power failure, nothing shared is touched, and all space comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block_io::{BlockDevice, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::restore::{Overrides, restore};
use dm_thin::{BlockSize, Change, OpenOptions, Pool, ReclaimPace};
use testkit::rng::Rng;
use testkit::thin_tools;

use crate::common::{BLOCK, Model, Session, contents, formatted, id, volume};
use crate::promise::Hollow;

/// Blocks of a large volume: some dozens of leaves.
const LARGE: u64 = 6000;

fn options(leaves: usize) -> OpenOptions {
    let reclaim = ReclaimPace { at_once: 0, leaves };
    OpenOptions { background: false, reclaim, ..OpenOptions::default() }
}

fn reopen(metadata: &Arc<MemoryDevice>, data_blocks: u64, leaves: usize) -> Arc<Pool> {
    let data = Arc::new(Hollow(data_blocks));
    Pool::open("pool", metadata.clone(), data, options(leaves)).expect("opened")
}

fn sound(metadata: Arc<dyn BlockDevice>, what: &str) {
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{what}: {report:#?}");
}

fn write(pool: &Pool, device: u32, blocks: impl Iterator<Item = u64>) {
    let size = ByteCount::new(LARGE * BLOCK);
    let volume = pool.open_volume(id(device), "thin", size, false).expect("opened");
    for block in blocks {
        volume.write_at(&[7; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
}

fn mapped(pool: &Pool) -> Vec<(u32, u64)> {
    pool.devices().into_iter().map(|(id, state)| (id.get(), state.mapped)).collect()
}

/// Trees that share much and little, taken down by pieces of every size, in pools that are closed
/// and opened in between, with and without a metadata snapshot.
#[test]
fn every_step_leaves_sound_metadata_and_the_last_one_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metadata");
    for (seed, leaves) in [(0, 1), (1, 2), (2, 3), (3, 7), (4, 100)] {
        let mut rng = Rng::new(seed);
        let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(8 << 20)));
        let device: Arc<dyn BlockDevice> = metadata.clone();
        let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        Pool::format(&device, &Hollow(20_000), size).expect("formatted");
        let mut pool = reopen(&metadata, 20_000, leaves);
        let fresh = pool.status();
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        write(&pool, 0, (0..LARGE).filter(|at| at % 7 != 0));
        for number in 1..4 {
            let origin = id(number - 1);
            pool.change(&[Change::CreateSnapshot { id: id(number), origin }]).expect("taken");
            let from = rng.within(0..LARGE);
            write(&pool, number, from..(from + 900).min(LARGE));
            write(&pool, 0, (0..LARGE).step_by(501));
        }
        if seed % 2 == 1 {
            pool.change(&[Change::ReserveMetadataSnapshot]).expect("held");
        }
        for number in [2, 0, 3, 1] {
            let before = mapped(&pool);
            pool.change(&[Change::Delete(id(number))]).expect("deleted");
            assert_eq!(pool.devices().len(), before.len() - 1, "it is gone at once");
            // Its number is free at once, and so is the one that its tree took.
            for again in [id(number), dm_thin::DeviceId::MAX] {
                pool.change(&[Change::CreateThin(again)]).expect("the number is free");
                pool.change(&[Change::Delete(again)]).expect("deleted");
            }
            let mut steps = 0;
            loop {
                sound(metadata.clone(), &format!("seed {seed}, device {number}, step {steps}"));
                if rng.chance(1, 6) {
                    pool.close().expect("closed");
                    std::fs::write(&file, metadata.to_bytes()).expect("written");
                    thin_tools::check(&file);
                    pool = reopen(&metadata, 20_000, leaves);
                }
                let (of, left) = (pool.devices().len(), pool.status().reclaiming);
                if !pool.reclaim_step().expect("a step") {
                    break;
                }
                assert_eq!(pool.devices().len(), of);
                assert!(pool.status().reclaiming <= left, "a step never adds");
                steps += 1;
            }
            // What a metadata snapshot has, too, is let go of at once.
            assert!(seed % 2 == 1 || steps >= 20 / leaves, "{steps} steps of {leaves} leaves");
            assert_eq!(pool.status().reclaiming, 0);
        }
        if seed % 2 == 1 {
            pool.change(&[Change::ReleaseMetadataSnapshot]).expect("released");
        }
        let status = pool.status();
        assert_eq!((status.data_used, status.devices), (0, 0));
        assert_eq!(status.metadata_used, fresh.metadata_used);
        pool.close().expect("closed");
        std::fs::write(&file, metadata.to_bytes()).expect("written");
        thin_tools::check(&file);
    }
}

/// The model at work on pools that doom whatever is deleted or rolled back.
#[test]
fn power_failures_at_any_moment_of_it() {
    let (metadata_image, data_image) = formatted(1 << 20, 96);
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 2000 } else { 120 };
    let mut interrupted = 0;
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let world = CrashWorld::new(seed);
        let metadata = world.device("metadata", metadata_image.clone());
        let data = world.device("data", data_image.clone());
        world.crash_at(rng.within(1..400));
        let mut model = Model::default();
        let pool = Pool::open("pool", metadata, data, options(1)).expect("opened");
        let mut session = Session::new(Arc::clone(&pool));
        while !world.crashed() {
            let done = match rng.within(0..12) {
                0 => pool.reclaim_step().map(drop),
                _ => model.step(&mut session, &mut rng),
            };
            match done {
                Err(error) if error.kind() == ErrorKind::OutOfSpace => {}
                Err(error) if world.crashed() => assert_eq!(error.kind(), ErrorKind::Stopped),
                done => done.expect("done"),
            }
        }
        drop((session, pool));
        let mut images = world.images(0).into_iter();
        let mut image = || {
            let (name, bytes) = images.next().expect("two devices");
            Arc::new(MemoryDevice::from_bytes(name, bytes))
        };
        let (metadata, data) = (image(), image());
        sound(metadata.clone(), &format!("seed {seed}"));
        let pool = Pool::open("pool", metadata.clone(), data, options(1)).expect("opened");
        model.survive(&pool).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        interrupted += u32::from(pool.status().reclaiming > 0);
        pool.reclaim().expect("taken down");
        model.compare_live(&pool);
        pool.close().expect("closed");
        sound(metadata, &format!("seed {seed}, reclaimed"));
    }
    assert!(interrupted > seeds as u32 / 10, "{interrupted} failures met something doomed");
}

/// A pool is not full while deleted devices have its space: a writer takes it from them.
#[test]
fn a_short_pool_reclaims_before_it_says_full() {
    let (metadata, data) = formatted(1 << 20, 8);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    // Metadata that cannot grow.
    let calls = FaultCalls { provisions: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::OutOfSpace, sticky: true };
    let fixed = FaultyDevice::new(metadata.clone(), plan);
    let pool = Pool::open("pool", fixed, data, options(1)).expect("opened");
    for round in 0..30u8 {
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        let thin = volume(&pool, id(0)).expect("opened");
        for block in 0..8 {
            let at = ByteOffset::new(block * BLOCK);
            thin.write_at(&[round; 512], at).expect("the space of the last one is to be had");
        }
        assert_eq!(contents(&thin)[0], u64::from_le_bytes([round; 8]));
        drop(thin);
        pool.change(&[Change::Delete(id(0))]).expect("deleted");
        assert_eq!(pool.status().reclaiming, 8, "nothing is taken down before it is wanted");
    }
    pool.close().expect("closed");
    sound(metadata, "at the end");
}

/// Metadata in which device 0 maps so many blocks in order, and device 1 none.
fn with_mappings(blocks: u64) -> Arc<dyn BlockDevice> {
    let xml = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"{}\">\n\
         <device dev_id=\"0\" mapped_blocks=\"{blocks}\" transaction=\"0\" creation_time=\"0\" \
         snap_time=\"0\">\n\
         <range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{blocks}\" time=\"0\"/>\n\
         </device>\n\
         <device dev_id=\"1\" mapped_blocks=\"0\" transaction=\"0\" creation_time=\"0\" \
         snap_time=\"0\">\n</device>\n</superblock>\n",
        2 * blocks
    );
    let size = ByteCount::new((blocks / 100 + 1024) * 4096);
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("metadata", size));
    restore(xml.as_bytes(), Arc::clone(&metadata), &Overrides::default()).expect("restored");
    metadata
}

/// Figures are printed; the bounds are those of a slow machine that is busy with other things.
#[test]
fn deleting_takes_a_moment_and_writers_go_on() {
    let long = std::env::var_os("FIRN_LONG").is_some();
    let blocks = if long { 10_000_000 } else { 1_000_000 };
    let metadata = with_mappings(blocks);
    let data = Arc::new(Hollow(2 * blocks));
    let pool = Pool::open("pool", metadata.clone(), data, OpenOptions::default()).expect("opened");
    let (stop, longest) = (AtomicBool::new(false), std::sync::Mutex::new(Duration::ZERO));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let size = ByteCount::new(1 << 40);
            let thin = pool.open_volume(id(1), "thin", size, false).expect("opened");
            for at in (0..10_000u64).cycle() {
                let begun = Instant::now();
                thin.write_at(&[1; 512], ByteOffset::new(at * BLOCK)).expect("written");
                thin.flush().expect("flushed");
                let mut longest = longest.lock().expect("nobody panicked");
                *longest = begun.elapsed().max(*longest);
                drop(longest);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let begun = Instant::now();
        pool.change(&[Change::Delete(id(0))]).expect("deleted");
        let deleted = begun.elapsed();
        assert!(pool.status().data_used >= blocks / 2, "the space does not come back at once");
        while pool.status().reclaiming > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let reclaimed = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        let longest = *longest.lock().expect("nobody panicked");
        println!(
            "{blocks} mappings: deleted after {deleted:.1?}, reclaimed after {reclaimed:.1?}; the \
             longest write and flush meanwhile took {longest:.1?}"
        );
        assert!(deleted < Duration::from_secs(1), "{deleted:?}");
        assert!(longest < Duration::from_secs(3), "{longest:?}");
    });
    assert!(pool.status().data_used <= 10_000);
    pool.close().expect("closed");
    sound(metadata, "at the end");
}
