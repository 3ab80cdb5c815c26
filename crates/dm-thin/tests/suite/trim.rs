//! Trimming the free space of a pool that is in use: all that is free is given back, and nothing
//! else, whoever writes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::{Change, DataBlock, Discards, OpenOptions, Pool};
use testkit::rng::Rng;

use crate::common::{BLOCK, Model, Session, formatted, id};

const DATA: u64 = 96;

/// Trims all there is, and returns how many blocks that were.
fn trim(pool: &Pool) -> u64 {
    let (mut from, mut bytes) = (DataBlock::new(0), 0);
    while let Some(step) = pool.trim_step(from).expect("trimmed") {
        assert!(step.next > from);
        (from, bytes) = (step.next, bytes + step.bytes.get());
    }
    bytes / BLOCK
}

/// Blocks of the data device that hold anything.
fn filled(data: &MemoryDevice) -> u64 {
    let bytes = data.to_bytes();
    bytes.chunks(BLOCK as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64
}

#[test]
fn all_that_is_free_is_given_back_and_nothing_else() {
    for seed in 0..10 {
        let mut rng = Rng::new(seed);
        let (metadata, _) = formatted(1 << 20, DATA);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        // What somebody left in the data device.
        let data = Arc::new(MemoryDevice::from_bytes("data", vec![0xa5; (DATA * BLOCK) as usize]));
        let mut options = OpenOptions { background: false, ..OpenOptions::default() };
        options.settings.features.discards = Discards::Kept;
        let open = || Pool::open("pool", metadata.clone(), data.clone(), options).expect("opened");
        let pool = open();
        let mut model = Model::default();
        let mut session = Session::new(Arc::clone(&pool));
        for _ in 0..40 {
            model.step(&mut session, &mut rng).expect("done");
            if rng.chance(1, 8) {
                trim(&pool);
            }
        }
        model.compare_live(&pool);
        drop(session);
        pool.close().expect("closed");
        drop(pool);
        // With the pool its windows are gone, which a trim leaves out.
        let pool = open();
        let used = pool.status().data_used;
        assert_eq!(trim(&pool), DATA - used);
        assert!(filled(&data) <= used, "{} of {used}", filled(&data));
        model.compare_live(&pool);
    }
}

/// Volumes that fill and empty the pool while it is trimmed over and over: a block that somebody
/// writes is never discarded, and nobody is told that the pool is full because of a trim.
#[test]
fn writers_lose_nothing_and_wait_for_what_is_lent() {
    let (metadata, data) = formatted(1 << 20, 64);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let pool = Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                trim(&pool);
            }
        });
        for round in 1..60u8 {
            pool.change(&[Change::CreateThin(id(0))]).expect("made");
            let size = ByteCount::new(64 * BLOCK);
            let thin = pool.open_volume(id(0), "thin", size, false).expect("opened");
            for block in 0..64 {
                let at = ByteOffset::new(block * BLOCK);
                thin.write_at(&[round; 4096], at).expect("there is a block for each");
            }
            for block in 0..64 {
                let mut read = [0; 4096];
                thin.read_at(&mut read, ByteOffset::new(block * BLOCK)).expect("read");
                assert!(read == [round; 4096], "round {round}, block {block}");
            }
            drop(thin);
            pool.change(&[Change::Delete(id(0))]).expect("deleted");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_discard_that_fails_is_told_and_loses_no_block() {
    let (metadata, data) = formatted(1 << 20, 64);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let calls = FaultCalls { discards: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Io, sticky: false };
    let data = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes("data", data)), plan);
    let pool = Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened");
    let error = pool.trim_step(DataBlock::new(0)).expect_err("the device fails");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(trim(&pool), 64, "a failed step has brought its blocks back");
}
