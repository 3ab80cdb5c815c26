//! The checklist of the device-mapper test suite, each row by its name there.
//!
//! | group | tests |
//! | --- | --- |
//! | crash_tests | `crash_tests::aborting_during_io` |
//! | creation | `creation` |
//! | deletion | `deletion` |
//! | discard | `discard` |
//! | exhaustion of both spaces, and faults in it | `crate::exhaustion` |
//! | external_origin | `crate::origin` |
//! | flush_triggers_commit | `flush_triggers_commit` |
//! | held_root | `held_root`; what is read of one, in `crate::held_root` |
//! | metadata_resize, pool_resize | `metadata_resize`, `pool_resize` |
//! | needs_check, out_of_data_space, read_only | `crate::modes` |
//! | restore | `restore` |
//! | snapshot | `snapshot` |
//! | thin_delta | `crate::tools::delta` |
//! | throughput | `throughput`, in calls to the disks: seconds are for `cargo xtask bench` |
//! | tools | `tools::metadata_snap_stress` |
//! | transaction_id | `transaction_id` |
//!
//! suspend does not apply: a device-mapper target has to be suspended before its table or the
//! state that a snapshot is taken of may change, and these tests try what becomes of I/O meanwhile.
//! Here nothing is suspended: a change waits for the leases that it disturbs, as
//! `crate::threads::snapshots_are_moments_and_stay` and `a_rollback_under_load_mixes_nothing` show.

mod crash_tests;
mod creation;
mod deletion;
mod discard;
mod flush_triggers_commit;
mod held_root;
mod metadata_resize;
mod pool_resize;
mod restore;
mod snapshot;
mod throughput;
mod tools;
mod transaction_id;

use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind, Result};
use dm_thin::{BlockSize, Message, OpenOptions, Pool, ThinVolume};
use testkit::thin_tools;

use crate::common::{BLOCK, id};

/// Bytes of metadata where it does not matter.
const METADATA: u64 = 1 << 20;

/// A pool in memory.
struct Rig {
    metadata: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
    pool: Arc<Pool>,
}

impl Rig {
    fn new(data_blocks: u64) -> Self {
        Self::with(data_blocks, |metadata| metadata)
    }

    /// A pool on metadata that cannot grow, unless the device is disarmed.
    fn fixed(data_blocks: u64) -> (Self, Arc<FaultyDevice>) {
        let mut device = None;
        let rig = Self::with(data_blocks, |metadata| device.insert(fixed(&metadata)).clone());
        (rig, device.expect("it was asked for"))
    }

    fn with<D: BlockDevice + 'static>(
        data_blocks: u64,
        wrap: impl FnOnce(Arc<MemoryDevice>) -> Arc<D>,
    ) -> Self {
        let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(METADATA)));
        let data = Arc::new(MemoryDevice::new("data", ByteCount::new(data_blocks * BLOCK)));
        let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        let device: Arc<dyn BlockDevice> = metadata.clone();
        Pool::format(&device, &*data, size).expect("formatted");
        let pool = open(wrap(metadata.clone()), data.clone());
        Self { metadata, data, pool }
    }

    /// A pool with one empty volume, 0.
    fn with_volume(data_blocks: u64) -> Self {
        let rig = Self::new(data_blocks);
        rig.message("create_thin 0");
        rig
    }

    /// Closes the pool and opens it again.
    fn reopen(&mut self) {
        self.pool.close().expect("closed");
        self.pool = open(self.metadata.clone(), self.data.clone());
    }

    #[track_caller]
    fn message(&self, text: &str) {
        send(&self.pool, text).unwrap_or_else(|error| panic!("{error}"));
    }

    /// What a message that is refused is answered.
    #[track_caller]
    fn refusal(&self, text: &str) -> String {
        send(&self.pool, text).expect_err("refused").problem().to_owned()
    }

    fn volume(&self, device: u32, blocks: u64) -> ThinVolume {
        volume(&self.pool, device, blocks)
    }

    /// Closes the pool, which both checks have to find sound.
    fn check(self) {
        self.pool.close().expect("closed");
        check(&self.metadata);
    }
}

fn open(metadata: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Arc<Pool> {
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    Pool::open("pool", metadata, data, options).expect("opened")
}

fn send(pool: &Pool, text: &str) -> Result<()> {
    Message::parse(text).and_then(|message| pool.message(message))
}

fn volume(pool: &Pool, device: u32, blocks: u64) -> ThinVolume {
    let size = ByteCount::new(blocks * BLOCK);
    pool.open_volume(id(device), &format!("thin {device}"), size, false).expect("opened")
}

/// Holds closed metadata against our check and `thin_check`.
fn check(metadata: &Arc<MemoryDevice>) {
    let report = dm_thin::check(metadata.clone()).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metadata");
    std::fs::write(&file, metadata.to_bytes()).expect("written");
    thin_tools::check(&file);
}

/// Fills a block with a number.
fn put(volume: &ThinVolume, block: u64, number: u64) -> Result<()> {
    let bytes = number.to_le_bytes().repeat(BLOCK as usize / 8);
    volume.write_at(&bytes, ByteOffset::new(block * BLOCK))
}

/// The number that a block is full of.
#[track_caller]
fn get(volume: &dyn BlockDevice, block: u64) -> u64 {
    let mut bytes = vec![0; BLOCK as usize];
    volume.read_at(&mut bytes, ByteOffset::new(block * BLOCK)).expect("read");
    let number: [u8; 8] = bytes[..8].try_into().expect("8 bytes");
    assert!(bytes.chunks(8).all(|word| word == number), "block {block} is torn");
    u64::from_le_bytes(number)
}

/// A metadata device that grows only when it is allowed to, like one of LVM's.
fn fixed(metadata: &Arc<MemoryDevice>) -> Arc<FaultyDevice> {
    let calls = FaultCalls { resizes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Unsupported, sticky: true };
    FaultyDevice::new(metadata.clone(), plan)
}
