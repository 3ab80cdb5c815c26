//! Changing the devices of a pool: making, snapshotting, rolling back, deleting.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_types::{Error, ErrorKind, Result};

use crate::share::Share;
use crate::volume::Core;
use crate::worst_case::Demand;
use crate::{Change, DeviceId, Pool};

impl Pool {
    /// Applies `changes` together, durably, or none of them.
    ///
    /// Snapshots may be taken while their origin is being written: its writers are held up for as
    /// long as the requests in flight take, not for the commit.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `Invalid` as the kernel's EEXIST, ENODATA, EINVAL; `Busy` for deleting
    /// a device that is open and for a second metadata snapshot; `OutOfSpace` where the metadata is
    /// full and cannot grow.
    pub fn change(&self, changes: &[Change]) -> Result<()> {
        self.shared.check_writable()?;
        self.check_not_open(changes)?;
        let share = self.shared.share(demand(changes), changes.iter().all(frees))?;
        let targets = self.open_cores(changes.iter().filter_map(|change| match change {
            Change::Rollback { id, .. } => Some(*id),
            _ => None,
        }));
        let generation = if targets.is_empty() {
            self.enter(changes, share)?
        } else {
            self.exchange(changes, share, &targets)?
        };
        self.shared.commit_to(generation)
    }

    /// Enters `changes`, waits for the writes in flight that saw the pool without them, and returns
    /// the commit that makes them durable.
    fn enter(&self, changes: &[Change], share: Share<'_>) -> Result<u64> {
        let shared_ids = changes.iter().flat_map(|change| {
            let ids = match change {
                Change::CreateSnapshot { origin, .. } => [Some(*origin), None],
                Change::Rollback { id, source } => [Some(*id), Some(*source)],
                _ => [None, None],
            };
            ids.into_iter().flatten()
        });
        // Both locks: a volume that is opened meanwhile is opened with the change.
        let open = self.shared.open.lock();
        let mut pending = self.shared.pending.lock();
        pending.change(&self.shared.name, changes)?;
        share.enter(&mut pending);
        let mut origins: Vec<Arc<Core>> = Vec::new();
        for core in shared_ids.filter_map(|id| open.get(&id)?.upgrade()) {
            if let Some(state) = pending.devices.get(&core.id) {
                core.snapshotted.store(state.snapshotted.get(), Ordering::SeqCst);
            }
            origins.push(core);
        }
        let generation = pending.generation;
        drop(pending);
        drop(open);
        for core in &origins {
            // SNAPSHOT-FIXED: writes in place that found their block unshared end here; later ones
            // see that it is shared. A write to a new block that is under way is published after
            // the snapshot, and so is not part of it; nobody was told yet that it happened.
            core.settle(&self.shared.leases);
        }
        Ok(generation)
    }

    /// Enters `changes` with nobody in `targets`, whose content they exchange, and commits them.
    fn exchange(&self, changes: &[Change], share: Share<'_>, targets: &[Arc<Core>]) -> Result<u64> {
        let mut targets: Vec<&Arc<Core>> = targets.iter().collect();
        targets.sort_by_key(|core| core.id);
        targets.dedup_by_key(|core| core.id);
        // A write to a new block must not carry old bytes around it over into the new content.
        let _nobody_writes: Vec<_> = targets.iter().map(|core| core.slow.write()).collect();
        for core in &targets {
            core.gate.store(true, Ordering::SeqCst);
        }
        let done = self.enter(changes, share).and_then(|generation| {
            self.shared.commit_to(generation)?;
            for core in &targets {
                core.table.reset();
            }
            Ok(generation)
        });
        for core in &targets {
            core.gate.store(false, Ordering::SeqCst);
        }
        done
    }

    /// What those of `ids` that somebody has open share.
    fn open_cores(&self, ids: impl Iterator<Item = DeviceId>) -> Vec<Arc<Core>> {
        let open = self.shared.open.lock();
        ids.filter_map(|id| open.get(&id)?.upgrade()).collect()
    }

    fn check_not_open(&self, changes: &[Change]) -> Result<()> {
        let open = self.shared.open.lock();
        for change in changes {
            if let Change::Delete(id) = change
                && open.get(id).is_some_and(|core| core.strong_count() > 0)
            {
                let object = format!("{}, device {id}", self.shared.name);
                return Err(Error::new(ErrorKind::Busy, object, "is open and cannot be deleted"));
            }
        }
        Ok(())
    }
}

/// The metadata that the commit of `changes` may need.
fn demand(changes: &[Change]) -> Demand {
    let devices = changes.iter().map(|change| match change {
        // A block of its own, and the counts of two roots. Every node is shared from then on, which
        // later commits see in the shape of the trees.
        Change::ReserveMetadataSnapshot | Change::ReleaseMetadataSnapshot => 4,
        _ => 1,
    });
    Demand::devices(devices.sum())
}

/// Whether a change can only give space back: it may use what is kept in reserve for that.
fn frees(change: &Change) -> bool {
    matches!(
        change,
        Change::Delete(_) | Change::ReleaseMetadataSnapshot | Change::SetTransaction { .. }
    )
}
