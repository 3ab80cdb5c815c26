//! Telling of volumes, snapshots and what differs between them.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use block_types::{ByteCount, Result};
use dm_thin::{DeviceId, HeldMetadata};

use crate::differences::{Scope, diff_metadata};
use crate::names::{KnownNode, VolumeEntry};
use crate::{
    ChangedRange, NodeName, OriginEntry, OriginInfo, PoolDirectory, SnapshotInfo, VolumeInfo,
    VolumeName,
};

impl PoolDirectory {
    /// All volumes, by name, and devices that have none, by number.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let names = self.names.lock();
        let mapped = self.mapped();
        let mut volumes: Vec<_> = names
            .table
            .volumes()
            .iter()
            .map(|(name, entry)| describe(name, entry, &mapped))
            .collect();
        let named: HashSet<u32> = names.table.devices().collect();
        volumes.extend(mapped.iter().filter(|(id, _)| !named.contains(id)).map(|(id, bytes)| {
            VolumeInfo {
                name: format!("#{id}"),
                id: *id,
                size: *bytes,
                mapped: *bytes,
                created: None,
                parent: None,
                origin: names.table.origin_of(*id).map(origin),
                snapshots: Vec::new(),
            }
        }));
        volumes
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let names = self.names.lock();
        Ok(describe(name, names.table.volume(name)?, &self.mapped()))
    }

    /// Calls `each` with the ranges where `to` holds something else than `from`, neighbours
    /// joined, as they are found. Writers go on meanwhile; both are compared as one commit left
    /// them.
    ///
    /// # Errors
    /// `NotFound` where one of them is missing; the failures of `each`.
    pub fn diff(
        &self,
        from: &NodeName,
        to: &NodeName,
        each: &mut dyn FnMut(ChangedRange) -> Result<()>,
    ) -> Result<()> {
        let (left, right) = {
            let names = self.names.lock();
            (names.table.known(from)?, names.table.known(to)?)
        };
        let block = self.pool.status().block_size.get();
        let scope = Scope {
            size: ByteCount::new(right.size),
            below: differing_origins(&left, &right, block),
            over_origin: right.origin.is_some(),
        };
        let (from, to) = (DeviceId::new(left.id)?, DeviceId::new(right.id)?);
        diff_metadata(Arc::new(self.hold_metadata()?), from, to, scope, each)
    }

    /// The pool's metadata as a commit of everything that was answered leaves it, for reading as
    /// long as it is wanted; writers go on meanwhile.
    pub fn hold_metadata(&self) -> Result<HeldMetadata> {
        self.pool.hold_metadata()
    }

    /// Mapped bytes by device.
    fn mapped(&self) -> BTreeMap<u32, u64> {
        let block = self.pool.status().block_size.get();
        let devices = self.pool.devices();
        devices.into_iter().map(|(id, state)| (id.get(), state.mapped * block)).collect()
    }
}

fn describe(name: &VolumeName, entry: &VolumeEntry, mapped: &BTreeMap<u32, u64>) -> VolumeInfo {
    let mapped = |id| mapped.get(&id).copied().unwrap_or(0);
    VolumeInfo {
        name: name.to_string(),
        id: entry.id,
        size: entry.size,
        mapped: mapped(entry.id),
        created: Some(entry.created.clone()),
        parent: entry.parent.clone(),
        origin: entry.origin.as_ref().map(origin),
        snapshots: entry
            .snapshots
            .iter()
            .map(|snapshot| SnapshotInfo {
                name: snapshot.name.to_string(),
                id: snapshot.id,
                size: snapshot.size,
                mapped: mapped(snapshot.id),
                created: Some(snapshot.created.clone()),
                origin: snapshot.origin.as_ref().map(origin),
            })
            .collect(),
    }
}

fn origin(entry: &OriginEntry) -> OriginInfo {
    OriginInfo {
        address: entry.origin.address.clone(),
        format: entry.origin.format.clone(),
        shown: entry.shown,
    }
}

/// Where two devices may differ that both map nothing, since they do not show the same below: whole
/// blocks.
fn differing_origins(left: &KnownNode, right: &KnownNode, block: u64) -> Range<u64> {
    let (start, end) = match (&left.origin, &right.origin) {
        (None, None) => return 0..0,
        (Some(left), Some(right)) if left.origin == right.origin => {
            if left.shown == right.shown {
                return 0..0;
            }
            (left.shown.min(right.shown), left.shown.max(right.shown))
        }
        (one, other) => (0, one.iter().chain(other).map(|origin| origin.shown).max().unwrap_or(0)),
    };
    start / block * block..end.next_multiple_of(block)
}
