//! `firn cow`: one file per verb.

mod create;
mod drop;
mod grow;
mod merge;
mod place;
mod serve;
mod status;

use clap::Subcommand;

pub(crate) use serve::{ServingOrigin, Stores};

use crate::exit::Outcome;
use crate::output::Output;
use create::Create;
use drop::Drop;
use grow::Grow;
use merge::Merge;
use status::Status;

/// The verbs of classic snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum CowVerb {
    Create(Create),
    Status(Status),
    Merge(Merge),
    Drop(Drop),
    Grow(Grow),
}

/// Does what a verb says.
pub(crate) fn run(verb: &CowVerb, output: Output) -> Outcome {
    match verb {
        CowVerb::Create(create) => create.run(output),
        CowVerb::Status(status) => status.run(output),
        CowVerb::Merge(merge) => merge.run(output),
        CowVerb::Drop(drop) => drop.run(output),
        CowVerb::Grow(grow) => grow.run(output),
    }
}
