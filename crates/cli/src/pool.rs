//! `firn pool`: create, status, grow, message; the verbs on metadata are in `metadata`.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, format_size};
use clap::{Args, Subcommand};
use dm_thin::PoolTable;
use serde::Serialize;
use volume::{CreateOptions, Message, PoolDirectory, PoolReport};

use crate::access::{ask, change};
use crate::exit::{DONE, Outcome};
use crate::keep::{Events, Set};
use crate::metadata::{Check, Delta, Dump, Ls, Pack, Repair, Restore, Rmap, Unpack};
use crate::output::Output;
use crate::progress;
use crate::size::{NewSize, new_size, size};

/// The verbs of pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    Create(Create),
    Status(Status),
    Activate(Activate),
    Grow(Grow),
    Set(Set),
    Events(Events),
    Trim(Trim),
    Message(SendMessage),
    Check(Check),
    Dump(Dump),
    Restore(Restore),
    Repair(Repair),
    Delta(Delta),
    Ls(Ls),
    Rmap(Rmap),
    Pack(Pack),
    Unpack(Unpack),
}

/// Create a pool: a directory that volumes can be made in.
///
/// The directory is made; if it exists, it must be empty. The pool is thin: its size is how much it
/// may hold in the end, and it takes next to no space yet. On disk it is a thin pool of the
/// kernel's device mapper, metadata version 2, in two files named 'metadata' and 'data'.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool create lab --size 100G")]
pub(crate) struct Create {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// How much data it may hold.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: ByteCount,

    /// The unit in which space is given to volumes: a multiple of 64K, at most 1G.
    ///
    /// Small blocks keep snapshots small; large ones make for less metadata.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64K")]
    block_size: ByteCount,
}

/// Show how full a pool is, and whether it is well.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool status lab")]
pub(crate) struct Status {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Print the line that 'dmsetup status' would print.
    #[arg(long)]
    dm: bool,
}

/// Send a pool a message of the kernel's thin-pool target.
///
/// The messages are create_thin ID, create_snap ID ORIGIN, delete ID, set_transaction_id CURRENT
/// NEW, reserve_metadata_snap and release_metadata_snap; what is refused is refused with the
/// kernel's word for it. A device that a message makes has no name, and is listed as #ID until
/// 'firn volume rename' gives it one. Deleting a device that has a name deletes the name too.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool message lab \"create_snap 7 1\"")]
pub(crate) struct SendMessage {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The message, in one word or several.
    #[arg(value_name = "MESSAGE", required = true)]
    words: Vec<String>,
}

/// Make a pool of a table line, as 'dmsetup create NAME --table LINE' does.
///
/// The pool lies on any two files or block devices. DIR is made, with links to them; what else is
/// known of the pool, names and settings, is kept there, and every verb takes DIR from then on.
/// Metadata that begins with zeros is formatted. Said again with a longer table, the pool grows;
/// with other features, they hold from then on. To forget the pool, remove DIR: the devices keep
/// it.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool activate lab --table '0 524288 thin-pool /dev/vg/meta /dev/vg/data 128 100'
  firn serve lab")]
pub(crate) struct Activate {
    /// The directory to make.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The table line: 0 SECTORS thin-pool META DATA BLOCK LOWWATER, and features.
    #[arg(long, value_name = "LINE", value_parser = PoolTable::parse)]
    table: PoolTable,
}

/// Make a pool larger.
///
/// Works while it is served. A pool cannot become smaller.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool grow lab --size +50G")]
pub(crate) struct Grow {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// How much data it may hold, or how much more: 200G, +50G.
    #[arg(long, value_name = "SIZE", value_parser = new_size, required_unless_present = "metadata")]
    size: Option<NewSize>,

    /// How much metadata it may hold. It grows by itself, where it is in a file.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    metadata: Option<ByteCount>,
}

/// Give the space of free blocks back to the file system.
///
/// What volumes give up is given back by itself. This finds what is left over: after a crash, after
/// another program had the pool, or in a data file that was copied. Works while the pool is served,
/// and can be broken off and begun again.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool trim lab")]
pub(crate) struct Trim {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// The kernel's status line, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct StatusLine<'l> {
    /// The line, a blank at its end included.
    pub(crate) line: &'l str,
}

/// A message that was obeyed, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MessageReport<'m> {
    pool: &'m str,
    message: &'m str,
}

/// Does what a verb says.
pub(crate) fn run(verb: &PoolVerb, output: Output) -> Outcome {
    match verb {
        PoolVerb::Create(create) => create.run(output),
        PoolVerb::Status(status) => status.run(output),
        PoolVerb::Activate(activate) => activate.run(output),
        PoolVerb::Grow(grow) => grow.run(output),
        PoolVerb::Set(set) => set.run(output),
        PoolVerb::Events(events) => events.run(output),
        PoolVerb::Trim(trim) => trim.run(output),
        PoolVerb::Message(message) => message.run(output),
        PoolVerb::Check(check) => check.run(output),
        PoolVerb::Dump(dump) => dump.run(output),
        PoolVerb::Restore(restore) => restore.run(output),
        PoolVerb::Repair(repair) => repair.run(output),
        PoolVerb::Delta(delta) => delta.run(output),
        PoolVerb::Ls(ls) => ls.run(output),
        PoolVerb::Rmap(rmap) => rmap.run(output),
        PoolVerb::Pack(pack) => pack.run(output),
        PoolVerb::Unpack(unpack) => unpack.run(output),
    }
}

impl Create {
    fn run(&self, output: Output) -> Outcome {
        let options = CreateOptions { size: self.size, block_size: self.block_size };
        PoolDirectory::create(&self.dir, &options)?;
        let report = ask(&self.dir, |pool| pool.status())?;
        output.done(&report, || {
            format!("{}: created, for up to {}", report.path, bytes(report.size))
        })?;
        Ok(DONE)
    }
}

impl Activate {
    fn run(&self, output: Output) -> Outcome {
        let report = PoolDirectory::activate(&self.dir, &self.table)?;
        output.done(&report, || {
            format!("{}: active, for up to {}", report.path, bytes(report.size))
        })?;
        Ok(DONE)
    }
}

impl Status {
    fn run(&self, output: Output) -> Outcome {
        if self.dm {
            let line = ask(&self.dir, |pool| pool.status_line())?;
            output.result(&StatusLine { line: &line }, || format!("{line}\n"))?;
            return Ok(DONE);
        }
        let report = ask(&self.dir, |pool| pool.status())?;
        output.result(&report, || describe(&report))?;
        Ok(DONE)
    }
}

impl SendMessage {
    fn run(&self, output: Output) -> Outcome {
        let message = Message::parse(&self.words.join(" "))?;
        change(&self.dir, |pool| pool.message(message))?;
        let (pool, message) = (self.dir.display().to_string(), message.to_string());
        let report = MessageReport { pool: &pool, message: &message };
        output.done(&report, || format!("{pool}: {message}: done"))?;
        Ok(DONE)
    }
}

impl Grow {
    fn run(&self, output: Output) -> Outcome {
        let report = change(&self.dir, |pool| {
            let mut report = pool.status()?;
            if let Some(metadata) = self.metadata {
                report = pool.grow_metadata(metadata)?;
            }
            let now = ByteCount::new(report.size);
            let Some(size) = &self.size else { return Ok(report) };
            let size = size.relative_to(now)?;
            if size < now {
                return Err(self.refuse_to_shrink(now, size));
            }
            pool.grow(size)
        })?;
        output
            .done(&report, || format!("{}: holds up to {} now", report.path, bytes(report.size)))?;
        Ok(DONE)
    }

    fn refuse_to_shrink(&self, now: ByteCount, size: ByteCount) -> Error {
        let problem = format!("{size} is less than its {now}, and a pool cannot become smaller");
        Error::new(ErrorKind::Invalid, self.dir.display().to_string(), problem)
            .advise("say a larger size, or +SIZE for so much more")
    }
}

fn bytes(count: u64) -> String {
    format_size(ByteCount::new(count))
}

impl Trim {
    fn run(&self, output: Output) -> Outcome {
        let job =
            change(&self.dir, |pool| progress::attend(pool.jobs(), pool.trim()?, "trim", output))?;
        output.done(&job, || {
            format!("{}: {} of free space given back", self.dir.display(), bytes(job.done))
        })?;
        Ok(DONE)
    }
}

/// A pool's state, a figure per line.
fn describe(report: &PoolReport) -> String {
    let used = |used, of: u64| {
        let percent = used as f64 * 100.0 / of.max(1) as f64;
        format!("{} of {} ({percent:.1}%)", bytes(used), bytes(of))
    };
    let mut mode = match report.mode.as_str() {
        "rw" => "read-write".to_owned(),
        "ro" => "read-only".to_owned(),
        "out_of_data_space" => "out of data space".to_owned(),
        "out_of_metadata_space" => "out of metadata space".to_owned(),
        "fail" => "failed".to_owned(),
        other => other.to_owned(),
    };
    if let Some(reason) = &report.reason {
        mode = format!("{mode}: {reason}");
    }
    if report.needs_check {
        mode.push_str("; needs a check");
    }
    let mut lines = vec![
        ("pool", report.path.clone()),
        ("mode", mode),
        ("data", used(report.data_used, report.size)),
        ("metadata", used(report.metadata_used, report.metadata_size)),
        ("block size", bytes(report.block_size)),
        ("volumes", report.volumes.to_string()),
        ("snapshots", report.snapshots.to_string()),
        ("transaction", report.transaction.to_string()),
    ];
    if report.reclaiming > 0 {
        let most = format!("up to {}, of what was deleted", bytes(report.reclaiming));
        lines.insert(3, ("reclaiming", most));
    }
    lines.iter().map(|(what, value)| format!("{:<13}{value}\n", format!("{what}:"))).collect()
}
