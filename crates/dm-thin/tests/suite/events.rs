//! What a pool tells of itself: marks that are reached once, growth, and nothing twice.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{BLOCK, formatted, id};
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_thin::{Change, EventKind, OpenOptions, Pool, PoolSettings, ThinVolume};

fn open(metadata: Arc<dyn BlockDevice>, data: Vec<u8>, low_water: u64) -> Arc<Pool> {
    let settings = PoolSettings { low_water, ..PoolSettings::default() };
    let options = OpenOptions { background: false, settings, ..OpenOptions::default() };
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    Pool::open("pool", metadata, data, options).expect("opened")
}

/// Metadata that does not grow by itself.
fn fixed(metadata: Vec<u8>) -> (Arc<FaultyDevice>, FaultPlan) {
    let calls = FaultCalls { resizes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Unsupported, sticky: true };
    (FaultyDevice::new(Arc::new(MemoryDevice::from_bytes("metadata", metadata)), plan), plan)
}

fn pool(low_water: u64) -> (Arc<Pool>, ThinVolume) {
    let (metadata, data) = formatted(1 << 20, 16);
    let pool = open(fixed(metadata).0, data, low_water);
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = pool.open_volume(id(0), "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    (pool, thin)
}

fn write(thin: &ThinVolume, blocks: std::ops::Range<u64>) {
    for block in blocks {
        thin.write_at(&[1; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
}

/// The kinds of all events, and their numbers in order.
fn kinds(pool: &Pool) -> Vec<EventKind> {
    let page = pool.events(0, Duration::ZERO);
    for (number, event) in (1..).zip(&page.events) {
        assert_eq!(event.sequence, number);
    }
    page.events.into_iter().map(|event| event.kind).collect()
}

#[test]
fn the_low_water_mark_is_told_once_for_each_time_it_is_set() {
    let (pool, thin) = pool(4);
    write(&thin, 0..12);
    assert_eq!(kinds(&pool), [], "four blocks are left, but nobody has asked for one of them");
    write(&thin, 12..15);
    let low = |free| EventKind::LowWater { free, mark: 4 };
    assert_eq!(kinds(&pool), [low(4)]);
    // Blocks that come back do not arm it: as with the kernel, growing and setting it do.
    let range = ByteRange::new(ByteOffset::ZERO, ByteCount::new(10 * BLOCK));
    thin.discard(range).expect("discarded");
    pool.commit().expect("committed");
    write(&thin, 20..29);
    assert_eq!(kinds(&pool), [low(4)]);
    pool.grow_data(ByteCount::new(20 * BLOCK)).expect("grown");
    write(&thin, 30..34);
    let grown = EventKind::DataGrown { from: 16, to: 20 };
    assert_eq!(kinds(&pool), [low(4), grown.clone(), low(4)]);
    pool.configure(pool.settings()).expect("configured");
    write(&thin, 40..41);
    assert_eq!(kinds(&pool), [low(4), grown, low(4), low(2)]);
}

#[test]
fn an_alarm_is_told_besides() {
    let (pool, thin) = pool(0);
    pool.set_alarm(Some(8));
    write(&thin, 0..10);
    assert_eq!(kinds(&pool), [EventKind::Alarm { free: 8, mark: 8 }]);
    pool.set_alarm(None);
    write(&thin, 10..16);
    assert_eq!(kinds(&pool).len(), 1);
}

#[test]
fn little_metadata_is_told_once_and_again_after_it_was_more() {
    let (metadata, data) = formatted(1 << 20, 64);
    let (fixed, plan) = fixed(metadata);
    let pool = open(fixed.clone(), data, 0);
    let low = || {
        let kinds = kinds(&pool);
        kinds.iter().filter(|kind| matches!(kind, EventKind::MetadataLow { .. })).count()
    };
    let mut next = 0;
    while pool.change(&[Change::CreateThin(id(next))]).is_ok() {
        next += 1;
    }
    assert_eq!(low(), 1);
    fixed.arm(FaultPlan { fail_at: u64::MAX, ..plan });
    pool.grow_metadata(ByteCount::new(16 << 20)).expect("grown");
    assert!(kinds(&pool).contains(&EventKind::MetadataGrown { from: 256, to: 4096 }));
    fixed.arm(plan);
    while pool.change(&[Change::CreateThin(id(next))]).is_ok() {
        next += 1;
    }
    assert_eq!(low(), 2);
}
