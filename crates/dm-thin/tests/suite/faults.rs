//! Every n-th call to a device below fails, and space ends at every n-th request for it: the caller
//! is told, nothing that was flushed is lost, and the metadata stays sound (FAIL-STOP,
//! FULL-IS-NOT-BROKEN).

use std::sync::Arc;

use crate::common::{BLOCK, Model, Session, formatted, id, open, volume};
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::{Change, Pool};
use testkit::rng::Rng;

/// Calls that are made to fail, one in each run.
const CALLS: u64 = 120;

struct Disks {
    metadata: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
}

impl Disks {
    fn new() -> Self {
        let (metadata, data) = formatted(1 << 20, 48);
        Self {
            metadata: Arc::new(MemoryDevice::from_bytes("metadata", metadata)),
            data: Arc::new(MemoryDevice::from_bytes("data", data)),
        }
    }

    fn check(&self, what: &str) {
        let report = dm_thin::check(self.metadata.clone()).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{what}: {report:#?}");
    }
}

/// Runs random steps with one failing call, then opens the pool without faults and holds it against
/// the model.
fn run(disks: &Disks, pool: Arc<Pool>, seed: u64, what: &str) {
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    let mut session = Session::new(pool);
    for _ in 0..60 {
        if model.step(&mut session, &mut rng).is_err() && rng.chance(1, 2) {
            break;
        }
    }
    drop(session);
    disks.check(what);
    let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
    dm_thin::clear_needs_check(&metadata).expect("sound");
    let pool = open(disks.metadata.clone(), disks.data.clone()).expect("opened");
    model.survive(&pool).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    let mut session = Session::new(Arc::clone(&pool));
    for _ in 0..10 {
        model.step(&mut session, &mut rng).expect("done");
    }
    model.compare_live(&pool);
}

fn plan(call: u64, calls: FaultCalls, kind: ErrorKind, sticky: bool) -> FaultPlan {
    FaultPlan { fail_at: call, calls, kind, sticky }
}

#[test]
fn every_call_to_the_data_device_may_fail() {
    for call in 1..=CALLS {
        for sticky in [false, true] {
            let disks = Disks::new();
            let plan = plan(call, FaultCalls::ALL, ErrorKind::Io, sticky);
            let data = FaultyDevice::new(disks.data.clone(), plan);
            let pool = open(disks.metadata.clone(), data).expect("opened");
            run(&disks, pool, call, &format!("data call {call}"));
        }
    }
}

#[test]
fn every_call_to_the_metadata_device_may_fail() {
    for call in 1..=CALLS {
        for sticky in [false, true] {
            let disks = Disks::new();
            let plan = plan(u64::MAX, FaultCalls::ALL, ErrorKind::Io, sticky);
            let metadata = FaultyDevice::new(disks.metadata.clone(), plan);
            let pool = open(metadata.clone(), disks.data.clone()).expect("opened");
            metadata.arm(FaultPlan { fail_at: call, ..plan });
            run(&disks, pool, call, &format!("metadata call {call}"));
        }
    }
}

#[test]
fn space_may_end_at_every_request_for_it() {
    let calls = FaultCalls { provisions: true, ..FaultCalls::default() };
    for call in 1..=30 {
        let disks = Disks::new();
        let plan = plan(call, calls, ErrorKind::OutOfSpace, true);
        let data = FaultyDevice::new(disks.data.clone(), plan);
        let pool = open(disks.metadata.clone(), data).expect("opened");
        run(&disks, pool, call, &format!("provision {call}"));
    }
}

#[test]
fn after_a_failed_flush_nothing_more_is_acknowledged() {
    let disks = Disks::new();
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let data = FaultyDevice::new(disks.data.clone(), plan(2, calls, ErrorKind::Io, false));
    let pool = open(disks.metadata.clone(), data).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let thin = volume(&pool, id(0)).expect("opened");
    thin.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    assert!(thin.flush().is_err());
    assert_eq!(thin.flush().expect_err("stopped").kind(), ErrorKind::Stopped);
    let error = thin.write_at(&[1; 512], ByteOffset::ZERO).expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    let mut bytes = [0; 512];
    thin.read_at(&mut bytes, ByteOffset::ZERO).expect("reads go on");
    assert!(pool.status().read_only.is_some_and(|reason| reason.contains("data")));
}

#[test]
fn a_full_pool_answers_and_goes_on_when_it_has_grown() {
    let disks = Disks::new();
    let pool = open(disks.metadata.clone(), disks.data.clone()).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let size = ByteCount::new(100 * BLOCK);
    let thin = pool.open_volume(id(0), "thin", size, false).expect("opened");
    let write = |block: u64| thin.write_at(&[block as u8; 4096], ByteOffset::new(block * BLOCK));
    for block in 0..48 {
        write(block).expect("written");
    }
    let error = write(48).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert!(error.to_string().contains("grow"), "{error}");
    write(3).expect("what is mapped can be written");
    thin.flush().expect("flushed");
    thin.discard(block_types::ByteRange::new(ByteOffset::ZERO, ByteCount::new(BLOCK)))
        .expect("discarded");
    write(48).expect("a discarded block is used again");
    pool.grow_data(ByteCount::new(60 * BLOCK)).expect("grown");
    for block in 49..61 {
        write(block).unwrap_or_else(|error| panic!("{block}: {error}"));
    }
    assert!(write(61).is_err());
    drop(thin);
    pool.close().expect("closed");
    disks.check("full and grown");
}

#[test]
fn a_pool_that_needs_a_check_opens_read_only_and_says_how_to_repair() {
    use persistent_data::{BlockKind, MetaBlock, seal};
    let (mut metadata, data) = formatted(1 << 20, 48);
    // Bit 0 of the flags, which lie behind the checksum.
    metadata[4] |= 1;
    seal(&mut metadata[..4096], BlockKind::Superblock, MetaBlock::new(0));
    let before = metadata.clone();
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let pool = open(metadata.clone(), data).expect("opened");
    let status = pool.status();
    assert!(status.needs_check && status.degraded);
    assert!(status.read_only.is_some_and(|reason| reason.contains("--clear-needs-check")));
    let error = pool.change(&[Change::CreateThin(id(0))]).expect_err("refused");
    assert!(error.to_string().contains("firn pool repair"), "{error}");
    drop(pool);
    assert!(metadata.to_bytes() == before, "a pool that needs a check was written to");
}

#[test]
fn damaged_metadata_is_refused_with_its_name() {
    for cut in [0, 4096, 16 << 12] {
        let (metadata, data) = formatted(1 << 20, 48);
        let metadata = Arc::new(MemoryDevice::from_bytes("lab/metadata", metadata[..cut].to_vec()));
        let data = Arc::new(MemoryDevice::from_bytes("data", data));
        let error = open(metadata, data).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {cut}");
        assert!(error.to_string().contains("lab/metadata"), "{error}");
        assert!(error.advice().is_some(), "{error}");
    }
    let (metadata, data) = formatted(1 << 20, 48);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("lab/data", data[..5 << 16].to_vec()));
    let error = open(metadata, data).err().expect("refused");
    assert!(error.to_string().contains("lab/data"), "{error}");
}

#[test]
fn full_metadata_is_an_answer_and_deleting_helps() {
    // A fixed metadata device, as of a pool that LVM made: MemoryDevice would grow.
    let (metadata, data) = formatted(1 << 20, 4096);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let fixed = FaultyDevice::new(
        metadata.clone(),
        plan(
            1,
            FaultCalls { resizes: true, ..FaultCalls::default() },
            ErrorKind::Unsupported,
            true,
        ),
    );
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let pool = open(fixed, data).expect("opened");
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let size = ByteCount::new(4096 * BLOCK);
    let thin = pool.open_volume(id(0), "thin", size, false).expect("opened");
    let mut rng = Rng::new(1);
    let mut snapshots = 0;
    let error = loop {
        let result = (0..40).try_for_each(|_| {
            let block = rng.within(0..1024);
            thin.write_at(&[1; 512], ByteOffset::new(block * BLOCK))
        });
        let result = result.and_then(|()| thin.flush()).and_then(|()| {
            snapshots += 1;
            pool.change(&[Change::CreateSnapshot { id: id(snapshots), origin: id(0) }])
        });
        if let Err(error) = result {
            break error;
        }
        assert!(snapshots < 10_000, "the metadata never fills");
    };
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
    assert!(snapshots > 5, "full after {snapshots} snapshots");
    assert!(pool.status().read_only.is_none(), "still writable");
    thin.flush().expect("what was accepted is committed");
    for snapshot in 1..snapshots {
        pool.change(&[Change::Delete(id(snapshot))]).expect("deleting is always possible");
    }
    thin.write_at(&[2; 512], ByteOffset::new(2000 * BLOCK)).expect("there is room again");
    drop(thin);
    pool.close().expect("closed");
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}
