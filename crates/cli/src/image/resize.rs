//! `firn image resize`.

use std::path::PathBuf;

use block_types::{Error, ErrorKind, format_size};
use clap::Args;
use serde::Serialize;
use volume::DiskImage;

use super::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::{NewSize, new_size};

/// Change the size of an image's disk.
///
/// What is added reads as zeros. What is cut off is lost, so that takes --shrink.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image resize disk.qcow2 +10G")]
pub(crate) struct Resize {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The new size, or how much more: 40G, +10G.
    #[arg(value_name = "SIZE", value_parser = new_size, allow_hyphen_values = true)]
    size: NewSize,

    /// Cut off what lies behind the new end.
    #[arg(long)]
    shrink: bool,

    #[command(flatten)]
    access: Access,
}

/// The image as it is now, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Resized {
    filename: String,
    virtual_size: u64,
}

impl Resize {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let image = DiskImage::open(&self.path, &self.access.changing())?;
        let now = image.size();
        let size = self.size.relative_to(now)?;
        let filename = self.path.display().to_string();
        if size < now && !self.shrink {
            let problem = format!("{size} is less than its {now}, and what is cut off is lost");
            return Err(Error::new(ErrorKind::Invalid, filename, problem)
                .advise("say --shrink if that is meant")
                .into());
        }
        image.resize(size)?;
        image.close()?;
        let report = Resized { filename, virtual_size: size.get() };
        output.done(&report, || format!("{}: has {} now", report.filename, format_size(size)))?;
        Ok(DONE)
    }
}
