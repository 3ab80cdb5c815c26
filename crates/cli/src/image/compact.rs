//! `firn image compact`.

use std::path::PathBuf;

use block_types::{ByteCount, format_size};
use clap::Args;
use serde::Serialize;
use volume::DiskImage;

use super::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Bytes that are moved at once: what is lost if it is interrupted.
const STEP: ByteCount = ByteCount::new(256 << 20);

/// Move what lies at the end of an image's file into gaps before it, and cut the file.
///
/// The disk, its snapshots and bitmaps stay as they are, and so does what is compressed. It may be
/// interrupted at any time, also by a power failure: the image is sound then, and what was moved
/// stays moved.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image compact disk.qcow2")]
pub(crate) struct Compact {
    /// The image, which nobody else uses.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    #[command(flatten)]
    access: Access,
}

/// What was done, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Compacted {
    filename: String,
    /// Bytes of the file before and now.
    before: u64,
    after: u64,
    /// Bytes that were moved.
    moved: u64,
}

impl Compact {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let image = DiskImage::open(&self.path, &self.access.changing())?;
        let before = image.file_size()?;
        let mut moved = 0;
        loop {
            let step = image.compact_step(STEP)?;
            moved += step.moved.get();
            if step.done {
                break;
            }
            if output.is_verbose() {
                let end = format_size(ByteCount::new(step.end.get()));
                output.note(&format!("the file needs {end}, {moved} bytes moved"));
            }
        }
        image.close()?;
        let after = image.file_size()?;
        let filename = self.path.display().to_string();
        let (before, after) = (before.get(), after.get());
        let report = Compacted { filename, before, after, moved };
        output.done(&report, || {
            let sizes = [before, after].map(|size| format_size(ByteCount::new(size)));
            format!("{}: {} instead of {}", report.filename, sizes[1], sizes[0])
        })?;
        Ok(DONE)
    }
}
