//! Attaching the stores of an origin's record, each checked to be the one that is meant.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_types::{Error, ErrorKind, Result};
use dm_snapshot::{Origin, Snapshot, ViewId};

use super::CowOptions;
use super::find::label;
use super::live::{Depot, Live};
use super::new::{OpenStore, open_store};
use super::record::{Kept, Left, Record, store_name};

/// Notes the new places of stores that have moved; their labels tell them.
pub(super) fn relocate(path: &Path, record: &mut Record, stores: &[PathBuf]) -> Result<()> {
    for store in stores {
        let Some(label) = label(store) else { continue };
        let same = |kept: &&mut Kept| kept.id.into_bytes() == label.id;
        let kept = record.snapshots.iter_mut().find(same);
        if let Some(kept) = kept.filter(|kept| !kept.store_path(path).exists()) {
            let whole = store.canonicalize().map_err(|error| {
                Error::io(store.display().to_string(), "cannot be found", error)
            })?;
            kept.store = store_name(path, &whole);
        }
    }
    Ok(())
}

/// Opens a snapshot of the record.
pub(super) fn attach_kept(
    path: &Path,
    origin: &Origin,
    kept: &Kept,
    others: &[Live],
    options: &CowOptions,
) -> Result<Live> {
    let store = kept.store_path(path);
    let open = |depot: Arc<Depot>, view: u16| {
        let id = ViewId::new(view);
        let snapshot = depot.store.open(id)?;
        Ok(shared_live(path, kept, &depot, id, snapshot))
    };
    if let Some((depot, view)) = depot_at(others, &store).zip(kept.view) {
        return open(depot, view);
    }
    let mut opened =
        open_store(path, &store, options.cache, options.read_only).map_err(|error| {
            let whole = format!("the store of the snapshot {}", kept.name);
            match error.kind() {
                ErrorKind::NotFound => error.within(&whole).advise(
                    "put it back, name its new place with --cow, or give the snapshot up with \
                 'firn cow drop'",
                ),
                _ => error.within(&whole),
            }
        })?;
    kept.check_same(&opened)?;
    if !options.read_only && opened.store.is_valid() {
        // Either may have been moved since.
        opened.identify(path)?;
    }
    if let Some(view) = kept.view {
        return open(Arc::new(attach_depot(path, origin, kept, opened, options.read_only)?), view);
    }
    attach(path, origin, kept, opened, options.read_only)
}

/// Attaches a store that is open.
pub(super) fn attach(
    path: &Path,
    origin: &Origin,
    kept: &Kept,
    opened: OpenStore,
    read_only: bool,
) -> Result<Live> {
    let options = kept.options(&opened, read_only)?;
    let facts = kept.facts(path, &opened.path);
    let scratch = opened.made && !opened.store.is_persistent();
    let OpenStore { store, path, lock, .. } = opened;
    let snapshot = Arc::new(origin.attach(kept.name.clone(), store, options)?);
    Ok(Live { facts, path, snapshot, shared: None, merge: None, scratch, _lock: Some(lock) })
}

/// The store at `path`, where several snapshots share it.
pub(super) fn depot_at(live: &[Live], path: &Path) -> Option<Arc<Depot>> {
    let path = path.canonicalize().ok()?;
    let shared = live.iter().filter_map(|live| live.shared.as_ref());
    shared.map(|(depot, _)| depot).find(|depot| depot.path == path).map(Arc::clone)
}

/// Attaches a store that several snapshots share.
pub(super) fn attach_depot(
    path: &Path,
    origin: &Origin,
    kept: &Kept,
    opened: OpenStore,
    read_only: bool,
) -> Result<Depot> {
    let options = kept.options(&opened, read_only)?;
    let OpenStore { store, path: place, lock, .. } = opened;
    let name = format!("{}:{}", path.display(), place.display());
    let store = origin.attach_shared(name, store, options)?;
    Ok(Depot { store, path: place, id: kept.id, grow_limit: kept.grow_limit, _lock: lock })
}

pub(super) fn shared_live(
    path: &Path,
    kept: &Kept,
    depot: &Arc<Depot>,
    id: ViewId,
    snapshot: Snapshot,
) -> Live {
    Live {
        facts: kept.facts(path, &depot.path),
        path: depot.path.clone(),
        snapshot: Arc::new(snapshot),
        shared: Some((Arc::clone(depot), id)),
        merge: None,
        scratch: false,
        _lock: None,
    }
}

/// Drops what is in a shared store and not in the record: a crash came between the two.
pub(super) fn drop_unknown(live: &[Live], options: &CowOptions) -> Result<()> {
    if options.read_only {
        return Ok(());
    }
    let known: Vec<(&Arc<Depot>, ViewId)> = live
        .iter()
        .filter_map(|live| live.shared.as_ref())
        .map(|(depot, id)| (depot, *id))
        .collect();
    for (depot, _) in &known {
        for id in depot.store.snapshots() {
            if !known.iter().any(|(other, known)| Arc::ptr_eq(other, depot) && *known == id) {
                depot.store.drop_snapshot(id)?;
            }
        }
    }
    Ok(())
}

/// Checks that nobody wrote to the origin since it was closed.
pub(super) fn check_left(path: &Path, record: &Record, trust: bool) -> Result<()> {
    let Some(left) = record.left.filter(|_| !record.snapshots.is_empty()) else { return Ok(()) };
    if trust || Left::now(path)? == Some(left) {
        return Ok(());
    }
    let problem = "was written past its snapshots since they were last in use: they may show what \
                   was never there";
    Err(Error::new(ErrorKind::Stopped, path.display().to_string(), problem)
        .advise("drop them with 'firn cow drop', or say --trust-origin if its content is the same"))
}
