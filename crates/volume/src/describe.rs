//! Telling of volumes, snapshots and what differs between them.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use block_types::Result;
use dm_thin::{DeviceId, Difference};

use crate::names::VolumeEntry;
use crate::{ChangedRange, NodeName, PoolDirectory, SnapshotInfo, VolumeInfo, VolumeName};

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

    /// Where `to` holds something else than `from`, neighbours joined.
    pub fn diff(&self, from: &NodeName, to: &NodeName) -> Result<Vec<ChangedRange>> {
        let (left, right) = {
            let names = self.names.lock();
            (names.table.node(from)?, names.table.node(to)?)
        };
        let block = self.pool.status().block_size.get();
        let mut ranges: Vec<ChangedRange> = Vec::new();
        self.pool.diff(DeviceId::new(left.0)?, DeviceId::new(right.0)?, &mut |difference| {
            add_difference(&mut ranges, &difference, block, right.1);
            ControlFlow::Continue(())
        })?;
        Ok(ranges)
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
        snapshots: entry
            .snapshots
            .iter()
            .map(|snapshot| SnapshotInfo {
                name: snapshot.name.to_string(),
                id: snapshot.id,
                size: snapshot.size,
                mapped: mapped(snapshot.id),
                created: Some(snapshot.created.clone()),
            })
            .collect(),
    }
}

/// Adds a differing block of `block` bytes to `ranges`, cut at the end of a device of `size`.
fn add_difference(ranges: &mut Vec<ChangedRange>, at: &Difference, block: u64, size: u64) {
    let start = at.block.get() * block;
    let length = block.min(size.saturating_sub(start));
    if length == 0 {
        return;
    }
    let kind = if at.right.is_some() { "data" } else { "discarded" };
    match ranges.last_mut() {
        Some(last) if last.kind == kind && last.start + last.length == start => {
            last.length += length;
        }
        _ => ranges.push(ChangedRange { start, length, kind: kind.into() }),
    }
}
