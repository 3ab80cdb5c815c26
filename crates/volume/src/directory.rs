//! The pool directory: volumes and snapshots by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, Error, ErrorKind, Result};
use dm_thin::{DataBlock, Pool, Trimmed};
use parking_lot::Mutex;

use crate::activate::Claim;
use crate::create::{self, CreateOptions, Files};
use crate::lock::PoolLock;
use crate::origin::Origins;
use crate::{CheckReport, Names, NamesLog, NodeName, PoolReport, Settings};

/// How a pool directory is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// For reading only, beside others who do the same.
    pub read_only: bool,
    /// Whether data goes through the page cache.
    pub cache: CacheMode,
    /// Who opens it: others are told this name.
    pub holder: String,
}

/// What a pool lies on.
pub struct PoolDevices {
    /// Metadata in dm-thin's format.
    pub metadata: Arc<dyn BlockDevice>,
    /// Data blocks.
    pub data: Arc<dyn BlockDevice>,
    /// The log of names; a pool without one opens, too, its devices unnamed.
    pub names: Option<Arc<dyn BlockDevice>>,
}

/// An open pool directory, locked.
pub struct PoolDirectory {
    pub(crate) path: PathBuf,
    pub(crate) pool: Arc<Pool>,
    pub(crate) read_only: bool,
    /// One change of devices and names at a time: between a record and its commit nothing else may
    /// move the transaction id.
    pub(crate) names: Mutex<State>,
    /// What volumes stand on.
    pub(crate) origins: Origins,
    /// Counts rollbacks: whoever hydrates a volume begins again after one.
    pub(crate) rollbacks: AtomicU64,
    pub(crate) settings: Mutex<Settings>,
    _claim: Option<Claim>,
    lock: Option<PoolLock>,
}

pub(crate) struct State {
    pub(crate) table: Names,
    /// `None` for a pool that has no log of names and is open for reading only.
    pub(crate) log: Option<NamesLog>,
}

impl PoolDirectory {
    /// Makes `dir` with an empty pool in it.
    ///
    /// # Errors
    /// `Exists` where there is something already, `Invalid` for sizes that the format cannot have.
    pub fn create(dir: &Path, options: &CreateOptions) -> Result<()> {
        create::create(dir, options)
    }

    /// Opens the pool in `dir`. What a crash left unfinished is settled.
    ///
    /// # Errors
    /// `NotFound` where there is no pool; `Busy` with name and process of who has it open; as
    /// [`Pool::open`] for what is wrong with its files.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Arc<Self>> {
        Self::open_with(dir, options, false)
    }

    /// Opens it likewise, for others to use: a write that finds no space may wait for it, since
    /// somebody else can provide it.
    ///
    /// # Errors
    /// As [`PoolDirectory::open`].
    pub fn open_for_others(dir: &Path, options: &OpenOptions) -> Result<Arc<Self>> {
        Self::open_with(dir, options, true)
    }

    fn open_with(dir: &Path, options: &OpenOptions, waits: bool) -> Result<Arc<Self>> {
        let files = Files::of(dir);
        if !files.metadata.exists() || !files.data.exists() {
            return Err(no_pool(dir));
        }
        let lock = PoolLock::take(dir, &options.holder, options.read_only)?;
        let open = |path: &Path, cache| {
            let file = FileOptions { cache, read_only: options.read_only };
            HostFile::open(path, file).map(|file| Arc::new(file) as Arc<dyn BlockDevice>)
        };
        let claim = Claim::take(&files, options.read_only)?;
        let settings = Settings::load(dir)?;
        let devices = PoolDevices {
            metadata: open(&files.metadata, CacheMode::Cached)?,
            data: open(&files.data, options.cache)?,
            names: match files.names.exists() {
                true => Some(open(&files.names, CacheMode::Cached)?),
                // Made by somebody else: names come with the first volume.
                false if options.read_only => None,
                false => Some(new_names(&files.names)?),
            },
        };
        let pool_options = dm_thin::OpenOptions {
            read_only: options.read_only,
            settings: settings.of_pool(),
            // A policy provides space, too.
            waits: waits || settings.autogrow.is_some(),
            ..Default::default()
        };
        Self::assemble(dir, devices, pool_options, (settings, Some((lock, claim))))
    }

    /// Opens the pool that lies on `devices`, which nobody else may touch. It is called `name`.
    ///
    /// # Errors
    /// As [`PoolDirectory::open`].
    pub fn open_devices(
        name: &Path,
        devices: PoolDevices,
        options: dm_thin::OpenOptions,
    ) -> Result<Arc<Self>> {
        Self::assemble(name, devices, options, (Settings::default(), None))
    }

    fn assemble(
        path: &Path,
        devices: PoolDevices,
        options: dm_thin::OpenOptions,
        (settings, held): (Settings, Option<(PoolLock, Claim)>),
    ) -> Result<Arc<Self>> {
        let name = path.display().to_string();
        let pool = Pool::open(&name, devices.metadata, devices.data, options)?;
        // What is read-only by its settings may be told otherwise.
        let chosen = options.settings.features.read_only && !options.read_only;
        let read_only = pool.status().read_only.is_some() && !chosen;
        let state = State::open(&pool, devices.names, &name)?;
        let (lock, claim) = held.unzip();
        let origins = Origins::default();
        if !read_only {
            origins.keep(state.table.over_origins().map(|(_, entry)| entry.origin));
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            pool,
            read_only,
            names: Mutex::new(state),
            origins,
            rollbacks: AtomicU64::new(0),
            settings: Mutex::new(settings),
            _claim: claim,
            lock,
        }))
    }

    /// Commits everything and takes no more requests, from devices that are still open neither.
    pub fn close(&self) -> Result<()> {
        self.pool.close()
    }

    /// Checks that the pool's files are ours to change, in whatever mode the pool is.
    pub(crate) fn check_own(&self) -> Result<()> {
        match &self.lock {
            Some(lock) if lock.is_shared() => {
                let problem = "is open for reading only";
                Err(Error::new(ErrorKind::ReadOnly, self.path.display().to_string(), problem))
            }
            _ => Ok(()),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How full the pool is, and in what state.
    pub fn status(&self) -> PoolReport {
        let status = self.pool.status();
        let names = self.names.lock();
        let volumes = names.table.volumes();
        let block = status.block_size.get();
        PoolReport {
            path: self.path.display().to_string(),
            size: status.data_total * block,
            block_size: block,
            data_used: status.data_used * block,
            reclaiming: status.reclaiming.saturating_mul(block),
            metadata_used: status.metadata_used * 4096,
            metadata_size: status.metadata_total * 4096,
            transaction: status.transaction,
            volumes: volumes.len() as u64,
            snapshots: volumes.values().map(|entry| entry.snapshots.len() as u64).sum(),
            mode: status.mode.name().into(),
            reason: status.read_only.filter(|_| status.degraded),
            needs_check: status.needs_check,
        }
    }

    /// Makes the pool larger.
    ///
    /// # Errors
    /// `Invalid` where `size` is less than it is.
    pub fn grow(&self, size: ByteCount) -> Result<PoolReport> {
        let block = self.pool.status().block_size;
        let size = ByteCount::new(size.div_ceil(block).saturating_mul(block.get()));
        self.pool.grow_data(size)?;
        Ok(self.status())
    }

    /// Checks the metadata as a commit leaves it; nobody waits for it.
    pub fn check(&self) -> Result<CheckReport> {
        self.pool.check().map(report)
    }

    /// Checks the pool in `dir`, which nobody has open for writing, without changing anything.
    ///
    /// # Errors
    /// As [`PoolDirectory::open`].
    pub fn check_path(dir: &Path) -> Result<CheckReport> {
        let files = Files::of(dir);
        if !files.metadata.exists() {
            return Err(no_pool(dir));
        }
        let _lock = PoolLock::take(dir, "firn pool check", true)?;
        let options = FileOptions { cache: CacheMode::Cached, read_only: true };
        let metadata = HostFile::open(&files.metadata, options)?;
        dm_thin::check(Arc::new(metadata)).map(report)
    }

    /// Gives back the space of the next run of free blocks from `from` on, or a part of it; `None`
    /// where there is none.
    ///
    /// # Errors
    /// As [`Pool::trim_step`].
    pub fn trim_step(&self, from: DataBlock) -> Result<Option<Trimmed>> {
        self.pool.trim_step(from)
    }

    /// Waits until the space of everything that was deleted is given back, which else happens in
    /// the background, and goes on when the pool is opened again.
    ///
    /// # Errors
    /// As [`Pool::reclaim`].
    pub fn reclaim(&self) -> Result<()> {
        self.pool.reclaim()
    }

    /// Opens a volume or a snapshot; snapshots are never writable. It is closed when the last
    /// handle is dropped.
    pub fn open_node(&self, node: &NodeName, read_only: bool) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(self.open_thin(node, read_only)?))
    }
}

impl State {
    fn open(pool: &Pool, names: Option<Arc<dyn BlockDevice>>, pool_name: &str) -> Result<Self> {
        let Some(names) = names else {
            return Ok(Self { table: Names::default(), log: None });
        };
        let (log, records) = NamesLog::open(names, pool.transaction())?;
        let mut table = Names::replay(&records)?;
        let alive: std::collections::HashMap<u32, u64> =
            pool.devices().into_iter().map(|(id, state)| (id.get(), state.transaction)).collect();
        let dead = table.forget_dead(|id, born| alive.get(&id) == Some(&born));
        if !dead.is_empty() {
            tracing::warn!(
                pool = pool_name,
                "devices were deleted by somebody else; forgotten: {}",
                dead.join(", ")
            );
        }
        Ok(Self { table, log: Some(log) })
    }
}

/// An empty log of names in a new file.
fn new_names(path: &Path) -> Result<Arc<dyn BlockDevice>> {
    let names: Arc<dyn BlockDevice> =
        Arc::new(HostFile::create(path, ByteCount::ZERO, CacheMode::Cached)?);
    NamesLog::format(Arc::clone(&names))?;
    Ok(names)
}

fn no_pool(dir: &Path) -> Error {
    let problem = if dir.is_dir() { "is no pool directory" } else { "there is no such directory" };
    Error::new(ErrorKind::NotFound, dir.display().to_string(), problem)
        .advise("make a pool with 'firn pool create'")
}

fn report(found: dm_thin::CheckReport) -> CheckReport {
    CheckReport { errors: found.errors, leaks: found.leaks, checked_blocks: found.blocks }
}
