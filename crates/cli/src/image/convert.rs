//! `firn image convert`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Result};
use clap::Args;
use jobs::{CopyJob, CopyOptions, CopyReport, TargetContent};
use serde::Serialize;
use volume::{
    CreateImage, DiskImage, ImageFormat, ImageOptions, ImageSettings, NewFile, fill_image,
};

use super::Access;
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
  firn image convert disk.qcow2 small.qcow2 -c -o compression_type=zstd")]
pub(crate) struct Convert {
    /// The image.
    #[arg(value_name = "IMAGE")]
    source: PathBuf,

    /// The new image.
    #[arg(value_name = "TARGET")]
    target: PathBuf,

    #[command(flatten)]
    access: Access,

    /// The new image's format: raw, qcow2 or vhd. Taken from the file's name if not said.
    #[arg(short = 'O', long, value_name = "FORMAT")]
    target_format: Option<ImageFormat>,

    /// Options of the new image, as 'firn image create' has them. May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings)]
    options: Vec<ImageSettings>,

    /// Compress the data, in all threads.
    #[arg(short = 'c', long)]
    compress: bool,

    /// Copy this internal snapshot, not the disk as it is now.
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Replace a file that exists.
    #[arg(long)]
    force: bool,
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
        };
        fill_image(new.path(), &wanted)?;
        let copied = self.copy(disk, new.path(), format, output)?;
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
        disk: Arc<dyn BlockDevice>,
        path: &Path,
        format: ImageFormat,
        output: Output,
    ) -> Result<CopyReport> {
        let options = ImageOptions {
            format: Some(format),
            read_only: false,
            cache: CacheMode::Cached,
            ..self.access.reading()
        };
        let target = DiskImage::open(path, &options)?;
        let device = if self.compress { target.compressing_device()? } else { target.device() };
        let options = CopyOptions::new(TargetContent::Zeros);
        // A cluster is compressed as a whole, so it has to arrive as a whole.
        let piece = piece(options.piece, device.limits().preferred);
        let job = CopyJob::new(disk, device, CopyOptions { piece, ..options })?;
        let report = progress::run(job, "converting", output)?;
        target.close()?;
        Ok(report)
    }
}

/// The larger of two sizes.
fn piece(usual: ByteCount, preferred: ByteCount) -> ByteCount {
    if preferred > usual { preferred } else { usual }
}
