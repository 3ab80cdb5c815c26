//! Merging while the origin is read and written, beside other snapshots.

use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, Intent};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_snapshot::{Mode, Origin, SnapshotOptions, SnapshotState, Store};
use testkit::rng::Rng;

use crate::common::{Model, SECTOR, SECTORS, Session, chunk, memory, options, values};

#[test]
fn merges_against_the_model() {
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let mut model = Model::new(&[Mode::Sync, Mode::Deferred, Mode::Async], &[512, 1024, 4096]);
        let disks = memory();
        let mut session = Session::new(disks.clone()).expect("opened");
        for round in 0..4 {
            for _ in 0..3 {
                model.take(&mut session, &mut rng).expect("taken");
            }
            for step in 0..40 {
                let done = model.step(&mut session, &mut rng);
                done.unwrap_or_else(|error| panic!("seed {seed}, {round}, {step}: {error}"));
            }
            model.begin_merge(&mut session, &mut rng).expect("begun");
            while session.merge.is_some() {
                model.compare_live(&session);
                model.go_on(&mut session).expect("merged");
                model.write_origin(&session, &mut rng).expect("written");
                if rng.chance(1, 6) {
                    session.origin.close().expect("closed");
                    drop(session);
                    session = model.reopen(&disks);
                }
            }
            model.compare_live(&session);
        }
    }
}

/// Threads write to the origin, each to its own chunks, while another merges.
#[test]
fn writes_beside_a_merge_are_not_lost() {
    const ROUNDS: u64 = 40;
    let disks = memory();
    let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
    for round in 0..ROUNDS {
        let store = Store::recreate(Arc::clone(&disks.stores[0]), chunk(512)).expect("made");
        let snapshot =
            origin.attach(format!("{round}"), store, SnapshotOptions::default()).expect("attached");
        for sector in 0..SECTORS {
            origin.write_at(&[0xff; 512], ByteOffset::new(sector * SECTOR)).expect("written");
        }
        let merge = origin.merge(&snapshot).expect("begun");
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let origin = &origin;
                scope.spawn(move || {
                    for sector in (0..SECTORS).rev().filter(|sector| sector % 3 == thread) {
                        let bytes = (sector + round * 1000).to_le_bytes().repeat(64);
                        origin.write_at(&bytes, ByteOffset::new(sector * SECTOR)).expect("written");
                        let read = values(origin, &(sector..sector + 1)).expect("read");
                        assert_eq!(read, [sector + round * 1000]);
                    }
                });
            }
            merge.run().expect("merged");
        });
        let found = values(&origin, &(0..SECTORS)).expect("read");
        let expected: Vec<u64> = (0..SECTORS).map(|sector| sector + round * 1000).collect();
        assert_eq!(found, expected, "round {round}");
    }
}

/// Threads write to the snapshot until a merge takes it away: every write that was answered is in
/// the origin then, also the first one of a chunk.
#[test]
fn writes_that_a_merge_overtakes_are_not_lost() {
    for round in 0..30u64 {
        let disks = memory();
        let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
        let store = Store::create(Arc::clone(&disks.stores[0]), chunk(512)).expect("made");
        let snapshot =
            origin.attach("snapshot", store, SnapshotOptions::default()).expect("attached");
        let answered: Vec<Vec<u64>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3u64)
                .map(|thread| {
                    let snapshot = &snapshot;
                    scope.spawn(move || {
                        let mine = (0..SECTORS).filter(|sector| sector % 3 == thread);
                        let write = |sector: &u64| {
                            let bytes = (sector + 5000).to_le_bytes().repeat(64);
                            snapshot.write_at(&bytes, ByteOffset::new(sector * SECTOR)).is_ok()
                        };
                        mine.take_while(write).collect()
                    })
                })
                .collect();
            std::thread::sleep(std::time::Duration::from_micros(20 * round));
            origin.merge(&snapshot).expect("begun").run().expect("merged");
            writers.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        let mut expected: Vec<u64> = (1..=SECTORS).collect();
        for sector in answered.concat() {
            expected[sector as usize] = sector + 5000;
        }
        assert_eq!(values(&origin, &(0..SECTORS)).expect("read"), expected, "round {round}");
    }
}

#[test]
fn a_merge_that_fails_says_so_and_resumes() {
    for call in 1..25 {
        let disks = memory();
        let plan = |fail_at| FaultPlan {
            fail_at,
            calls: FaultCalls::ALL,
            kind: ErrorKind::Io,
            sticky: false,
        };
        let faulty = FaultyDevice::new(Arc::clone(&disks.stores[0]), plan(0));
        let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
        let store = Store::create(faulty.clone(), chunk(512)).expect("made");
        let snapshot =
            origin.attach("snapshot", store, SnapshotOptions::default()).expect("attached");
        for sector in (0..SECTORS).step_by(5) {
            origin.write_at(&[0xff; 512], ByteOffset::new(sector * SECTOR)).expect("written");
        }
        let merge = origin.merge(&snapshot).expect("begun");
        faulty.arm(plan(call));
        let failed = merge.run();
        faulty.disarm();
        if failed.is_err() {
            assert_eq!(merge.status().state, SnapshotState::MergeFailed);
            assert_eq!(merge.status().to_string(), "Merge failed");
            assert_eq!(merge.step().expect_err("stopped").kind(), ErrorKind::Stopped);
        }
        let whole = |origin: &Origin| {
            let found = values(origin, &(0..SECTORS)).expect("read");
            assert_eq!(found, (1..=SECTORS).collect::<Vec<_>>(), "call {call}");
        };
        whole(&origin);
        origin.close().expect("closed");
        let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
        let store = Store::open(Arc::clone(&disks.stores[0])).expect("opened");
        let snapshot =
            origin.attach("snapshot", store, SnapshotOptions::default()).expect("attached");
        origin.merge(&snapshot).expect("begun").run().expect("merged");
        whole(&origin);
    }
}

#[test]
fn what_a_merge_does_not_go_with_is_refused() {
    let disks = memory();
    let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
    let attach = |number: usize| {
        let store = Store::recreate(Arc::clone(&disks.stores[number]), chunk(512)).expect("made");
        origin.attach(format!("{number}"), store, SnapshotOptions::default())
    };
    let (one, two) = (attach(0).expect("attached"), attach(1).expect("attached"));
    origin.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    let merge = origin.merge(&one).expect("begun");
    assert_eq!(origin.merge(&two).err().expect("refused").kind(), ErrorKind::Busy);
    assert_eq!(attach(2).err().expect("refused").kind(), ErrorKind::Busy);
    let error = origin.resize(ByteCount::new(512)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(
        one.read_at(&mut [0; 512], ByteOffset::ZERO).expect_err("moved").kind(),
        ErrorKind::Busy
    );
    let range = ByteRange::new(ByteOffset::ZERO, ByteCount::new(512));
    if let Some(resolver) = origin.resolver() {
        assert!(resolver.resolve(Intent::Read, range, &mut Vec::new()).is_none());
    }
    origin.discard(range).expect("ignored");
    merge.run().expect("merged");
    assert_eq!(values(&origin, &(0..1)).expect("read"), [1]);
    // The other snapshot has what the merge has overwritten.
    assert_eq!(values(&two, &(0..1)).expect("read"), [1]);
    origin.merge(&two).expect("begun").run().expect("merged");
    assert!(attach(2).is_ok());
}
