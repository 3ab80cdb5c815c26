//! `firn image convert`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Result};
use clap::Args;
use jobs::{CopyJob, CopyOptions, CopyReport, TargetContent};
use serde::Serialize;
use volume::{
    CreateImage, DiskImage, ImageFormat, ImageOptions, ImageSettings, NewFile, Secret, fill_image,
};

use super::Access;
use super::access::secret;
use super::create::{joined, settings};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress;

/// Copy an image to a new one, of the same format or another.
///
/// The new image holds everything by itself, whatever the old one stands on. Zeros take no space in
/// it. It has its name only once it is complete; until then it is called TARGET.part.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image convert disk.raw disk.qcow2
  firn image convert disk.qcow2 copy -O vhd
  firn image convert disk.qcow2 small.qcow2 -c -o compression_type=zstd
  firn image convert disk.qcow2 safe.qcow2 -o encrypt.format=luks --target-secret-file key")]
pub(crate) struct Convert {
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub(super) source: PathBuf,

    /// The new image.
    #[arg(value_name = "TARGET")]
    pub(super) target: PathBuf,

    #[command(flatten)]
    pub(super) access: Access,

    /// The new image's format: raw, qcow2 or vhd. Taken from the file's name if not said.
    #[arg(short = 'O', long, value_name = "FORMAT")]
    pub(super) target_format: Option<ImageFormat>,

    /// Options of the new image, as 'firn image create' has them. May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings)]
    pub(super) options: Vec<ImageSettings>,

    /// Compress the data, in all threads.
    #[arg(short = 'c', long)]
    pub(super) compress: bool,

    /// Copy this internal snapshot, not the disk as it is now.
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    pub(super) snapshot: Option<String>,

    /// Carry the internal snapshots along: what they share, they share in the copy.
    #[arg(long, conflicts_with_all = ["snapshot", "compress"])]
    pub(super) snapshots: bool,

    /// Copy the dirty bitmaps, too.
    #[arg(long, conflicts_with = "snapshot")]
    pub(super) bitmaps: bool,

    /// Leave out bitmaps that are inconsistent.
    #[arg(long, requires = "bitmaps")]
    pub(super) skip_broken_bitmaps: bool,

    /// The file that holds the secret of an encrypted new image, of which every byte counts.
    #[arg(long, value_name = "FILE", value_parser = secret)]
    pub(super) target_secret_file: Option<Secret>,

    /// Replace a file that exists.
    #[arg(long)]
    pub(super) force: bool,
}

/// What was copied, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Converted {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    /// Bytes written as data.
    copied: u64,
    /// Bytes of zeros, which were not.
    zeros: u64,
}

impl Convert {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let format = self.target_format.map_or_else(|| ImageFormat::of_name(&self.target), Ok)?;
        let source = DiskImage::open(&self.source, &self.access.reading())?;
        let disk = match &self.snapshot {
            Some(name) => source.open_snapshot(name)?,
            None => source.device(),
        };
        let new = NewFile::create(&self.target, self.force)?;
        let size = disk.size();
        let wanted = CreateImage {
            format,
            size: Some(size),
            backing: None,
            settings: joined(&self.options),
            secret: self.target_secret_file.clone(),
        };
        fill_image(new.path(), &wanted)?;
        let copied = self.copy(&source, disk, new.path(), format, output)?;
        new.publish()?;
        let report = Converted {
            filename: self.target.display().to_string(),
            format: format.qemu_name(),
            virtual_size: size.get(),
            copied: copied.copied.get(),
            zeros: copied.skipped.get() + copied.cleared.get(),
        };
        output.done(&report, || {
            let data = copied.copied;
            format!("{}: {size} converted to {format}, {data} of it data", report.filename)
        })?;
        Ok(DONE)
    }

    /// Fills the empty image at `path`.
    fn copy(
        &self,
        source: &DiskImage,
        disk: Arc<dyn BlockDevice>,
        path: &Path,
        format: ImageFormat,
        output: Output,
    ) -> Result<CopyReport> {
        let options = ImageOptions {
            format: Some(format),
            read_only: false,
            cache: CacheMode::Cached,
            secret: self.target_secret_file.clone(),
            ..self.access.reading()
        };
        let target = DiskImage::open(path, &options)?;
        if self.snapshots {
            let copied = target.fill_with_snapshots(source, &mut |_| Ok(()))?;
            let skipped = ByteCount::new(disk.size().get().saturating_sub(copied.get()));
            self.finish(source, &target, output)?;
            return Ok(CopyReport { copied, skipped, ..CopyReport::default() });
        }
        let device = if self.compress { target.compressing_device()? } else { target.device() };
        let options = CopyOptions::new(TargetContent::Zeros);
        // A cluster is compressed as a whole, so it has to arrive as a whole.
        let piece = piece(options.piece, device.limits().preferred);
        let job = CopyJob::new(disk, device, CopyOptions { piece, ..options })?;
        let report = progress::run(job, "converting", output)?;
        self.finish(source, &target, output)?;
        Ok(report)
    }

    /// What is left when the data are there.
    fn finish(&self, source: &DiskImage, target: &DiskImage, output: Output) -> Result<()> {
        if self.bitmaps {
            for name in target.copy_bitmaps(source, self.skip_broken_bitmaps)? {
                output.note(&format!("bitmap '{name}' is inconsistent and left out"));
            }
        }
        target.close()
    }
}

/// The larger of two sizes.
fn piece(usual: ByteCount, preferred: ByteCount) -> ByteCount {
    if preferred > usual { preferred } else { usual }
}
