//! Every n-th call to the file fails: the caller is told, nothing that was flushed is lost, and the
//! image has leaks at worst (FAIL-STOP, FULL-IS-NOT-BROKEN).

use std::sync::Arc;

use super::model::Setup;
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteOffset, ErrorKind};
use disk_image::qcow2::{Repair, check, repair};
use testkit::rng::Rng;

/// Runs random steps with one failing call, then opens the image without faults and holds it
/// against the model.
fn run(seed: u64, plan: FaultPlan) {
    let what = format!("seed {seed}, {plan:?}");
    let mut rng = Rng::new(seed);
    let setup = Setup::random(&mut rng);
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", setup.image()));
    let faulty = FaultyDevice::new(Arc::clone(&memory), plan);
    faulty.disarm();
    let mut model = setup.model();
    let image = setup.open(faulty.clone()).expect("opened");
    faulty.arm(plan);
    for _ in 0..60 {
        if model.step(&image, &mut rng).is_err() && rng.chance(1, 2) {
            break;
        }
    }
    drop(image);
    let report = check(&memory).expect("checked");
    assert!(report.corruption_count == 0, "{what}: {report:#?}");
    let image = setup.open(Arc::clone(&memory)).expect("opened");
    model.survive(&image).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    drop(image);
    let report = repair(&memory, Repair::Leaks).expect("repaired");
    assert!(report.is_sound(), "{what}: {report:#?}");
}

#[test]
fn every_call_may_fail() {
    for call in 1..=150 {
        for sticky in [false, true] {
            let kind = ErrorKind::Io;
            run(call, FaultPlan { fail_at: call, calls: FaultCalls::ALL, kind, sticky });
        }
    }
}

#[test]
fn space_may_end_at_every_request_for_it() {
    let calls = FaultCalls { provisions: true, resizes: true, ..FaultCalls::default() };
    for call in 1..=20 {
        for seed in 0..5 {
            run(
                seed,
                FaultPlan { fail_at: call, calls, kind: ErrorKind::OutOfSpace, sticky: true },
            );
        }
    }
}

#[test]
fn after_a_failed_flush_nothing_more_is_acknowledged() {
    let setup = Setup::random(&mut Rng::new(3));
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", setup.image()));
    let calls = FaultCalls { flushes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Io, sticky: false };
    let faulty = FaultyDevice::new(memory, plan);
    let image = setup.open(faulty).expect("opened");
    image.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    assert!(image.flush().is_err());
    assert_eq!(image.flush().expect_err("stopped").kind(), ErrorKind::Stopped);
    let error = image.write_at(&[1; 512], ByteOffset::ZERO).expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    image.read_at(&mut [0; 512], ByteOffset::ZERO).expect("reads go on");
}
