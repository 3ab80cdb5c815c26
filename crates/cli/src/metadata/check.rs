//! `firn pool check`: whether a pool's metadata is sound, and what of it can be put right in place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ErrorKind, Result};
use clap::Args;
use dm_thin::{CheckDepth, CheckOptions, LeakRepair, check_with, clear_needs_check, repair_leaks};
use serde::Serialize;
use volume::MetadataUse;

use super::source::{Opened, open};
use crate::exit::{CORRUPT, DONE, LEAKS, Outcome};
use crate::output::Output;

/// Check a pool's metadata; change nothing unless told to.
///
/// Exit codes: 0 sound, 1 could not check, 2 corrupt, 3 leaks only: blocks that are counted as in
/// use and that nothing uses. A pool that is served is checked as its last commit left it. Metadata
/// that is corrupt is for 'firn pool repair'.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool check lab && echo sound
  firn pool check lab --repair-leaks")]
pub(crate) struct Check {
    /// A pool's directory, or a file or block device that holds a pool's metadata.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// Give back the space of leaks, if nothing is corrupt.
    #[arg(long, conflicts_with_all = ["superblock_only", "skip_mappings"])]
    repair_leaks: bool,

    /// Take the mark off a pool that it needs a check, if nothing is corrupt.
    #[arg(long, conflicts_with_all = ["superblock_only", "skip_mappings"])]
    clear_needs_check: bool,

    /// Check the superblock and nothing else.
    #[arg(long, conflicts_with = "skip_mappings")]
    superblock_only: bool,

    /// Check which devices there are, but neither mappings nor counts.
    #[arg(long)]
    skip_mappings: bool,
}

/// What a check found, as JSON has it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    errors: Vec<String>,
    leaks: Vec<String>,
    warnings: Vec<String>,
    checked_blocks: u64,
    /// Leaks whose space was given back, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired>,
}

/// How many counts were put right.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Repaired {
    data_blocks: u64,
    metadata_blocks: u64,
}

impl Check {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let report = match self.check() {
            // So broken that it could not be looked into is an answer too, and no failure to check.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Report { errors: vec![error.to_string()], ..Report::default() }
            }
            result => result?,
        };
        output.result(&report, || findings(&self.source, &report))?;
        Ok(verdict(&report))
    }

    /// Checks the metadata as it lies there, which also works for a pool that cannot be opened; or,
    /// where somebody has it open, through them.
    fn check(&self) -> Result<Report> {
        if self.repair_leaks || self.clear_needs_check {
            return self.put_right();
        }
        let depth = match (self.superblock_only, self.skip_mappings) {
            (true, _) => CheckDepth::Superblock,
            (false, true) => CheckDepth::Devices,
            (false, false) => CheckDepth::Everything,
        };
        look(Opened::now(&self.source, "check")?.device(), depth)
    }

    /// Checks the metadata, puts right what was asked for unless it is corrupt, and checks again.
    fn put_right(&self) -> Result<Report> {
        let source = open(&self.source, MetadataUse::Change, "check")?;
        let metadata = source.device();
        let before = look(Arc::clone(&metadata), CheckDepth::Everything)?;
        if !before.errors.is_empty() {
            return Ok(before);
        }
        let mut repaired = None;
        if self.repair_leaks {
            let LeakRepair { data, metadata } = repair_leaks(&metadata)?;
            repaired = Some(Repaired { data_blocks: data, metadata_blocks: metadata });
        }
        if self.clear_needs_check {
            clear_needs_check(&metadata)?;
        }
        Ok(Report { repaired, ..look(metadata, CheckDepth::Everything)? })
    }
}

/// Checks metadata and changes nothing.
fn look(metadata: Arc<dyn BlockDevice>, depth: CheckDepth) -> Result<Report> {
    let found = check_with(metadata, CheckOptions { depth, ignore_leaks: false })?;
    Ok(Report {
        errors: found.errors,
        leaks: found.leaks,
        warnings: found.warnings,
        checked_blocks: found.blocks,
        repaired: None,
    })
}

/// The exit code for what a check found.
fn verdict(report: &Report) -> u8 {
    match (report.errors.is_empty(), report.leaks.is_empty()) {
        (false, _) => CORRUPT,
        (true, false) => LEAKS,
        (true, true) => DONE,
    }
}

/// What a check found, a finding per line, and what that means.
fn findings(source: &Path, report: &Report) -> String {
    let mut text = String::new();
    let sorts = [("error", &report.errors), ("leak", &report.leaks), ("warning", &report.warnings)];
    for (sort, found) in sorts {
        found.iter().for_each(|finding| text.push_str(&format!("{sort}: {finding}\n")));
    }
    if let Some(Repaired { data_blocks, metadata_blocks }) = report.repaired {
        text.push_str(&format!(
            "repaired: the counts of {data_blocks} data blocks and {metadata_blocks} metadata \
             blocks\n"
        ));
    }
    let verdict = match (report.errors.len(), report.leaks.len()) {
        (0, 0) => "sound".to_owned(),
        (0, leaks) => format!("leaks, {leaks} of them"),
        (errors, 0) => format!("corrupt, {errors} errors"),
        (errors, leaks) => format!("corrupt, {errors} errors and {leaks} leaks"),
    };
    let (source, blocks) = (source.display(), report.checked_blocks);
    text.push_str(&format!("{source}: {verdict}; {blocks} metadata blocks checked\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::{Report, findings, verdict};
    use std::path::Path;

    #[test]
    fn errors_weigh_more_than_leaks() {
        let told = |errors: &[&str], leaks: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let (errors, leaks) = (owned(errors), owned(leaks));
            let report = Report { errors, leaks, checked_blocks: 9, ..Report::default() };
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
