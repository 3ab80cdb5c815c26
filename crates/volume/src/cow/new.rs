//! A snapshot that is to be taken, and its store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use dm_snapshot::{
    AutoGrow, ChunkSize, GrowPolicy, Label, Mode, OnFull, SnapshotKind, SnapshotTarget, Store,
};
use uuid::Uuid;

use super::nesting::check_apart;
use crate::SnapshotName;
use crate::image::ImageLock;

/// What a new store has at first, unless something else is said; it grows.
const FIRST_SIZE: u64 = 64 << 20;
/// Percent of a store that may be used before it grows.
const THRESHOLD: u8 = 70;
/// The most by which it grows at once.
const LARGEST_STEP: u64 = 1 << 30;

/// A snapshot to take.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// The path of its store.
    pub store: PathBuf,
    /// Where the store comes from.
    pub source: StoreSource,
    /// Its name; that of the store, without what is behind the dot, if not said.
    pub name: Option<SnapshotName>,
    /// When a write to the origin goes ahead.
    pub mode: Mode,
    /// What a write to the snapshot does when the store is full.
    pub on_full: OnFull,
    /// Discards of the snapshot make chunks zero that its store has.
    pub discard_zeroes: bool,
    /// Discards of the snapshot go on to the origin.
    pub discard_passdown: bool,
    /// Up to what size the store grows by itself; what the whole origin may need, if not said.
    pub grow_limit: Option<ByteCount>,
    /// The snapshot's size, where the origin has grown since.
    pub size: Option<ByteCount>,
}

/// Where a store comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreSource {
    /// It is made: in a new file, or on a block device that begins with zeros.
    Made {
        /// The size of its chunks.
        chunk: ChunkSize,
        /// The size that the file has at first.
        size: Option<ByteCount>,
    },
    /// One that several snapshots share, in Firn's own format: that of another snapshot, or made.
    Shared {
        /// The size of its chunks.
        chunk: ChunkSize,
        /// The size that the file has at first.
        size: Option<ByteCount>,
    },
    /// It is there, made by Firn or by Linux, and goes on.
    There,
    /// It keeps its exceptions in memory, and nothing survives.
    Transient {
        /// The size of its chunks.
        chunk: ChunkSize,
        /// The size that the file has at first.
        size: Option<ByteCount>,
    },
}

/// A store that is open, and locked.
pub(super) struct OpenStore {
    pub(super) store: Store,
    pub(super) path: PathBuf,
    pub(super) lock: ImageLock,
    pub(super) file: Arc<HostFile>,
    /// Whether the file was made for it just now.
    pub(super) made: bool,
}

impl NewSnapshot {
    /// A snapshot as most are: in mode sync, with a store that is made and grows.
    pub fn new(store: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            source: StoreSource::Made { chunk: ChunkSize::DEFAULT, size: None },
            name: None,
            mode: Mode::Sync,
            on_full: OnFull::default(),
            discard_zeroes: false,
            discard_passdown: false,
            grow_limit: None,
            size: None,
        }
    }

    /// What a table line asks for, whose target is so long. Its store has to be there, unless it is
    /// transient: Linux makes one where the header is zero, which is how a wrong device is lost.
    pub fn from_target(target: &SnapshotTarget, len: ByteCount) -> Self {
        let (source, on_full) = match target.kind {
            SnapshotKind::Persistent(on_full) => (StoreSource::There, on_full),
            SnapshotKind::Transient => {
                let chunk = target.chunk.unwrap_or(ChunkSize::DEFAULT);
                (StoreSource::Transient { chunk, size: None }, OnFull::Invalidate)
            }
        };
        Self {
            source,
            on_full,
            discard_zeroes: target.discard_zeroes,
            discard_passdown: target.discard_passdown,
            size: Some(len),
            ..Self::new(device_path(&target.store))
        }
    }

    /// The name that it is to have.
    pub(super) fn chosen_name(&self) -> Result<SnapshotName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self.store.file_stem().unwrap_or_default().to_string_lossy();
        SnapshotName::parse(&stem).map_err(|error| {
            let problem = "cannot give its name to a snapshot";
            Error::new(ErrorKind::Invalid, self.store.display().to_string(), problem)
                .because(error)
                .advise("say a name of letters, digits and . _ + - with --name")
        })
    }

    /// Opens or makes the store of a snapshot of `size` bytes of `origin`.
    pub(super) fn open_store(
        &self,
        origin: &Path,
        size: ByteCount,
        cache: CacheMode,
    ) -> Result<OpenStore> {
        let (chunk, wanted) = match self.source {
            StoreSource::Made { chunk, size }
            | StoreSource::Shared { chunk, size }
            | StoreSource::Transient { chunk, size } => (chunk, size),
            StoreSource::There => return open_store(origin, &self.store, cache, false),
        };
        let most = Store::size_for(size, chunk);
        let first = wanted.unwrap_or(most.min(ByteCount::new(FIRST_SIZE)));
        let made = !self.store.exists();
        if made {
            let first = ByteCount::new(first.get().next_multiple_of(chunk.bytes().get().max(4096)));
            let file = HostFile::create(&self.store, first, CacheMode::Cached)?;
            let prepared = file
                .provision(ByteRange::new(ByteOffset::ZERO, first))
                .and_then(|()| self.make_on(origin, chunk, cache));
            if prepared.is_err() {
                // It was ours a moment ago, and is of no use to anybody.
                let _ = std::fs::remove_file(&self.store);
            }
            return prepared.map(|opened| OpenStore { made, ..opened });
        }
        self.make_on(origin, chunk, cache)
    }

    /// Makes the store in the file that is there.
    fn make_on(&self, origin: &Path, chunk: ChunkSize, cache: CacheMode) -> Result<OpenStore> {
        let (path, lock, file) = open_file(origin, &self.store, cache, false)?;
        let device = Arc::clone(&file) as Arc<dyn BlockDevice>;
        let store = match self.source {
            StoreSource::Transient { .. } => Store::transient(device, chunk)?,
            StoreSource::Shared { .. } => Store::create_shared(device, chunk)?,
            StoreSource::Made { .. } | StoreSource::There => Store::create(device, chunk)?,
        };
        Ok(OpenStore { store, path, lock, file, made: false })
    }
}

/// The path of a device as table lines name it: a path, or `major:minor`.
pub fn device_path(name: &str) -> PathBuf {
    let numbers = name.split_once(':').filter(|(major, minor)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits(major) && digits(minor)
    });
    match numbers {
        Some(_) => Path::new("/dev/block").join(name),
        None => PathBuf::from(name),
    }
}

/// Opens the store that is at `path`.
pub(super) fn open_store(
    origin: &Path,
    path: &Path,
    cache: CacheMode,
    read_only: bool,
) -> Result<OpenStore> {
    let (path, lock, file) = open_file(origin, path, cache, read_only)?;
    let store = Store::open(Arc::clone(&file) as Arc<dyn BlockDevice>)?;
    Ok(OpenStore { store, path, lock, file, made: false })
}

fn open_file(
    origin: &Path,
    path: &Path,
    cache: CacheMode,
    read_only: bool,
) -> Result<(PathBuf, ImageLock, Arc<HostFile>)> {
    let path = path
        .canonicalize()
        .map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))?;
    check_apart(origin, &path)?;
    let lock = ImageLock::take(&path, read_only)?;
    let file = HostFile::open(&path, FileOptions { cache, read_only })?;
    Ok((path, lock, Arc::new(file)))
}

impl OpenStore {
    /// The identity that its header has, or has from now on.
    pub(super) fn identify(&mut self, origin: &Path) -> Result<Uuid> {
        use std::os::unix::ffi::OsStrExt;
        let origin = origin.as_os_str().as_bytes();
        let known = self.store.label().map(|label| label.id);
        let id = known.map_or_else(Uuid::new_v4, Uuid::from_bytes);
        let label = Label::new(id.into_bytes(), origin);
        if self.store.is_persistent() && self.store.label() != Some(&label) {
            self.store.set_label(label)?;
        }
        Ok(id)
    }

    /// How it grows, up to `limit`; not at all on a block device.
    pub(super) fn policy(&self, limit: Option<ByteCount>) -> Option<Arc<dyn GrowPolicy>> {
        let limit = limit?;
        let step = (self.file.size().get() / 4).clamp(FIRST_SIZE, LARGEST_STEP);
        let step = ByteCount::new(step.next_multiple_of(self.store.chunk_size().bytes().get()));
        Some(Arc::new(AutoGrow { threshold: THRESHOLD, step, limit }))
    }

    /// Up to what size it grows unless something else is said.
    pub(super) fn limit(&self, said: Option<ByteCount>, origin: ByteCount) -> Option<ByteCount> {
        if !self.file.is_regular() {
            return None;
        }
        Some(said.unwrap_or_else(|| Store::size_for(origin, self.store.chunk_size())))
    }
}
