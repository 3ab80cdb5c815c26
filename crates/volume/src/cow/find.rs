//! From a path to the origin and the snapshot that it means.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{Error, ErrorKind, Result};
use dm_snapshot::{Label, Store};

use super::record::Record;
use crate::image::ImageLock;

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CowPlace {
    /// The origin, a path without links.
    pub origin: PathBuf,
    /// The names of the snapshots whose store the path is; none where it is the origin's.
    pub snapshots: Vec<String>,
    /// The control socket of the process that was last known to have the origin open.
    pub control: Option<PathBuf>,
}

/// What `path` means: an origin with snapshots, or the store of one. A store leads to its origin by
/// the records beside it, and by its label; `origin` is looked at first where it is said.
///
/// # Errors
/// [`ErrorKind::NotFound`] for what is neither.
pub fn find_snapshots(path: &Path, origin: Option<&Path>) -> Result<CowPlace> {
    let path = &whole(path)?;
    if let Some(origin) = origin {
        let origin = whole(origin)?;
        let record = Record::read(&origin)?;
        return record.and_then(|record| place_in(&record, &origin, path)).ok_or_else(|| {
            let problem = format!("is not a store of {}", origin.display());
            Error::new(ErrorKind::NotFound, path.display().to_string(), problem)
        });
    }
    if path.exists()
        && let Some(record) = Record::read(path)?
    {
        let control = record.control;
        return Ok(CowPlace { origin: path.clone(), snapshots: Vec::new(), control });
    }
    for origin in candidates(path) {
        // What one of them has that cannot be read is no reason not to look at the others.
        let record = Record::read(&origin).ok().flatten();
        if let Some(place) = record.and_then(|record| place_in(&record, &origin, path)) {
            return Ok(place);
        }
    }
    let problem = "is neither an origin with snapshots nor the store of one";
    Err(Error::new(ErrorKind::NotFound, path.display().to_string(), problem)
        .advise("take a snapshot with 'firn cow create', or name the store's origin by --origin"))
}

/// The path without links, also of what is not there.
fn whole(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io(path.display().to_string(), "has no absolute path", error);
    path.canonicalize().or_else(|_| std::path::absolute(path)).map_err(failed)
}

/// The snapshot of `record` whose store is at `path`, or is the same by its label.
fn place_in(record: &Record, origin: &Path, path: &Path) -> Option<CowPlace> {
    let mut kept = record.of_store(origin, path);
    if kept.is_empty() {
        let id = label(path)?.id;
        kept.extend(record.snapshots.iter().filter(|kept| kept.id.into_bytes() == id));
    }
    if kept.is_empty() {
        return None;
    }
    let snapshots = kept.into_iter().map(|kept| kept.name.clone()).collect();
    Some(CowPlace { origin: origin.to_owned(), snapshots, control: record.control.clone() })
}

/// The origins that the store at `path` may have: those with records beside it, and that of its
/// label.
fn candidates(path: &Path) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let origin = |file: PathBuf| {
        let name = file.file_name()?.as_bytes().strip_suffix(b".snapshots")?;
        Some(folder.join(OsStr::from_bytes(name))).filter(|origin| origin.exists())
    };
    let mut found: Vec<_> = beside.filter_map(|entry| origin(entry.path())).collect();
    let labelled = label(path).filter(|label| !label.origin.is_empty());
    found.extend(labelled.map(|label| PathBuf::from(OsStr::from_bytes(&label.origin))));
    found.retain(|origin| origin.exists());
    found
}

/// The label of the store at `path`, if it is one and has one.
pub(super) fn label(path: &Path) -> Option<Label> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    let file: Arc<dyn BlockDevice> = Arc::new(HostFile::open(path, options).ok()?);
    Store::label_of(&*file).ok().flatten()
}

/// Whether the file at `origin` has snapshots that were recorded.
pub fn has_snapshots(origin: &Path) -> bool {
    let whole = origin.canonicalize().ok();
    whole.is_some_and(|origin| !matches!(Record::read(&origin), Ok(None)))
}

/// Gives up a snapshot of an origin that nobody has open: its store is marked invalid, if it is
/// there, and taken away unless it is to be kept.
///
/// # Errors
/// [`ErrorKind::Busy`] where somebody has the origin open; [`ErrorKind::Unsupported`] where others
/// share its store; what the system says.
pub fn forget_snapshot(origin: &Path, name: &str, keep: bool) -> Result<()> {
    let _lock = ImageLock::take(origin, false)?;
    let mut record = Record::read(origin)?.unwrap_or_else(Record::new);
    let position = record.snapshots.iter().position(|kept| kept.name == name);
    let Some(position) = position else { return Err(no_snapshot(origin, name)) };
    if record.snapshots[position].merging {
        return Err(being_merged(origin, name));
    }
    let kept = record.snapshots.remove(position);
    let path = kept.store_path(origin);
    if kept.view.is_some() && path.exists() {
        let problem = format!("has to be open for {name} to be dropped, which shares its store");
        return Err(Error::new(ErrorKind::Unsupported, origin.display().to_string(), problem));
    }
    if path.exists() {
        let _lock = ImageLock::take(&path, false)?;
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        let file: Arc<dyn BlockDevice> = Arc::new(HostFile::open(&path, options)?);
        // Only what is its own: anything else at that place is not touched.
        if Store::label_of(&*file)?.is_some_and(|label| label.id == kept.id.into_bytes()) {
            Store::invalidate(&*file)?;
            if !keep {
                remove_file(&path)?;
            }
        }
    }
    record.control = None;
    record.write(origin)
}

/// Takes the file of a store away; a block device stays.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    std::fs::remove_file(path)
        .map_err(|error| Error::io(path.display().to_string(), "cannot be removed", error))
}

/// Refuses to open `path` as a plain file where it is an origin with snapshots: a write past them
/// would ruin them, and while one is merged not even a read finds the whole content.
///
/// # Errors
/// [`ErrorKind::Busy`].
pub(crate) fn check_plain(path: &Path, read_only: bool) -> Result<()> {
    let Ok(path) = path.canonicalize() else { return Ok(()) };
    let Some(record) = Record::read(&path)? else { return Ok(()) };
    let name = || path.display().to_string();
    if let Some(kept) = record.snapshots.iter().find(|kept| kept.merging) {
        return Err(being_merged(&path, &kept.name));
    }
    if read_only || record.snapshots.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = record.snapshots.iter().map(|kept| kept.name.as_str()).collect();
    let problem = format!("has snapshots that a write past them would ruin: {}", names.join(", "));
    Err(Error::new(ErrorKind::Busy, name(), problem)
        .advise("write to it through 'firn serve', or drop them with 'firn cow drop'"))
}

pub(super) fn no_snapshot(origin: &Path, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, origin.display().to_string(), format!("has no snapshot {name}"))
        .advise("'firn cow status' shows what there is")
}

pub(super) fn being_merged(origin: &Path, name: &str) -> Error {
    let problem = format!("the snapshot {name} is being merged into it");
    Error::new(ErrorKind::Busy, origin.display().to_string(), problem)
        .advise("finish that with 'firn cow merge', or serve it with 'firn serve'")
}
