//! Metadata that is read, or put right where it lies.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{Error, ErrorKind, Result};

use super::claim::{Claim, Place, check_pool};
use crate::create::Files;

/// What metadata is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataUse {
    /// Reading the last commit: nobody may write meanwhile.
    Read,
    /// Reading a metadata snapshot, which stays as it is whoever writes.
    ReadSnapshot,
    /// Changing it in place: nobody else may have it open.
    Change,
}

/// The metadata of a pool, claimed until this is dropped.
pub struct MetadataSource {
    device: Arc<dyn BlockDevice>,
    dir: Option<PathBuf>,
    _claim: Claim,
}

impl MetadataSource {
    /// Opens the metadata at `path`: a pool directory, a regular file or a block device. Others are
    /// told that `holder` has it.
    ///
    /// # Errors
    /// `NotFound` where nothing is there; `Busy`, with the holder, where somebody else has it open
    /// in a way that excludes this `usage`; as opening the file fails.
    pub fn open(path: &Path, usage: MetadataUse, holder: &str) -> Result<Self> {
        let options =
            FileOptions { cache: CacheMode::Cached, read_only: usage != MetadataUse::Change };
        let (file, dir, claim) = match Place::of(path) {
            Place::Pool(dir) => {
                check_pool(&dir, |files| files.metadata.exists())?;
                let claim = match usage {
                    MetadataUse::ReadSnapshot => Claim::default(),
                    MetadataUse::Read => Claim::pool(&dir, holder, true)?,
                    MetadataUse::Change => Claim::pool(&dir, holder, false)?,
                };
                (Files::of(&dir).metadata, Some(dir), claim)
            }
            Place::Device(path) => {
                let claim = match usage {
                    MetadataUse::ReadSnapshot => Claim::default(),
                    MetadataUse::Read | MetadataUse::Change => Claim::device(&path)?,
                };
                (path, None, claim)
            }
            Place::File(path) if !path.exists() => return Err(nothing(&path)),
            Place::File(path) => (path, None, Claim::default()),
        };
        let device = Arc::new(HostFile::open(&file, options)?);
        Ok(Self { device, dir, _claim: claim })
    }

    /// The metadata of the pool in `dir` as somebody who has it open gives it to us: `device` reads
    /// as one commit left it.
    pub fn held(device: Arc<dyn BlockDevice>, dir: &Path) -> Self {
        Self { device, dir: Some(dir.to_owned()), _claim: Claim::default() }
    }

    /// The metadata.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device)
    }

    /// The pool directory that it is the metadata of, if it lies in one.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }
}

fn nothing(path: &Path) -> Error {
    let problem = "there is no such file or directory";
    Error::new(ErrorKind::NotFound, path.display().to_string(), problem).advise(
        "name a pool directory, or a file or device with its metadata; 'firn pool create' makes a \
         pool",
    )
}
