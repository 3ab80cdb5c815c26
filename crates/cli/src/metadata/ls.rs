//! `firn pool ls`: the devices of a pool by number, and what is each one's own.

use block_types::{ByteCount, Result};
use clap::Args;
use dm_thin::ls::{Column, Row, list, write_table};
use serde::Serialize;

use super::sink;
use super::source::Source;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// List a pool's devices by number, with what they map: the table of thin_ls.
///
/// A block is exclusive to a device if no other mapping leads to its data; the rest is shared. To
/// count those all mappings are read.
#[derive(Args, Debug)]
#[command(after_long_help = "\
COLUMNS
  DEV, TRANSACTION, CREATE_TIME, SNAP_TIME, HIGHEST_BLOCK, HIGHEST_SECTOR, HIGHEST_BYTE,
  HIGHEST_MAPPED; and MAPPED, EXCLUSIVE, SHARED, alone or with _BLOCKS, _SECTORS, _BYTES.

EXAMPLE
  firn pool ls lab
  firn pool ls lab -o DEV,MAPPED,EXCLUSIVE,SHARED")]
pub(crate) struct Ls {
    #[command(flatten)]
    source: Source,

    /// The columns, separated by commas.
    #[arg(short = 'o', long, value_name = "COLUMNS", value_delimiter = ',', value_parser = column)]
    format: Vec<Column>,

    /// Leave out the headings.
    #[arg(long)]
    no_headers: bool,
}

/// A device, as JSON has it. Sizes are bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Device {
    id: u32,
    mapped: u64,
    exclusive: Option<u64>,
    shared: Option<u64>,
    /// The last mapped byte, if any is.
    highest: Option<u64>,
    transaction: u64,
    /// The pool's time when it was made.
    created: u32,
    /// The pool's time when a snapshot was last taken of it.
    snapshotted: u32,
}

impl Ls {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let (source, view) = self.source.open("ls")?;
        if output.is_json() {
            let listing = list(source.device(), view, true)?;
            let device = |row| Device::new(row, listing.block_size);
            let devices: Vec<Device> = listing.rows.iter().map(device).collect();
            output.result(&devices, String::new)?;
            return Ok(DONE);
        }
        let columns: &[Column] =
            if self.format.is_empty() { &Column::DEFAULT } else { &self.format };
        sink::write(None, false, |out| {
            write_table(source.device(), view, columns, !self.no_headers, out)
        })?;
        Ok(DONE)
    }
}

impl Device {
    fn new(row: &Row, block: ByteCount) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(block.get());
        Self {
            id: row.id.get(),
            mapped: bytes(row.state.mapped),
            exclusive: row.exclusive.map(bytes),
            shared: row.shared().map(bytes),
            highest: row.highest.map(|last| bytes(last.get().saturating_add(1)) - 1),
            transaction: row.state.transaction,
            created: row.state.created.get(),
            snapshotted: row.state.snapshotted.get(),
        }
    }
}

/// Reads the name of a column.
fn column(text: &str) -> Result<Column> {
    text.parse()
}
