//! `firn cow drop`.

use std::path::PathBuf;

use block_types::{ErrorKind, Result};
use clap::Args;
use serde::Serialize;
use volume::{CowPlace, forget_snapshot};

use super::place::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Give a snapshot up, and remove its store.
///
/// The origin stays as it is. Works while it is served, and where the store is missing.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn cow drop past.cow")]
pub(crate) struct Drop {
    /// The store of the snapshot.
    #[arg(value_name = "STORE")]
    store: PathBuf,

    /// Leave the store where it is, marked invalid.
    #[arg(long)]
    keep: bool,

    /// Disconnect the snapshot's clients first.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    access: Access,
}

/// What was dropped, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Dropped {
    origin: String,
    snapshot: String,
}

impl Drop {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let (place, name) = self.access.find_store(&self.store)?;
        self.drop(&place, &name)?;
        let report = Dropped { origin: place.origin.display().to_string(), snapshot: name };
        output.done(&report, || format!("{}@{}: dropped", report.origin, report.snapshot))?;
        Ok(DONE)
    }

    /// Where nobody has the origin open, its other snapshots need not be fit to be opened.
    fn drop(&self, place: &CowPlace, name: &str) -> Result<()> {
        match forget_snapshot(&place.origin, name, self.keep) {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unsupported) => self
                .access
                .change(place, |origin| origin.drop_snapshot(name, self.keep, self.force)),
            done => done,
        }
    }
}
