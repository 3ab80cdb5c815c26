//! `firn pool dump`: metadata as text.

use std::path::PathBuf;

use block_types::{Error, ErrorKind, Result};
use clap::{Args, ValueEnum};
use dm_thin::DeviceId;
use dm_thin::dump::{Dialect, Form, Options, dump};
use serde::Serialize;

use super::sink;
use super::source::Source;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Write a pool's metadata as text: the XML of thin_dump.
///
/// Nothing is changed. 'firn pool restore' and thin_restore make metadata of it again.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool dump lab -o lab.xml
  firn pool dump /dev/vg/pool_tmeta --dev-id 3 --format human")]
pub(crate) struct Dump {
    #[command(flatten)]
    source: Source,

    /// The file to write; stdout unless it is given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace a file that exists.
    #[arg(long, requires = "output")]
    force: bool,

    /// Dump this device only; may be given more than once.
    #[arg(long, value_name = "N", value_parser = device)]
    dev_id: Vec<DeviceId>,

    /// Leave out the mappings.
    #[arg(long)]
    skip_mappings: bool,

    /// XML, or lines for people.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,

    /// Whose output it is equal to: thin-provisioning-tools 1.x, or 0.9.
    ///
    /// 1.x writes what devices share once; 0.9 has all mappings in every device.
    #[arg(long, value_name = "VERSION", value_enum, default_value_t)]
    dialect: Version,
}

/// How a dump is laid out.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Xml,
    #[value(alias = "human_readable")]
    Human,
}

/// Versions of the thin tools.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Version {
    #[default]
    #[value(name = "1")]
    One,
    #[value(name = "0.9")]
    ZeroNine,
}

/// What was written, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Dumped {
    source: String,
    file: String,
}

impl Dump {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        if self.output.is_none() && output.is_json() {
            let error = Error::new(ErrorKind::Invalid, "--json", "is no form of a dump");
            Err(error.advise("leave it away, or write the dump to a file with -o"))?;
        }
        let (source, view) = self.source.open("dump")?;
        let options = Options {
            form: match self.format {
                Format::Xml => Form::Xml,
                Format::Human => Form::HumanReadable,
            },
            dialect: match self.dialect {
                Version::One => Dialect::Tools1,
                Version::ZeroNine => Dialect::Tools09,
            },
            view,
            devices: (!self.dev_id.is_empty()).then(|| self.dev_id.clone()),
            skip_mappings: self.skip_mappings,
        };
        sink::write(self.output.as_deref(), self.force, |out| {
            dump(source.device(), &options, out)
        })?;
        let Some(file) = &self.output else { return Ok(DONE) };
        let dumped = Dumped {
            source: self.source.source.display().to_string(),
            file: file.display().to_string(),
        };
        output.done(&dumped, || format!("{}: dumped to {}", dumped.source, dumped.file))?;
        Ok(DONE)
    }
}

/// Reads the number of a device.
fn device(text: &str) -> Result<DeviceId> {
    let number = text.parse().map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("device '{text}'"), "is not a device's number")
            .advise("'firn pool ls' shows the numbers that there are")
    })?;
    DeviceId::new(number)
}
