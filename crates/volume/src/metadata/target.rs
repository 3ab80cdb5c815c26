//! Metadata that is written anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use dm_thin::{CheckReport, Pool};

use super::claim::{Claim, Place, check_pool};
use crate::create::{Files, METADATA, sync_directory};
use crate::{NewFile, parse_log};

/// The largest metadata of the format: 255 bitmaps, each of the counts of 16320 blocks of 4 KiB.
const LARGEST: ByteCount = ByteCount::new(255 * 16320 * 4096);

/// What the metadata of a pool directory is called while it is written.
const UNFINISHED: &str = "metadata.new";

/// How metadata is written.
#[derive(Clone, Copy, Debug)]
pub struct TargetOptions<'o> {
    /// Who writes it: others are told this name.
    pub holder: &'o str,
    /// The name in a pool directory that its old metadata is kept under.
    pub keep_as: &'o str,
    /// Replace what is there already. What a block device holds is lost.
    pub force: bool,
}

/// A place for new metadata, claimed until this is dropped.
pub struct MetadataTarget {
    kind: Kind,
    _claim: Claim,
}

enum Kind {
    Pool {
        dir: PathBuf,
        kept: PathBuf,
        force: bool,
    },
    /// A file, and how large the one is that it replaces.
    File(NewFile, ByteCount),
    Device(Arc<HostFile>),
}

impl MetadataTarget {
    /// Claims `path`: a pool directory, a file to be made, or a block device.
    ///
    /// # Errors
    /// `Exists` for what is there and is not to be replaced; `Busy`, with the holder, for a pool or
    /// a device that somebody has open; `NotFound` for a directory that is no pool.
    pub fn open(path: &Path, options: &TargetOptions<'_>) -> Result<Self> {
        match Place::of(path) {
            Place::Pool(dir) => Self::pool(dir, options),
            Place::Device(path) => Self::device(&path, options),
            Place::File(path) => {
                let old = fs::metadata(&path).map_or(0, |found| found.len());
                let file = NewFile::create(&path, options.force)?;
                let kind = Kind::File(file, ByteCount::new(old));
                Ok(Self { kind, _claim: Claim::default() })
            }
        }
    }

    fn pool(dir: PathBuf, options: &TargetOptions<'_>) -> Result<Self> {
        check_pool(&dir, |files| files.data.exists())?;
        let metadata = Files::of(&dir).metadata;
        if metadata.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            let problem = "is no regular file, so that no other can take its place";
            return Err(Error::new(
                ErrorKind::Unsupported,
                metadata.display().to_string(),
                problem,
            )
            .advise("name the file or device that it leads to"));
        }
        let claim = Claim::pool(&dir, options.holder, false)?;
        let kept = dir.join(options.keep_as);
        for path in [&kept, &dir.join(UNFINISHED)] {
            if !options.force && path.symlink_metadata().is_ok() {
                let problem = "is there already, from before";
                let name = path.display().to_string();
                return Err(Error::new(ErrorKind::Exists, name, problem)
                    .advise("move it away, or say --force to lose it"));
            }
        }
        Ok(Self { kind: Kind::Pool { dir, kept, force: options.force }, _claim: claim })
    }

    fn device(path: &Path, options: &TargetOptions<'_>) -> Result<Self> {
        if !options.force {
            let problem = "is a block device, and what it holds would be lost";
            return Err(Error::new(ErrorKind::Exists, path.display().to_string(), problem)
                .advise("say --force to write to it"));
        }
        let claim = Claim::device(path)?;
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        let device = Arc::new(HostFile::open(path, options)?);
        Ok(Self { kind: Kind::Device(device), _claim: claim })
    }

    /// The metadata that the pool directory has, for reading; `None` for other targets.
    ///
    /// # Errors
    /// As opening the file fails.
    pub fn present(&self) -> Result<Option<Arc<dyn BlockDevice>>> {
        let Kind::Pool { dir, .. } = &self.kind else { return Ok(None) };
        let options = FileOptions { cache: CacheMode::Cached, read_only: true };
        Ok(Some(Arc::new(HostFile::open(&Files::of(dir).metadata, options)?)))
    }

    /// The transaction id that the pool directory's names were last changed in, if it has names.
    ///
    /// That of a superblock that is lost is the same or one less, if a crash came in between: then
    /// the last change of names has come true that the crash prevented, which loses no device. With
    /// an earlier one, names would be forgotten.
    ///
    /// # Errors
    /// As reading the names fails.
    pub fn transaction_of_names(&self) -> Result<Option<u64>> {
        let Kind::Pool { dir, .. } = &self.kind else { return Ok(None) };
        let names = Files::of(dir).names;
        let bytes = match fs::read(&names) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result
                .map_err(|error| Error::io(names.display().to_string(), "cannot be read", error))?,
        };
        let (_, records) = parse_log(&names.display().to_string(), &bytes)?;
        Ok(records.last().map(|(record, _)| record.transaction))
    }

    /// Has `build` write metadata, and puts it in its place. Returns what `build` did, and where
    /// the old metadata of a pool directory is kept.
    ///
    /// A file begins with 16 MiB, with `expected`, or with the size of the one that it replaces,
    /// whichever is most, and is begun again twice as large where `build` runs out of space. It
    /// begins empty where nothing is expected: `build` gives it its size then. The new metadata of
    /// a pool directory is checked, and has to fit the data; the old one stays as it is until then.
    ///
    /// # Errors
    /// Those of `build`; `OutOfSpace` of the file system; `Corrupt` for new metadata of a pool that
    /// is not sound.
    pub fn write<T>(
        self,
        expected: Option<ByteCount>,
        build: impl FnMut(Arc<dyn BlockDevice>) -> Result<T>,
    ) -> Result<(T, Option<PathBuf>)> {
        match self.kind {
            Kind::Device(device) => write_device(&device, build).map(|built| (built, None)),
            Kind::File(file, old) => {
                let built = write_file(file.path(), old, expected, build)?;
                file.publish()?;
                Ok((built, None))
            }
            Kind::Pool { dir, kept, force } => {
                let path = dir.join(UNFINISHED);
                let result = write_pool(&dir, &path, expected, build)
                    .and_then(|built| Ok((built, switch(&dir, &path, &kept, force)?)));
                if result.is_err() {
                    // It is left over if that fails, and the next who wants to write it is told.
                    let _ = fs::remove_file(&path);
                }
                result
            }
        }
    }
}

/// Has `build` write to a device that has the size it has.
fn write_device<T>(
    device: &Arc<HostFile>,
    mut build: impl FnMut(Arc<dyn BlockDevice>) -> Result<T>,
) -> Result<T> {
    let built = build(Arc::<HostFile>::clone(device))?;
    device.flush()?;
    Ok(built)
}

/// Has `build` write to the file at `path`, which is empty and gets the size that it needs.
fn write_file<T>(
    path: &Path,
    old: ByteCount,
    expected: Option<ByteCount>,
    mut build: impl FnMut(Arc<dyn BlockDevice>) -> Result<T>,
) -> Result<T> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    let file = Arc::new(HostFile::open(path, options)?);
    let begin = |expected: ByteCount| expected.max(old).max(METADATA).min(LARGEST);
    let mut size = expected.map_or(ByteCount::ZERO, begin);
    loop {
        // Begun again from nothing: a repair would look at what is left of an earlier attempt.
        file.resize(ByteCount::ZERO)?;
        file.resize(size)?;
        provision(&file)?;
        match build(Arc::<HostFile>::clone(&file)) {
            Err(error) if error.kind() == ErrorKind::OutOfSpace && size < LARGEST => {
                size = begin(ByteCount::new(size.get().saturating_mul(2)));
            }
            result => {
                let built = result?;
                provision(&file)?;
                file.flush()?;
                return Ok(built);
            }
        }
    }
}

/// FULL-IS-NOT-BROKEN: a commit never finds out that its blocks have no space.
fn provision(file: &HostFile) -> Result<()> {
    file.provision(ByteRange::new(ByteOffset::ZERO, file.size()))
}

/// Has `build` write new metadata for the pool in `dir` to `path`, and checks it.
fn write_pool<T>(
    dir: &Path,
    path: &Path,
    expected: Option<ByteCount>,
    build: impl FnMut(Arc<dyn BlockDevice>) -> Result<T>,
) -> Result<T> {
    let old = fs::metadata(Files::of(dir).metadata).map_or(0, |found| found.len());
    fs::File::create(path)
        .map_err(|error| Error::io(path.display().to_string(), "cannot be created", error))?;
    let built = write_file(path, ByteCount::new(old), expected, build)?;
    check(dir, path)?;
    Ok(built)
}

/// Checks that the metadata at `path` is sound, and that the pool in `dir` opens with it.
fn check(dir: &Path, path: &Path) -> Result<()> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    let metadata: Arc<dyn BlockDevice> = Arc::new(HostFile::open(path, options)?);
    let CheckReport { errors, leaks, .. } = dm_thin::check(Arc::clone(&metadata))?;
    if let Some(first) = errors.into_iter().chain(leaks).next() {
        let problem = format!("is not sound, and was not put in its place: {first}");
        return Err(Error::new(ErrorKind::Corrupt, path.display().to_string(), problem)
            .advise("write it to a file instead, and repair that"));
    }
    let data = Arc::new(HostFile::open(&Files::of(dir).data, options)?);
    let options = dm_thin::OpenOptions {
        read_only: true,
        background: false,
        ..dm_thin::OpenOptions::default()
    };
    Pool::open(&dir.display().to_string(), metadata, data, options)?.close()
}

/// Puts the metadata at `path` in its place, and returns where the old one is kept, if there was
/// one. It gets its second name first, so that the pool has metadata at every moment.
fn switch(dir: &Path, path: &Path, kept: &Path, force: bool) -> Result<Option<PathBuf>> {
    let metadata = Files::of(dir).metadata;
    let failed =
        |path: &Path, doing: String, error| Error::io(path.display().to_string(), doing, error);
    let there = metadata.exists();
    if there {
        if force && kept.exists() {
            fs::remove_file(kept)
                .map_err(|error| failed(kept, "cannot be removed".into(), error))?;
        }
        fs::hard_link(&metadata, kept).map_err(|error| {
            failed(&metadata, format!("cannot be kept as {}", kept.display()), error)
        })?;
        sync_directory(dir)?;
    }
    fs::rename(path, &metadata).map_err(|error| {
        failed(path, format!("cannot be renamed to {}", metadata.display()), error)
    })?;
    sync_directory(dir)?;
    Ok(there.then(|| kept.to_owned()))
}
