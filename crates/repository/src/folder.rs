//! The directory that a repository lies in: files by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, Error, Result};
use rustix::fs::statvfs;

/// A directory of files that are devices.
///
/// What [`create`](Folder::create), [`rename`](Folder::rename) and [`remove`](Folder::remove) did
/// is durable once [`sync`](Folder::sync) has returned; a crash before that may keep any part of
/// it, but each by itself whole or not at all.
pub trait Folder: Send + Sync {
    /// What to call it in messages.
    fn name(&self) -> &str;

    /// The names of all files in it.
    ///
    /// # Errors
    /// Those of the system; likewise below.
    fn list(&self) -> Result<Vec<String>>;

    /// Opens a file.
    fn open(&self, file: &str, read_only: bool) -> Result<Arc<dyn BlockDevice>>;

    /// Makes an empty file, which must not exist.
    fn create(&self, file: &str) -> Result<Arc<dyn BlockDevice>>;

    /// Gives a file another name; a file that has it goes.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a file; whoever has it open can go on reading it.
    fn remove(&self, file: &str) -> Result<()>;

    /// Makes the names durable.
    fn sync(&self) -> Result<()>;

    /// Bytes that can be written yet; `None` where nobody can say.
    fn free(&self) -> Result<Option<ByteCount>>;

    /// What a file takes of that, now.
    fn taken(&self, file: &str) -> Result<ByteCount>;

    /// When a file was last changed.
    fn modified(&self, file: &str) -> Result<SystemTime>;
}

/// A directory of the host. Files go through the page cache, since VHDs are written by the sector.
#[derive(Debug)]
pub struct HostFolder {
    path: PathBuf,
    name: String,
}

impl HostFolder {
    /// The directory at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), name: path.display().to_string() }
    }

    fn failed(&self, file: &str, doing: &str, error: std::io::Error) -> Error {
        Error::io(self.path.join(file).display().to_string(), doing, error)
    }

    fn metadata(&self, file: &str) -> Result<fs::Metadata> {
        let found = fs::symlink_metadata(self.path.join(file));
        found.map_err(|error| self.failed(file, "cannot be examined", error))
    }
}

impl Folder for HostFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io(&self.name, "cannot read the directory", error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A link may lead out of the repository (GATED-OPEN).
            if entry.file_type().map_err(failed)?.is_file() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, file: &str, read_only: bool) -> Result<Arc<dyn BlockDevice>> {
        let options = FileOptions { cache: CacheMode::Cached, read_only };
        Ok(Arc::new(HostFile::open(&self.path.join(file), options)?))
    }

    fn create(&self, file: &str) -> Result<Arc<dyn BlockDevice>> {
        let path = self.path.join(file);
        Ok(Arc::new(HostFile::create(&path, ByteCount::ZERO, CacheMode::Cached)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
            .map_err(|error| self.failed(from, &format!("cannot be renamed to {to}"), error))
    }

    fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.path.join(file))
            .map_err(|error| self.failed(file, "cannot be removed", error))
    }

    fn sync(&self) -> Result<()> {
        fs::File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| Error::io(&self.name, "cannot sync the directory", error))
    }

    fn free(&self) -> Result<Option<ByteCount>> {
        let found = statvfs(&self.path)
            .map_err(|error| Error::io(&self.name, "cannot be examined", error.into()))?;
        Ok(Some(ByteCount::new(found.f_bavail.saturating_mul(found.f_frsize))))
    }

    fn taken(&self, file: &str) -> Result<ByteCount> {
        use std::os::unix::fs::MetadataExt;
        Ok(ByteCount::from_sectors(self.metadata(file)?.blocks()))
    }

    fn modified(&self, file: &str) -> Result<SystemTime> {
        self.metadata(file)?
            .modified()
            .map_err(|error| self.failed(file, "has no time of change", error))
    }
}
