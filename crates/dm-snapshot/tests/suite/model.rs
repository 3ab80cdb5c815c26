//! Random requests to an origin and its snapshots, held against the model as they go.

use crate::common::{Model, Session, memory};
use dm_snapshot::Mode;
use testkit::rng::Rng;

fn run(seed: u64, modes: &[Mode], chunks: &[u64]) {
    let mut rng = Rng::new(seed);
    let mut model = Model::new(modes, chunks);
    let disks = memory();
    let mut session = Session::new(disks.clone()).expect("opened");
    for round in 0..5 {
        for step in 0..60 {
            model
                .step(&mut session, &mut rng)
                .unwrap_or_else(|error| panic!("seed {seed}, round {round}, step {step}: {error}"));
        }
        model.compare_live(&session);
        // A close leaves everything, whatever the mode.
        session.origin.close().expect("closed");
        drop(session);
        session = model.reopen(&disks);
    }
}

const CHUNKS: [u64; 3] = [512, 1024, 4096];

#[test]
fn mode_sync_against_the_model() {
    (0..60).for_each(|seed| run(seed, &[Mode::Sync], &CHUNKS));
}

#[test]
fn mode_async_against_the_model() {
    (0..60).for_each(|seed| run(seed, &[Mode::Async], &CHUNKS));
}

#[test]
fn mode_deferred_against_the_model() {
    (0..60).for_each(|seed| run(seed, &[Mode::Deferred], &CHUNKS));
}

#[test]
fn all_modes_together_against_the_model() {
    (0..100).for_each(|seed| run(seed, &[Mode::Sync, Mode::Async, Mode::Deferred], &CHUNKS));
}
