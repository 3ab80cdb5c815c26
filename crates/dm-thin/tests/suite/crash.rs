//! Power failures at random moments, over data and metadata at once. What comes back must hold the
//! invariants: everything that was flushed (FLUSH-HOLDS), of the rest each sector as it was at one
//! moment since (DATA-FIRST, FREE-LATE), snapshots unchanged (SNAPSHOT-FIXED), metadata sound.
//!
//! `FIRN_LONG=1` runs ten times as many seeds.

use std::fs;
use std::sync::Arc;

use crate::common::{Model, Session, formatted, open};
use block_io::{CrashWorld, MemoryDevice};
use block_types::ErrorKind;
use testkit::rng::Rng;
use testkit::thin_tools;

const SEEDS: u64 = 2000;
const THREADS: u64 = 8;
/// Outcomes that are looked at for each failure.
const DRAWS: u64 = 2;

struct Tester {
    metadata: Vec<u8>,
    data: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Tester {
    fn new() -> Self {
        let (metadata, data) = formatted(1 << 20, 48);
        let folder = tempfile::tempdir().expect("a folder");
        Self { metadata, data, folder }
    }

    /// Runs until the power fails, and looks at what may be left.
    fn run(&self, seed: u64) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        let world = CrashWorld::new(seed);
        let metadata = world.device("metadata", self.metadata.clone());
        let data = world.device("data", self.data.clone());
        world.crash_at(rng.within(1..400));
        let mut model = Model::default();
        let pool = open(metadata, data).map_err(|error| error.to_string())?;
        let mut session = Session::new(pool);
        let mut steps = 0;
        while !world.crashed() && steps < 400 {
            if let Err(error) = model.step(&mut session, &mut rng)
                && (error.kind() != ErrorKind::Stopped || !world.crashed())
                && error.kind() != ErrorKind::OutOfSpace
            {
                return Err(format!("a failure without a power failure: {error}"));
            }
            steps += 1;
        }
        drop(session);
        (0..DRAWS).try_for_each(|draw| self.recover(&world, draw, model.clone(), &mut rng.fork()))
    }

    /// Opens what a crash left, holds it against the model, and goes on with it.
    fn recover(
        &self,
        world: &CrashWorld,
        draw: u64,
        mut model: Model,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let mut images = world.images(draw).into_iter().map(|(_, bytes)| bytes);
        let (metadata, data) = (images.next().expect("metadata"), images.next().expect("data"));
        let file = self.folder.path().join(format!("{:?}", std::thread::current().id()));
        fs::write(&file, &metadata).map_err(|error| error.to_string())?;
        let checked = thin_tools::run_check(&file);
        if checked.code() != Some(0) {
            return Err(format!("draw {draw}: thin_check: {checked}"));
        }
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let data = Arc::new(MemoryDevice::from_bytes("data", data));
        let report = dm_thin::check(metadata.clone()).map_err(|error| error.to_string())?;
        if !report.errors.is_empty() || !report.leaks.is_empty() {
            return Err(format!("draw {draw}: {report:#?}"));
        }
        let pool = open(metadata, data).map_err(|error| error.to_string())?;
        model.survive(&pool).map_err(|error| format!("draw {draw}: {error}"))?;
        let mut session = Session::new(Arc::clone(&pool));
        for _ in 0..10 {
            model.step(&mut session, rng).map_err(|error| format!("afterwards: {error}"))?;
        }
        model.compare_live(&pool);
        Ok(())
    }
}

#[test]
fn what_was_flushed_survives_a_power_failure() {
    let tester = Tester::new();
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 10 * SEEDS } else { SEEDS };
    // The peer spends its time waiting; side by side the runs are still independent of each other.
    let failed = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|thread| {
                let tester = &tester;
                scope.spawn(move || {
                    (thread..seeds).step_by(THREADS as usize).find_map(|seed| {
                        tester.run(seed).err().map(|problem| format!("seed {seed}: {problem}"))
                    })
                })
            })
            .collect();
        runs.into_iter().filter_map(|run| run.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
