//! `firn cow status`.

use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use volume::{CowReport, OriginReport};

use super::place::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::table::{Table, moment};

/// Show an origin's snapshots, or one of them by its store.
///
/// Works while the origin is served. USED and SIZE are the store's: chunks once used are used for
/// good. A snapshot that is 'invalid' has lost something of its past, and is never read again.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn cow status disk.img
  firn cow status past.cow --dm")]
pub(crate) struct Status {
    /// The origin, or the store of a snapshot.
    #[arg(value_name = "STORE|ORIGIN")]
    path: PathBuf,

    /// Print the lines that 'dmsetup status' would print.
    #[arg(long)]
    dm: bool,

    /// Print the lines that 'dmsetup table' would print.
    #[arg(long, conflicts_with = "dm")]
    table: bool,

    #[command(flatten)]
    access: Access,
}

impl Status {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let place = self.access.find(&self.path)?;
        let mut report = self.access.ask(&place, |origin| origin.report())?;
        if !place.snapshots.is_empty() {
            report.snapshots.retain(|snapshot| place.snapshots.contains(&snapshot.name));
        }
        output.result(&report, || match (self.dm, self.table) {
            (true, _) => lines(&report, |snapshot| &snapshot.status_line),
            (_, true) => lines(&report, |snapshot| &snapshot.table_line),
            _ => describe(&report),
        })?;
        Ok(DONE)
    }
}

fn lines(report: &OriginReport, line: impl Fn(&CowReport) -> &String) -> String {
    report.snapshots.iter().map(|snapshot| format!("{}\n", line(snapshot))).collect()
}

/// The origin and its snapshots for people.
fn describe(report: &OriginReport) -> String {
    let size = |bytes: u64| format_size(ByteCount::new(bytes));
    let served = report.served_by.map_or_else(String::new, |pid| format!(", served by {pid}"));
    let mut text = format!("{}: {}{served}\n", report.origin, size(report.size));
    let headings = ["NAME", "STATE", "MODE", "CHUNK", "USED", "SIZE", "LIMIT", "TAKEN", "STORE"];
    let mut table = Table::new(&headings, &[3, 4, 5, 6]);
    for snapshot in &report.snapshots {
        table.add([
            snapshot.name.clone(),
            snapshot.state.clone(),
            snapshot.mode.clone(),
            size(snapshot.chunk_size),
            format!("{}%", (snapshot.used * 100).div_ceil(snapshot.total.max(1))),
            size(snapshot.total),
            snapshot.grow_limit.map_or_else(|| "-".to_owned(), size),
            moment(snapshot.created.as_deref()),
            snapshot.store.clone(),
        ]);
    }
    text.push_str(&table.render());
    for snapshot in &report.snapshots {
        if let Some(reason) = &snapshot.reason {
            text.push_str(&format!("{}: {reason}\n", snapshot.name));
        }
    }
    text
}
