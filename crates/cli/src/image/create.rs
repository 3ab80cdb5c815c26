//! `firn image create`.

use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use serde::Serialize;
use volume::{CreateImage, ImageFormat, ImageSettings, Secret, create_image};

use super::access::secret;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::size;

/// Create an empty image.
///
/// It takes next to no space until it is written. The size is rounded up to 512 bytes; an image
/// with a backing file has that one's size unless another is said.
#[derive(Args, Debug)]
#[command(after_long_help = "\
OPTIONS OF THE FORMATS
  qcow2: cluster_size, compat, compression_type, data_file, data_file_raw, encrypt.format (luks),
         encrypt.iter-time (milliseconds), extended_l2, lazy_refcounts, preallocation,
         refcount_bits
  vhd:   subformat (dynamic, fixed)
  raw:   preallocation (off, falloc)

EXAMPLE
  firn image create disk.qcow2 20G
  firn image create disk.qcow2 20G -o cluster_size=128K,compression_type=zstd
  firn image create disk.qcow2 20G -o encrypt.format=luks --secret-file key
  firn image create overlay.qcow2 -b disk.qcow2 -F qcow2")]
pub(crate) struct Create {
    /// The file, which must not exist yet.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The size of the disk.
    #[arg(value_name = "SIZE", value_parser = size, required_unless_present = "backing")]
    size: Option<ByteCount>,

    /// Its format: raw, qcow2 or vhd. Taken from the file's name if not said.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Option<ImageFormat>,

    /// Options of the format, as qemu-img has them: NAME=VALUE,... May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings)]
    options: Vec<ImageSettings>,

    /// The file that holds the secret of an encrypted image, of which every byte counts.
    #[arg(long, value_name = "FILE", value_parser = secret)]
    secret_file: Option<Secret>,

    /// The backing file that it stands on, named relative to the image's folder.
    #[arg(short = 'b', long, value_name = "FILE", requires = "backing_format")]
    backing: Option<String>,

    /// The backing file's format.
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<ImageFormat>,
}

/// What was made, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Created {
    filename: String,
    format: &'static str,
    virtual_size: u64,
}

impl Create {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let format = self.format.map_or_else(|| ImageFormat::of_name(&self.path), Ok)?;
        let wanted = CreateImage {
            format,
            size: self.size,
            backing: self.backing.clone().zip(self.backing_format),
            settings: joined(&self.options),
            secret: self.secret_file.clone(),
        };
        let size = create_image(&self.path, &wanted)?;
        let report = Created {
            filename: self.path.display().to_string(),
            format: format.qemu_name(),
            virtual_size: size.get(),
        };
        output.done(&report, || {
            format!("{}: created, {format} of {}", report.filename, format_size(size))
        })?;
        Ok(DONE)
    }
}

/// Reads options of a format.
pub(super) fn settings(text: &str) -> Result<ImageSettings, std::convert::Infallible> {
    Ok(ImageSettings::parse(text))
}

/// All options that were given.
pub(super) fn joined(options: &[ImageSettings]) -> ImageSettings {
    let mut all = ImageSettings::default();
    options.iter().for_each(|options| all.extend(options));
    all
}
