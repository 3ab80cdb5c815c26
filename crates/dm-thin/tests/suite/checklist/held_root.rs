//! The metadata snapshot of the kernel: one at a time, and cheap however large the pool is.

use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::ErrorKind;

use super::{Rig, check, open, put, send, volume};
use crate::common::formatted;

#[test]
fn cannot_hold_twice() {
    let mut rig = Rig::with_volume(16);
    rig.message("reserve_metadata_snap");
    assert_eq!(rig.refusal("reserve_metadata_snap"), "EBUSY");
    rig.reopen();
    assert_eq!(rig.refusal("reserve_metadata_snap"), "EBUSY");
    rig.message("release_metadata_snap");
    rig.message("reserve_metadata_snap");
    rig.check();
}

#[test]
fn cannot_release_twice() {
    let rig = Rig::with_volume(16);
    assert_eq!(rig.refusal("release_metadata_snap"), "EINVAL");
    rig.message("reserve_metadata_snap");
    rig.message("release_metadata_snap");
    assert_eq!(rig.refusal("release_metadata_snap"), "EINVAL");
    rig.check();
}

/// The other benchmark is what it costs: the same few blocks whatever the pool holds.
#[test]
fn held_root_benchmark() {
    let mut written = Vec::new();
    for blocks in [10, 3000] {
        let (metadata, data) = formatted(1 << 20, blocks);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("data", data));
        let calls = FaultCalls { writes: true, ..FaultCalls::default() };
        let plan = FaultPlan { fail_at: 0, calls, kind: ErrorKind::Io, sticky: false };
        let counting = FaultyDevice::new(metadata.clone(), plan);
        let pool = open(counting.clone(), data);
        send(&pool, "create_thin 0").expect("made");
        let thin = volume(&pool, 0, blocks);
        (0..blocks).try_for_each(|block| put(&thin, block, 1)).expect("written");
        pool.commit().expect("committed");
        let used = pool.status().metadata_used;
        counting.arm(plan);
        send(&pool, "reserve_metadata_snap").expect("reserved");
        assert!(pool.status().metadata_used - used <= 8, "{:?}", pool.status());
        written.push(counting.counted());
        send(&pool, "release_metadata_snap").expect("released");
        assert_eq!(pool.status().metadata_used, used);
        drop(thin);
        pool.close().expect("closed");
        check(&metadata);
    }
    assert!(written[1] <= written[0] + 4, "{written:?} writes");
}
