//! Every n-th call to a device below fails. The origin suffers from failures of its own device
//! alone; a snapshot is right or says that it is invalid.

use std::sync::Arc;

use crate::common::{Disks, Model, STORES, Session, memory};
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice};
use block_types::{ByteOffset, ErrorKind};
use dm_snapshot::{Mode, Origin, SnapshotOptions, SnapshotState, Store};
use testkit::rng::Rng;

/// Calls that are made to fail, one in each run.
const CALLS: u64 = 100;
const MODES: [Mode; 3] = [Mode::Sync, Mode::Async, Mode::Deferred];

fn plan(call: u64, sticky: bool) -> FaultPlan {
    FaultPlan { fail_at: call, calls: FaultCalls::ALL, kind: ErrorKind::Io, sticky }
}

/// Does random steps on `faulty`, and holds what is readable against the model; then without faults
/// again what is left on `disks`.
fn run(disks: &Disks, faulty: Disks, seed: u64, sticky: bool, what: &str) {
    let mut rng = Rng::new(seed);
    let mut model = Model::new(&MODES, &[512, 4096]);
    model.tight = true;
    let Ok(mut session) = Session::new(faulty) else { return };
    for _ in 0..80 {
        let done = model.step(&mut session, &mut rng);
        model.look_for_lost(&session);
        if done.is_err() && (model.is_unsure() || rng.chance(1, 3)) {
            break;
        }
    }
    drop(session);
    model.closed = true;
    if sticky {
        model.forget_unmarked(disks);
    }
    model.survive(disks).unwrap_or_else(|problem| panic!("{what}: {problem}"));
}

#[test]
fn every_call_to_the_origins_device_may_fail() {
    for call in 1..=CALLS {
        for sticky in [false, true] {
            let disks = memory();
            let base = FaultyDevice::new(Arc::clone(&disks.base), plan(call, sticky));
            let faulty = Disks { base, ..disks.clone() };
            run(&disks, faulty, call, sticky, &format!("origin, call {call}, {sticky}"));
        }
    }
}

#[test]
fn every_call_to_a_store_may_fail() {
    for call in 1..=CALLS {
        for sticky in [false, true] {
            for number in 0..STORES as usize {
                let disks = memory();
                let store =
                    FaultyDevice::new(Arc::clone(&disks.stores[number]), plan(call, sticky));
                let mut faulty = disks.clone();
                faulty.stores[number] = store;
                let what = format!("store {number}, call {call}, {sticky}");
                run(&disks, faulty, call, sticky, &what);
            }
        }
    }
}

/// A store that fails once: the snapshot is invalid, on disk too, and the origin has everything.
#[test]
fn a_failing_store_costs_the_snapshot_and_nothing_else() {
    for mode in MODES {
        for call in 1..12 {
            let disks = memory();
            let faulty = FaultyDevice::new(Arc::clone(&disks.stores[0]), plan(0, false));
            let store = Store::create(faulty.clone(), crate::common::chunk(4096)).expect("made");
            let origin =
                Origin::open(Arc::clone(&disks.base), crate::common::options()).expect("opened");
            let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
            let snapshot = origin.attach("snapshot", store, options).expect("attached");
            faulty.arm(plan(call, false));
            for number in 0..8u64 {
                origin.write_at(&[9; 4096], ByteOffset::new(number * 8192)).expect("written");
            }
            origin.flush().expect("flushed");
            if faulty.counted() < call {
                continue;
            }
            faulty.disarm();
            assert_eq!(snapshot.status().state, SnapshotState::Invalid, "{mode}, call {call}");
            let mut bytes = [0; 4096];
            origin.read_at(&mut bytes, ByteOffset::new(7 * 8192)).expect("read");
            assert_eq!(bytes, [9; 4096]);
            let store = Store::open(Arc::clone(&disks.stores[0])).expect("opened");
            assert!(!store.is_valid(), "{mode}, call {call}");
        }
    }
}

#[test]
fn after_a_failed_flush_the_origin_acknowledges_nothing_more() {
    let disks = memory();
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 3, calls, kind: ErrorKind::Io, sticky: false };
    let base = FaultyDevice::new(Arc::clone(&disks.base), plan);
    let origin = Origin::open(base, crate::common::options()).expect("opened");
    let store =
        Store::create(Arc::clone(&disks.stores[0]), crate::common::chunk(4096)).expect("made");
    let options = SnapshotOptions { mode: Mode::Deferred, ..SnapshotOptions::default() };
    let snapshot = origin.attach("snapshot", store, options).expect("attached");
    origin.write_at(&[9; 4096], ByteOffset::ZERO).expect("written");
    assert_eq!(origin.flush().expect_err("failed").kind(), ErrorKind::Io);
    assert_eq!(origin.flush().expect_err("stopped").kind(), ErrorKind::Stopped);
    let error = origin.write_at(&[9; 4096], ByteOffset::ZERO).expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    let mut bytes = [0; 4096];
    origin.read_at(&mut bytes, ByteOffset::ZERO).expect("reads go on");
    assert_eq!(bytes, [9; 4096]);
    snapshot.read_at(&mut bytes, ByteOffset::ZERO).expect("reads go on");
    assert_eq!(bytes[0], 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let disks = memory();
    let create = |number: usize, bytes| {
        Store::recreate(Arc::clone(&disks.stores[number]), crate::common::chunk(bytes))
    };
    let origin = Origin::open(Arc::clone(&disks.base), crate::common::options()).expect("opened");
    let attach = |name: &str, store| origin.attach(name, store, SnapshotOptions::default());
    let own = Store::transient(Arc::clone(&disks.base), crate::common::chunk(512)).expect("made");
    assert_eq!(attach("own", own).err().expect("refused").kind(), ErrorKind::Invalid);
    attach("one", create(0, 512).expect("made")).expect("attached");
    let again = attach("one", create(1, 512).expect("made"));
    assert_eq!(again.err().expect("refused").kind(), ErrorKind::Exists);
    let odd = origin.write_at(&[1; 100], ByteOffset::ZERO).expect_err("refused");
    assert_eq!(odd.kind(), ErrorKind::Invalid);
    let past = origin.read_at(&mut [1; 512], ByteOffset::new(1 << 30)).expect_err("refused");
    assert_eq!(past.kind(), ErrorKind::OutOfRange);
    // An exception of a chunk that this origin does not have.
    let device = &disks.stores[2];
    create(2, 512).expect("made");
    let entry: Vec<u8> = [9999u64, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
    device.write_at(&entry, ByteOffset::new(512)).expect("written");
    let store = Store::open(Arc::clone(device)).expect("it may be right for another origin");
    let error = attach("larger", store).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // An exception whose data would be the area itself.
    let entry: Vec<u8> = [1u64, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    device.write_at(&entry, ByteOffset::new(512)).expect("written");
    let error = Store::open(Arc::clone(device)).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
