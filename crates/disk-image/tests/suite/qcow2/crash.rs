//! Power failures at random moments. What comes back must hold the invariants: everything that was
//! flushed (FLUSH-HOLDS), of the rest each sector as it was at one moment since (DATA-FIRST,
//! FREE-LATE), snapshots unchanged (SNAPSHOT-FIXED), and an image with leaks at worst, which a
//! repair takes back.
//!
//! `FIRN_LONG=1` runs twenty times as many seeds.

use std::fs;
use std::sync::Arc;

use super::common::Folder;
use super::model::{Model, Setup};
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::ErrorKind;
use disk_image::qcow2::{Repair, check, repair};
use testkit::peer::peer;
use testkit::rng::Rng;

const SEEDS: u64 = 1000;
const THREADS: u64 = 4;
/// Outcomes that are looked at for each failure.
const DRAWS: u64 = 2;
/// Every so manieth outcome is shown to QEMU.
const SHOWN: u64 = 5;

/// Runs until the power fails, and looks at what may be left.
fn run(seed: u64, folder: &Folder) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let setup = Setup::random(&mut rng);
    let world = CrashWorld::new(seed);
    let file = world.device("image", setup.image());
    world.crash_at(rng.within(1..250));
    let mut model = setup.model();
    let image = setup.open(file).map_err(|error| error.to_string())?;
    let mut steps = 0;
    while !world.crashed() && steps < 200 {
        if let Err(error) = model.step(&image, &mut rng)
            && (error.kind() != ErrorKind::Stopped || !world.crashed())
            && error.kind() != ErrorKind::Unsupported
        {
            return Err(format!("a failure without a power failure: {error}"));
        }
        steps += 1;
    }
    drop(image);
    (0..DRAWS).try_for_each(|draw| {
        let (_, bytes) = world.images(draw).remove(0);
        let shown = (seed + draw).is_multiple_of(SHOWN);
        recover(&setup, bytes, model.clone(), &mut rng.fork(), shown.then_some(folder))
            .map_err(|problem| format!("draw {draw}: {:?}: {problem}", setup.options))
    })
}

/// Opens what a crash left, holds it against the model, and goes on with it.
fn recover(
    setup: &Setup,
    bytes: Vec<u8>,
    mut model: Model,
    rng: &mut Rng,
    shown: Option<&Folder>,
) -> Result<(), String> {
    if let Some(folder) = shown {
        let name = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
        fs::write(folder.file(&name), &bytes).map_err(|error| error.to_string())?;
        let args = ["check", "-f", "qcow2", &name];
        let checked = peer("qemu-img").args(args).in_folder(folder.path()).run();
        // 3: leaks alone.
        if !matches!(checked.code(), Some(0 | 3)) {
            return Err(checked.to_string());
        }
    }
    let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", bytes));
    let report = check(&file).map_err(|error| error.to_string())?;
    if report.corruption_count != 0 {
        return Err(format!("{report:#?}"));
    }
    let image = setup.open(Arc::clone(&file)).map_err(|error| error.to_string())?;
    model.survive(&image)?;
    drop(image);
    let what = if rng.chance(1, 2) { Repair::Leaks } else { Repair::All };
    let report = repair(&file, what).map_err(|error| error.to_string())?;
    if !report.is_sound() {
        return Err(format!("after the repair: {report:#?}"));
    }
    let image = setup.open(Arc::clone(&file)).map_err(|error| error.to_string())?;
    for _ in 0..10 {
        if let Err(error) = model.step(&image, rng)
            && error.kind() != ErrorKind::Unsupported
        {
            return Err(format!("afterwards: {error}"));
        }
    }
    model.compare(&image)?;
    image.close().map_err(|error| error.to_string())?;
    let report = check(&file).map_err(|error| error.to_string())?;
    if report.is_sound() { Ok(()) } else { Err(format!("in the end: {report:#?}")) }
}

#[test]
fn a_power_failure_leaves_leaks_at_worst() {
    let folder = Folder::with_backing();
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 20 * SEEDS } else { SEEDS };
    let failed = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|thread| {
                let folder = &folder;
                scope.spawn(move || {
                    (thread..seeds).step_by(THREADS as usize).find_map(|seed| {
                        run(seed, folder).err().map(|problem| format!("seed {seed}: {problem}"))
                    })
                })
            })
            .collect();
        runs.into_iter().filter_map(|run| run.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
