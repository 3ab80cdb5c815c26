//! What several of the verbs take: metadata to read, which state of it, and figures to be used in
//! place of those that are written down.

use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use dm_thin::BlockSize;
use dm_thin::dump::View;
use dm_thin::restore::Overrides;
use persistent_data::MetaBlock;
use volume::{MetadataSource, MetadataUse};

use crate::size::size;

/// Metadata, and which state of it.
#[derive(Args, Debug)]
pub(super) struct Source {
    /// A pool's directory, or a file or block device that holds a pool's metadata.
    #[arg(value_name = "SOURCE")]
    pub(super) source: PathBuf,

    /// Read the metadata snapshot that is held, or the one at this metadata block.
    ///
    /// It stays as it is, so this works while the pool is in use.
    #[arg(short, long, value_name = "BLOCK", num_args = 0..=1, require_equals = true)]
    metadata_snapshot: Option<Option<u64>>,
}

impl Source {
    /// Opens the metadata for the verb `firn pool VERB`.
    pub(super) fn open(&self, verb: &str) -> Result<(MetadataSource, View)> {
        let (usage, view) = match self.metadata_snapshot {
            None => (MetadataUse::Read, View::Live),
            Some(None) => (MetadataUse::ReadSnapshot, View::Snapshot),
            Some(Some(at)) => (MetadataUse::ReadSnapshot, View::SnapshotAt(MetaBlock::new(at))),
        };
        let source = open(&self.source, usage, verb).map_err(|error| {
            if error.kind() == ErrorKind::Busy && usage == MetadataUse::Read {
                return error.advise("stop that process, or read a metadata snapshot with -m");
            }
            error
        })?;
        Ok((source, view))
    }
}

/// Opens metadata for the verb `firn pool VERB`.
pub(super) fn open(path: &Path, usage: MetadataUse, verb: &str) -> Result<MetadataSource> {
    MetadataSource::open(path, usage, &format!("firn pool {verb}"))
}

/// Figures that are taken from the command line.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Figures to be used instead of those in the metadata")]
pub(super) struct Figures {
    /// The transaction id.
    #[arg(long, value_name = "ID")]
    pub(super) transaction_id: Option<u64>,

    /// The size of a data block: 64K, or 128s for sectors.
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    data_block_size: Option<BlockSize>,

    /// The number of data blocks.
    #[arg(long, value_name = "BLOCKS")]
    nr_data_blocks: Option<u64>,
}

impl Figures {
    pub(super) fn overrides(self) -> Overrides {
        Overrides {
            transaction: self.transaction_id,
            block_size: self.data_block_size,
            data_blocks: self.nr_data_blocks,
        }
    }
}

/// Reads the size of a data block.
fn block_size(text: &str) -> Result<BlockSize> {
    BlockSize::new(size(text)?)
}

/// The error of an input that makes no sense: what is wrong is in the file `name`, and not in the
/// command line, as `Invalid` would have it.
pub(super) fn in_file(name: &Path, error: Error) -> Error {
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    let object = format!("{}, {}", name.display(), error.object());
    let changed = Error::new(ErrorKind::Corrupt, object, error.problem());
    match error.advice() {
        Some(advice) => changed.advise(advice),
        None => changed,
    }
}

/// The size of the data blocks of a pool.
pub(super) fn data_block_size(source: &MetadataSource, view: View) -> Result<ByteCount> {
    Ok(dm_thin::ls::list(source.device(), view, false)?.block_size)
}
