//! The rows of the tables: what is measured.

use std::time::Duration;

use anyhow::{Context, Result};

use super::client::Client;
use super::contender::Target;
use super::{cpu, fio};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// How a server uses the page cache, and in which state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    /// Through the cache, which holds everything in single pages.
    Small,
    /// Past it.
    Direct,
}

/// Requests at random aligned offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) access: Access,
    /// Bytes of a request.
    pub(super) block: u32,
    /// Requests in flight.
    pub(super) depth: u32,
}

/// What one run of a load came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) requests: u64,
    pub(super) per_second: f64,
    /// The median time of a request, in microseconds.
    pub(super) median_us: f64,
    /// Processor time of the server per request, in microseconds.
    pub(super) cpu_us: f64,
}

/// Which figure of a sample a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// Thousands of requests a second: more is better.
    KiloIops,
    /// Megabytes (10^6) a second: more is better.
    Megabytes,
    /// Microseconds of the median request: less is better.
    Median,
}

/// A row of the tables.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) cache: Cache,
    pub(super) figure: Figure,
    pub(super) block: u32,
    /// Runs it once for so long.
    pub(super) run: fn(&Target, Duration) -> Result<Sample>,
}

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 1 << 20;

/// All rows, in the order of the tables.
pub(super) const ROWS: &[Row] = &[
    row("cached 4K randread qd32, fio", Cache::Small, cached_read_by_fio),
    row("cached 4K randwrite qd32, fio", Cache::Small, cached_write_by_fio),
    row("cached 4K randread qd32, lean", Cache::Small, cached_read_by_lean),
    row("cached 4K randwrite qd32, lean", Cache::Small, cached_write_by_lean),
    row("direct 4K randread qd32, fio", Cache::Direct, direct_read_by_fio),
    row("direct 4K randwrite qd32, fio", Cache::Direct, direct_write_by_fio),
    row("direct 4K randread qd32, lean", Cache::Direct, direct_read_by_lean),
    row("direct 4K randwrite qd32, lean", Cache::Direct, direct_write_by_lean),
    Row {
        name: "cached 4K randread qd1, one CPU",
        cache: Cache::Small,
        figure: Figure::Median,
        block: SMALL,
        run: cached_read_alone,
    },
    large("cached 1M read qd8, lean", Cache::Small, cached_large_read),
    large("cached 1M write qd8, lean", Cache::Small, cached_large_write),
    large("direct 1M read qd8, lean", Cache::Direct, direct_large_read),
    large("direct 1M write qd8, lean", Cache::Direct, direct_large_write),
];

const fn row(
    name: &'static str,
    cache: Cache,
    run: fn(&Target, Duration) -> Result<Sample>,
) -> Row {
    Row { name, cache, figure: Figure::KiloIops, block: SMALL, run }
}

const fn large(
    name: &'static str,
    cache: Cache,
    run: fn(&Target, Duration) -> Result<Sample>,
) -> Row {
    Row { name, cache, figure: Figure::Megabytes, block: LARGE, run }
}

fn cached_read_by_fio(target: &Target, length: Duration) -> Result<Sample> {
    by_fio(target, small(Access::Read), Cache::Small, length)
}

fn cached_write_by_fio(target: &Target, length: Duration) -> Result<Sample> {
    by_fio(target, small(Access::Write), Cache::Small, length)
}

fn cached_read_by_lean(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, small(Access::Read), Cache::Small, length)
}

fn cached_write_by_lean(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, small(Access::Write), Cache::Small, length)
}

fn direct_read_by_fio(target: &Target, length: Duration) -> Result<Sample> {
    by_fio(target, small(Access::Read), Cache::Direct, length)
}

fn direct_write_by_fio(target: &Target, length: Duration) -> Result<Sample> {
    by_fio(target, small(Access::Write), Cache::Direct, length)
}

fn direct_read_by_lean(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, small(Access::Read), Cache::Direct, length)
}

fn direct_write_by_lean(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, small(Access::Write), Cache::Direct, length)
}

/// One request at a time, client and server on the same processor: across two, the wake-up of the
/// other one is most of the time and varies more than any server.
fn cached_read_alone(target: &Target, length: Duration) -> Result<Sample> {
    let load = Load { access: Access::Read, block: SMALL, depth: 1 };
    if let Some(pid) = target.server() {
        cpu::pin(pid)?;
    }
    // A thread of its own, since the pinning goes with it.
    let sample = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            cpu::pin_this_thread()?;
            by_lean(target, load, Cache::Small, length)
        });
        client.join().expect("the client does not panic")
    });
    if let Some(pid) = target.server() {
        cpu::unpin(pid)?;
    }
    sample
}

fn cached_large_read(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, big(Access::Read), Cache::Small, length)
}

fn cached_large_write(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, big(Access::Write), Cache::Small, length)
}

fn direct_large_read(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, big(Access::Read), Cache::Direct, length)
}

fn direct_large_write(target: &Target, length: Duration) -> Result<Sample> {
    by_lean(target, big(Access::Write), Cache::Direct, length)
}

pub(super) const fn small(access: Access) -> Load {
    Load { access, block: SMALL, depth: 32 }
}

const fn big(access: Access) -> Load {
    Load { access, block: LARGE, depth: 8 }
}

fn by_fio(target: &Target, load: Load, cache: Cache, length: Duration) -> Result<Sample> {
    match target {
        Target::File(file) => fio::on_file(file, load, cache, length),
        Target::Server { uri, .. } => with_cpu(target, || fio::over_nbd(uri, load, length)),
    }
}

/// By the lean client; a bare file has fio in its place.
fn by_lean(target: &Target, load: Load, cache: Cache, length: Duration) -> Result<Sample> {
    match target {
        Target::File(file) => fio::on_file(file, load, cache, length),
        Target::Server { socket, export, .. } => {
            let mut client = Client::connect(socket, export)?;
            with_cpu(target, || client.random(load, length, seed()))
        }
    }
}

/// Runs `load` and charges the server's processor time to its requests.
pub(super) fn with_cpu(target: &Target, load: impl FnOnce() -> Result<Sample>) -> Result<Sample> {
    let pid = target.server().context("a bare file has no server")?;
    let before = cpu::seconds_of(pid)?;
    let sample = load()?;
    let spent = cpu::seconds_of(pid)? - before;
    Ok(Sample { cpu_us: spent * 1e6 / sample.requests.max(1) as f64, ..sample })
}

/// A different sequence of offsets for every run.
pub(super) fn seed() -> u64 {
    static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

impl Figure {
    /// The figure of `sample`, in its own unit.
    pub(super) fn of(self, sample: &Sample, block: u32) -> f64 {
        match self {
            Self::KiloIops => sample.per_second / 1e3,
            Self::Megabytes => sample.per_second * f64::from(block) / 1e6,
            Self::Median => sample.median_us,
        }
    }

    /// Its unit.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::KiloIops => "kIOPS",
            Self::Megabytes => "MB/s",
            Self::Median => "us",
        }
    }
}
