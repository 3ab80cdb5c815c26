//! `firn pool rmap`: whose a pool's data blocks are.

use std::ops::Range;

use block_types::{Error, ErrorKind, Result};
use clap::Args;
use dm_thin::DataBlock;
use dm_thin::rmap::{Naming, Options, Use, rmap, write_rmap};
use serde::Serialize;

use super::sink;
use super::source::{Source, data_block_size};
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Show which devices use a range of a pool's data blocks: the lines of thin_rmap.
///
/// Every device is named that maps a block, and not only the first of those that share it.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool rmap lab --region 0..1000")]
pub(crate) struct Rmap {
    #[command(flatten)]
    source: Source,

    /// Data blocks from A up to, but without, B; may be given more than once.
    #[arg(long, value_name = "A..B", value_parser = region, required = true)]
    region: Vec<Range<DataBlock>>,
}

/// A use of data, as JSON has it. All but the device are bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Found {
    /// Where it lies in the pool's data.
    start: u64,
    length: u64,
    device: u32,
    /// Where it lies in the device.
    offset: u64,
}

impl Rmap {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let (source, view) = self.source.open("rmap")?;
        let options = Options { regions: self.region.clone(), view, naming: Naming::Every };
        if output.is_json() {
            let block = data_block_size(&source, view)?.get();
            let uses = rmap(source.device(), &options)?;
            let all: Vec<Found> = uses.iter().map(|one| found(one, block)).collect();
            output.result(&all, String::new)?;
            return Ok(DONE);
        }
        sink::write(None, false, |out| write_rmap(source.device(), &options, out))?;
        Ok(DONE)
    }
}

fn found(one: &Use, block: u64) -> Found {
    Found {
        start: one.from.get() * block,
        length: (one.end.get() - one.from.get()) * block,
        device: one.device.get(),
        offset: one.guest.get() * block,
    }
}

/// Reads a range of data blocks: `5..45`.
fn region(text: &str) -> Result<Range<DataBlock>> {
    let ends = text.split_once("..").and_then(|(from, end)| {
        let (from, end): (u64, u64) = (from.parse().ok()?, end.parse().ok()?);
        (from < end).then_some(DataBlock::new(from)..DataBlock::new(end))
    });
    ends.ok_or_else(|| {
        let problem = "is no range of data blocks";
        Error::new(ErrorKind::Invalid, format!("region '{text}'"), problem)
            .advise("write the first block and the one behind the last, as in 5..45")
    })
}
