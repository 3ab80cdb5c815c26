//! What a discard takes out of a volume, and what the data device learns of it.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange};
use dm_thin::{Discards, OpenOptions, Pool, ThinVolume};

use super::{Rig, get, put};
use crate::common::BLOCK;

fn discard(volume: &ThinVolume, from: u64, len: u64) {
    let range = ByteRange::new(ByteOffset::new(from), ByteCount::new(len));
    volume.discard(range).expect("discarded");
}

/// Blocks of the data device that hold something. A discard makes zeros of them.
fn held(rig: &Rig) -> u64 {
    let blocks = rig.data.size().get() / BLOCK;
    (0..blocks).filter(|&block| get(&*rig.data, block) != 0).count() as u64
}

fn mapped(rig: &Rig) -> u64 {
    rig.pool.thin_status(crate::common::id(0), ByteCount::new(64 * BLOCK)).expect("there").mapped
}

#[test]
fn discard_empty_device() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    discard(&volume, 0, 64 * BLOCK);
    assert_eq!(mapped(&rig), 0);
    drop(volume);
    rig.check();
}

#[test]
fn discard_fully_provisioned_device() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    (0..64).try_for_each(|block| put(&volume, block, 9)).expect("written");
    discard(&volume, 0, 64 * BLOCK);
    assert_eq!((mapped(&rig), rig.pool.status().data_used), (0, 0));
    assert!((0..64).all(|block| get(&volume, block) == 0));
    rig.pool.commit().expect("committed");
    assert_eq!(held(&rig), 0);
    drop(volume);
    rig.check();
}

#[test]
fn discard_single_block() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    (0..8).try_for_each(|block| put(&volume, block, 9)).expect("written");
    discard(&volume, 3 * BLOCK, BLOCK);
    let found: Vec<u64> = (0..8).map(|block| get(&volume, block)).collect();
    assert_eq!(found, [9, 9, 9, 0, 9, 9, 9, 9]);
    assert_eq!((mapped(&rig), held(&rig)), (7, 7));
    drop(volume);
    rig.check();
}

#[test]
fn discard_partial_blocks() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    (0..8).try_for_each(|block| put(&volume, block, 9)).expect("written");
    // Parts of blocks only, then one whole block between two parts.
    discard(&volume, 2 * BLOCK, BLOCK - 512);
    discard(&volume, 4 * BLOCK + 512, BLOCK);
    assert_eq!(mapped(&rig), 8);
    discard(&volume, 5 * BLOCK + 512, 2 * BLOCK);
    assert_eq!(mapped(&rig), 7);
    let found: Vec<u64> = (0..8).map(|block| get(&volume, block)).collect();
    assert_eq!(found, [9, 9, 9, 9, 9, 9, 0, 9]);
    drop(volume);
    rig.check();
}

#[test]
fn discard_same_blocks() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    for round in 1..20 {
        put(&volume, 5, round).expect("written");
        discard(&volume, 5 * BLOCK, BLOCK);
        discard(&volume, 5 * BLOCK, BLOCK);
        assert_eq!((mapped(&rig), get(&volume, 5)), (0, 0));
    }
    drop(volume);
    rig.check();
}

#[test]
fn discard_to_a_shared_block_doesnt_get_passed_down() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    (0..8).try_for_each(|block| put(&volume, block, 9)).expect("written");
    rig.message("create_snap 1 0");
    discard(&volume, 0, 8 * BLOCK);
    rig.pool.commit().expect("committed");
    assert_eq!((mapped(&rig), held(&rig)), (0, 8));
    let snapshot = rig.volume(1, 64);
    assert!((0..8).all(|block| get(&snapshot, block) == 9));
    assert!((0..8).all(|block| get(&volume, block) == 0));
    drop((volume, snapshot));
    rig.check();
}

#[test]
fn discard_to_a_previously_shared_block_does_get_passed_down() {
    let rig = Rig::with_volume(64);
    let volume = rig.volume(0, 64);
    (0..8).try_for_each(|block| put(&volume, block, 9)).expect("written");
    rig.message("create_snap 1 0");
    rig.message("delete 1");
    discard(&volume, 0, 8 * BLOCK);
    rig.pool.commit().expect("committed");
    assert_eq!((mapped(&rig), held(&rig)), (0, 0));
    drop(volume);
    rig.check();
}

#[test]
fn disable_passdown() {
    let mut rig = Rig::with_volume(64);
    rig.pool.close().expect("closed");
    let mut options = OpenOptions { background: false, ..OpenOptions::default() };
    options.settings.features.discards = Discards::Kept;
    rig.pool = Pool::open("pool", rig.metadata.clone(), rig.data.clone(), options).expect("opened");
    let volume = rig.volume(0, 64);
    (0..8).try_for_each(|block| put(&volume, block, 9)).expect("written");
    discard(&volume, 0, 8 * BLOCK);
    rig.pool.commit().expect("committed");
    assert_eq!((mapped(&rig), rig.pool.status().data_used, held(&rig)), (0, 0, 8));
    // What is used again does not show what was there.
    volume.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    let mut bytes = vec![7; BLOCK as usize];
    volume.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    assert!(bytes[512..].iter().all(|&byte| byte == 0));
    drop(volume);
    rig.check();
}

#[test]
fn discard_after_out_of_space() {
    let rig = Rig::with_volume(32);
    let volume = rig.volume(0, 64);
    (0..32).try_for_each(|block| put(&volume, block, 9)).expect("written");
    put(&volume, 32, 9).expect_err("full");
    discard(&volume, 0, 4 * BLOCK);
    (32..36).try_for_each(|block| put(&volume, block, 8)).expect("there is space again");
    put(&volume, 36, 9).expect_err("full again");
    drop(volume);
    rig.check();
}
