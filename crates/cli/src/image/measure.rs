//! `firn image measure`.

use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use volume::{DiskImage, ImageFormat, ImageSettings, measure_image};

use super::Access;
use super::create::{joined, settings};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::size;

/// Tell how large the file of a new image will be.
///
/// Required is what it takes at most with what is copied to it; fully allocated, with data
/// everywhere. With --json the fields are those of 'qemu-img measure'.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image measure disk.raw -O qcow2
  firn image measure --size 20G -O qcow2 -o cluster_size=128K")]
pub(crate) struct Measure {
    /// The image that is to be copied.
    #[arg(value_name = "IMAGE", required_unless_present = "size", conflicts_with = "size")]
    path: Option<PathBuf>,

    /// The size of an empty one.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<ByteCount>,

    #[command(flatten)]
    access: Access,

    /// The new image's format: raw or qcow2.
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "qcow2")]
    target_format: ImageFormat,

    /// Options of the new image, as 'firn image create' has them. May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings)]
    options: Vec<ImageSettings>,
}

impl Measure {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let options = self.access.reading();
        let source = self.path.as_ref().map(|path| DiskImage::open(path, &options)).transpose()?;
        let settings = joined(&self.options);
        let found = measure_image(source.as_ref(), self.size, self.target_format, &settings)?;
        output.result(&found, || {
            let line = |what: &str, bytes: u64| {
                let size = format_size(ByteCount::new(bytes));
                format!("{:<18}{size} ({bytes} bytes)\n", format!("{what}:"))
            };
            let bitmaps = found.bitmaps.map(|bytes| line("bitmaps", bytes)).unwrap_or_default();
            let required = line("required", found.required);
            required + &line("fully allocated", found.fully_allocated) + &bitmaps
        })?;
        Ok(DONE)
    }
}
