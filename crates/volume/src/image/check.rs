//! Checking an image, and repairing it.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block_io::{BlockDevice, CacheMode};
use block_types::{Error, ErrorKind, Result};
use disk_image::{qcow2, vhd};
use serde::Serialize;

use super::ImageFormat;
use super::chain::open_file;
use super::lock::ImageLock;

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairImage {
    /// Space that is lost, where nothing else is wrong with it.
    Leaks,
    /// Everything that can be.
    All,
}

/// What a check found, under the names that qemu-img has for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageCheck {
    /// The file, as it was named.
    pub filename: String,
    /// The format, as qemu-img calls it.
    pub format: &'static str,
    /// What kept parts from being checked.
    pub check_errors: u64,
    /// What is corrupt, after a repair.
    pub corruptions: u64,
    /// How much space is lost, in clusters or pieces, after a repair.
    pub leaks: u64,
    /// What was corrupt and is not any more.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions_fixed: u64,
    /// What was lost and is not any more.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks_fixed: u64,
    /// Clusters of the disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_clusters: u64,
    /// Those that have a place.
    #[serde(skip_serializing_if = "is_zero")]
    pub allocated_clusters: u64,
    /// Those that are compressed.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_clusters: u64,
    /// Those that do not lie behind the one before them.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragmented_clusters: u64,
    /// Where what is used of the file ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_end_offset: u64,
    /// The first findings, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

fn is_zero(figure: &u64) -> bool {
    *figure == 0
}

impl ImageCheck {
    /// Checks the image at `path`, and repairs it first if that is asked for. Nothing below it is
    /// opened. With `force_share`, which a repair does not heed, it is checked even while somebody
    /// writes it, who may make it look damaged.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for raw images, and for repairs that a format does not have;
    /// [`ErrorKind::Busy`]; those of the file. What is found wrong is no error but a finding.
    pub fn run(
        path: &Path,
        format: Option<ImageFormat>,
        repair: Option<RepairImage>,
        force_share: bool,
    ) -> Result<Self> {
        let read_only = repair.is_none();
        let unlocked = read_only && force_share;
        let _lock = (!unlocked).then(|| ImageLock::take(path, read_only)).transpose()?;
        let (format, _) = open_file(path, format, true, CacheMode::Cached)?;
        let (_, file) = open_file(path, Some(format), read_only, CacheMode::Cached)?;
        let found = match format {
            ImageFormat::Raw => {
                let problem = "is a raw image, which has nothing to check";
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    path.display().to_string(),
                    problem,
                ));
            }
            ImageFormat::Qcow2 => check_qcow2(&file, repair)?,
            ImageFormat::Vhd => check_vhd(&file, repair)?,
        };
        let filename = path.display().to_string();
        Ok(Self { filename, format: format.qemu_name(), ..found })
    }
}

fn check_qcow2(file: &Arc<dyn BlockDevice>, repair: Option<RepairImage>) -> Result<ImageCheck> {
    let before = qcow2::check(file)?;
    let what = match repair {
        None => None,
        Some(RepairImage::Leaks) => Some(qcow2::Repair::Leaks),
        Some(RepairImage::All) => Some(qcow2::Repair::All),
    };
    let after = match what {
        None => before.clone(),
        Some(what) => qcow2::repair(file, what)?,
    };
    Ok(ImageCheck {
        corruptions: after.corruption_count,
        leaks: after.leaks,
        corruptions_fixed: before.corruption_count.saturating_sub(after.corruption_count),
        leaks_fixed: before.leaks.saturating_sub(after.leaks),
        total_clusters: after.total_clusters,
        allocated_clusters: after.allocated_clusters,
        compressed_clusters: after.compressed_clusters,
        fragmented_clusters: after.fragmented_clusters,
        image_end_offset: after.image_end.get(),
        findings: after.corruptions,
        ..ImageCheck::default()
    })
}

fn check_vhd(file: &Arc<dyn BlockDevice>, repair: Option<RepairImage>) -> Result<ImageCheck> {
    let before = vhd::check(&**file, Some(vhd::Timestamp::of(SystemTime::now())))?;
    let corruptions = |report: &vhd::CheckReport| match report.verdict() {
        vhd::Verdict::Corrupt => report.errors.len() as u64 + report.unlisted,
        vhd::Verdict::Sound | vhd::Verdict::Leaks => 0,
    };
    let (errors, leaks) = (corruptions(&before), before.leaks.len() as u64);
    let after = match repair {
        None => before,
        Some(RepairImage::All) => vhd::repair(file)?.left,
        Some(RepairImage::Leaks) => {
            let problem = "is a VHD, which is repaired as a whole";
            return Err(Error::new(ErrorKind::Unsupported, file.name(), problem)
                .advise("say '-r all'; what is lost, the next writer finds again anyway"));
        }
    };
    Ok(ImageCheck {
        corruptions: corruptions(&after),
        leaks: after.leaks.len() as u64,
        corruptions_fixed: errors.saturating_sub(corruptions(&after)),
        leaks_fixed: leaks.saturating_sub(after.leaks.len() as u64),
        allocated_clusters: after.blocks,
        findings: [after.errors, after.leaks].concat(),
        ..ImageCheck::default()
    })
}
