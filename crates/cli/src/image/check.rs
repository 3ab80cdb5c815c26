//! `firn image check`.

use std::path::PathBuf;

use block_types::ErrorKind;
use clap::{Args, ValueEnum};
use volume::{ImageCheck, ImageFormat, RepairImage};

use super::Sharing;
use super::compare::failed;
use crate::exit::{CORRUPT, DONE, LEAKS, Outcome};
use crate::output::Output;

/// The format has nothing to check.
const NOT_SUPPORTED: u8 = 63;

/// Check an image, and repair it if that is asked for.
///
/// Exit codes, which are those of 'qemu-img check': 0 sound, 1 could not check, 2 corrupt, 3 leaks
/// only (space that nothing uses), 63 the format has nothing to check. After a repair they tell
/// what is left. With --json the fields are those of 'qemu-img check'.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image check disk.qcow2
  firn image check disk.qcow2 -r leaks")]
pub(crate) struct Check {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// Its format: raw, qcow2 or vhd. Found out if not said.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Option<ImageFormat>,

    /// What to repair. The image must not be in use.
    #[arg(short = 'r', long, value_name = "WHAT", value_enum)]
    repair: Option<Repair>,

    #[command(flatten)]
    sharing: Sharing,
}

/// What to repair, in qemu-img's words.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Repair {
    /// Space that is lost.
    Leaks,
    /// Everything that can be.
    All,
}

impl Check {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let repair = self.repair.map(|repair| match repair {
            Repair::Leaks => RepairImage::Leaks,
            Repair::All => RepairImage::All,
        });
        let report =
            match ImageCheck::run(&self.path, self.format, repair, self.sharing.force_share) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(failed(&error, NOT_SUPPORTED));
                }
                result => result?,
            };
        output.result(&report, || describe(&report))?;
        Ok(verdict(&report))
    }
}

/// The exit code for what a check found.
fn verdict(report: &ImageCheck) -> u8 {
    match (report.corruptions, report.leaks) {
        (0, 0) => DONE,
        (0, _) => LEAKS,
        _ => CORRUPT,
    }
}

/// What a check found, a finding per line, and what that means.
fn describe(report: &ImageCheck) -> String {
    let mut text: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        let (corruptions, leaks) = (report.corruptions_fixed, report.leaks_fixed);
        text.push_str(&format!("repaired: {corruptions} corruptions, {leaks} leaks\n"));
    }
    let verdict = match (report.corruptions, report.leaks) {
        (0, 0) => "sound".to_owned(),
        (0, leaks) => format!("leaks, {leaks} of them"),
        (corruptions, leaks) => format!("corrupt, {corruptions} errors and {leaks} leaks"),
    };
    text.push_str(&format!("{}: {verdict}", report.filename));
    if let Some(percent) = (report.allocated_clusters * 100).checked_div(report.total_clusters) {
        let (used, all) = (report.allocated_clusters, report.total_clusters);
        text.push_str(&format!("; {used} of {all} clusters allocated ({percent}%)"));
    }
    text.push('\n');
    text
}
