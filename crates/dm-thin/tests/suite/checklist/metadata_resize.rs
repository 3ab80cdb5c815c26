//! Metadata that fills up on a device that cannot grow, and then can.

use std::sync::Arc;

use block_io::{BlockDevice, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ErrorKind};
use dm_thin::Pool;
use testkit::rng::Rng;

use super::{Rig, check, fixed, get, open, put, send, volume};

const BLOCKS: u64 = 2000;

/// Overwrites blocks all over volume 0 between snapshots of it until the metadata is full; what
/// each block holds then, and the snapshots that were taken.
fn exhaust(pool: &Pool, seed: u64) -> (Vec<u64>, u32) {
    let mut rng = Rng::new(seed);
    let mut numbers = vec![0; BLOCKS as usize];
    let thin = volume(pool, 0, BLOCKS);
    for snapshot in 1.. {
        for _ in 0..30 {
            let (block, number) = (rng.within(0..400), rng.bits());
            if let Err(error) = put(&thin, block, number) {
                assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
                return (numbers, snapshot - 1);
            }
            numbers[block as usize] = number;
        }
        if let Err(error) = send(pool, &format!("create_snap {snapshot} 0")) {
            assert_eq!(error.problem(), "ENOSPC", "{error}");
            return (numbers, snapshot - 1);
        }
    }
    unreachable!("snapshots without end")
}

fn compare(pool: &Pool, numbers: &[u64]) {
    let thin = volume(pool, 0, BLOCKS);
    for (block, number) in (0..).zip(numbers) {
        assert_eq!(get(&thin, block), *number, "block {block}");
    }
}

/// A pool with a volume on metadata that cannot grow.
fn small() -> (Rig, Arc<FaultyDevice>) {
    let (rig, metadata) = Rig::fixed(4 * BLOCKS);
    rig.message("create_thin 0");
    (rig, metadata)
}

#[test]
fn resize_no_io() {
    let (mut rig, metadata) = small();
    let before = rig.pool.status().metadata_total;
    metadata.disarm();
    metadata.resize(ByteCount::new(4 << 20)).expect("grown");
    rig.message("create_thin 1");
    rig.reopen();
    rig.message("create_thin 2");
    let after = rig.pool.status().metadata_total;
    assert!(before == 256 && after >= 1024, "{before} and {after} blocks");
    rig.check();
}

#[test]
fn resize_after_exhaust() {
    for seed in 0..4 {
        let (rig, metadata) = small();
        let (numbers, snapshots) = exhaust(&rig.pool, seed);
        assert!(snapshots > 5, "{snapshots}");
        compare(&rig.pool, &numbers);
        assert!(!rig.pool.status().needs_check && rig.pool.status().read_only.is_none());
        metadata.disarm();
        metadata.resize(ByteCount::new(4 << 20)).expect("grown");
        // Where it was refused it goes on, as often again.
        for snapshot in snapshots + 1..2 * snapshots {
            rig.message(&format!("create_snap {snapshot} 0"));
            let thin = rig.volume(0, BLOCKS);
            put(&thin, u64::from(snapshot) % 400 + 400, 1).expect("written");
        }
        compare(&rig.pool, &numbers[..400]);
        rig.check();
    }
}

#[test]
fn recover_after_crash() {
    let (rig, metadata) = small();
    let (numbers, snapshots) = exhaust(&rig.pool, 9);
    rig.volume(0, BLOCKS).flush().expect("what was accepted can be flushed");
    // The power fails: what the disks hold is all there is.
    let copy = |device: &MemoryDevice| {
        Arc::new(MemoryDevice::from_bytes(device.name(), device.to_bytes()))
    };
    let (crashed, data) = (copy(&rig.metadata), copy(&rig.data));
    drop((rig, metadata));
    check(&crashed);
    let metadata = fixed(&crashed);
    let pool = open(metadata.clone(), data.clone());
    compare(&pool, &numbers);
    // As full as before; then it may grow.
    assert!(exhaust_more(&pool, snapshots).is_err());
    metadata.disarm();
    exhaust_more(&pool, snapshots).expect("there is room");
    pool.close().expect("closed");
    drop(pool);
    check(&crashed);
}

/// Goes on beyond what was possible.
fn exhaust_more(pool: &Pool, snapshots: u32) -> block_types::Result<()> {
    let thin = volume(pool, 0, BLOCKS);
    for step in 1..=20 {
        for block in 0..20 {
            put(&thin, 400 + 60 * block + u64::from(step), 1)?;
        }
        send(pool, &format!("create_snap {} 0", 1000 + snapshots + step))?;
    }
    (0..20).for_each(|step| drop(send(pool, &format!("delete {}", 1001 + snapshots + step))));
    Ok(())
}
