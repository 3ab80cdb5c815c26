//! The record of an origin: which stores hold its past.
//!
//! A store does not name its origin, and an origin knows nothing of its stores; but whoever writes
//! to an origin past its snapshots ruins them, and nothing would ever say so. So the record lies
//! beside the origin, as `ORIGIN.snapshots`: whoever opens the origin finds it. It also says how
//! the origin was left, so that one who wrote past it, without Firn, is found out.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::NewFile;

/// The version of records that this program writes and reads.
const VERSION: u32 = 1;
/// What is appended to the name of an origin that is a file.
const SUFFIX: &str = ".snapshots";
/// Where the records of origins lie that are block devices: what is beside those does not last.
const DEVICES: &str = "/var/lib/firn/snapshots";

/// What is kept of an origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    /// How the origin was left, or nothing while it is in use, and after a crash.
    pub(super) left: Option<Left>,
    /// The control socket of the process that has it in use.
    pub(super) control: Option<PathBuf>,
    pub(super) snapshots: Vec<Kept>,
}

/// A file as it was left: any write to it, by whomever, changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// A snapshot of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) name: String,
    /// Its store: relative to the origin's folder where it lies in that, or below.
    pub(super) store: PathBuf,
    /// The identity that the store's header has.
    pub(super) id: Uuid,
    /// Which snapshot it is in a store that several share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) view: Option<u16>,
    pub(super) mode: String,
    /// `P` or `PO`, as table lines have it.
    pub(super) kind: String,
    pub(super) discard_zeroes: bool,
    pub(super) discard_passdown: bool,
    /// Bytes of the snapshot: the origin's when it was taken.
    pub(super) size: u64,
    /// Up to what size the store grows by itself; `None` where it does not.
    pub(super) grow_limit: Option<u64>,
    /// Whether it is to be merged into the origin, or is being merged.
    pub(super) merging: bool,
    /// When it was taken, in RFC 3339.
    pub(super) created: String,
}

impl Left {
    /// How the file at `path` is left now; `None` for a block device, which does not say.
    pub(super) fn now(path: &Path) -> Result<Option<Self>> {
        let found = metadata(path)?;
        Ok(found.is_file().then(|| Self {
            size: found.size(),
            seconds: found.mtime(),
            nanoseconds: found.mtime_nsec(),
        }))
    }
}

impl Record {
    /// A record of an origin without snapshots.
    pub(super) fn new() -> Self {
        Self { version: VERSION, left: None, control: None, snapshots: Vec::new() }
    }

    /// Where the record of `origin` is, a path without links.
    pub(super) fn path_of(origin: &Path) -> Result<PathBuf> {
        if metadata(origin)?.file_type().is_block_device() {
            let name = origin.display().to_string().trim_start_matches('/').replace('/', "!");
            return Ok(Path::new(DEVICES).join(name + SUFFIX));
        }
        let mut path = origin.as_os_str().to_owned();
        path.push(SUFFIX);
        Ok(path.into())
    }

    /// The record of `origin`; `None` where it never had snapshots.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for what is no record; [`ErrorKind::Unsupported`] for a newer one.
    pub(super) fn read(origin: &Path) -> Result<Option<Self>> {
        let path = Self::path_of(origin)?;
        let name = || path.display().to_string();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(name(), "cannot be read", error)),
        };
        let parsed: serde_json::Result<serde_json::Value> = serde_json::from_slice(&text);
        let version = parsed.as_ref().ok().and_then(|value| value["version"].as_u64());
        if version.is_some_and(|version| version != u64::from(VERSION)) {
            return Err(Error::new(ErrorKind::Unsupported, name(), "is of a newer version")
                .advise("use the firn that wrote it"));
        }
        let record = parsed.and_then(serde_json::from_value).map_err(|error| {
            Error::new(ErrorKind::Corrupt, name(), "is no record of snapshots").because(error)
        })?;
        Ok(Some(record))
    }

    /// Puts the record in its place, durably; takes it away where there is nothing to record.
    pub(super) fn write(&self, origin: &Path) -> Result<()> {
        let path = Self::path_of(origin)?;
        let failed = |error| Error::io(path.display().to_string(), "cannot be written", error);
        if self.snapshots.is_empty() && self.control.is_none() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        if path.starts_with(DEVICES) {
            fs::create_dir_all(DEVICES).map_err(failed)?;
        }
        // Whoever writes it has the origin's lock: a part that lies there is of one who was killed.
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let _ = fs::remove_file(part);
        let text = serde_json::to_vec_pretty(self).expect("a record is plain data");
        let new = NewFile::create(&path, true)?;
        let mut file = File::create(new.path()).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        new.publish()
    }

    /// The entries whose store lies at `store`, for the origin at `origin`.
    pub(super) fn of_store(&self, origin: &Path, store: &Path) -> Vec<&Kept> {
        self.snapshots.iter().filter(|kept| kept.store_path(origin) == store).collect()
    }
}

impl Kept {
    /// Where the store is.
    pub(super) fn store_path(&self, origin: &Path) -> PathBuf {
        folder(origin).join(&self.store)
    }
}

/// How `store` is written in the record of `origin`: both may then be moved together.
pub(super) fn store_name(origin: &Path, store: &Path) -> PathBuf {
    store.strip_prefix(folder(origin)).unwrap_or(store).to_owned()
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn metadata(path: &Path) -> Result<fs::Metadata> {
    path.metadata().map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))
}

#[cfg(test)]
mod tests {
    use super::{Kept, Left, Record, store_name};
    use block_types::ErrorKind;
    use std::fs;
    use std::path::{Path, PathBuf};
    use uuid::Uuid;

    fn kept() -> Kept {
        Kept {
            name: "past".to_owned(),
            store: PathBuf::from("past.cow"),
            id: Uuid::from_bytes([7; 16]),
            view: None,
            mode: "sync".to_owned(),
            kind: "PO".to_owned(),
            discard_zeroes: false,
            discard_passdown: false,
            size: 4096,
            grow_limit: Some(8192),
            merging: false,
            created: "2026-11-21T12:00:00Z".to_owned(),
        }
    }

    #[test]
    fn comes_back_and_goes_when_it_is_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let origin = folder.path().join("disk.img");
        fs::write(&origin, [0; 4096]).expect("written");
        assert!(Record::read(&origin).expect("read").is_none());
        let mut record = Record::new();
        record.snapshots.push(kept());
        record.left = Left::now(&origin).expect("found");
        record.write(&origin).expect("written");
        record.write(&origin).expect("written again");
        assert_eq!(Record::read(&origin).expect("read"), Some(record.clone()));
        let store = folder.path().join("past.cow");
        assert_eq!(record.of_store(&origin, &store).len(), 1);
        assert_eq!(store_name(&origin, &store), Path::new("past.cow"));
        assert_eq!(store_name(&origin, Path::new("/x/past.cow")), Path::new("/x/past.cow"));
        record.snapshots.clear();
        record.write(&origin).expect("taken away");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1);
    }

    #[test]
    fn a_write_past_it_shows() {
        let folder = tempfile::tempdir().expect("a folder");
        let origin = folder.path().join("disk.img");
        fs::write(&origin, [0; 4096]).expect("written");
        let before = Left::now(&origin).expect("found");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&origin, [1; 4096]).expect("written");
        assert_ne!(Left::now(&origin).expect("found"), before);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let origin = folder.path().join("disk.img");
        fs::write(&origin, "").expect("written");
        for (text, kind) in [
            ("", ErrorKind::Corrupt),
            ("{}", ErrorKind::Corrupt),
            (r#"{"version": 2}"#, ErrorKind::Unsupported),
            (r#"{"version": 1, "snapshots": [{}]}"#, ErrorKind::Corrupt),
        ] {
            fs::write(folder.path().join("disk.img.snapshots"), text).expect("written");
            assert_eq!(Record::read(&origin).expect_err(text).kind(), kind);
        }
    }
}
