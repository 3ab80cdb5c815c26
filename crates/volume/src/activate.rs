//! A pool directory for a pool whose metadata and data lie elsewhere, as a table line of the kernel
//! names them: `metadata` and `data` in it are links to them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};
use dm_thin::{Discards, Pool, PoolTable};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::create::{Files, sync_directory};
use crate::lock::PoolLock;
use crate::{DiscardSetting, NoSpace, OpenOptions, PoolDirectory, PoolReport, Settings};

/// What the first block of metadata holds that is to be made: nothing.
const SUPERBLOCK: usize = 4096;

/// Devices elsewhere that are ours, alone or among readers.
#[derive(Debug)]
pub(crate) struct Claim {
    _held: Vec<OwnedFd>,
}

impl Claim {
    /// Claims those of a pool directory's `files` that lie elsewhere. Two directories that name the
    /// same device keep each other away.
    ///
    /// # Errors
    /// `Busy`.
    pub(crate) fn take(files: &Files, shared: bool) -> Result<Self> {
        let mut held = Vec::new();
        for path in [&files.metadata, &files.data] {
            if path.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
                held.push(claim(path, shared)?);
            }
        }
        Ok(Self { _held: held })
    }
}

fn claim(path: &Path, shared: bool) -> Result<OwnedFd> {
    let name = || path.display().to_string();
    let is_block = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    // A block device in use by the kernel cannot be opened so.
    let alone = if is_block && !shared { OFlags::EXCL } else { OFlags::empty() };
    let busy = || {
        Error::new(ErrorKind::Busy, name(), "is in use by another pool, or by the kernel")
            .advise("deactivate it there first")
    };
    let fd = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | alone, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::BUSY) => return Err(busy()),
        Err(error) => return Err(Error::io(name(), "cannot be opened", error.into())),
    };
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(&fd, operation) {
        Ok(()) => Ok(fd),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(busy()),
        Err(error) => Err(Error::io(name(), "cannot be locked", error.into())),
    }
}

impl PoolDirectory {
    /// Makes `dir` the pool that `table` describes, as `dmsetup create` makes a device: metadata
    /// that begins with zeros is formatted, a longer table than before grows the pool, and its
    /// features and low water mark become the pool's settings. A pool that was activated before may
    /// be activated again, with another table.
    ///
    /// # Errors
    /// `Exists` where `dir` holds something else; `Busy` where somebody has the pool or one of its
    /// devices; `Invalid`, as the kernel has it, for one file twice, another block size, and a
    /// table that is shorter than the pool.
    pub fn activate(dir: &Path, table: &PoolTable) -> Result<PoolReport> {
        let [metadata, data] = [&table.metadata, &table.data].map(Path::new);
        let [metadata, data] = [absolute(metadata)?, absolute(data)?];
        check_two(&metadata, &data)?;
        let files = Files::of(dir);
        let made = prepare(dir, &files)?;
        let done = link(&files, &metadata, &data).and_then(|()| bring_up(dir, &files, table));
        if done.is_err() && made {
            // Only what was not there before goes; the devices are not touched.
            for path in [files.metadata, files.data, files.names, dir.join("lock")] {
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_file(dir.join("settings"));
            let _ = fs::remove_dir(dir);
        }
        done
    }
}

/// Where `path` leads, from the root.
fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))
}

fn check_two(metadata: &Path, data: &Path) -> Result<()> {
    let identity = |path: &Path| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))
    };
    if identity(metadata)? != identity(data)? {
        return Ok(());
    }
    let problem = "EINVAL: metadata and data cannot be one device";
    Err(Error::new(ErrorKind::Invalid, data.display().to_string(), problem))
}

/// Makes the directory, or checks that it is one of ours; says whether it was made.
fn prepare(dir: &Path, files: &Files) -> Result<bool> {
    let name = || dir.display().to_string();
    match fs::create_dir(dir) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(name(), "cannot make the directory", error)),
    }
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    if is_link(&files.metadata) && is_link(&files.data) {
        return Ok(false);
    }
    Err(Error::new(ErrorKind::Exists, name(), "is there, and was not made by 'firn pool activate'")
        .advise("name a directory that does not exist yet"))
}

/// Has the directory name the two devices; one that names others stays as it is.
fn link(files: &Files, metadata: &Path, data: &Path) -> Result<()> {
    for (path, target) in [(&files.metadata, metadata), (&files.data, data)] {
        match symlink(target, path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if absolute(path)? != target {
                    let problem = format!("is not {}", target.display());
                    return Err(Error::new(ErrorKind::Exists, path.display().to_string(), problem)
                        .advise("name another directory, or remove this one: the pool stays"));
                }
            }
            Err(error) => {
                return Err(Error::io(path.display().to_string(), "cannot be made", error));
            }
        }
    }
    Ok(())
}

/// Formats the pool if it is to be, keeps its settings, and opens it with the table's length.
fn bring_up(dir: &Path, files: &Files, table: &PoolTable) -> Result<PoolReport> {
    {
        let _lock = PoolLock::take(dir, "firn pool activate", false)?;
        let _claim = Claim::take(files, false)?;
        format_if_empty(files, table)?;
        Settings::load(dir)?.with_table(table).store(dir)?;
        sync_directory(dir)?;
    }
    let holder = "firn pool activate".to_owned();
    let options = OpenOptions { read_only: false, cache: CacheMode::Cached, holder };
    let pool = PoolDirectory::open(dir, &options)?;
    let done = resize(&pool, table);
    pool.close()?;
    done
}

fn resize(pool: &PoolDirectory, table: &PoolTable) -> Result<PoolReport> {
    let status = pool.status();
    let refuse = |problem: String| {
        let problem = format!("EINVAL: {problem}");
        Err(Error::new(ErrorKind::Invalid, pool.path().display().to_string(), problem))
    };
    let block = table.block_size.bytes().get();
    if status.block_size != block {
        return refuse(format!("its data blocks have {} bytes, not {block}", status.block_size));
    }
    let size = table.length.get() / block * block;
    match size.cmp(&status.size) {
        std::cmp::Ordering::Less => {
            refuse(format!("the pool has {} bytes of data, the table {size}", status.size))
        }
        std::cmp::Ordering::Equal => Ok(status),
        std::cmp::Ordering::Greater => pool.grow(ByteCount::new(size)),
    }
}

fn format_if_empty(files: &Files, table: &PoolTable) -> Result<()> {
    let open = |path: &Path| {
        let options = FileOptions { cache: CacheMode::Cached, read_only: table.features.read_only };
        HostFile::open(path, options)
    };
    let (metadata, data) = (open(&files.metadata)?, open(&files.data)?);
    let mut head = [0; SUPERBLOCK];
    if metadata.size().get() >= SUPERBLOCK as u64 {
        metadata.read_at(&mut head, ByteOffset::ZERO)?;
    }
    if head != [0; SUPERBLOCK] {
        return Ok(());
    }
    if table.features.read_only {
        let problem = "EPERM: holds no pool yet, and none is made with the feature read_only";
        return Err(Error::new(ErrorKind::Denied, metadata.name(), problem));
    }
    if data.size() < table.length {
        let problem = format!("EINVAL: has {}, and the table {}", data.size(), table.length);
        return Err(Error::new(ErrorKind::Invalid, data.name(), problem));
    }
    let metadata: Arc<dyn BlockDevice> = Arc::new(metadata);
    Pool::format_blocks(
        &metadata,
        table.length.get() / table.block_size.bytes().get(),
        table.block_size,
    )
}

impl Settings {
    /// These settings, as far as a table line has nothing to say of them.
    fn with_table(self, table: &PoolTable) -> Self {
        let features = table.features;
        Self {
            no_space: if features.error_if_no_space { NoSpace::Error } else { NoSpace::Queue },
            discards: match features.discards {
                Discards::Ignored => DiscardSetting::Ignore,
                Discards::Kept => DiscardSetting::Keep,
                Discards::PassedDown => DiscardSetting::Passdown,
            },
            zero_new_blocks: !features.skip_zeroing,
            read_only: features.read_only,
            low_water: table.low_water,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PoolDirectory;
    use crate::{NoSpace, OpenOptions, VolumeName};
    use block_io::CacheMode;
    use block_types::{ByteCount, ErrorKind};
    use dm_thin::PoolTable;
    use std::fs::File;
    use std::path::Path;

    fn table(folder: &Path, sectors: u64, more: &str) -> PoolTable {
        let (meta, data) = (folder.join("meta"), folder.join("disk"));
        let line =
            format!("0 {sectors} thin-pool {} {} 128 7 {more}", meta.display(), data.display());
        PoolTable::parse(&line).expect("a table")
    }

    #[test]
    fn a_table_makes_a_pool_and_grows_it() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, size) in [("meta", 4 << 20), ("disk", 64 << 20)] {
            File::create(folder.path().join(name)).expect("made").set_len(size).expect("sized");
        }
        let dir = folder.path().join("lab");
        let read_only = table(folder.path(), 65536, "1 read_only");
        let error = PoolDirectory::activate(&dir, &read_only).expect_err("nothing to read");
        assert!(error.to_string().contains("EPERM") && !dir.exists(), "{error}");
        let first = table(folder.path(), 65536, "1 error_if_no_space");
        let report = PoolDirectory::activate(&dir, &first).expect("activated");
        assert_eq!((report.size, report.block_size), (32 << 20, 65536));
        let options =
            OpenOptions { read_only: false, cache: CacheMode::Cached, holder: "test".to_owned() };
        let pool = PoolDirectory::open(&dir, &options).expect("opened");
        assert_eq!((pool.settings().no_space, pool.settings().low_water), (NoSpace::Error, 7));
        pool.create_volume(&VolumeName::parse("db").expect("a name"), ByteCount::new(1 << 20))
            .expect("made");
        let error = PoolDirectory::activate(&dir, &first).expect_err("open");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        let other = folder.path().join("other");
        let error = PoolDirectory::activate(&other, &first).expect_err("its devices are in use");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        pool.close().expect("closed");
        drop(pool);

        let longer = table(folder.path(), 131_072, "");
        let report = PoolDirectory::activate(&dir, &longer).expect("activated");
        assert_eq!((report.size, report.volumes), (64 << 20, 1));
        let error = PoolDirectory::activate(&dir, &first).expect_err("shorter");
        assert!(error.to_string().contains("EINVAL"), "{error}");
    }
}
