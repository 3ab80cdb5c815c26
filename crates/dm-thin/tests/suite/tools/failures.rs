//! Power failures and failing devices: the tools that write leave the old pool, none, or the whole
//! new one; those that read say that they failed.

use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ErrorKind, Result};
use dm_thin::dump::{Options, View, dump};
use dm_thin::restore::{Overrides, restore};
use dm_thin::{DataBlock, delta, ls, pack, rmap};

use super::{Metadata, expanded};
use crate::common::id;

/// What the tools that write are to make of a device.
struct Task {
    old: String,
    new: String,
    work: Box<dyn Fn(Arc<dyn BlockDevice>) -> Result<()>>,
}

/// An old pool's image, and what is to be written over it.
fn tasks() -> (Vec<u8>, [Task; 2]) {
    let old = Metadata::image("k61-oom");
    let new = Metadata::image("k61-m2.snaps");
    let xml = new.dump(&Options::default());
    let mut packed = Vec::new();
    pack::pack(&*new.device, &mut packed).expect("packed");
    let (before, after) = (old.dump(&expanded()), new.dump(&expanded()));
    let restoring = Task {
        old: before.clone(),
        new: after.clone(),
        work: Box::new(move |device| {
            restore(xml.as_bytes(), device, &Overrides::default()).map(|_| ())
        }),
    };
    let unpacking = Task {
        old: before,
        new: after,
        work: Box::new(move |device| pack::unpack(&packed[..], &*device)),
    };
    (old.bytes(), [restoring, unpacking])
}

impl Task {
    /// Checks that a device holds the old pool, the new one, or none; and says which.
    fn outcome(&self, bytes: Vec<u8>) -> &'static str {
        let device = Arc::new(MemoryDevice::from_bytes("after", bytes));
        let mut out = Vec::new();
        match dump(device, &expanded(), &mut out) {
            Ok(()) if out == self.old.as_bytes() => "old",
            Ok(()) if out == self.new.as_bytes() => "new",
            Ok(()) => panic!("neither the old pool nor the new one"),
            Err(error) => {
                assert!(error.to_string().contains("is no thin pool metadata"), "{error}");
                "none"
            }
        }
    }
}

#[test]
fn a_power_failure_leaves_the_old_pool_none_or_the_new_one() {
    let (old, tasks) = tasks();
    for task in &tasks {
        let mut seen = std::collections::BTreeSet::new();
        for op in 1.. {
            let world = CrashWorld::new(op);
            let device = world.device("metadata", old.clone());
            world.crash_at(op);
            let done = (task.work)(device);
            for draw in 0..8 {
                let bytes = world.images(draw).remove(0).1;
                let outcome = task.outcome(bytes);
                assert!(done.is_err() || outcome == "new", "reported done, and {outcome}");
                seen.insert(outcome);
            }
            if !world.crashed() {
                break;
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["new", "none", "old"]);
    }
}

/// A plan in which one call fails.
fn failing(fail_at: u64, calls: FaultCalls) -> FaultPlan {
    FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky: false }
}

#[test]
fn a_call_that_fails_fails_the_work_and_leaves_no_half_pool() {
    let (old, tasks) = tasks();
    for task in &tasks {
        for fail_at in 1.. {
            let memory = Arc::new(MemoryDevice::from_bytes("metadata", old.clone()));
            let faulty = FaultyDevice::new(memory.clone(), failing(fail_at, FaultCalls::ALL));
            let done = (task.work)(faulty.clone());
            let failed = faulty.counted() >= fail_at;
            assert_eq!(done.is_err(), failed, "call {fail_at}");
            let outcome = task.outcome(memory.to_bytes());
            if !failed {
                assert_eq!(outcome, "new");
                break;
            }
            assert_eq!(done.map_err(|error| error.kind()), Err(ErrorKind::Io));
        }
    }
}

#[test]
fn a_read_that_fails_fails_whoever_reads() {
    let metadata = Metadata::image("k61-m2.snaps");
    let options = delta::Options {
        left: delta::Side::Device(id(0)),
        right: delta::Side::Device(id(1)),
        view: View::Live,
        same: true,
    };
    let regions = rmap::Options {
        regions: vec![DataBlock::new(0)..DataBlock::new(500)],
        view: View::Live,
        naming: rmap::Naming::Every,
    };
    type Tool<'t> = &'t dyn Fn(Arc<dyn BlockDevice>) -> Result<()>;
    let tools: [Tool<'_>; 6] = [
        &|device| dump(device, &Options::default(), Vec::new()),
        &|device| dump(device, &expanded(), Vec::new()),
        &|device| delta::delta(device, &options, &mut |_| Ok(())),
        &|device| ls::list(device, View::Live, true).map(|_| ()),
        &|device| rmap::rmap(device, &regions).map(|_| ()),
        &|device| pack::pack(&*device, Vec::new()),
    ];
    for tool in tools {
        let mut failures = 0;
        loop {
            let reads = FaultCalls { reads: true, ..FaultCalls::default() };
            let plan = failing(failures + 1, reads);
            let faulty = FaultyDevice::new(metadata.device.clone(), plan);
            match tool(faulty.clone()) {
                Ok(()) => {
                    assert!(faulty.counted() <= failures, "a failure was passed over");
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error}"),
            }
            failures += 1;
        }
        assert!(failures > 0);
    }
}
