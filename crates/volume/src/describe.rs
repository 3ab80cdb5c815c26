//! Telling of volumes, snapshots and what differs between them.

use std::collections::{BTreeMap, HashSet};
use std::ops::{ControlFlow, Range};

use block_types::Result;
use dm_thin::{DeviceId, Difference};

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

    /// Where `to` holds something else than `from`, neighbours joined.
    pub fn diff(&self, from: &NodeName, to: &NodeName) -> Result<Vec<ChangedRange>> {
        let (left, right) = {
            let names = self.names.lock();
            (names.table.known(from)?, names.table.known(to)?)
        };
        let block = self.pool.status().block_size.get();
        let mut ranges: Vec<ChangedRange> = Vec::new();
        let below = differing_origins(&left, &right, block);
        let over_origin = right.origin.is_some();
        self.pool.diff(DeviceId::new(left.id)?, DeviceId::new(right.id)?, &mut |difference| {
            let start = difference.block.get() * block;
            if start < below.start || start >= below.end {
                add_difference(&mut ranges, &difference, over_origin, block, right.size);
            }
            ControlFlow::Continue(())
        })?;
        if below.start < below.end {
            // What is mapped differently within was left out.
            let (start, end) = (below.start, below.end.min(right.size));
            let length = end.saturating_sub(start);
            ranges.push(ChangedRange { start, length, kind: "data".into() });
            ranges.retain(|range| range.length > 0);
            ranges.sort_by_key(|range| range.start);
        }
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

/// Adds a differing block of `block` bytes to `ranges`, cut at the end of a device of `size`. Over
/// an external origin a block that is not mapped need not be zeros.
fn add_difference(
    ranges: &mut Vec<ChangedRange>,
    at: &Difference,
    over_origin: bool,
    block: u64,
    size: u64,
) {
    let start = at.block.get() * block;
    let length = block.min(size.saturating_sub(start));
    if length == 0 {
        return;
    }
    let kind = if at.right.is_some() || over_origin { "data" } else { "discarded" };
    match ranges.last_mut() {
        Some(last) if last.kind == kind && last.start + last.length == start => {
            last.length += length;
        }
        _ => ranges.push(ChangedRange { start, length, kind: kind.into() }),
    }
}
