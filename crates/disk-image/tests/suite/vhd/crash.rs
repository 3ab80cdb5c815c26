//! Power failures at random moments. What comes back is sound, but for space that is lost, and for
//! one of the two footers, which may have been on its way; it holds everything that was flushed
//! (FLUSH-HOLDS), of the rest each sector as it was at one moment since (DATA-FIRST), and of each
//! change of footer, header and size the old or the new state.
//!
//! `FIRN_LONG=1` runs ten times as many seeds.

use std::sync::Arc;

use crate::vhd::common::memory;
use crate::vhd::session::{BLOCK, Session, fresh, open};
use block_io::{BlockDevice, CrashDevice, CrashWorld, MemoryDevice};
use block_types::{ByteOffset, ErrorKind};
use disk_image::vhd::{OpenOptions, Parent, VhdImage, check};

const SEEDS: u64 = 2000;
const THREADS: u64 = 2;
/// Outcomes that are looked at for each failure.
const DRAWS: u64 = 3;

/// What was wrong, of whatever sort.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs until the power fails, and looks at what may be left.
fn run(seed: u64) -> Outcome {
    let (options, parent) = fresh(seed);
    let world = CrashWorld::new(seed);
    let device = world.device("disk", memory("disk", &options).to_bytes());
    let mut session = Session::new(seed);
    world.crash_at(session.rng.within(1..200));
    let ended = work(&mut session, &world, &device, parent.as_ref());
    if let Err(error) = ended
        && (error.kind() != ErrorKind::Stopped || !world.crashed())
    {
        return Err(format!("a failure without a power failure: {error}").into());
    }
    for draw in 0..DRAWS {
        let (_, bytes) = world.images(draw).remove(0);
        let left = Arc::new(MemoryDevice::from_bytes("disk", bytes));
        recover(session.clone(), &left, parent.as_ref())
            .map_err(|problem| format!("draw {draw}: {problem}"))?;
    }
    Ok(())
}

fn work(
    session: &mut Session,
    world: &CrashWorld,
    device: &Arc<CrashDevice>,
    parent: Option<&Parent>,
) -> block_types::Result<()> {
    let mut image = open(device.clone(), parent.cloned())?;
    let mut steps = 0;
    while !world.crashed() && steps < 150 {
        if session.rng.chance(1, 30) {
            session.close(&image)?;
            image = open(device.clone(), parent.cloned())?;
        } else {
            session.step(&image)?;
        }
        steps += 1;
    }
    Ok(())
}

/// Checks what a crash left, reads it as it is, opens it for writing, and goes on with it.
fn recover(mut session: Session, file: &Arc<MemoryDevice>, parent: Option<&Parent>) -> Outcome {
    let report = check(&**file, None)?;
    let on_its_way = ["and its copy differ", "the footer at the end is lost"];
    let mut errors = report.errors.iter();
    if let Some(wrong) = errors.find(|error| !on_its_way.iter().any(|way| error.contains(way))) {
        return Err(format!("{wrong}\n{report:#?}").into());
    }
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let before = file.to_bytes();
    let image = VhdImage::open(file.clone(), parent.cloned(), read_only)?;
    session.survive(&image)?;
    if file.to_bytes() != before {
        return Err("reading changed the file".into());
    }
    let image = open(file.clone(), parent.cloned())?;
    session.compare(&image).map_err(|problem| format!("healed: {problem}"))?;
    let report = check(&**file, None)?;
    if !report.errors.is_empty() {
        return Err(format!("healed: {report:#?}").into());
    }
    for _ in 0..15 {
        session.step(&image).map_err(|error| format!("afterwards: {error}"))?;
    }
    session.close(&image)?;
    let report = check(&**file, None)?;
    if !report.errors.is_empty() {
        return Err(format!("closed: {report:#?}").into());
    }
    let image = open(file.clone(), parent.cloned())?;
    session.compare(&image).map_err(|problem| format!("reopened: {problem}"))?;
    Ok(())
}

/// A file that has grown has its footer at the end before a block lies where it was: readers that
/// know of no copy open it after a crash, too.
#[test]
fn a_footer_at_the_end_survives_growth_that_was_not_flushed() {
    for seed in 0..40 {
        let (options, parent) = fresh(seed);
        let world = CrashWorld::new(seed);
        let device = world.device("disk", memory("disk", &options).to_bytes());
        let image = open(device, parent).expect("opened");
        for block in 0..6 {
            image.write_at(&[1; 512], ByteOffset::new(block * BLOCK)).expect("written");
            for draw in 0..8 {
                let left = MemoryDevice::from_bytes("disk", world.images(draw).remove(0).1);
                let report = check(&left, None).expect("checked");
                assert!(report.errors.is_empty(), "seed {seed}, block {block}: {report:#?}");
            }
        }
    }
}

#[test]
fn what_was_flushed_survives_a_power_failure() {
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 10 * SEEDS } else { SEEDS };
    let failed = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    (thread..seeds).step_by(THREADS as usize).find_map(|seed| {
                        run(seed).err().map(|problem| format!("seed {seed}: {problem}"))
                    })
                })
            })
            .collect();
        runs.into_iter().filter_map(|run| run.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
