//! A repository that is open: scanned, settled, and ready for changes and merges.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use disk_image::vhd::BlockSize;
use parking_lot::{Condvar, Mutex, MutexGuard};
use volume::{NodeName, PoolLock, VolumeName};

use crate::NodeId;
use crate::disk::Disk;
use crate::folder::{Folder, HostFolder};
use crate::log::{LOG, Log, NEXT_LOG};
use crate::point::{Point, Probe};
use crate::record::Record;
use crate::state::State;
use crate::tree::Tree;

/// How to open a repository.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Change nothing, not even what a crash has left.
    pub read_only: bool,
    /// Who opens it, for others that find it in use.
    pub holder: String,
    /// For tests.
    pub probe: Probe,
    /// The block size of new disks; all but the usual one are for tests.
    pub block_size: Option<BlockSize>,
}

impl OpenOptions {
    /// For changes by `holder`.
    pub fn new(holder: impl Into<String>) -> Self {
        Self { read_only: false, holder: holder.into(), probe: Probe::default(), block_size: None }
    }
}

/// A repository, open under its lock.
pub struct Repository {
    pub(crate) folder: Arc<dyn Folder>,
    pub(crate) probe: Probe,
    state: Mutex<State>,
    /// A merge has ended, or a disk was given back.
    pub(crate) changed: Condvar,
    /// Whether there may be something to collect.
    pub(crate) work: Mutex<bool>,
    pub(crate) wake: Condvar,
    stopping: AtomicBool,
    _lock: Option<PoolLock>,
}

impl Repository {
    /// Makes a repository of the directory `path`, which is made if it is not there. Images that
    /// are in it become its nodes when it is opened.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where there is a repository or a pool already; those of the system.
    pub fn create(path: &Path) -> Result<()> {
        let name = || path.display().to_string();
        match std::fs::create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(name(), "cannot make the directory", error)),
        }
        if path.join("metadata").exists() {
            return Err(Error::new(ErrorKind::Exists, name(), "is a pool")
                .advise("name another directory for the repository"));
        }
        if path.join(LOG).exists() {
            return Err(Error::new(ErrorKind::Exists, name(), "is a repository already")
                .advise("'firn repo tree' shows what is in it"));
        }
        let _lock = PoolLock::take(path, "firn repo create", false)?;
        Log::create(&HostFolder::new(path)).map(|_| ())
    }

    /// Whether the directory `path` is a repository.
    pub fn is_at(path: &Path) -> bool {
        path.join(LOG).is_file() && !path.join("metadata").exists()
    }

    /// Opens the repository in the directory `path`: reads what every file says of itself, and
    /// finishes what a crash has cut short.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with who has it open; [`ErrorKind::NotFound`] where there is none; those
    /// of the log.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Self>> {
        if !Self::is_at(path) {
            let problem = "is no repository";
            return Err(Error::new(ErrorKind::NotFound, path.display().to_string(), problem)
                .advise("make it one with 'firn repo create'"));
        }
        let lock = PoolLock::take(path, &options.holder, options.read_only)?;
        Self::open_in(Arc::new(HostFolder::new(path)), options, Some(lock))
    }

    /// Makes a repository in `folder`.
    ///
    /// # Errors
    /// Those of the folder.
    pub fn create_in(folder: &dyn Folder) -> Result<()> {
        Log::create(folder).map(|_| ())
    }

    /// Opens the repository in `folder`, perhaps under a lock.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_in(
        folder: Arc<dyn Folder>,
        options: &OpenOptions,
        lock: Option<PoolLock>,
    ) -> Result<Arc<Self>> {
        let (log, catalogue) = Log::open(&*folder, options.read_only)?;
        let tree = Tree::scan(&*folder)?;
        let probe = options.probe.clone();
        let log = (!options.read_only).then_some(log);
        let mut state = State::new(Arc::clone(&folder), probe.clone(), log, catalogue, tree);
        state.block_size = options.block_size;
        if !options.read_only {
            state.settle()?;
        }
        Ok(Arc::new(Self {
            folder,
            probe,
            state: Mutex::new(state),
            changed: Condvar::new(),
            work: Mutex::new(true),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            _lock: lock,
        }))
    }

    /// Reads the directory anew: what others have put there becomes nodes.
    ///
    /// # Errors
    /// Those of the directory.
    pub fn scan(&self) -> Result<()> {
        let mut state = self.lock();
        while !state.merges.is_empty() {
            // Their nodes are about to change.
            self.changed.wait(&mut state);
        }
        state.tree = Tree::scan(&*self.folder)?;
        state.put_off.clear();
        if state.log.is_some() {
            state.settle()?;
        }
        drop(state);
        self.kick();
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// There may be something to collect.
    pub(crate) fn kick(&self) {
        *self.work.lock() = true;
        self.wake.notify_all();
    }

    /// Whether the repository is being closed.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Opens a disk: for writing where it is a volume without children, unless `read_only` says
    /// otherwise. All who open it get the same one, until it is given back.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for one whose chain is broken.
    pub fn open_disk(&self, name: &NodeName, read_only: bool) -> Result<Arc<Disk>> {
        let mut state = self.lock();
        if let Some(disk) = state.disks.get(name) {
            return Ok(Arc::clone(disk));
        }
        let id = state.node_of(name)?;
        state.check_whole(&id)?;
        let leaf = state.tree.children(&id).is_empty();
        let read_only = read_only || !leaf || name.snapshot.is_some() || state.log.is_none();
        if !read_only {
            // A merge that does not know of the guest must not go on; it is begun again at once.
            self.end_merges(&mut state, &id);
        }
        let chain = state.tree.chain(&id);
        let top = if read_only { state.layer(&id)? } else { state.writer(&id)? };
        let below = state.chain(&chain[1..], top.size())?;
        let disk = Arc::new(Disk::new(name.to_string(), top, below, read_only)?);
        state.disks.insert(name.clone(), Arc::clone(&disk));
        drop(state);
        self.kick();
        Ok(disk)
    }

    /// Closes the disks that nobody uses any more.
    ///
    /// # Errors
    /// The first failure to close one; all are closed.
    pub fn close_idle(&self) -> Result<()> {
        self.close_disks(&mut self.lock(), |disk| Arc::strong_count(disk) == 1)
    }

    /// Closes those disks that `which` says.
    fn close_disks(&self, state: &mut State, which: impl Fn(&Arc<Disk>) -> bool) -> Result<()> {
        let idle: Vec<_> =
            state.disks.iter().filter(|(_, disk)| which(disk)).map(|(n, _)| n.clone()).collect();
        let mut first = Ok(());
        for name in idle {
            let Some(disk) = state.disks.remove(&name) else { continue };
            let top = Arc::clone(&disk.view().top);
            if !disk.is_read_only() {
                let closed = top.image.close();
                state.forget_layer(&top.id);
                first = first.and(closed);
            }
        }
        first
    }

    /// Whether somebody uses the disk `name`.
    pub(crate) fn is_used(state: &State, name: &NodeName) -> bool {
        state.disks.get(name).is_some_and(|disk| Arc::strong_count(disk) > 1)
    }

    /// Ends the merges that `id` takes part in, and waits for that.
    pub(crate) fn end_merges(&self, state: &mut MutexGuard<'_, State>, id: &NodeId) {
        loop {
            let theirs = state.merges.iter().filter(|merge| merge.nodes.contains(id));
            let cancelled = theirs.map(|merge| merge.progress.end()).count();
            if cancelled == 0 {
                return;
            }
            self.changed.wait(state);
        }
    }

    /// Ends all merges, closes all disks, and gives the lock back.
    ///
    /// # Errors
    /// The first failure to close a disk.
    pub fn close(&self) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        let mut state = self.lock();
        while !state.merges.is_empty() {
            state.merges.iter().for_each(|merge| merge.progress.end());
            self.changed.wait_for(&mut state, Duration::from_millis(100));
        }
        let closed = self.close_disks(&mut state, |_| true);
        if state.log.as_ref().is_some_and(Log::is_long) {
            self.probe.reach(Point::LogNext);
            let log = Log::compact(&*self.folder, &state.catalogue)?;
            self.probe.reach(Point::LogReplaced);
            state.log = Some(log);
        }
        state.log = None;
        closed
    }
}

impl State {
    /// Carries forward whatever a crash has left, and takes in what others have put there.
    fn settle(&mut self) -> Result<()> {
        if self.folder.list()?.iter().any(|file| file == NEXT_LOG) {
            self.folder.remove(NEXT_LOG)?;
            self.folder.sync()?;
        }
        self.adopt()?;
        self.finish_relinks()?;
        // What was merged down into a leaf must not look like its child.
        self.remove_garbage(false)?;
        let ids: Vec<NodeId> = self.tree.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            // Garbage goes anyway; a foreign node that is hidden stays as it is.
            let wanted = self.catalogue.own.contains(&id) && self.tree.fault(&id).is_none();
            let inner = !self.tree.children(&id).is_empty();
            if !wanted || !(inner || self.catalogue.name_of(&id).is_some()) {
                continue;
            }
            match self.settle_flag(&id) {
                Ok(()) => self.probe.reach(Point::SettleFlagged),
                Err(error) => tracing::warn!(%error, node = %id, "its hidden flag stays as it is"),
            }
        }
        Ok(())
    }

    /// Names what others have put there: by its file's name.
    fn adopt(&mut self) -> Result<()> {
        let foreign = self.tree.iter().filter(|(id, node)| {
            let visible = node.head.as_ref().is_some_and(|head| !head.hidden);
            visible && !self.catalogue.own.contains(*id)
        });
        let foreign: Vec<NodeId> = foreign.map(|(id, _)| id.clone()).collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let mut record = Record::default();
        for id in foreign {
            let name = self.free_name(id.stem(), &record)?;
            record = record.naming(&name, &id, now());
        }
        self.record(&record)?;
        self.probe.reach(Point::SettleAdopted);
        Ok(())
    }

    /// A name like `wanted` that nobody has.
    fn free_name(&self, wanted: &str, record: &Record) -> Result<NodeName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        let clean: String = wanted.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        let clean = clean.trim_start_matches(['.', '-']);
        let base = if clean.is_empty() { "disk" } else { &clean[..clean.len().min(100)] };
        let mut number = 1;
        loop {
            let text = if number == 1 { base.to_owned() } else { format!("{base}-{number}") };
            let name = NodeName { volume: VolumeName::parse(&text)?, snapshot: None };
            let taken = self.catalogue.names.contains_key(&name);
            if !taken && !record.names.contains_key(&text) {
                return Ok(name);
            }
            number += 1;
        }
    }

    /// Gives the children of nodes that were absorbed the parent that holds all.
    fn finish_relinks(&mut self) -> Result<()> {
        for (from, into) in self.catalogue.absorbed.clone() {
            if !self.tree.contains(&from) || !self.tree.contains(&into) {
                continue;
            }
            for child in self.tree.children(&from) {
                // A node that was merged itself goes; it needs no other parent.
                if self.catalogue.absorbed.contains_key(&child) {
                    continue;
                }
                self.relink(&child, &into)?;
                self.probe.reach(Point::SettleRelinked);
            }
        }
        Ok(())
    }
}

/// This moment, in RFC 3339.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

impl Drop for Repository {
    fn drop(&mut self) {
        // Whoever did not close it is told by the next scan what was not finished.
        self.stopping.store(true, Ordering::SeqCst);
    }
}
