//! `firn pool restore`: metadata from text.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use dm_thin::restore::{Overrides, Restored, restore};
use serde::Serialize;
use volume::{MetadataTarget, TargetOptions};

use super::source::{Figures, in_file};
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// What is read at once: 256 KiB.
const BUFFER: usize = 256 << 10;

/// XML has at least so many bytes for every byte of metadata, where mappings do not lie side by
/// side; where they do it is less metadata, and a file that is too large costs nothing but space.
const XML_BYTES_PER_BYTE: u64 = 4;

/// Make a pool's metadata from the XML of 'firn pool dump' or thin_dump.
///
/// In a pool directory the new metadata is checked and takes the place of the old one, which is
/// kept as 'metadata.old'. A file is made; a block device is written in place, with --force.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool restore -i lab.xml lab
  firn pool restore -i lab.xml metadata.bin")]
pub(crate) struct Restore {
    /// The XML.
    #[arg(short, long, value_name = "XML")]
    input: PathBuf,

    /// A pool's directory, a file to make, or a block device.
    #[arg(value_name = "TARGET")]
    target: PathBuf,

    /// Replace a file that exists, or 'metadata.old'; write to a block device.
    #[arg(long)]
    force: bool,

    /// Begin the pool's time anew, which goes on with each snapshot and ends after 16,777,215.
    ///
    /// Nothing else changes: what counts as shared goes on to. It also helps a pool whose time
    /// another program let run over; blocks that are mapped twice since then have lost the content
    /// of all but one, and 'firn pool check' names them.
    #[arg(long)]
    renumber: bool,

    #[command(flatten)]
    figures: Figures,
}

/// What was restored, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    target: String,
    devices: u64,
    /// Mapped blocks.
    mapped: u64,
    /// Devices that map another number of blocks than the input says.
    recounted: Vec<u32>,
    /// Where the old metadata is.
    kept: Option<String>,
}

impl Restore {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let expected = ByteCount::new(self.input_size()? / XML_BYTES_PER_BYTE);
        let options = TargetOptions {
            holder: "firn pool restore",
            keep_as: "metadata.old",
            force: self.force,
        };
        let target = MetadataTarget::open(&self.target, &options)?;
        let overrides = Overrides { renumber: self.renumber, ..self.figures.overrides() };
        let (restored, kept) = target.write(Some(expected), |metadata| {
            let xml = BufReader::with_capacity(BUFFER, self.open()?);
            restore(xml, metadata, &overrides).map_err(|error| in_file(&self.input, error))
        })?;
        let report = self.report(&restored, kept);
        for device in &report.recounted {
            output.note(&format!(
                "{}: device {device} maps another number of blocks than it says; counted anew",
                self.input.display()
            ));
        }
        output.done(&report, || sentence(&report))?;
        Ok(DONE)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.input)
            .map_err(|error| Error::io(self.input.display().to_string(), "cannot be opened", error))
    }

    /// How large the input is. It may be read more than once.
    fn input_size(&self) -> Result<u64> {
        let found = self.open()?.metadata().map_err(|error| {
            Error::io(self.input.display().to_string(), "cannot be examined", error)
        })?;
        if !found.is_file() {
            let problem = "is no regular file, and may have to be read more than once";
            let name = self.input.display().to_string();
            return Err(
                Error::new(ErrorKind::Unsupported, name, problem).advise("save it to a file first")
            );
        }
        Ok(found.len())
    }

    fn report(&self, restored: &Restored, kept: Option<PathBuf>) -> Report {
        Report {
            target: self.target.display().to_string(),
            devices: restored.devices,
            mapped: restored.mapped,
            recounted: restored.recounted.iter().map(|device| device.get()).collect(),
            kept: kept.map(|path| path.display().to_string()),
        }
    }
}

fn sentence(report: &Report) -> String {
    let Report { target, devices, mapped, kept, .. } = report;
    let kept = kept.as_ref().map(|kept| format!("; the old metadata is {kept}"));
    let kept = kept.unwrap_or_default();
    format!("{target}: {devices} devices restored, with {mapped} mapped blocks{kept}")
}
