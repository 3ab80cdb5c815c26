//! Opening and creating host files: what sort of file it is, and whether O_DIRECT is to be had.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fstat, ftruncate, ioctl_blksszget, seek,
    stat, statx,
};
use rustix::io::Errno;

use crate::flush::Flushes;
use crate::ranges::RangeSet;
use crate::{CacheMode, FileOptions, HostFile};

/// The alignment that is asked for where the system does not say what O_DIRECT demands.
const CAUTIOUS_ALIGNMENT: u64 = 4096;

/// What statx calls the alignments of O_DIRECT (Linux 6.1).
const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

/// A file that was opened, and what is known of it.
struct Opened {
    fd: OwnedFd,
    regular: bool,
    size: u64,
}

/// [`HostFile::open`].
pub(crate) fn open(path: &Path, options: FileOptions) -> Result<HostFile> {
    let name = path.display().to_string();
    check_path(&name, path)?;
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if options.cache == CacheMode::Direct {
        match open_direct(&name, path, access)? {
            Ok((opened, alignment)) => {
                return Ok(host_file(name, opened, Some(alignment), options.read_only));
            }
            Err(reason) => say_cached(&name, &reason),
        }
    }
    let opened = open_flags(path, access)
        .and_then(examine)
        .map_err(|error| Error::io(&name, "cannot be opened", error.into()))?;
    Ok(host_file(name, opened, None, options.read_only))
}

/// [`HostFile::create`].
pub(crate) fn create(path: &Path, size: ByteCount, cache: CacheMode) -> Result<HostFile> {
    let name = path.display().to_string();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
        .map_err(|error| Error::io(&name, "cannot be created", error.into()))?;
    let finished = ftruncate(&fd, size.get())
        .map_err(|error| {
            let doing = format!("cannot be given a size of {} bytes", size.get());
            Error::io(&name, doing, error.into())
        })
        .and_then(|()| sync_folder(&name, path))
        .and_then(|()| open(path, FileOptions { cache, read_only: false }));
    if finished.is_err() {
        // Nobody knows of the file yet; if it stays, the error says what to look for.
        let _ = rustix::fs::unlink(path);
    }
    finished
}

/// Makes the entry of a new file durable in its folder.
fn sync_folder(name: &str, path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
        .and_then(|fd| rustix::fs::fsync(&fd))
        .map_err(|error| Error::io(name, "cannot make its folder durable", error.into()))
}

/// Looks at what lies at `path` before it is opened: opening a pipe would wait for its other end.
pub(crate) fn check_path(name: &str, path: &Path) -> Result<()> {
    check_type(name, FileType::from_raw_mode(status(name, path)?))
}

/// The mode word of what lies at `path`.
fn status(name: &str, path: &Path) -> Result<u32> {
    match stat(path) {
        Ok(status) => Ok(status.st_mode),
        Err(Errno::NOENT) => Err(Error::new(ErrorKind::NotFound, name, "does not exist")),
        Err(error) => Err(Error::io(name, "cannot be examined", error.into())),
    }
}

/// Refuses what is neither a regular file nor a block device.
fn check_type(name: &str, kind: FileType) -> Result<()> {
    let found = match kind {
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => "is a directory",
        FileType::Fifo => "is a pipe",
        FileType::Socket => "is a socket",
        FileType::CharacterDevice => "is a character device",
        _ => "is no file with bytes at offsets",
    };
    Err(Error::new(ErrorKind::Unsupported, name, found)
        .advise("name a regular file or a block device"))
}

/// Opens with O_DIRECT; the file and its alignment, or the reason why that cannot be.
fn open_direct(
    name: &str,
    path: &Path,
    access: OFlags,
) -> Result<std::result::Result<(Opened, ByteCount), String>> {
    let opened = match open_flags(path, access | OFlags::DIRECT).and_then(examine) {
        Ok(opened) => opened,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            return Ok(Err("the file system refuses O_DIRECT".to_owned()));
        }
        Err(error) => return Err(Error::io(name, "cannot be opened", error.into())),
    };
    let Some(alignment) = direct_alignment(&opened) else {
        return Ok(Err("the file system has no O_DIRECT for it".to_owned()));
    };
    if !opened.size.is_multiple_of(alignment) {
        let size = opened.size;
        return Ok(Err(format!(
            "its size of {size} bytes is no multiple of the {alignment} that O_DIRECT demands"
        )));
    }
    Ok(Ok((opened, ByteCount::new(alignment))))
}

fn open_flags(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Looks at what was really opened.
fn examine(fd: OwnedFd) -> rustix::io::Result<Opened> {
    let status = fstat(&fd)?;
    let regular = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    let size = seek(&fd, SeekFrom::End(0))?;
    Ok(Opened { fd, regular, size })
}

/// What offset, length and memory of O_DIRECT requests are multiples of; `None` if the system says
/// that the file has no O_DIRECT.
fn direct_alignment(opened: &Opened) -> Option<u64> {
    if !opened.regular {
        let logical = ioctl_blksszget(&opened.fd).map_or(CAUTIOUS_ALIGNMENT, u64::from);
        return Some(logical.max(512));
    }
    let Ok(answer) = statx(&opened.fd, "", AtFlags::EMPTY_PATH, STATX_DIOALIGN) else {
        return Some(CAUTIOUS_ALIGNMENT);
    };
    if answer.stx_mask & STATX_DIOALIGN.bits() == 0 {
        return Some(CAUTIOUS_ALIGNMENT);
    }
    let alignment = answer.stx_dio_offset_align.max(answer.stx_dio_mem_align);
    (answer.stx_dio_offset_align != 0).then_some(u64::from(alignment.max(512)))
}

fn say_cached(name: &str, reason: &str) {
    tracing::warn!(file = name, reason, "opened through the page cache instead of O_DIRECT");
}

/// Puts the parts together; `alignment` is that of a direct file.
fn host_file(
    name: String,
    opened: Opened,
    alignment: Option<ByteCount>,
    read_only: bool,
) -> HostFile {
    let space_unit = if opened.regular {
        1
    } else {
        ioctl_blksszget(&opened.fd).map_or(CAUTIOUS_ALIGNMENT, u64::from)
    };
    HostFile {
        fd: Arc::new(opened.fd),
        name,
        size: AtomicU64::new(opened.size),
        cache: if alignment.is_some() { CacheMode::Direct } else { CacheMode::Cached },
        alignment: alignment.unwrap_or(ByteCount::new(1)),
        read_only,
        regular: opened.regular,
        space_unit: ByteCount::new(space_unit),
        provisioned: Mutex::new(RangeSet::default()),
        flushes: Flushes::default(),
    }
}
