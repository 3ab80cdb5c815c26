//! The modes of a pool: what each takes and refuses, how it comes into them and out again, and that
//! neither want of space is ever more than an answer (FULL-IS-NOT-BROKEN).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{BLOCK, formatted, id};
use block_io::{
    Attempt, BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice, Stall, ZeroMode,
};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_thin::{
    Change, EventKind, OpenOptions, Pool, PoolMode, PoolSettings, PoolStatus, ThinVolume,
};

/// Data blocks of the pools here.
pub(crate) const BLOCKS: u64 = 16;
/// So long nothing takes that does not wait for what never comes.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Disks {
    metadata: Arc<MemoryDevice>,
    pub(crate) data: Arc<MemoryDevice>,
}

impl Disks {
    pub(crate) fn new() -> Self {
        let (metadata, data) = formatted(1 << 20, BLOCKS);
        Self {
            metadata: Arc::new(MemoryDevice::from_bytes("metadata", metadata)),
            data: Arc::new(MemoryDevice::from_bytes("data", data)),
        }
    }

    pub(crate) fn open(&self, settings: PoolSettings) -> Arc<Pool> {
        self.open_on(self.metadata.clone(), settings)
    }

    fn open_on(&self, metadata: Arc<dyn BlockDevice>, settings: PoolSettings) -> Arc<Pool> {
        let options =
            OpenOptions { background: false, waits: true, settings, ..OpenOptions::default() };
        Pool::open("pool", metadata, self.data.clone(), options).expect("opened")
    }

    fn check(&self) {
        let report = dm_thin::check(self.metadata.clone()).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    }
}

fn patient() -> PoolSettings {
    PoolSettings { no_space_timeout: None, ..PoolSettings::default() }
}

pub(crate) fn impatient() -> PoolSettings {
    let mut settings = PoolSettings::default();
    settings.features.error_if_no_space = true;
    settings
}

pub(crate) fn at(block: u64) -> ByteOffset {
    ByteOffset::new(block * BLOCK)
}

pub(crate) fn block(number: u64) -> ByteRange {
    ByteRange::new(at(number), ByteCount::new(BLOCK))
}

fn write(thin: &ThinVolume, block: u64) -> block_types::Result<()> {
    thin.write_at(&[block as u8 + 1; 4096], at(block))
}

fn stalls(thin: &ThinVolume, block: u64) -> bool {
    matches!(thin.try_write(&[7; 512], at(block)).expect("tried"), Attempt::Stalled(_))
}

fn mode(pool: &Pool) -> PoolMode {
    pool.status().mode
}

/// The pool's volume, every block of the pool written.
pub(crate) fn full(pool: &Pool) -> ThinVolume {
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    (0..BLOCKS).for_each(|block| write(&thin, block).expect("written"));
    assert_eq!(mode(pool), PoolMode::Write, "nobody has asked for more yet");
    thin
}

fn modes(pool: &Pool) -> Vec<PoolMode> {
    let events = pool.events(0, Duration::ZERO).events;
    let to = |kind| match kind {
        EventKind::Mode { to, .. } => Some(to),
        _ => None,
    };
    events.into_iter().filter_map(|event| to(event.kind)).collect()
}

#[test]
fn a_write_without_space_waits_until_the_pool_has_grown() {
    let disks = Disks::new();
    let pool = disks.open(patient());
    let thin = full(&pool);
    assert!(stalls(&thin, 40));
    assert!(
        pool.status_line()
            .expect("a line")
            .contains(" 16/16 - out_of_data_space discard_passdown queue_if_no_space - ")
    );
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 40));
        let zeroer = scope.spawn(|| thin.zero(block(41), ZeroMode::default()));
        // Nothing that needs no space is held up.
        write(&thin, 3).expect("what is mapped is written");
        let mut bytes = [0; 512];
        thin.read_at(&mut bytes, at(5)).expect("read");
        assert_eq!(bytes, [6; 512]);
        pool.change(&[Change::CreateThin(id(1))]).expect("made");
        pool.change(&[Change::Delete(id(1))]).expect("deleted");
        thin.flush().expect("flushed");
        assert!(!writer.is_finished() && !zeroer.is_finished());
        pool.grow_data(ByteCount::new(20 * BLOCK)).expect("grown");
        writer.join().expect("returned").expect("written");
        zeroer.join().expect("returned").expect("zeroed");
    });
    assert_eq!(mode(&pool), PoolMode::Write);
    assert_eq!(modes(&pool), [PoolMode::OutOfDataSpace, PoolMode::Write]);
    drop(thin);
    pool.close().expect("closed");
    disks.check();
}

#[test]
fn a_discard_and_a_delete_let_writes_go_on() {
    for by_discard in [true, false] {
        let disks = Disks::new();
        let pool = disks.open(patient());
        let thin = full(&pool);
        pool.change(&[Change::CreateSnapshot { id: id(1), origin: id(0) }]).expect("made");
        assert!(stalls(&thin, 3), "a shared block needs a new one");
        if by_discard {
            pool.change(&[Change::Delete(id(1))]).expect("deleted");
            thin.discard(block(9)).expect("discarded");
            // The next write commits what was discarded.
            write(&thin, 40).expect("written");
        } else {
            thread::scope(|scope| {
                let writer = scope.spawn(|| write(&thin, 3));
                thread::sleep(Duration::from_millis(20));
                assert!(!writer.is_finished());
                thin.discard(block(3)).expect("discarded, but the snapshot has it");
                pool.change(&[Change::Delete(id(1))]).expect("deleted");
                writer.join().expect("returned").expect("written");
            });
        }
        assert_eq!(mode(&pool), PoolMode::Write);
        drop(thin);
        pool.close().expect("closed");
        disks.check();
    }
}

#[test]
fn the_time_limit_ends_the_waiting_and_growing_begins_it_anew() {
    let disks = Disks::new();
    let limit = Duration::from_millis(50);
    let settings = PoolSettings { no_space_timeout: Some(limit), ..PoolSettings::default() };
    let pool = disks.open(settings);
    let thin = full(&pool);
    let start = Instant::now();
    assert_eq!(write(&thin, 40).expect_err("no space").kind(), ErrorKind::OutOfSpace);
    assert!((limit..LONG).contains(&start.elapsed()), "{:?}", start.elapsed());
    let line = pool.status_line().expect("a line");
    assert!(line.contains(" out_of_data_space discard_passdown error_if_no_space "), "{line}");
    assert!(write(&thin, 41).is_err(), "at once");
    let events = pool.events(0, Duration::ZERO).events;
    assert!(events.iter().any(|event| event.kind == EventKind::NoSpaceTimeout));
    pool.grow_data(ByteCount::new((BLOCKS + 1) * BLOCK)).expect("grown");
    assert!(
        pool.status_line().expect("a line").contains(" rw discard_passdown queue_if_no_space ")
    );
    write(&thin, 40).expect("written");
    assert!(stalls(&thin, 41), "it may wait again");
}

#[test]
fn error_if_no_space_answers_at_once_and_can_be_chosen_while_writes_wait() {
    let disks = Disks::new();
    let pool = disks.open(impatient());
    let thin = full(&pool);
    assert_eq!(write(&thin, 40).expect_err("no space").kind(), ErrorKind::OutOfSpace);
    assert_eq!(mode(&pool), PoolMode::OutOfDataSpace);
    pool.configure(patient()).expect("configured");
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 40));
        thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished());
        pool.configure(impatient()).expect("configured");
        let error = writer.join().expect("returned").expect_err("no space");
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    });
}

#[test]
fn closing_releases_writes_that_wait() {
    let disks = Disks::new();
    let pool = disks.open(patient());
    let thin = full(&pool);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 40));
        while mode(&pool) != PoolMode::OutOfDataSpace {
            thread::yield_now();
        }
        pool.close().expect("closed");
        let error = writer.join().expect("returned").expect_err("closed");
        assert_eq!(error.kind(), ErrorKind::Stopped);
    });
    disks.check();
}

#[test]
fn a_volume_that_shrinks_under_a_write_that_waits_refuses_it() {
    let disks = Disks::new();
    let pool = disks.open(patient());
    let thin = full(&pool);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 40));
        while mode(&pool) != PoolMode::OutOfDataSpace {
            thread::yield_now();
        }
        pool.resize_volume(&thin, ByteCount::new(20 * BLOCK)).expect("resized");
        pool.grow_data(ByteCount::new(20 * BLOCK)).expect("grown");
        let error = writer.join().expect("returned").expect_err("past the end");
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    });
    assert_eq!(pool.status().data_used, BLOCKS, "nothing is mapped behind the end");
}

#[test]
fn room_on_the_file_system_below_is_asked_for_again() {
    let disks = Disks::new();
    let calls = FaultCalls { provisions: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::OutOfSpace, sticky: true };
    let data = FaultyDevice::new(disks.data.clone(), FaultPlan { fail_at: u64::MAX, ..plan });
    let options = OpenOptions {
        background: false,
        waits: true,
        settings: patient(),
        ..OpenOptions::default()
    };
    let pool = Pool::open("pool", disks.metadata.clone(), data.clone(), options).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    data.arm(plan);
    assert!(stalls(&thin, 0));
    assert_eq!(mode(&pool), PoolMode::OutOfDataSpace);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 0));
        thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished());
        data.arm(FaultPlan { fail_at: u64::MAX, ..plan });
        writer.join().expect("returned").expect("written");
    });
    assert_eq!(mode(&pool), PoolMode::Write);
}

/// Metadata that cannot grow until it is told to, as on a block device.
fn fixed(disks: &Disks) -> (Arc<FaultyDevice>, FaultPlan) {
    let calls = FaultCalls { resizes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Unsupported, sticky: true };
    (FaultyDevice::new(disks.metadata.clone(), plan), plan)
}

/// Takes snapshots and writes until the metadata is full; the next device.
fn fill_metadata(pool: &Pool, thin: &ThinVolume) -> u32 {
    for next in 1..20_000 {
        let change = Change::CreateSnapshot { id: id(next), origin: id(0) };
        let made = pool.change(&[change]).and_then(|()| {
            let blocks = (0..8).map(|step| u64::from(next * 7 + step) % 64);
            blocks.into_iter().try_for_each(|block| {
                match thin.try_write(&[next as u8; 512], at(block))? {
                    Attempt::Done => Ok(()),
                    Attempt::Stalled(_) => Err(no_space()),
                }
            })
        });
        if made.is_err() {
            return next;
        }
    }
    panic!("the metadata never fills");
}

fn no_space() -> block_types::Error {
    block_types::Error::new(ErrorKind::OutOfSpace, "pool", "a write has to wait")
}

#[test]
fn full_metadata_is_a_mode_of_its_own_and_growing_ends_it() {
    let (metadata, data) = formatted(1 << 20, 1 << 12);
    drop(data);
    let disks = Disks {
        metadata: Arc::new(MemoryDevice::from_bytes("metadata", metadata)),
        data: Arc::new(MemoryDevice::new("data", ByteCount::new(BLOCK << 12))),
    };
    let (device, plan) = fixed(&disks);
    let pool = disks.open_on(device.clone(), patient());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    let next = fill_metadata(&pool, &thin);
    assert_eq!(mode(&pool), PoolMode::OutOfMetadataSpace);
    assert!(pool.status_line().expect("a line").contains(" ro "), "as the kernel tells it");
    // It goes on with what changes no metadata, grows, and takes waiting writes then.
    thin.flush().expect("flushed");
    pool.grow_data(ByteCount::new(4097 * BLOCK)).expect("data grows");
    let error = pool.change(&[Change::CreateThin(id(next + 1))]).expect_err("full");
    assert!(error.to_string().contains("metadata"), "{error}");
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&thin, 63));
        device.arm(FaultPlan { fail_at: u64::MAX, ..plan });
        pool.grow_metadata(ByteCount::new(16 << 20)).expect("grown");
        writer.join().expect("returned").expect("written");
    });
    assert_eq!(mode(&pool), PoolMode::Write);
    assert_eq!(modes(&pool), [PoolMode::OutOfMetadataSpace, PoolMode::Write]);
    assert!(pool.status().metadata_total >= 4096);
    drop(thin);
    pool.close().expect("closed");
    disks.check();
}

#[test]
fn both_spaces_grow_while_both_are_used_up() {
    let disks = Disks::new();
    let (device, plan) = fixed(&disks);
    let pool = disks.open_on(device.clone(), patient());
    let thin = full(&pool);
    // Devices without a block of data: they fill the metadata alone.
    let mut next = 1;
    while pool.change(&[Change::CreateThin(id(next))]).is_ok() {
        next += 1;
    }
    assert!(stalls(&thin, 40));
    assert_eq!(mode(&pool), PoolMode::OutOfMetadataSpace);
    device.arm(FaultPlan { fail_at: u64::MAX, ..plan });
    pool.grow_data(ByteCount::new(600 * BLOCK)).expect("grown");
    pool.grow_metadata(ByteCount::new(16 << 20)).expect("grown");
    write(&thin, 40).expect("written");
    assert_eq!(mode(&pool), PoolMode::Write);
    drop(thin);
    pool.close().expect("closed");
    disks.check();
}

/// A pool whose commit has failed: it needs a check, durably, before anybody is told.
fn stopped(disks: &Disks) -> (Arc<Pool>, Arc<FaultyDevice>, FaultPlan) {
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: u64::MAX, calls, kind: ErrorKind::Io, sticky: false };
    let device = FaultyDevice::new(disks.metadata.clone(), plan);
    let pool = disks.open_on(device.clone(), patient());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    write(&thin, 0).expect("written");
    thin.flush().expect("flushed");
    write(&thin, 1).expect("written");
    device.arm(FaultPlan { fail_at: 1, ..plan });
    assert!(thin.flush().is_err());
    (pool, device, plan)
}

fn needs_check(disks: &Disks) -> bool {
    let report = dm_thin::check(disks.metadata.clone()).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    report.needs_check
}

#[test]
fn a_failed_commit_is_marked_durably_and_the_pool_still_grows() {
    let disks = Disks::new();
    let (pool, ..) = stopped(&disks);
    let status: PoolStatus = pool.status();
    assert!(status.needs_check && status.mode == PoolMode::ReadOnly, "{status:?}");
    assert!(needs_check(&disks), "what is reported is on the disk");
    assert!(
        pool.status_line()
            .expect("a line")
            .contains(" ro discard_passdown queue_if_no_space needs_check ")
    );
    pool.grow_data(ByteCount::new(100 * BLOCK)).expect("grown");
    pool.grow_metadata(ByteCount::new(8 << 20)).expect("grown");
    let status = pool.status();
    assert_eq!((status.data_total, status.metadata_total), (100, 2048));
    assert!(needs_check(&disks), "growing is no check");
    let error = pool.change(&[Change::CreateThin(id(1))]).expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    drop(pool);

    // As it comes up again: read-only until the check, and larger all the same.
    let pool = disks.open(patient());
    assert_eq!(pool.status().data_total, 100);
    assert!(pool.status().needs_check);
    pool.grow_data(ByteCount::new(101 * BLOCK)).expect("grown");
    drop(pool);
    let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
    dm_thin::clear_needs_check(&metadata).expect("sound");
    let pool = disks.open(patient());
    assert_eq!((mode(&pool), pool.status().data_total), (PoolMode::Write, 101));
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    let mut bytes = [0; 512];
    thin.read_at(&mut bytes, at(0)).expect("read");
    assert_eq!(bytes, [1; 512], "what was flushed is kept");
}

#[test]
fn a_mark_that_cannot_be_written_is_failure() {
    let disks = Disks::new();
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: u64::MAX, calls, kind: ErrorKind::Io, sticky: true };
    let device = FaultyDevice::new(disks.metadata.clone(), plan);
    let pool = disks.open_on(device.clone(), patient());
    let thin = full(&pool);
    device.arm(FaultPlan { fail_at: 1, ..plan });
    assert!(thin.flush().is_err());
    assert_eq!(mode(&pool), PoolMode::Fail);
    assert_eq!(pool.status_line().expect("a line"), "0 2048 thin-pool Fail");
    assert!(pool.grow_data(ByteCount::new(100 * BLOCK)).is_err());
    assert!(write(&thin, 0).is_err());
    thin.read_at(&mut [0; 512], at(5)).expect("reads go on");
    assert_eq!(modes(&pool), [PoolMode::Fail]);
}

#[test]
fn read_only_is_a_choice_that_can_be_taken_back() {
    let disks = Disks::new();
    let mut settings = patient();
    settings.features.read_only = true;
    let pool = disks.open(settings);
    assert_eq!(mode(&pool), PoolMode::ReadOnly);
    assert!(pool.status_line().expect("a line").contains(" - ro "));
    let error = pool.change(&[Change::CreateThin(id(0))]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    pool.grow_data(ByteCount::new((BLOCKS + 1) * BLOCK)).expect("growing was asked for");
    pool.configure(patient()).expect("configured");
    let thin = full(&pool);
    write(&thin, BLOCKS).expect("written");
    pool.configure(settings).expect("configured");
    assert_eq!(mode(&pool), PoolMode::ReadOnly);
    assert_eq!(write(&thin, 0).expect_err("refused").kind(), ErrorKind::ReadOnly);
    pool.grow_data(ByteCount::new((BLOCKS + 2) * BLOCK)).expect("grown");
    pool.configure(patient()).expect("configured");
    write(&thin, 0).expect("written");
    assert_eq!(modes(&pool), [PoolMode::Write, PoolMode::ReadOnly, PoolMode::Write]);
    drop(thin);
    pool.close().expect("closed");
    disks.check();
}
