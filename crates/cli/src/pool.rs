//! `firn pool`: create, status, grow, check.

use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use clap::{Args, Subcommand};
use volume::{CheckReport, CreateOptions, PoolDirectory, PoolReport};

use crate::access::{ask, change};
use crate::exit::{CORRUPT, DONE, LEAKS, Outcome};
use crate::output::Output;
use crate::size::{NewSize, new_size, size};

/// The verbs of pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    Create(Create),
    Status(Status),
    Grow(Grow),
    Check(Check),
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
    #[arg(long, value_name = "SIZE", value_parser = new_size)]
    size: NewSize,
}

/// Check a pool's metadata; change nothing.
///
/// Exit codes: 0 sound, 1 could not check, 2 corrupt, 3 leaks only: blocks that are counted as in
/// use and that nothing uses. A pool that is served is checked as its last commit left it.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool check lab && echo sound")]
pub(crate) struct Check {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Does what a verb says.
pub(crate) fn run(verb: &PoolVerb, output: Output) -> Outcome {
    match verb {
        PoolVerb::Create(create) => create.run(output),
        PoolVerb::Status(status) => status.run(output),
        PoolVerb::Grow(grow) => grow.run(output),
        PoolVerb::Check(check) => check.run(output),
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

impl Status {
    fn run(&self, output: Output) -> Outcome {
        let report = ask(&self.dir, |pool| pool.status())?;
        output.result(&report, || describe(&report))?;
        Ok(DONE)
    }
}

impl Grow {
    fn run(&self, output: Output) -> Outcome {
        let report = change(&self.dir, |pool| {
            let now = ByteCount::new(pool.status()?.size);
            let size = self.size.relative_to(now)?;
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

impl Check {
    fn run(&self, output: Output) -> Outcome {
        let report = check(&self.dir)?;
        output.result(&report, || findings(&self.dir, &report))?;
        Ok(verdict(&report))
    }
}

/// Checks the pool as it lies there, which also works for one that cannot be opened; or, where
/// somebody has it open, through them.
fn check(dir: &Path) -> Result<CheckReport> {
    let result = match PoolDirectory::check_path(dir) {
        Err(error) if error.kind() == ErrorKind::Busy => ask(dir, |pool| pool.check()),
        result => result,
    };
    match result {
        // So broken that it could not be looked into is an answer too, and no failure to check.
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let errors = vec![error.to_string()];
            Ok(CheckReport { errors, leaks: Vec::new(), checked_blocks: 0 })
        }
        result => result,
    }
}

fn bytes(count: u64) -> String {
    format_size(ByteCount::new(count))
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
        other => other.to_owned(),
    };
    if let Some(reason) = &report.reason {
        mode = format!("{mode}: {reason}");
    }
    if report.needs_check {
        mode.push_str("; needs a check");
    }
    let lines = [
        ("pool", report.path.clone()),
        ("mode", mode),
        ("data", used(report.data_used, report.size)),
        ("metadata", used(report.metadata_used, report.metadata_size)),
        ("block size", bytes(report.block_size)),
        ("volumes", report.volumes.to_string()),
        ("snapshots", report.snapshots.to_string()),
        ("transaction", report.transaction.to_string()),
    ];
    lines.iter().map(|(what, value)| format!("{:<13}{value}\n", format!("{what}:"))).collect()
}

/// The exit code for what a check found.
fn verdict(report: &CheckReport) -> u8 {
    if !report.errors.is_empty() {
        CORRUPT
    } else if !report.leaks.is_empty() {
        LEAKS
    } else {
        DONE
    }
}

/// What a check found, a finding per line, and what that means.
fn findings(dir: &Path, report: &CheckReport) -> String {
    let errors = report.errors.iter().map(|error| format!("error: {error}\n"));
    let leaks = report.leaks.iter().map(|leak| format!("leak: {leak}\n"));
    let verdict = match (report.errors.len(), report.leaks.len()) {
        (0, 0) => "sound".to_owned(),
        (0, leaks) => format!("leaks, {leaks} of them"),
        (errors, 0) => format!("corrupt, {errors} errors"),
        (errors, leaks) => format!("corrupt, {errors} errors and {leaks} leaks"),
    };
    let verdict = format!(
        "{}: {verdict}; {} metadata blocks checked\n",
        dir.display(),
        report.checked_blocks
    );
    errors.chain(leaks).chain([verdict]).collect()
}

#[cfg(test)]
mod tests {
    use super::{findings, verdict};
    use std::path::Path;
    use volume::CheckReport;

    #[test]
    fn errors_weigh_more_than_leaks() {
        let told = |errors: &[&str], leaks: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let report =
                CheckReport { errors: owned(errors), leaks: owned(leaks), checked_blocks: 9 };
            (verdict(&report), findings(Path::new("lab"), &report))
        };
        let end = "; 9 metadata blocks checked\n";
        assert_eq!(told(&[], &[]), (0, format!("lab: sound{end}")));
        assert_eq!(told(&[], &["a"]), (3, format!("leak: a\nlab: leaks, 1 of them{end}")));
        let (code, text) = told(&["b"], &["a"]);
        assert_eq!(code, 2);
        assert!(
            text.starts_with("error: b\nleak: a\nlab: corrupt, 1 errors and 1 leaks"),
            "{text}"
        );
    }
}
