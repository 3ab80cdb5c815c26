//! How long a client's writes stand still while snapshots are taken under them.
//!
//! The machine has hiccups of its own, so windows with a snapshot take turns with windows without,
//! and both are told. Every window is busy with random writes, nearly all of them to blocks that an
//! earlier snapshot shares.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Client, Stall};
use super::contender::{Contender, Running, Target};
use super::hollow::{BLOCK, Hollow};
use super::lab::{Lab, POOL_DATA, VOLUME};
use super::pairs::{Spread, spread};
use super::report::Line;
use super::rows::{Access, Cache, Load, Sample, seed, small};
use super::table::figure;
use super::{Options, control};

/// The longest stall that is welcome, in milliseconds.
const TARGET_MS: f64 = 5.0;

/// The fewest snapshots that are taken.
const SNAPSHOTS: usize = 10;

/// How long a window is; a snapshot comes in its middle.
const WINDOW: Duration = Duration::from_millis(500);

/// What a page of a volume's mappings in memory covers.
pub(super) const PAGE: u64 = 1024 * BLOCK;

/// What is mapped before the first snapshot.
const CASES: &[(&str, Hollow)] = &[
    ("1 TiB mapped", Hollow { size: 1 << 40, snapshots: 0 }),
    ("1 GiB mapped", Hollow { size: 1 << 30, snapshots: 0 }),
    ("1 GiB mapped, 10,000 snapshots", Hollow { size: 1 << 30, snapshots: 10_000 }),
];

/// How the client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As fast as it can, 32 requests at a time: copying blocks then fills the disk.
    Full,
    /// 2,000 times a second, one request at a time.
    Steady,
}

/// Between two writes of a steady client.
const INTERVAL: Duration = Duration::from_micros(500);

/// What the windows of a case came to, in milliseconds.
#[derive(Debug, Default)]
struct Windows {
    with: Vec<Stall>,
    without: Vec<Stall>,
    /// How long taking the snapshot took.
    taking: Vec<Duration>,
    writes: u64,
    seconds: f64,
}

/// Measures all cases, past the page cache and through it.
pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (mode, cache) in [("direct", Cache::Direct), ("cached", Cache::Small)] {
        for (name, hollow) in CASES {
            for (how, pace) in [("2,000/s", Pace::Steady), ("qd32", Pace::Full)] {
                let case = format!("{name}, {mode}, {how}");
                let windows = measure(*hollow, cache, pace, lab, options)
                    .with_context(|| format!("snapshot-stall, {case}"))?;
                let line = windows.line(&case);
                eprintln!("{}", line.text());
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

fn measure(
    hollow: Hollow,
    cache: Cache,
    pace: Pace,
    lab: &Lab,
    options: &Options,
) -> Result<Windows> {
    let folder = lab.scratch()?;
    let pool = hollow.copy_to(folder.path(), lab)?;
    let firn = Contender::named("firn", options)?;
    let running = firn.start_on(pool.join(POOL_DATA), cache, options)?;
    let mut client = connect(&running)?;
    load_mappings(&mut client)?;
    // From here on the volume has a past, and writes copy.
    control::snapshot(&pool, VOLUME, "first")?;
    client.random(small(Access::Write), WINDOW, seed())?;
    let mut windows = Windows::default();
    for number in 0..options.rounds.max(SNAPSHOTS) {
        let (stall, took) = window_with_snapshot(&mut client, pace, &pool, number)?;
        windows.with.push(stall);
        windows.taking.push(took);
        let (sample, stall) = pace.watch(&mut client)?;
        windows.without.push(stall);
        windows.writes += sample.requests;
        windows.seconds += sample.requests as f64 / sample.per_second;
    }
    Ok(windows)
}

fn window_with_snapshot(
    client: &mut Client,
    pace: Pace,
    pool: &Path,
    number: usize,
) -> Result<(Stall, Duration)> {
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            std::thread::sleep(WINDOW / 2);
            let begun = Instant::now();
            control::snapshot(pool, VOLUME, &format!("s{number}"))?;
            Ok::<_, anyhow::Error>(begun.elapsed())
        });
        let (_, stall) = pace.watch(client)?;
        Ok((stall, taking.join().expect("taking a snapshot does not panic")?))
    })
}

impl Pace {
    /// Writes for a window's time.
    fn watch(self, client: &mut Client) -> Result<(Sample, Stall)> {
        let load = small(Access::Write);
        match self {
            Self::Full => client.watch(load, WINDOW, seed()),
            Self::Steady => client.watch_paced(load, INTERVAL, WINDOW, seed()),
        }
    }
}

/// A client of the volume that `running` serves.
pub(super) fn connect(running: &Running) -> Result<Client> {
    match running.target() {
        Target::Server { socket, export, .. } => Client::connect(socket, export),
        Target::File(_) => anyhow::bail!("a bare file has no server"),
    }
}

/// Reads a block of every page of mappings, so that all of them are in memory.
pub(super) fn load_mappings(client: &mut Client) -> Result<()> {
    let load = Load { access: Access::Read, block: 4096, depth: 32 };
    let pages = client.size().div_ceil(PAGE);
    client.each(load, (0..pages).map(|page| page * PAGE))?;
    Ok(())
}

impl Windows {
    fn line(&self, under: &str) -> Line {
        let of = |stalls: &[Stall], part: fn(&Stall) -> Duration| {
            spread(stalls.iter().map(|stall| milliseconds(part(stall))))
        };
        let (request, silence) = (|stall: &Stall| stall.request, |stall: &Stall| stall.silence);
        let with = of(&self.with, request);
        let taking = spread(self.taking.iter().copied().map(milliseconds));
        Line {
            what: "snapshot-stall".to_owned(),
            against: under.to_owned(),
            target: format!("< {TARGET_MS} ms"),
            reached: format!("{} ms", figure(with.median)),
            figures: format!(
                "longest request: {} ms, without a snapshot {}; longest silence: {}, without {}; \
                 a snapshot takes {}; {} k writes/s",
                worst(with),
                worst(of(&self.without, request)),
                worst(of(&self.with, silence)),
                worst(of(&self.without, silence)),
                worst(taking),
                figure(self.writes as f64 / self.seconds / 1e3),
            ),
            met: with.median < TARGET_MS,
        }
    }
}

/// The median, and how bad it got.
fn worst(spread: Spread) -> String {
    format!("{} (worst {})", figure(spread.median), figure(spread.most))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
