//! Changing the devices of a pool: making, snapshotting, rolling back, deleting.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_types::{Error, ErrorKind, Result};

use crate::shared::metadata_full;
use crate::volume::Core;
use crate::{Change, DeviceId, Pool};

impl Pool {
    /// Applies `changes` together, durably, or none of them.
    ///
    /// Snapshots may be taken while their origin is being written: its writers are held up for as
    /// long as the requests in flight take, not for the commit.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `Invalid` as the kernel's EEXIST, ENODATA, EINVAL; `Busy` for deleting
    /// a device that is open; `OutOfSpace` where the metadata is full and cannot grow.
    pub fn change(&self, changes: &[Change]) -> Result<()> {
        self.shared.check_writable()?;
        self.check_not_open(changes)?;
        let deletes = changes
            .iter()
            .all(|change| matches!(change, Change::Delete(_) | Change::SetTransaction { .. }));
        self.reserve_devices(changes.len() as u64, deletes)?;
        let targets = self.open_cores(changes.iter().filter_map(|change| match change {
            Change::Rollback { id, .. } => Some(*id),
            _ => None,
        }));
        let generation = if targets.is_empty() {
            self.enter(changes)?
        } else {
            self.exchange(changes, &targets)?
        };
        self.shared.commit_to(generation)
    }

    /// Enters `changes`, waits for the writes in flight that saw the pool without them, and returns
    /// the commit that makes them durable.
    fn enter(&self, changes: &[Change]) -> Result<u64> {
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
    fn exchange(&self, changes: &[Change], targets: &[Arc<Core>]) -> Result<u64> {
        let mut targets: Vec<&Arc<Core>> = targets.iter().collect();
        targets.sort_by_key(|core| core.id);
        targets.dedup_by_key(|core| core.id);
        // A write to a new block must not carry old bytes around it over into the new content.
        let _nobody_writes: Vec<_> = targets.iter().map(|core| core.slow.write()).collect();
        for core in &targets {
            core.gate.store(true, Ordering::SeqCst);
        }
        let done = self.enter(changes).and_then(|generation| {
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

    /// Takes the metadata that changes of `count` devices may need.
    pub(crate) fn reserve_devices(&self, count: u64, deletes: bool) -> Result<()> {
        for _ in 0..2 {
            let generation = {
                let mut pending = self.shared.pending.lock();
                if pending.budget.take_devices(count, deletes) {
                    return Ok(());
                }
                pending.generation
            };
            self.shared.commit_to(generation)?;
        }
        Err(metadata_full(&self.shared.name))
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
