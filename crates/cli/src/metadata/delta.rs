//! `firn pool delta`: where two devices of a pool differ.

use std::path::Path;

use block_types::{Error, ErrorKind, Result};
use clap::{ArgGroup, Args};
use dm_thin::DeviceId;
use dm_thin::delta::{Detail, Kind, Options, Range, Side, delta, write_delta};
use persistent_data::MetaBlock;
use serde::Serialize;
use volume::{MetadataSource, MetadataUse, NodeName};

use super::sink;
use super::source::{Source, data_block_size, open};
use crate::access::ask;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Show where two volumes or snapshots differ: the XML of thin_delta.
///
/// With --verbose every range has its data blocks, too. With --json ranges are in bytes.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("left").required(true),
    group = ArgGroup::new("right").required(true),
    after_long_help = "\
EXAMPLE
  firn pool delta lab --thin1 db@monday --thin2 db
  firn pool delta /dev/vg/pool_tmeta -m --thin1 1 --thin2 4 --skip-same"
)]
pub(crate) struct Delta {
    #[command(flatten)]
    source: Source,

    /// The first device: its number, or in a pool directory its name.
    #[arg(long, alias = "snap1", value_name = "N|NAME", group = "left")]
    thin1: Option<String>,

    /// The second device.
    #[arg(long, alias = "snap2", value_name = "N|NAME", group = "right")]
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
        let left = self.side(self.thin1.as_deref(), self.root1)?;
        let right = self.side(self.thin2.as_deref(), self.root2)?;
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
                Err(error.advise("say --thin1 and --thin2, or --root1 and --root2"))
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
    let volume = ask(dir, |pool| pool.volume(&node.volume))?;
    let id = match &node.snapshot {
        None => Some(volume.id),
        Some(name) => {
            let found = volume.snapshots.iter().find(|snapshot| snapshot.name == name.as_str());
            found.map(|snapshot| snapshot.id)
        }
    };
    let missing = || {
        Error::new(ErrorKind::NotFound, format!("snapshot {node}"), "there is no such snapshot")
            .advise("'firn snapshot list' shows what there is")
    };
    DeviceId::new(id.ok_or_else(missing)?)
}

fn collect(source: &MetadataSource, options: &Options) -> Result<Vec<Found>> {
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
