//! Snapshots keep what they were taken of, whoever is written.

use std::collections::BTreeMap;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange};
use testkit::rng::Rng;

use super::{Rig, get, put};
use crate::common::BLOCK;

const BLOCKS: u64 = 64;

/// Stamps the volume `stomped` all over again and again; the other one stays what it was.
fn stomp(stomped: u32, kept: u32) {
    let rig = Rig::with_volume(3 * BLOCKS);
    let origin = rig.volume(0, BLOCKS);
    (0..BLOCKS).try_for_each(|block| put(&origin, block, block + 1)).expect("written");
    rig.message("create_snap 1 0");
    let (stomped, kept) = (rig.volume(stomped, BLOCKS), rig.volume(kept, BLOCKS));
    for round in 1..5 {
        for block in 0..BLOCKS {
            // Now and then a part comes first: the rest of the block is copied.
            if block % 5 == round {
                let at = ByteOffset::new(block * BLOCK + 4096);
                stomped.write_at(&[0xff; 512], at).expect("written");
            }
            put(&stomped, block, 1000 * round + block).expect("written");
        }
        assert!((0..BLOCKS).all(|block| get(&stomped, block) == 1000 * round + block));
        assert!((0..BLOCKS).all(|block| get(&kept, block) == block + 1));
    }
    assert_eq!(rig.pool.status().data_used, 2 * BLOCKS);
    drop((origin, stomped, kept));
    rig.check();
}

#[test]
fn pattern_stomp_origin() {
    stomp(0, 1);
}

#[test]
fn pattern_stomp_snap() {
    stomp(1, 0);
}

#[test]
fn many_snaps_with_changes() {
    let mut rig = Rig::with_volume(4000);
    let mut rng = Rng::new(1);
    let mut now = vec![0; BLOCKS as usize];
    let mut taken = BTreeMap::new();
    for snapshot in 1..200 {
        let origin = rig.volume(0, BLOCKS);
        for _ in 0..rng.within(1..8) {
            let block = rng.within(0..BLOCKS);
            if rng.chance(1, 5) {
                let range = ByteRange::new(ByteOffset::new(block * BLOCK), ByteCount::new(BLOCK));
                origin.discard(range).expect("discarded");
                now[block as usize] = 0;
            } else {
                now[block as usize] = rng.bits();
                put(&origin, block, now[block as usize]).expect("written");
            }
        }
        drop(origin);
        rig.message(&format!("create_snap {snapshot} 0"));
        taken.insert(snapshot, now.clone());
        if rng.chance(1, 3) {
            let gone = *rng.pick(&taken.keys().copied().collect::<Vec<_>>());
            rig.message(&format!("delete {gone}"));
            taken.remove(&gone);
        }
        if snapshot % 50 == 0 {
            rig.reopen();
        }
    }
    for (snapshot, expected) in &taken {
        let volume = rig.volume(*snapshot, BLOCKS);
        let found: Vec<u64> = (0..BLOCKS).map(|block| get(&volume, block)).collect();
        assert_eq!(found, *expected, "snapshot {snapshot}");
    }
    rig.check();
}

/// A tree of snapshots of snapshots, some of them written, taken down in another order: each block
/// is counted as often as it is mapped, and none is left in the end.
#[test]
fn ref_count_tree() {
    let rig = Rig::with_volume(2000);
    let origin = rig.volume(0, BLOCKS);
    (0..BLOCKS).try_for_each(|block| put(&origin, block, 1)).expect("written");
    drop(origin);
    // Two snapshots of every one, six generations.
    let last = 127;
    for device in 1..last {
        rig.message(&format!("create_snap {device} {}", (device - 1) / 2));
        if device % 3 == 0 {
            put(&rig.volume(device, BLOCKS), u64::from(device) % BLOCKS, 2).expect("written");
        }
    }
    let report = rig.pool.check().expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    assert_eq!(report.mappings, 127 * BLOCKS);
    let used = |rig: &Rig| rig.pool.status().data_used;
    // One in three of them was written, each in a block of its own.
    assert_eq!(used(&rig), BLOCKS + 42);
    let mut devices: Vec<u32> = (0..last).collect();
    let mut rng = Rng::new(5);
    while !devices.is_empty() {
        let gone = devices.swap_remove(rng.index(devices.len()));
        rig.message(&format!("delete {gone}"));
        if devices.len().is_multiple_of(16) {
            let report = rig.pool.check().expect("checked");
            assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
        }
    }
    assert_eq!(used(&rig), 0);
    rig.check();
}
