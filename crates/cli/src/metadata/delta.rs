//! `firn pool delta`: where two devices of a pool differ.

use std::path::Path;

use block_types::{Error, ErrorKind, Result};
use clap::{ArgGroup, Args};
use dm_thin::DeviceId;
use dm_thin::delta::{Detail, Kind, Options, Range, Side, delta, write_delta};
use persistent_data::MetaBlock;
use serde::Serialize;
use volume::{MetadataUse, NodeName};

use super::sink;
use super::source::{Opened, Source, data_block_size, open};
use crate::access::ask;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Show where two volumes or snapshots differ: the XML of thin_delta.
///
/// With --verbose every range has its data blocks, too. With --json ranges are in bytes.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("left"),
    group = ArgGroup::new("right"),
    after_long_help = "\
EXAMPLE
  firn pool delta lab db@monday db
  firn pool delta /dev/vg/pool_tmeta -m --thin1 1 --thin2 4 --skip-same"
)]
pub(crate) struct Delta {
    #[command(flatten)]
    source: Source,

    /// The two devices, each by its number, or in a pool directory by its name.
    #[arg(value_name = "A B", num_args = 2, conflicts_with_all = ["left", "right"])]
    devices: Vec<String>,

    /// The first device: its number, or in a pool directory its name.
    #[arg(long, alias = "snap1", value_name = "N|NAME", group = "left",
        required_unless_present_any = ["devices", "root1"])]
    thin1: Option<String>,

    /// The second device.
    #[arg(long, alias = "snap2", value_name = "N|NAME", group = "right",
        required_unless_present_any = ["devices", "root2"])]
    thin2: Option<String>,

    /// The metadata block with the root of the first device's mappings.
    #[arg(long, value_name = "BLOCK", group = "left")]
    root1: Option<u64>,

    /// The metadata block with the root of the second device's mappings.
    #[arg(long, value_name = "BLOCK", group = "right")]
    root2: Option<u64>,

    /// Leave out what is the same, which then is not even read.
    #[arg(long)]
    skip_same: bool,
}

/// A range, as JSON has it. All figures but the kind are bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Found {
    start: u64,
    length: u64,
    kind: &'static str,
    /// Where the first device has it, in the pool's data.
    left: Option<u64>,
    /// Where the second has it.
    right: Option<u64>,
}

impl Delta {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        // Names are looked up before the metadata is ours.
        let (left, right) = match self.devices.as_slice() {
            [left, right] => (Some(left), Some(right)),
            _ => (self.thin1.as_ref(), self.thin2.as_ref()),
        };
        let left = self.side(left.map(String::as_str), self.root1)?;
        let right = self.side(right.map(String::as_str), self.root2)?;
        let (source, view) = self.source.open("delta")?;
        let options = Options { left, right, view, same: !self.skip_same };
        if output.is_json() {
            let found = collect(&source, &options)?;
            output.result(&found, String::new)?;
            return Ok(DONE);
        }
        let detail = if output.is_verbose() { Detail::Verbose } else { Detail::Simple };
        sink::write(None, false, |out| write_delta(source.device(), &options, detail, out))?;
        Ok(DONE)
    }

    fn side(&self, thin: Option<&str>, root: Option<u64>) -> Result<Side> {
        match (thin, root) {
            (Some(thin), _) => device(&self.source.source, thin).map(Side::Device),
            (None, Some(root)) => Ok(Side::Root(MetaBlock::new(root))),
            (None, None) => {
                let error = Error::new(ErrorKind::Invalid, "delta", "compares two devices");
                Err(error.advise("name both, as in 'firn pool delta lab db@monday db'"))
            }
        }
    }
}

/// The device that `text` names: by its number, or by the name that it has in the pool `dir`.
fn device(dir: &Path, text: &str) -> Result<DeviceId> {
    if let Ok(id) = text.parse() {
        return DeviceId::new(id);
    }
    let node = NodeName::parse(text)?;
    if !dir.is_dir() {
        // Where nothing is at all, that is what to say.
        drop(open(dir, MetadataUse::ReadSnapshot, "delta")?);
        let problem = "has no names of devices: it is no pool directory";
        return Err(Error::new(ErrorKind::Invalid, dir.display().to_string(), problem)
            .advise("say the devices' numbers, which 'firn pool ls' shows"));
    }
    ask(dir, |pool| pool.node(&node)).map(|(id, _)| id)
}

fn collect(source: &Opened, options: &Options) -> Result<Vec<Found>> {
    let block = data_block_size(source, options.view)?.get();
    let mut all = Vec::new();
    delta(source.device(), options, &mut |range| {
        all.push(found(&range, block));
        Ok(())
    })?;
    Ok(all)
}

fn found(range: &Range, block: u64) -> Found {
    Found {
        start: range.from.get() * block,
        length: range.len * block,
        kind: match range.kind {
            Kind::Same => "same",
            Kind::LeftOnly => "left-only",
            Kind::RightOnly => "right-only",
            Kind::Different => "different",
        },
        left: range.left.map(|at| at.get() * block),
        right: range.right.map(|at| at.get() * block),
    }
}
