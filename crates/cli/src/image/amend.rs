//! `firn image amend`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use volume::{ImageSettings, amend_image};

use super::Access;
use super::create::{joined, settings};
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Change options of a qcow2 image that is there.
///
/// The options are those of 'qemu-img amend': compat (0.10, 1.1), lazy_refcounts and refcount_bits.
/// The disk reads as before. Nobody else may use the image meanwhile.
///
/// Version 0.10 knows neither bitmaps nor most other features: they are not dropped in silence, but
/// have to be removed first.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image amend old.qcow2 -o compat=1.1
  firn image amend disk.qcow2 -o refcount_bits=64,lazy_refcounts=on")]
pub(crate) struct Amend {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// What is to be changed: NAME=VALUE,... May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings, required = true)]
    options: Vec<ImageSettings>,

    #[command(flatten)]
    access: Access,
}

/// The image that was changed, as JSON has it.
#[derive(Serialize)]
struct Amended {
    filename: String,
}

impl Amend {
    pub(super) fn run(&self, output: Output) -> Outcome {
        amend_image(&self.path, &self.access.changing(), &joined(&self.options))?;
        let report = Amended { filename: self.path.display().to_string() };
        output.done(&report, || format!("{}: amended", report.filename))?;
        Ok(DONE)
    }
}
