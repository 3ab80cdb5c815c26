//! What has changed since the last commit began: the list that the next commit applies, in order.
//!
//! This is also where changes are accepted: each is checked against the pool's devices as they are
//! now, and takes a share of the metadata that its commit may need, before anything happens.

use std::collections::{BTreeMap, HashMap};

use block_types::{Error, ErrorKind, Result};

use crate::admission::Budget;
use crate::worst_case::TreeShape;
use crate::{Change, DataBlock, DeviceId, GuestBlock, Mapping, Time};

/// A change that the next commit applies to the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// The block is mapped, or not any more.
    Map { device: DeviceId, at: GuestBlock, to: Option<Mapping> },
    /// A device with an empty tree.
    Create { id: DeviceId },
    /// A device that shares the tree of `origin`.
    Snapshot { id: DeviceId, origin: DeviceId, time: Time },
    /// `id` gives up its tree and shares that of `source`.
    Rollback { id: DeviceId, source: DeviceId, time: Time },
    /// The device goes.
    Delete { id: DeviceId },
    /// The next piece is taken off what is left of a deleted device.
    Reclaim,
    /// The transaction id changes.
    SetTransaction { new: u64 },
    /// The data device has so many blocks now.
    GrowData { blocks: u64 },
    /// The metadata device has so many blocks now.
    GrowMetadata { blocks: u64 },
    /// What the batch comes to is held as the metadata snapshot, unless it is released again.
    HoldRoot,
    /// The metadata snapshot is let go.
    ReleaseRoot,
}

impl Op {
    /// The devices whose trees it changes or shares.
    pub(crate) fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        let (one, other) = match *self {
            Self::Map { device, .. } => (Some(device), None),
            Self::Create { id } | Self::Delete { id } => (Some(id), None),
            Self::Snapshot { id, origin, .. } => (Some(id), Some(origin)),
            Self::Rollback { id, source, .. } => (Some(id), Some(source)),
            Self::SetTransaction { .. }
            | Self::GrowData { .. }
            | Self::GrowMetadata { .. }
            | Self::Reclaim
            | Self::HoldRoot
            | Self::ReleaseRoot => (None, None),
        };
        one.into_iter().chain(other)
    }
}

/// A thin device as it is now, the changes that no commit has applied yet included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Blocks that are mapped.
    pub mapped: u64,
    /// The transaction in which it was made.
    pub transaction: u64,
    /// The pool's time when it was made.
    pub created: Time,
    /// The pool's time when it last became or got a snapshot: older mappings may be shared.
    pub snapshotted: Time,
}

/// What devices were before each step of a change that may yet fail.
type Undo = Vec<(DeviceId, Option<DeviceState>)>;

/// The changes that one commit takes over.
pub(crate) struct Batch {
    pub(crate) ops: Vec<Op>,
    /// The number of the commit, counted from 1 at open.
    pub(crate) generation: u64,
}

/// Changes that wait for the next commit, and the pool's state with them applied.
pub(crate) struct Pending {
    pub(crate) ops: Vec<Op>,
    /// The number of the commit that will take them.
    pub(crate) generation: u64,
    pub(crate) devices: BTreeMap<DeviceId, DeviceState>,
    /// The commit that makes the last change of a device's tree durable, unless it is durable.
    pub(crate) changed: HashMap<DeviceId, u64>,
    pub(crate) time: Time,
    pub(crate) transaction: u64,
    pub(crate) data_blocks: u64,
    /// Whether the next commit frees data blocks.
    pub(crate) frees: bool,
    /// Whether a metadata snapshot is held.
    pub(crate) holds_root: bool,
    pub(crate) budget: Budget,
}

impl Pending {
    /// Hands over what has gathered; the next commit gathers anew.
    pub(crate) fn take(&mut self) -> Batch {
        let batch = Batch { ops: std::mem::take(&mut self.ops), generation: self.generation };
        self.generation += 1;
        self.frees = false;
        self.budget.begin_commit();
        batch
    }

    /// The commit of `generation` is durable, with metadata of which so much is free now.
    pub(crate) fn committed(&mut self, generation: u64, free: u64, shape: TreeShape) {
        self.budget.end_commit(free, shape);
        self.changed.retain(|_, last| *last > generation);
    }

    /// The state of a device.
    ///
    /// # Errors
    /// `NotFound`, as the kernel's ENODATA.
    pub(crate) fn device(&self, pool: &str, id: DeviceId) -> Result<&DeviceState> {
        self.devices.get(&id).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{pool}, device {id}"),
                "there is no such device",
            )
        })
    }

    /// Enters a mapping that was accepted before, at the pool's present time, and returns it.
    pub(crate) fn map(
        &mut self,
        device: DeviceId,
        at: GuestBlock,
        block: DataBlock,
        replaces: bool,
    ) -> Mapping {
        let mapping = Mapping { block, time: self.time };
        self.enter_mapping(device, at, mapping, replaces);
        mapping
    }

    /// Enters a mapping that was accepted before.
    pub(crate) fn enter_mapping(
        &mut self,
        device: DeviceId,
        at: GuestBlock,
        mapping: Mapping,
        replaces: bool,
    ) {
        self.changed.insert(device, self.generation);
        self.ops.push(Op::Map { device, at, to: Some(mapping) });
        if !replaces && let Some(state) = self.devices.get_mut(&device) {
            state.mapped = state.mapped.saturating_add(1);
        }
    }

    /// Enters that a mapped block is not mapped any more.
    pub(crate) fn unmap(&mut self, device: DeviceId, at: GuestBlock) {
        self.ops.push(Op::Map { device, at, to: None });
        self.frees = true;
        self.changed.insert(device, self.generation);
        if let Some(state) = self.devices.get_mut(&device) {
            state.mapped = state.mapped.saturating_sub(1);
        }
    }

    /// Enters all of `changes`, or none of them where one is not possible.
    ///
    /// # Errors
    /// `Exists`, `NotFound`, `Invalid` and `Busy` as the kernel's EEXIST, ENODATA, EINVAL and
    /// EBUSY; `Unsupported` once the pool's time is used up.
    pub(crate) fn change(&mut self, pool: &str, changes: &[Change]) -> Result<()> {
        let before = (self.ops.len(), self.time, self.transaction, self.holds_root);
        let mut undo = Vec::new();
        for change in changes {
            if let Err(error) = self.change_one(pool, *change, &mut undo) {
                self.ops.truncate(before.0);
                (self.time, self.transaction, self.holds_root) = (before.1, before.2, before.3);
                for (id, state) in undo.into_iter().rev() {
                    self.put(id, state);
                }
                return Err(error);
            }
        }
        for id in self.ops[before.0..].iter().flat_map(Op::devices) {
            self.changed.insert(id, self.generation);
        }
        Ok(())
    }

    fn change_one(&mut self, pool: &str, change: Change, undo: &mut Undo) -> Result<()> {
        match change {
            Change::CreateThin(id) => {
                self.check_absent(pool, id)?;
                self.replace(id, Some(self.newborn(0)), undo);
                self.ops.push(Op::Create { id });
            }
            Change::CreateSnapshot { id, origin } => {
                self.check_absent(pool, id)?;
                let state = *self.device(pool, origin)?;
                let time = self.tick(pool)?;
                self.replace(id, Some(self.newborn(state.mapped)), undo);
                self.replace(origin, Some(DeviceState { snapshotted: time, ..state }), undo);
                self.ops.push(Op::Snapshot { id, origin, time });
            }
            Change::Rollback { id, source } => {
                let origin = *self.device(pool, source)?;
                let state = *self.device(pool, id)?;
                let time = self.tick(pool)?;
                self.replace(source, Some(DeviceState { snapshotted: time, ..origin }), undo);
                let mapped = origin.mapped;
                self.replace(id, Some(DeviceState { mapped, snapshotted: time, ..state }), undo);
                self.ops.push(Op::Rollback { id, source, time });
            }
            Change::Delete(id) => {
                self.device(pool, id)?;
                self.replace(id, None, undo);
                self.ops.push(Op::Delete { id });
            }
            Change::ReserveMetadataSnapshot => {
                if self.holds_root {
                    let problem = "a metadata snapshot is held already";
                    return Err(Error::new(ErrorKind::Busy, pool, problem)
                        .advise("release it before taking another"));
                }
                self.holds_root = true;
                self.ops.push(Op::HoldRoot);
            }
            Change::ReleaseMetadataSnapshot => {
                if !self.holds_root {
                    let problem = "no metadata snapshot is held";
                    return Err(Error::new(ErrorKind::Invalid, pool, problem));
                }
                self.holds_root = false;
                self.ops.push(Op::ReleaseRoot);
            }
            Change::SetTransaction { current, new } => {
                if current != self.transaction {
                    let problem =
                        format!("the transaction id is {}, not {current}", self.transaction);
                    return Err(Error::new(ErrorKind::Invalid, pool, problem));
                }
                self.transaction = new;
                self.ops.push(Op::SetTransaction { new });
            }
        }
        Ok(())
    }

    /// Puts `state` in the place of what `undo` is told.
    fn replace(&mut self, id: DeviceId, state: Option<DeviceState>, undo: &mut Undo) {
        undo.push((id, self.put(id, state)));
    }

    fn put(&mut self, id: DeviceId, state: Option<DeviceState>) -> Option<DeviceState> {
        match state {
            Some(state) => self.devices.insert(id, state),
            None => self.devices.remove(&id),
        }
    }

    fn newborn(&self, mapped: u64) -> DeviceState {
        DeviceState {
            mapped,
            transaction: self.transaction,
            created: self.time,
            snapshotted: self.time,
        }
    }

    fn check_absent(&self, pool: &str, id: DeviceId) -> Result<()> {
        if self.devices.contains_key(&id) {
            let object = format!("{pool}, device {id}");
            return Err(Error::new(ErrorKind::Exists, object, "there is such a device already"));
        }
        Ok(())
    }

    /// Moves the pool's time on for a snapshot.
    fn tick(&mut self, pool: &str) -> Result<Time> {
        self.time = self.time.next().ok_or_else(|| {
            let problem = "all 16,777,215 snapshots of the metadata's life are taken";
            Error::new(ErrorKind::Unsupported, pool, problem).advise(
                "begin its time anew: close it, then 'firn pool dump DIR -o FILE' and 'firn \
                     pool restore --renumber -i FILE DIR'",
            )
        })?;
        Ok(self.time)
    }
}
