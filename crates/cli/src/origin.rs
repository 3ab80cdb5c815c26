//! `firn volume hydrate` and `firn volume merge`: ending what a volume has with its origin.

use block_types::ByteCount;
use clap::Args;
use daemon::JobInfo;
use serde::Serialize;

use crate::access::change;
use crate::address::{VolumeAddress, volume};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::attend;
use crate::size::size;

/// Copy into a volume what it still shows of its origin, and free it from the origin.
///
/// The volume may be in use. What reads as zeros takes no space. A hydration that is interrupted
/// leaves the volume as it reads, and the next one begins behind it. Snapshots and clones of the
/// volume stand on the origin by themselves: with --family they are freed with it, and what they
/// share is copied once for all of them.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume hydrate lab/web --family")]
pub(crate) struct Hydrate {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Free its snapshots, clones of them, and what it was cloned from, too.
    #[arg(long)]
    family: bool,

    /// Copy at most so much in a second.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<ByteCount>,
}

/// Write what a volume holds over its origin back into the origin.
///
/// The origin reads like the volume then, as far as the volume reaches, and the volume is empty and
/// shows it. Neither may be in use, so not while the pool is served. An origin that is too small
/// grows, where its format can. A merge that is interrupted leaves the volume as it reads, and the
/// origin half written: run it again. What else stands on the origin, in this pool or in another,
/// reads otherwise afterwards; in this pool that is refused.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume merge lab/web")]
pub(crate) struct Merge {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Merge although others in the pool stand on the origin, and change what they read.
    #[arg(long)]
    force: bool,

    /// Copy at most so much in a second.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<ByteCount>,
}

/// What was done, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Copied {
    volume: String,
    /// Bytes.
    copied: u64,
}

impl Hydrate {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        let job = change(pool, |pool| {
            let job = pool.hydrate(volume, self.family, self.rate)?;
            attend(pool.jobs(), job.id, &job.kind, output)
        })?;
        report(&self.volume, &job, "is free of its origin", output)
    }
}

impl Merge {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        let job = change(pool, |pool| {
            let job = pool.merge(volume, self.force, self.rate)?;
            attend(pool.jobs(), job.id, &job.kind, output)
        })?;
        report(&self.volume, &job, "is merged into its origin", output)
    }
}

fn report(volume: &VolumeAddress, job: &JobInfo, what: &str, output: Output) -> Outcome {
    let copied = job.result.as_ref().and_then(|result| result.get("copied")?.as_u64());
    let copied = copied.unwrap_or_default();
    let report = Copied { volume: volume.to_string(), copied };
    output.done(&report, || format!("{volume}: {what}, {} copied", ByteCount::new(copied)))?;
    Ok(DONE)
}
