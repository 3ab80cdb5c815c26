//! An origin that is open with all its snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, Error, ErrorKind, Result};
use dm_snapshot::{Origin, OriginOptions};
use parking_lot::Mutex;
use uuid::Uuid;

use super::attach::{
    attach, attach_depot, attach_kept, check_left, depot_at, drop_unknown, relocate, shared_live,
};
use super::find::{being_merged, no_snapshot, remove_file};
use super::live::{Depot, Live};
use super::new::OpenStore;
use super::record::{Kept, Left, Record, store_name};
use super::{CowMerge, CowReport, NewSnapshot, OriginReport};
use crate::image::ImageLock;

/// How an origin is opened.
#[derive(Clone, Debug, Default)]
pub struct CowOptions {
    /// Refuse every write, to the origin and to its snapshots.
    pub read_only: bool,
    /// Through the page cache or not.
    pub cache: CacheMode,
    /// Take the origin as it is, though somebody wrote to it past its snapshots.
    pub trust: bool,
    /// Where this process can be reached while it has the origin open.
    pub control: Option<PathBuf>,
    /// Stores that may have moved: one that is no longer where the record has it is looked for
    /// among these.
    pub stores: Vec<PathBuf>,
}

/// An origin, open with every store of its record, under their locks.
///
/// It is to be [closed](CowOrigin::close): one that is dropped is as after a crash, which loses
/// snapshots of mode async.
pub struct CowOrigin {
    path: PathBuf,
    origin: Arc<Origin>,
    options: CowOptions,
    /// Held while the set of snapshots changes.
    state: Mutex<State>,
    _lock: ImageLock,
}

struct State {
    record: Record,
    live: Vec<Live>,
    closed: bool,
}

impl CowOrigin {
    /// Opens the origin at `path`, which may have no snapshots yet, and all that it has.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where another process has it open; [`ErrorKind::Stopped`] where somebody
    /// wrote to it past its snapshots; [`ErrorKind::NotFound`] and [`ErrorKind::Denied`] where a
    /// store is missing, or is another one.
    pub fn open(path: &Path, options: CowOptions) -> Result<Arc<Self>> {
        let path = path
            .canonicalize()
            .map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))?;
        let lock = ImageLock::take(&path, options.read_only)?;
        let mut record = Record::read(&path)?.unwrap_or_else(Record::new);
        check_left(&path, &record, options.trust)?;
        let file = FileOptions { cache: options.cache, read_only: options.read_only };
        let base: Arc<dyn BlockDevice> = Arc::new(HostFile::open(&path, file)?);
        let origin = Origin::open(base, OriginOptions::default())?;
        let mut live = Vec::new();
        relocate(&path, &mut record, &options.stores)?;
        for kept in &record.snapshots {
            let one = attach_kept(&path, &origin, kept, &live, &options)?;
            live.push(one);
        }
        drop_unknown(&live, &options)?;
        if !options.read_only {
            // Before the first write: from here on nobody can say how it was left.
            record.left = None;
            record.control.clone_from(&options.control);
            record.write(&path)?;
        }
        let merging = record.snapshots.iter().position(|kept| kept.merging);
        if let Some(number) = merging.filter(|_| !options.read_only) {
            live[number].merge = Some(Arc::new(origin.merge(&live[number].snapshot)?));
        }
        let state = Mutex::new(State { record, live, closed: false });
        Ok(Arc::new(Self { path, origin: Arc::new(origin), options, state, _lock: lock }))
    }

    /// Its path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The origin as a device.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.origin) as Arc<dyn BlockDevice>
    }

    /// Its snapshots as devices, by name, the oldest first.
    pub fn snapshots(&self) -> Vec<(String, Arc<dyn BlockDevice>)> {
        let state = self.state.lock();
        let unmerged = state.live.iter().filter(|live| live.merge.is_none());
        unmerged.map(|live| (live.facts.name.clone(), live.device())).collect()
    }

    /// The name of the snapshot whose store is at `path`.
    pub fn snapshot_of(&self, path: &Path) -> Option<String> {
        let path = path.canonicalize().ok()?;
        let state = self.state.lock();
        state.live.iter().find(|live| live.path == path).map(|live| live.facts.name.clone())
    }

    /// What there is to tell of it.
    pub fn report(&self) -> OriginReport {
        OriginReport {
            origin: self.path.display().to_string(),
            size: self.origin.size().get(),
            served_by: None,
            snapshots: self.reports(),
        }
    }

    fn reports(&self) -> Vec<CowReport> {
        let state = self.state.lock();
        let half = |name: &str| {
            state.record.snapshots.iter().any(|kept| kept.merging && kept.name == name)
        };
        state.live.iter().map(|live| live.report(half(&live.facts.name))).collect()
    }

    /// Takes a snapshot of the origin as it is now, or goes on with one whose store is there.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where name or store are taken; those of the store.
    pub fn create(&self, new: &NewSnapshot) -> Result<CowReport> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        let name = new.chosen_name()?.to_string();
        if state.live.iter().any(|live| live.facts.name == name) {
            let problem = format!("has a snapshot {name} already");
            return Err(Error::new(ErrorKind::Exists, self.path.display().to_string(), problem)
                .advise("say another name with --name"));
        }
        if let Some(merging) = state.live.iter().find(|live| live.merge.is_some()) {
            return Err(being_merged(&self.path, &merging.facts.name));
        }
        let size = new.size.unwrap_or_else(|| self.origin.size());
        if let Some(depot) = depot_at(&state.live, &new.store) {
            return self.take_shared(&mut state, new, &name, &depot);
        }
        let opened = new.open_store(&self.path, size, self.options.cache)?;
        let (store, made) = (opened.path.clone(), opened.made);
        let taken = self.take(&mut state, new, &name, size, opened);
        if taken.is_err() && made {
            // It was ours a moment ago, and is of no use to anybody.
            let _ = std::fs::remove_file(store);
        }
        taken
    }

    /// Takes a snapshot with a store that is open.
    fn take(
        &self,
        state: &mut State,
        new: &NewSnapshot,
        name: &str,
        size: ByteCount,
        mut opened: OpenStore,
    ) -> Result<CowReport> {
        let persistent = opened.store.is_persistent();
        if !opened.store.is_valid() {
            let problem = "is marked invalid: what it had of the past is lost";
            let object = opened.path.display().to_string();
            return Err(Error::new(ErrorKind::Stopped, object, problem)
                .advise("remove it, and take another snapshot"));
        }
        let id = if persistent { opened.identify(&self.path)? } else { Uuid::nil() };
        let kept = Kept::of(new, name, &self.path, &opened, id, size);
        if opened.store.is_shared() {
            let depot = Arc::new(attach_depot(&self.path, &self.origin, &kept, opened, false)?);
            let taken = self.take_shared(state, new, name, &depot);
            if taken.is_err() {
                depot.store.give_up()?;
            }
            return taken;
        }
        if persistent {
            // First the record: a store that nobody knows of would be written past.
            state.record.snapshots.push(kept.clone());
            state.record.write(&self.path)?;
        }
        let attached = attach(&self.path, &self.origin, &kept, opened, false);
        let live = match attached {
            Ok(live) => live,
            Err(error) => {
                state.record.snapshots.retain(|other| other.name != name);
                state.record.write(&self.path)?;
                return Err(error);
            }
        };
        let report = live.report(false);
        state.live.push(live);
        Ok(report)
    }

    /// Takes a snapshot in a store that others share. It is recorded after it was taken: one that a
    /// crash kept from the record is dropped when the store is opened again.
    fn take_shared(
        &self,
        state: &mut State,
        new: &NewSnapshot,
        name: &str,
        depot: &Arc<Depot>,
    ) -> Result<CowReport> {
        let (id, snapshot) = depot.store.take()?;
        let kept = Kept {
            name: name.to_owned(),
            store: store_name(&self.path, &depot.path),
            id: depot.id,
            view: Some(id.get()),
            mode: depot.store.status().mode.unwrap_or_default().to_string(),
            kind: "PO".to_owned(),
            discard_zeroes: new.discard_zeroes,
            discard_passdown: false,
            size: snapshot.size().get(),
            grow_limit: depot.grow_limit,
            merging: false,
            created: jiff::Timestamp::now().to_string(),
        };
        state.record.snapshots.push(kept.clone());
        if let Err(error) = state.record.write(&self.path) {
            state.record.snapshots.pop();
            depot.store.drop_snapshot(id)?;
            return Err(error);
        }
        let live = shared_live(&self.path, &kept, depot, id, snapshot);
        let report = live.report(false);
        state.live.push(live);
        Ok(report)
    }

    /// Gives a snapshot up, and takes its store away unless it is to be kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while it is merged; what the store's device
    /// says, and the snapshot then goes on.
    pub fn drop_snapshot(&self, name: &str, keep: bool) -> Result<()> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        let number = self.number_of(&state, name)?;
        if state.live[number].merge.is_some() {
            return Err(being_merged(&self.path, name));
        }
        let Some((depot, id)) = state.live[number].shared.clone() else {
            self.origin.drop_snapshot(&state.live[number].snapshot)?;
            return self.forget(&mut state, number, keep);
        };
        depot.store.drop_snapshot(id)?;
        let last = depot.store.snapshots().is_empty();
        if last {
            depot.store.give_up()?;
        }
        self.forget(&mut state, number, keep || !last)
    }

    /// Takes a snapshot that is no more from the record, and its store away.
    fn forget(&self, state: &mut State, number: usize, keep: bool) -> Result<()> {
        let live = state.live.remove(number);
        state.record.snapshots.retain(|kept| kept.name != live.facts.name);
        state.record.write(&self.path)?;
        if keep { Ok(()) } else { remove_file(&live.path) }
    }

    /// Begins to merge a snapshot back, or takes up a merge that was begun. From this moment on the
    /// origin has the snapshot's content, and the record says so; the store is taken away when all
    /// is merged, unless it is to be kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; those of [`Origin::merge`].
    pub fn begin_merge(self: &Arc<Self>, name: &str, keep: bool) -> Result<CowMerge> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        let number = self.number_of(&state, name)?;
        let merge = match &state.live[number].merge {
            Some(merge) => Arc::clone(merge),
            None => {
                // First the record: whoever opens the origin after a crash has to know.
                self.note_merge(&mut state, name, true)?;
                let merge = match self.origin.merge(&state.live[number].snapshot) {
                    Ok(merge) => Arc::new(merge),
                    Err(error) => {
                        self.note_merge(&mut state, name, false)?;
                        return Err(error);
                    }
                };
                state.live[number].merge = Some(Arc::clone(&merge));
                merge
            }
        };
        Ok(CowMerge { origin: Arc::clone(self), merge, name: name.to_owned(), keep })
    }

    /// The name of the snapshot that is being merged.
    pub fn merging(&self) -> Option<String> {
        let state = self.state.lock();
        let merging = state.record.snapshots.iter().find(|kept| kept.merging);
        merging.map(|kept| kept.name.clone())
    }

    fn note_merge(&self, state: &mut State, name: &str, merging: bool) -> Result<()> {
        let kept = state.record.snapshots.iter_mut().find(|kept| kept.name == name);
        if let Some(kept) = kept {
            kept.merging = merging;
        }
        state.record.write(&self.path)
    }

    /// Everything of the snapshot is merged.
    pub(super) fn finish_merge(&self, name: &str, keep: bool) -> Result<()> {
        let mut state = self.state.lock();
        let number = self.number_of(&state, name)?;
        self.forget(&mut state, number, keep)
    }

    /// Makes the store of a snapshot larger.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; what the store's device says.
    pub fn grow(&self, name: &str, size: ByteCount) -> Result<CowReport> {
        let state = self.state.lock();
        self.check_open(&state)?;
        let live = &state.live[self.number_of(&state, name)?];
        let unit = live.snapshot.status().chunk.bytes().get().max(4096);
        live.snapshot.grow(ByteCount::new(size.get().next_multiple_of(unit)))?;
        Ok(live.report(false))
    }

    /// Makes everything durable, leaves the stores so that Linux can go on with them, and notes how
    /// the origin was left.
    ///
    /// # Errors
    /// The first failure; the rest is closed all the same.
    pub fn close(&self) -> Result<()> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return Ok(());
        }
        let closed = self.origin.close();
        for scratch in state.live.iter().filter(|live| live.scratch) {
            remove_file(&scratch.path)?;
        }
        if self.options.read_only {
            return closed;
        }
        state.record.control = None;
        state.record.left = match &closed {
            Ok(()) => Left::now(&self.path)?,
            Err(_) => None,
        };
        closed.and(state.record.write(&self.path))
    }

    fn check_open(&self, state: &State) -> Result<()> {
        let object = || self.path.display().to_string();
        if state.closed {
            return Err(Error::new(ErrorKind::Stopped, object(), "is closed"));
        }
        if self.options.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, object(), "is open read-only"));
        }
        Ok(())
    }

    fn number_of(&self, state: &State, name: &str) -> Result<usize> {
        let number = state.live.iter().position(|live| live.facts.name == name);
        number.ok_or_else(|| no_snapshot(&self.path, name))
    }
}
