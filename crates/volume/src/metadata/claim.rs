//! Where metadata lies, and the claim to it that keeps others away.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::create::Files;
use crate::lock::PoolLock;

/// What a path stands for.
#[derive(Debug)]
pub(super) enum Place {
    /// The pool in this directory.
    Pool(PathBuf),
    /// A regular file, or what may become one.
    File(PathBuf),
    /// A block device.
    Device(PathBuf),
}

/// Metadata that is ours, for reading or alone, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Claim {
    _pool: Option<PoolLock>,
    _device: Option<OwnedFd>,
}

impl Place {
    /// What `path` stands for. The metadata file of a pool directory stands for the pool, so that
    /// its lock is honoured.
    pub(super) fn of(path: &Path) -> Self {
        if path.is_dir() {
            return Self::Pool(path.to_owned());
        }
        let kind = fs::metadata(path).map(|found| found.file_type());
        if kind.is_ok_and(|kind| kind.is_block_device()) {
            return Self::Device(path.to_owned());
        }
        match path.parent() {
            Some(dir) if is_metadata_of_pool(path) => {
                let here = dir.as_os_str().is_empty();
                Self::Pool(if here { PathBuf::from(".") } else { dir.to_owned() })
            }
            _ => Self::File(path.to_owned()),
        }
    }
}

/// Whether `path` is the file `metadata` of a pool directory.
fn is_metadata_of_pool(path: &Path) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    let beside = |name| path.with_file_name(name).exists();
    is_file
        && path.file_name().is_some_and(|name| name == "metadata")
        && beside("lock")
        && beside("data")
}

impl Claim {
    /// Claims the pool in `dir` for `holder`: alone, or with others who only read.
    pub(super) fn pool(dir: &Path, holder: &str, shared: bool) -> Result<Self> {
        let lock = PoolLock::take(dir, holder, shared)?;
        Ok(Self { _pool: Some(lock), _device: None })
    }

    /// Claims a block device: nothing may have it mounted, mapped, or claimed likewise.
    pub(super) fn device(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(device) => Ok(Self { _pool: None, _device: Some(device) }),
            Err(rustix::io::Errno::BUSY) => {
                let problem = "is in use, by the kernel or another process";
                Err(Error::new(ErrorKind::Busy, path.display().to_string(), problem)
                    .advise("deactivate the pool first, or read its metadata snapshot"))
            }
            Err(error) => {
                Err(Error::io(path.display().to_string(), "cannot be opened", error.into()))
            }
        }
    }
}

/// Refuses a directory that is no pool.
pub(super) fn check_pool(dir: &Path, has: impl Fn(&Files) -> bool) -> Result<()> {
    if has(&Files::of(dir)) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, dir.display().to_string(), "is no pool directory")
        .advise("make a pool with 'firn pool create'"))
}
