//! Making a pool directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use dm_thin::{BlockSize, Pool};

use crate::NamesLog;
use crate::lock::PoolLock;

/// Metadata to begin with; it grows as it is needed.
pub(crate) const METADATA: ByteCount = ByteCount::new(16 << 20);

/// What a new pool is like.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// How much data it can hold; rounded up to whole blocks. It takes no space yet.
    pub size: ByteCount,
    /// Its data blocks' size: a multiple of 64 KiB from 64 KiB to 1 GiB.
    pub block_size: ByteCount,
}

/// The files of a pool directory.
pub(crate) struct Files {
    pub(crate) metadata: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) names: PathBuf,
}

impl Files {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { metadata: dir.join("metadata"), data: dir.join("data"), names: dir.join("names") }
    }
}

/// Makes `dir`, which may exist if it is empty, and a pool in it.
pub(crate) fn create(dir: &Path, options: &CreateOptions) -> Result<()> {
    let block_size = BlockSize::new(options.block_size)?;
    if options.size.is_zero() {
        return Err(Error::new(ErrorKind::Invalid, dir.display().to_string(), "has size 0"));
    }
    let blocks = block_size.count(options.size);
    let size = block_size.bytes().get().checked_mul(blocks).filter(|size| *size < 1 << 63);
    let size = size.map(ByteCount::new).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, dir.display().to_string(), "is too large for a file")
            .advise("a pool holds at most 8 EiB")
    })?;
    let made = make_directory(dir)?;
    let result = fill(dir, size, block_size);
    if result.is_err() {
        // Leave nothing half made behind: only what was not there before is removed.
        let files = Files::of(dir);
        for path in [files.metadata, files.data, files.names, dir.join("lock")] {
            let _ = fs::remove_file(path);
        }
        if made {
            let _ = fs::remove_dir(dir);
        }
    }
    result
}

/// Makes `dir`, or checks that it is empty; says whether it was made.
fn make_directory(dir: &Path) -> Result<bool> {
    let name = || dir.display().to_string();
    match fs::create_dir(dir) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(name(), "cannot make the directory", error)),
    }
    if Files::of(dir).metadata.exists() {
        return Err(Error::new(ErrorKind::Exists, name(), "there is a pool already")
            .advise("name another directory; 'firn pool status' shows this one"));
    }
    let mut entries =
        fs::read_dir(dir).map_err(|error| Error::io(name(), "cannot read the directory", error))?;
    if entries.next().is_some() {
        return Err(Error::new(ErrorKind::Exists, name(), "is a directory that is not empty")
            .advise("name a new directory for the pool"));
    }
    Ok(false)
}

fn fill(dir: &Path, size: ByteCount, block_size: BlockSize) -> Result<()> {
    let _lock = PoolLock::take(dir, "firn pool create", false)?;
    let files = Files::of(dir);
    let data = HostFile::create(&files.data, size, CacheMode::Cached)?;
    let metadata = HostFile::create(&files.metadata, METADATA, CacheMode::Cached)?;
    // FULL-IS-NOT-BROKEN: a commit never finds out that its blocks have no space.
    metadata.provision(ByteRange::new(ByteOffset::ZERO, METADATA))?;
    let metadata: Arc<dyn BlockDevice> = Arc::new(metadata);
    Pool::format(&metadata, &data, block_size)?;
    data.flush()?;
    let names = HostFile::create(&files.names, ByteCount::ZERO, CacheMode::Cached)?;
    NamesLog::format(Arc::new(names))?;
    sync_directory(dir)?;
    match dir.canonicalize().ok().as_deref().and_then(Path::parent) {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<()> {
    fs::File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| Error::io(dir.display().to_string(), "cannot sync the directory", error))
}
