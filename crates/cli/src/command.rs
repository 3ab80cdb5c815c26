//! The root of the command line: the objects, and the options that every verb takes.

use clap::{Args, Parser, Subcommand};

use crate::cow::CowVerb;
use crate::generate::{Completions, GenerateMan};
use crate::image::ImageVerb;
use crate::job::JobVerb;
use crate::pool::PoolVerb;
use crate::repo::RepoVerb;
use crate::serve::Serve;
use crate::snapshot::SnapshotVerb;
use crate::volume::VolumeVerb;

/// Copy-on-write block storage in user space.
///
/// A pool is a directory; volumes in it are thin, have snapshots and clones, and are served over
/// NBD. An address is POOLDIR/VOLUME or POOLDIR/VOLUME@SNAPSHOT. A pool that 'firn serve' is
/// serving is reached through that process; any other is opened directly, under a lock.
#[derive(Debug, Parser)]
#[command(
    name = "firn",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = "\
SIZES
  Bytes, or a number with K, M, G, T (powers of 1024), KB, MB, ... (powers of 1000) or s (sectors).

EXIT CODES
  0 done, 1 failed, 64 bad usage; of 'firn pool check': 0 sound, 1 could not check, 2 corrupt,
  3 leaks only; of 'firn serve --run': the command's.

EXAMPLE
  firn pool create lab --size 100G
  firn volume create lab/db --size 20G
  firn serve lab"
)]
pub(crate) struct Firn {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) object: Object,
}

/// Options of every verb.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// No progress, no confirmations; of the log, errors only.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Log more to stderr, -vv and -vvv still more; RUST_LOG decides instead where it is set.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What a verb is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Object {
    /// Pools: directories that hold thin volumes.
    #[command(subcommand, arg_required_else_help = true)]
    Pool(PoolVerb),

    /// Volumes: virtual disks in a pool.
    #[command(subcommand, arg_required_else_help = true)]
    Volume(VolumeVerb),

    /// Snapshots of volumes.
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(SnapshotVerb),

    /// Disk images: qcow2, VHD and raw files.
    #[command(subcommand, arg_required_else_help = true)]
    Image(ImageVerb),

    /// Classic snapshots: a raw disk that stays in place, its past in stores.
    #[command(subcommand, arg_required_else_help = true)]
    Cow(CowVerb),

    /// Repositories: directories of VHDs that stand on each other.
    #[command(subcommand, arg_required_else_help = true)]
    Repo(RepoVerb),

    /// Jobs: long work that a daemon is doing.
    #[command(subcommand, arg_required_else_help = true)]
    Job(JobVerb),

    Serve(Serve),

    Completions(Completions),

    #[command(hide = true)]
    GenerateMan(GenerateMan),
}
