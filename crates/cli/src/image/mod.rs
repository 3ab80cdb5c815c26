//! `firn image`: one file per verb.

mod access;
mod amend;
mod bitmap;
mod chain;
mod check;
mod compact;
mod compare;
mod convert;
mod create;
mod info;
mod map;
mod measure;
mod resize;
mod snapshot;

use clap::Subcommand;

use access::Sharing;
pub(crate) use access::{Access, backing_policy};

use crate::exit::Outcome;
use crate::output::Output;
use amend::Amend;
use bitmap::BitmapVerb;
use chain::{Commit, Overlay, Rebase, Stream};
use check::Check;
use compact::Compact;
use compare::Compare;
use convert::Convert;
use create::Create;
use info::Info;
use map::Map;
use measure::Measure;
use resize::Resize;
use snapshot::SnapshotVerb;

/// The verbs of images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    Create(Create),
    Info(Info),
    Check(Check),
    Map(Map),
    Convert(Convert),
    Compare(Compare),
    Resize(Resize),
    Overlay(Overlay),
    Commit(Commit),
    Stream(Stream),
    Rebase(Rebase),
    Measure(Measure),
    Amend(Amend),
    Compact(Compact),
    /// Dirty bitmaps that lie in an image.
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_long_help = "EXAMPLE\n  firn image bitmap add disk.qcow2 daily"
    )]
    Bitmap(BitmapVerb),
    /// Internal snapshots of an image.
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_long_help = "EXAMPLE\n  firn image snapshot create disk.qcow2 monday"
    )]
    Snapshot(SnapshotVerb),
}

/// Does what a verb says.
pub(crate) fn run(verb: &ImageVerb, output: Output) -> Outcome {
    match verb {
        ImageVerb::Create(create) => create.run(output),
        ImageVerb::Info(info) => info.run(output),
        ImageVerb::Check(check) => check.run(output),
        ImageVerb::Map(map) => map.run(output),
        ImageVerb::Convert(convert) => convert.run(output),
        ImageVerb::Compare(compare) => compare.run(output),
        ImageVerb::Resize(resize) => resize.run(output),
        ImageVerb::Overlay(overlay) => overlay.run(output),
        ImageVerb::Commit(commit) => commit.run(output),
        ImageVerb::Stream(stream) => stream.run(output),
        ImageVerb::Rebase(rebase) => rebase.run(output),
        ImageVerb::Measure(measure) => measure.run(output),
        ImageVerb::Amend(amend) => amend.run(output),
        ImageVerb::Compact(compact) => compact.run(output),
        ImageVerb::Bitmap(verb) => bitmap::run(verb, output),
        ImageVerb::Snapshot(verb) => snapshot::run(verb, output),
    }
}
