//! The power fails during a commit: what the superblock names is whole, and is the state before the
//! commit or the one after it.

use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::ErrorKind;
use persistent_data::BLOCK_SIZE;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use crate::model::{Batch, Contents, Model, Op};
use crate::recount;
use crate::world::World;

/// So few that freed blocks come back again and again.
const BLOCKS: usize = 160;

/// Small operations, with a commit after every other one.
fn op() -> impl Strategy<Value = Op> {
    let batch = prop_oneof![
        (any::<u32>(), 1..30u64)
            .prop_map(|(seed, len)| Batch::Scatter { seed: u64::from(seed), len }),
        (1..300u64).prop_map(|len| Batch::Append { len }),
        (0..30_000u64, 1..8000u64).prop_map(|(start, len)| Batch::Cut { start, len }),
    ];
    prop_oneof![
        1 => any::<usize>().prop_map(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::Delete),
        4 => (any::<usize>(), batch).prop_map(|(volume, batch)| Op::Map(volume, batch)),
        1 => Just(Op::Hold),
        6 => Just(Op::Commit),
    ]
}

/// Runs `ops` on the pool until the power fails or the metadata is full. Returns the states that
/// may be found afterwards: the last that was committed, and the one whose commit was under way.
fn run(model: &mut Model, ops: &[Op]) -> Vec<Contents> {
    let mut states = vec![model.volumes.clone()];
    for op in ops {
        let done = match op {
            Op::Commit => {
                states.push(model.volumes.clone());
                model.world.commit()
            }
            other => model.run(other),
        };
        match done {
            Ok(()) => {}
            Err(error) if matches!(op, Op::Commit) && error.kind() == ErrorKind::Stopped => {
                return states.split_off(states.len() - 2);
            }
            Err(error) => {
                // Nothing of the transaction was written yet.
                assert!([ErrorKind::Stopped, ErrorKind::OutOfSpace].contains(&error.kind()));
                states.truncate(states.len() - usize::from(matches!(op, Op::Commit)));
                break;
            }
        }
    }
    states.split_off(states.len() - 1)
}

/// The pool that is left is sound and holds one of `states`.
fn check(image: Vec<u8>, states: &[Contents]) {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("after", image));
    recount::check(&device).expect("every block of the state is whole");
    let mut world = World::open(device).expect("the pool opens");
    let found = world.contents().expect("the pool is readable");
    assert!(states.contains(&found), "the pool is neither as before nor as after the commit");
    // It also goes on from there.
    world.commit().expect("commit");
    recount::check(&world.device).expect("sound after another commit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..Default::default() })]

    #[test]
    fn a_crash_shows_a_committed_state(
        seed in any::<u64>(),
        when in any::<u64>(),
        ops in proptest::collection::vec(op(), 10..60),
    ) {
        let start = || {
            let world = CrashWorld::new(seed);
            let device = world.device("metadata", vec![0; BLOCKS * BLOCK_SIZE]);
            let mut model = Model::new(device, 40_000);
            model.run(&Op::Create).expect("create");
            model.commit();
            (world, model)
        };
        // The first run counts the operations, the second one fails during one of them.
        let (world, mut model) = start();
        let before = world.ops();
        run(&mut model, &ops);
        let during = world.ops() - before;
        let (world, mut model) = start();
        world.crash_at(world.ops() + 1 + when % (during + 1));
        let states = run(&mut model, &ops);
        for draw in 0..6 {
            check(world.images(draw).remove(0).1, &states);
        }
    }
}

/// Blocks that were allocated one after another are written as one: a commit is one long write, and
/// the superblock.
#[test]
fn a_commit_is_one_write_and_the_superblock() {
    let world = CrashWorld::new(1);
    let mut model = Model::new(world.device("metadata", vec![0; 2048 * BLOCK_SIZE]), 400_000);
    model.run(&Op::Create).expect("create");
    model.world.commit().expect("commit");
    for round in 0..5 {
        let batch = Batch::Scatter { seed: round * 1000, len: 300 };
        model.run(&Op::Map(0, batch)).expect("map");
        let before = world.ops();
        model.world.commit().expect("commit");
        // Write, flush, superblock, flush.
        assert_eq!(world.ops() - before, 4, "round {round}");
    }
}
