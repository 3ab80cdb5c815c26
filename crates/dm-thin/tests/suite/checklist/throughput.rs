//! What writes cost, in calls to the data device: each block is written once, and what need not be
//! read or zeroed is not.

use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteOffset, ErrorKind};
use dm_thin::{Pool, ThinVolume};

use super::{check, open, put, send, volume};
use crate::common::{BLOCK, formatted};

const BLOCKS: u64 = 128;

/// A pool with a volume, and a count of calls to its data device.
struct Costs {
    metadata: Arc<MemoryDevice>,
    data: Arc<FaultyDevice>,
    pool: Arc<Pool>,
}

impl Costs {
    fn new() -> Self {
        let (metadata, data) = formatted(1 << 20, 4 * BLOCKS);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data = Arc::new(MemoryDevice::from_bytes("data", data));
        let data = FaultyDevice::new(data, counting(FaultCalls::default()));
        let pool = open(metadata.clone(), data.clone());
        send(&pool, "create_thin 0").expect("made");
        Self { metadata, data, pool }
    }

    fn volume(&self) -> ThinVolume {
        volume(&self.pool, 0, BLOCKS)
    }

    /// How many of these calls `work` takes.
    fn of(&self, calls: FaultCalls, work: impl Fn(u64)) -> u64 {
        self.data.arm(counting(calls));
        (0..BLOCKS).for_each(work);
        self.data.counted()
    }

    fn check(self) {
        self.pool.close().expect("closed");
        check(&self.metadata);
    }
}

fn counting(calls: FaultCalls) -> FaultPlan {
    FaultPlan { fail_at: 0, calls, kind: ErrorKind::Io, sticky: false }
}

const WRITES: FaultCalls = FaultCalls {
    reads: false,
    writes: true,
    zeroes: true,
    discards: true,
    flushes: false,
    provisions: false,
    extents: false,
    resizes: false,
};
const READS: FaultCalls = FaultCalls { writes: false, zeroes: false, discards: false, ..ALL };
const ALL: FaultCalls = FaultCalls { reads: true, ..WRITES };

#[test]
fn provisioning_throughput() {
    let costs = Costs::new();
    let thin = costs.volume();
    let whole = costs.of(ALL, |block| put(&thin, block, 1).expect("written"));
    assert_eq!(whole, BLOCKS, "a block that is written whole is neither read nor zeroed before");
    drop(thin);
    costs.check();
}

#[test]
fn snap_breaking_throughput() {
    let costs = Costs::new();
    let thin = costs.volume();
    (0..BLOCKS).try_for_each(|block| put(&thin, block, 1)).expect("written");
    send(&costs.pool, "create_snap 1 0").expect("taken");
    let whole = costs.of(ALL, |block| put(&thin, block, 2).expect("written"));
    assert_eq!(whole, BLOCKS, "a block that is overwritten whole is not copied");
    // In parts: the rest is read, and the block is written once.
    send(&costs.pool, "create_snap 2 0").expect("taken");
    let part = |block: u64| {
        thin.write_at(&[3; 4096], ByteOffset::new(block * BLOCK + 8192)).expect("written");
    };
    assert_eq!(costs.of(WRITES, part), BLOCKS);
    send(&costs.pool, "create_snap 3 0").expect("taken");
    let reads = costs.of(READS, part);
    assert!((BLOCKS..=2 * BLOCKS).contains(&reads), "{reads} reads of {BLOCKS} blocks");
    drop(thin);
    costs.check();
}

#[test]
fn snap_already_broken_throughput() {
    let costs = Costs::new();
    let thin = costs.volume();
    (0..BLOCKS).try_for_each(|block| put(&thin, block, 1)).expect("written");
    send(&costs.pool, "create_snap 1 0").expect("taken");
    (0..BLOCKS).try_for_each(|block| put(&thin, block, 2)).expect("written");
    let used = costs.pool.status().data_used;
    let again = costs.of(ALL, |block| {
        thin.write_at(&[3; 4096], ByteOffset::new(block * BLOCK)).expect("written");
    });
    assert_eq!(again, BLOCKS, "in place, and nothing else");
    assert_eq!(costs.pool.status().data_used, used);
    drop(thin);
    costs.check();
}
