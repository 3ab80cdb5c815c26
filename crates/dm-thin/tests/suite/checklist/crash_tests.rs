//! What becomes of a pool whose metadata device fails while it is busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ErrorKind};
use dm_thin::{OpenOptions, Pool, ThinVolume};
use testkit::rng::Rng;

use super::{check, get, open, put, send, volume};
use crate::common::{BLOCK, formatted};

const WRITERS: u32 = 3;
const BLOCKS: u64 = 32;

/// What one writer knows of its volume: of each block the last number that a flush covered, and the
/// last that was tried.
#[derive(Clone, Default)]
struct Known {
    flushed: Vec<u64>,
    tried: Vec<u64>,
}

/// Writes until the pool takes no more.
fn work(thin: &ThinVolume, seed: u64, numbers: &AtomicU64) -> Known {
    let none = vec![0; BLOCKS as usize];
    let mut known = Known { flushed: none.clone(), tried: none };
    let mut rng = Rng::new(seed);
    loop {
        for _ in 0..rng.within(1..6) {
            let block = rng.within(0..BLOCKS);
            let number = numbers.fetch_add(1, Ordering::Relaxed) + 1;
            known.tried[block as usize] = number;
            if put(thin, block, number).is_err() {
                return known;
            }
        }
        if thin.flush().is_err() {
            return known;
        }
        known.flushed.clone_from(&known.tried);
    }
}

#[test]
fn aborting_during_io() {
    for seed in 0..20 {
        let (metadata, data) = formatted(1 << 20, 400);
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("data", data));
        let calls = FaultCalls::CHANGES;
        let plan = FaultPlan { fail_at: 0, calls, kind: ErrorKind::Io, sticky: true };
        let faulty = FaultyDevice::new(metadata.clone(), plan);
        let options = OpenOptions::default();
        let pool = Pool::open("pool", faulty.clone(), data.clone(), options).expect("opened");
        for device in 0..WRITERS {
            send(&pool, &format!("create_thin {device}")).expect("made");
        }
        let volumes: Vec<ThinVolume> =
            (0..WRITERS).map(|device| volume(&pool, device, BLOCKS)).collect();
        faulty.arm(FaultPlan { fail_at: 20 + 17 * seed, ..plan });
        let numbers = AtomicU64::new(0);
        let known: Vec<Known> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..)
                .zip(&volumes)
                .map(|(device, thin)| {
                    let numbers = &numbers;
                    scope.spawn(move || work(thin, seed << 8 | device, numbers))
                })
                .collect();
            // Snapshots go on meanwhile, until they fail as well.
            (WRITERS..).take_while(|id| send(&pool, &snapshot(*id)).is_ok()).count();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        assert!(pool.status().read_only.is_some(), "it stopped");
        drop((volumes, pool));
        check(&metadata);

        let pool = open(metadata.clone(), data);
        // The more snapshots were taken, the less space they left.
        pool.grow_data(ByteCount::new(1000 * BLOCK)).expect("grown");
        for (device, known) in (0..).zip(&known) {
            let thin = volume(&pool, device, BLOCKS);
            for (block, (&flushed, &tried)) in known.flushed.iter().zip(&known.tried).enumerate() {
                let found = get(&thin, block as u64);
                assert!(
                    (flushed..=tried).contains(&found),
                    "seed {seed}, device {device}, block {block}: {found}, flushed was {flushed}"
                );
            }
            put(&thin, 0, 1).expect("it works again");
        }
        pool.close().expect("closed");
        check(&metadata);
    }
}

fn snapshot(id: u32) -> String {
    format!("create_snap {id} {}", id % WRITERS)
}
