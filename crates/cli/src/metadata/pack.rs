//! `firn pool pack` and `firn pool unpack`: metadata for transport.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, Result};
use clap::Args;
use dm_thin::pack::{pack, unpack};
use serde::Serialize;
use volume::{MetadataTarget, MetadataUse, TargetOptions};

use super::sink;
use super::source::{in_file, open};
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// What is read at once: 256 KiB.
const BUFFER: usize = 256 << 10;

/// Pack a pool's metadata into a small file, for transport.
///
/// Every sound block is packed, so that damaged metadata can be looked at elsewhere; no data of
/// volumes is. The format is that of thin_metadata_pack.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool pack lab -o lab.pack")]
pub(crate) struct Pack {
    /// A pool's directory, or a file or block device that holds a pool's metadata.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// The file to make.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replace a file that exists.
    #[arg(long)]
    force: bool,
}

/// Unpack metadata that was packed by 'firn pool pack' or thin_metadata_pack.
///
/// In a pool directory it is checked and takes the place of the metadata there, which is kept as
/// 'metadata.old'. A file is made; a block device is written in place, with --force.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool unpack lab.pack -o metadata.bin")]
pub(crate) struct Unpack {
    /// The packed metadata.
    #[arg(value_name = "FILE")]
    input: PathBuf,

    /// A file to make, a block device, or a pool's directory.
    #[arg(short, long, value_name = "TARGET")]
    output: PathBuf,

    /// Replace a file that exists, or 'metadata.old'; write to a block device.
    #[arg(long)]
    force: bool,
}

/// What was written, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    source: String,
    output: String,
    /// Bytes of metadata.
    size: u64,
}

impl Pack {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let source = open(&self.source, MetadataUse::Read, "pack")?;
        let metadata = source.device();
        sink::write(Some(&self.output), self.force, |out| pack(&*metadata, out))?;
        let report = report(&self.source, &self.output, metadata.size());
        output.done(&report, || {
            format!("{}: {} packed to {}", report.source, metadata.size(), report.output)
        })?;
        Ok(DONE)
    }
}

impl Unpack {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        // Not there is said before anything is made.
        drop(self.open()?);
        let options = TargetOptions {
            holder: "firn pool unpack",
            keep_as: "metadata.old",
            force: self.force,
        };
        let target = MetadataTarget::open(&self.output, &options)?;
        let (size, _) = target.write(None, |metadata| {
            let input = BufReader::with_capacity(BUFFER, self.open()?);
            unpack(input, &*metadata).map_err(|error| in_file(&self.input, error))?;
            Ok(metadata.size())
        })?;
        let report = report(&self.input, &self.output, size);
        output
            .done(&report, || format!("{}: {size} unpacked to {}", report.source, report.output))?;
        Ok(DONE)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.input)
            .map_err(|error| Error::io(self.input.display().to_string(), "cannot be opened", error))
    }
}

fn report(source: &Path, output: &Path, size: ByteCount) -> Report {
    Report {
        source: source.display().to_string(),
        output: output.display().to_string(),
        size: size.get(),
    }
}
