//! `firn cow grow`.

use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;

use super::place::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::{NewSize, new_size};

/// Make the store of a snapshot larger.
///
/// A store that is a file grows by itself when it is 70% full, up to its limit; this is for one
/// that has come to it. Works while the origin is served. A store cannot become smaller.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn cow grow past.cow --size +10G")]
pub(crate) struct Grow {
    /// The store of the snapshot.
    #[arg(value_name = "STORE")]
    store: PathBuf,

    /// How large it is to be, or how much larger: 20G, +10G.
    #[arg(long, value_name = "SIZE", value_parser = new_size)]
    size: NewSize,

    #[command(flatten)]
    access: Access,
}

impl Grow {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let (place, name) = self.access.find_store(&self.store)?;
        let report = self.access.change(&place, |origin| {
            let now = origin.report()?.snapshots.into_iter().find(|one| one.name == name);
            let now = ByteCount::new(now.map_or(0, |snapshot| snapshot.total));
            origin.grow(&name, self.size.relative_to(now)?)
        })?;
        output.done(&report, || {
            format!("{}: has {} now", report.store, format_size(ByteCount::new(report.total)))
        })?;
        Ok(DONE)
    }
}
