//! `firn cow merge`.

use std::ops::ControlFlow;
use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::place::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::bar;

/// Merge a snapshot back into its origin: the origin becomes what the snapshot is.
///
/// What was written to the origin since the snapshot was taken is gone. From the first moment on
/// the origin reads as the snapshot; while the rest is copied it can be read and written, if it is
/// served. A merge that is broken off, however that happens, is taken up by this command, by the
/// next server, or by Linux; in a server it is a job, which 'firn job pause' and 'cancel' stop.
/// Other snapshots of the origin keep what they have. When all is merged, the store is removed.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn cow merge past.cow
  firn cow merge past.cow --detach")]
pub(crate) struct Merge {
    /// The store of the snapshot.
    #[arg(value_name = "STORE")]
    store: PathBuf,

    /// Leave the store where it is, empty.
    #[arg(long)]
    keep: bool,

    /// Disconnect the snapshot's clients first.
    #[arg(long)]
    force: bool,

    /// Do not wait for the server to finish.
    #[arg(long)]
    detach: bool,

    #[command(flatten)]
    access: Access,
}

/// What was merged, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Merged {
    origin: String,
    snapshot: String,
    /// Bytes that are still to be merged.
    left: u64,
}

impl Merge {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let (place, name) = self.access.find_store(&self.store)?;
        let mut left = ByteCount::ZERO;
        let mut shown: Option<ProgressBar> = None;
        self.access.change(&place, |origin| {
            let served = origin.report()?.served_by.is_some();
            origin.merge(&name, self.keep, self.force, &mut |now| {
                left = now;
                if output.shows_progress() {
                    let bar = shown.get_or_insert_with(|| bar(&name));
                    bar.set_length(bar.length().unwrap_or(0).max(now.get()));
                    bar.set_position(bar.length().unwrap_or(0) - now.get());
                }
                match self.detach && served {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        })?;
        if let Some(bar) = shown {
            bar.finish_and_clear();
        }
        let report =
            Merged { origin: place.origin.display().to_string(), snapshot: name, left: left.get() };
        output.done(&report, || match left.is_zero() {
            true => format!("{}: is what the snapshot {} was", report.origin, report.snapshot),
            false => format!(
                "{}: reads as the snapshot {}, {} to be merged",
                report.origin,
                report.snapshot,
                format_size(left)
            ),
        })?;
        Ok(DONE)
    }
}
