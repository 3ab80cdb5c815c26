//! The devices as the metadata has them: a tree of roots and a tree of details, which name the same
//! devices.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use block_types::{Error, ErrorKind, Result};
use persistent_data::btree::{Record, walk};
use persistent_data::{BlockStore, MetaBlock};

use crate::layout::DetailsLayout;
use crate::superblock::Roots;
use crate::{DeviceId, DeviceState, Time};

/// A device in the trees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) state: DeviceState,
    pub(crate) root: MetaBlock,
}

/// The details of a device as a tree's value.
pub(crate) type Details = DetailsLayout;

impl Record for Details {}

impl Details {
    pub(crate) fn of(state: &DeviceState) -> Self {
        Self {
            mapped: state.mapped.into(),
            transaction: state.transaction.into(),
            created: state.created.get().into(),
            snapshotted: state.snapshotted.get().into(),
        }
    }

    pub(crate) fn state(self) -> DeviceState {
        DeviceState {
            mapped: self.mapped.get(),
            transaction: self.transaction.get(),
            created: Time::new(self.created.get()),
            snapshotted: Time::new(self.snapshotted.get()),
        }
    }
}

/// Reads all devices: those of one tree must be those of the other.
pub(crate) fn read_devices(
    store: &BlockStore,
    roots: &Roots,
) -> Result<BTreeMap<DeviceId, Device>> {
    let mut found = BTreeMap::new();
    walk(store, roots.mappings, 0, &mut |key, root: u64| {
        found.insert(key, MetaBlock::new(root));
        ControlFlow::Continue(())
    })?;
    let mut devices = BTreeMap::new();
    let mut stray = None;
    walk(store, roots.details, 0, &mut |key, details: Details| {
        let id = u32::try_from(key).ok().and_then(|id| DeviceId::new(id).ok());
        match (id, found.remove(&key)) {
            (Some(id), Some(root)) => {
                devices.insert(id, Device { state: details.state(), root });
                ControlFlow::Continue(())
            }
            _ => {
                stray = Some(key);
                ControlFlow::Break(())
            }
        }
    })?;
    match stray.or_else(|| found.into_keys().next()) {
        None => Ok(devices),
        Some(id) => {
            let problem = format!("device {id} is in one of the two device trees only");
            Err(Error::new(ErrorKind::Corrupt, store.device().name(), problem)
                .advise("repair it with 'firn pool repair'"))
        }
    }
}
