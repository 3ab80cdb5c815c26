//! Devices that were deleted while their trees are still to be taken down.
//!
//! Deleting a device takes its number and its name from it, and leaves the rest: what was its tree
//! hangs under another number, the highest that is free, and its details carry a transaction id
//! that no pool has. So the metadata is that of one more thin device, sound for every reader of the
//! format and at every commit, and whoever opens the pool after a crash sees what is left to do.
//! Each step takes some leaves off the tree and their number off the details, in one commit; the
//! last one takes the device out.

use block_types::Result;
use persistent_data::btree::{Node, cut};

use super::{Touched, Trees};
use crate::details::Device;
use crate::refs::DataRefs;
use crate::{DataBlock, DeviceId, DeviceState};

/// The transaction id of a doomed device: "FIRNGONE".
pub(crate) const DOOMED: u64 = 0x4649_524e_474f_4e45;

/// What of a deleted device one commit takes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimPace {
    /// A device that maps no more blocks than this goes at once, in the commit that deletes it.
    pub at_once: u64,
    /// Leaves that a step takes off the tree of any other: of 252 mappings at most.
    pub leaves: usize,
}

impl Default for ReclaimPace {
    fn default() -> Self {
        Self { at_once: 8192, leaves: 128 }
    }
}

impl DeviceState {
    /// Whether it is what is left of a device that was deleted.
    pub(crate) fn is_doomed(&self) -> bool {
        self.transaction == DOOMED
    }
}

impl Trees {
    /// Devices that are to be taken down, and the blocks that they map.
    pub(crate) fn doomed(&self) -> (u64, u64) {
        let doomed = self.doomed_devices().map(|(_, device)| device.state.mapped);
        doomed.fold((0, 0), |(count, mapped), more| (count + 1, mapped.saturating_add(more)))
    }

    /// The numbers under which they hang.
    pub(super) fn doomed_devices(&self) -> impl Iterator<Item = (DeviceId, Device)> + '_ {
        let devices = self.devices.iter().filter(|(_, device)| device.state.is_doomed());
        devices.map(|(id, device)| (*id, *device))
    }

    /// Gives up the tree that was a device's: at once where that is little work.
    pub(super) fn dispose(
        &mut self,
        old: Device,
        touched: &mut Touched,
        freed: &mut Vec<DataBlock>,
    ) -> Result<()> {
        let is_little = old.state.mapped <= self.pace.at_once || self.txn.count(old.root) > 1;
        match self.highest_free() {
            Some(id) if !is_little => {
                let state = DeviceState { transaction: DOOMED, ..old.state };
                self.put(id, Some(Device { state, ..old }), touched);
                Ok(())
            }
            _ => self.release_root(old.root, freed),
        }
    }

    /// Clears the number `id` for a device that is made, if a doomed one has it.
    pub(super) fn make_way(&mut self, id: DeviceId, touched: &mut Touched) {
        let found = self.devices.get(&id).copied().filter(|device| device.state.is_doomed());
        if let (Some(device), Some(other)) = (found, self.highest_free()) {
            self.put(other, Some(device), touched);
            self.put(id, None, touched);
        }
    }

    /// Takes the next piece off a doomed device, if there is one.
    pub(super) fn reclaim(
        &mut self,
        touched: &mut Touched,
        freed: &mut Vec<DataBlock>,
    ) -> Result<()> {
        let Some((id, mut device)) = self.doomed_devices().next() else { return Ok(()) };
        let mut refs = DataRefs { map: &mut self.data_map, freed };
        let done = cut::<u64, _>(&mut self.txn, device.root, self.pace.leaves, &mut refs)?;
        device.root = done.root;
        device.state.mapped = device.state.mapped.saturating_sub(done.removed);
        if Node::read(&self.txn, device.root)?.is_empty() {
            self.release_root(device.root, freed)?;
            self.put(id, None, touched);
        } else {
            self.put(id, Some(device), touched);
        }
        Ok(())
    }

    fn highest_free(&self) -> Option<DeviceId> {
        let ids = (0..=DeviceId::MAX.get()).rev().filter_map(|id| DeviceId::new(id).ok());
        ids.into_iter().find(|id| !self.devices.contains_key(id))
    }
}
