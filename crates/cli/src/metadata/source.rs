//! What several of the verbs take: metadata to read, which state of it, and figures to be used in
//! place of those that are written down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use daemon::PoolAccess;
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
    /// It stays as it is while the pool is in use. A pool that 'firn serve' has open needs none: it
    /// is read as its last commit left it, while clients go on.
    #[arg(short, long, value_name = "BLOCK", num_args = 0..=1, require_equals = true)]
    metadata_snapshot: Option<Option<u64>>,
}

impl Source {
    /// Opens the metadata for the verb `firn pool VERB`.
    pub(super) fn open(&self, verb: &str) -> Result<(Opened, View)> {
        let (usage, view) = match self.metadata_snapshot {
            None => return Ok((Opened::now(&self.source, verb)?, View::Live)),
            Some(None) => (MetadataUse::ReadSnapshot, View::Snapshot),
            Some(Some(at)) => (MetadataUse::ReadSnapshot, View::SnapshotAt(MetaBlock::new(at))),
        };
        let metadata = open(&self.source, usage, verb)?;
        Ok((Opened { metadata, _pool: None }, view))
    }
}

/// Metadata that is open for reading.
pub(super) struct Opened {
    metadata: MetadataSource,
    /// Whoever has the pool open holds it for us.
    _pool: Option<Box<dyn PoolAccess>>,
}

impl Opened {
    /// The metadata at `path` as it is now: where somebody has the pool open, as a commit of theirs
    /// left it, which they hold for us while they go on.
    pub(super) fn now(path: &Path, verb: &str) -> Result<Self> {
        let busy = match open(path, MetadataUse::Read, verb) {
            Ok(metadata) => return Ok(Self { metadata, _pool: None }),
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
        };
        if !path.is_dir() {
            return Err(busy.advise("stop that process, or read a metadata snapshot with -m"));
        }
        let pool = daemon::access(path, true)?;
        let metadata = MetadataSource::held(pool.open_metadata()?, path);
        Ok(Self { metadata, _pool: Some(pool) })
    }

    /// The metadata.
    pub(super) fn device(&self) -> Arc<dyn BlockDevice> {
        self.metadata.device()
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
            renumber: false,
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
pub(super) fn data_block_size(source: &Opened, view: View) -> Result<ByteCount> {
    Ok(dm_thin::ls::list(source.device(), view, false)?.block_size)
}
