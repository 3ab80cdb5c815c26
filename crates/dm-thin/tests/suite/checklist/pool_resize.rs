//! The data device grows, before and after it is full, with and without writers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block_io::BlockDevice;
use block_types::{ByteCount, ErrorKind};
use dm_thin::{OpenOptions, Pool};

use super::{Rig, get, put};
use crate::common::BLOCK;

fn grow(pool: &Pool, blocks: u64) {
    pool.grow_data(ByteCount::new(blocks * BLOCK)).expect("grown");
}

#[test]
fn resize_no_io() {
    let mut rig = Rig::with_volume(16);
    for blocks in [17, 64, 65, 400] {
        grow(&rig.pool, blocks);
        assert_eq!(rig.pool.status().data_total, blocks);
        rig.reopen();
        assert_eq!(rig.pool.status().data_total, blocks);
    }
    assert_eq!(rig.data.size().get(), 400 * BLOCK);
    rig.check();
}

#[test]
fn reduce_fails() {
    let rig = Rig::with_volume(64);
    let error = rig.pool.grow_data(ByteCount::new(63 * BLOCK)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(rig.pool.status().data_total, 64);
    rig.check();
}

/// A writer goes on while the pool grows in many steps; it waits where the pool is full.
#[test]
fn resize_io() {
    let mut rig = Rig::with_volume(32);
    rig.pool.close().expect("closed");
    let options = OpenOptions::default();
    rig.pool = Pool::open("pool", rig.metadata.clone(), rig.data.clone(), options).expect("opened");
    let (rig, done) = (rig, AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let volume = rig.volume(0, 600);
            for block in 0..600 {
                while let Err(error) = put(&volume, block, block + 1) {
                    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
                    thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut blocks = 32;
        while !done.load(Ordering::Relaxed) {
            if rig.pool.status().data_used == blocks {
                blocks += 40;
                grow(&rig.pool, blocks);
            }
            thread::yield_now();
        }
    });
    let volume = rig.volume(0, 600);
    assert!((0..600).all(|block| get(&volume, block) == block + 1));
    drop(volume);
    rig.check();
}

#[test]
fn resize_after_exhaust() {
    let rig = Rig::with_volume(32);
    let volume = rig.volume(0, 100);
    (0..32).try_for_each(|block| put(&volume, block, block + 1)).expect("written");
    put(&volume, 32, 1).expect_err("full");
    rig.message("create_snap 1 0");
    put(&volume, 0, 99).expect_err("a shared block needs another one");
    grow(&rig.pool, 64);
    put(&volume, 0, 99).expect("there is space");
    (32..63).try_for_each(|block| put(&volume, block, block + 1)).expect("all of it");
    put(&volume, 63, 1).expect_err("full again");
    assert!((1..63).all(|block| get(&volume, block) == block + 1));
    assert_eq!((get(&volume, 0), get(&rig.volume(1, 100), 0)), (99, 1));
    drop(volume);
    rig.check();
}
