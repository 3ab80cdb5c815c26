//! How full a pool is, and in what state; and what may be asked of the metadata as a whole.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_types::{ByteCount, ErrorKind, Result};
use persistent_data::MetaBlock;

use crate::{CheckReport, DeviceId, Difference, GuestBlock, Mapping, Pool};

/// How full a pool is, and in what state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The volume manager's transaction id.
    pub transaction: u64,
    /// The pool's time: snapshots taken so far.
    pub time: u32,
    /// Metadata blocks in use, of 4 KiB.
    pub metadata_used: u64,
    /// Metadata blocks in all.
    pub metadata_total: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// Data blocks in all.
    pub data_total: u64,
    /// Bytes of a data block.
    pub block_size: ByteCount,
    /// Thin devices.
    pub devices: u64,
    /// The block of the metadata snapshot that is held.
    pub held_root: Option<u64>,
    /// Whether only a check may decide if the metadata is sound.
    pub needs_check: bool,
    /// Why the pool takes no writes, if it does not.
    pub read_only: Option<String>,
    /// Whether that is not what its opener chose.
    pub degraded: bool,
}

impl Pool {
    /// How full the pool is, and in what state.
    pub fn status(&self) -> PoolStatus {
        let (held_root, needs_check, metadata) = {
            let trees = self.shared.trees.lock();
            let superblock = trees.superblock();
            (superblock.held_root(), superblock.needs_check(), trees.metadata_blocks())
        };
        let (free, total) = metadata;
        let data_free = self.shared.allocator.lock().free();
        let reason = self.shared.reason();
        let pending = self.shared.pending.lock();
        PoolStatus {
            transaction: pending.transaction,
            time: pending.time.get(),
            metadata_used: total - free,
            metadata_total: total,
            data_used: pending.data_blocks - data_free,
            data_total: pending.data_blocks,
            block_size: self.shared.block_size.bytes(),
            devices: pending.devices.len() as u64,
            held_root: held_root.map(MetaBlock::get),
            needs_check,
            degraded: reason.as_ref().is_some_and(|(kind, _)| *kind != ErrorKind::ReadOnly),
            read_only: reason.map(|(_, reason)| reason),
        }
    }

    /// Calls `each` with the blocks that the two devices map differently: the guest block, and what
    /// each of them maps it to. Both are as the last commit left them.
    ///
    /// # Errors
    /// `NotFound` where one of the devices is missing.
    pub fn diff(
        &self,
        left: DeviceId,
        right: DeviceId,
        each: &mut dyn FnMut(Difference) -> ControlFlow<()>,
    ) -> Result<()> {
        self.commit_if_writable()?;
        crate::diff::diff(&self.shared, left, right, each)
    }

    /// Calls `each` with the mappings of a device, as the last commit left them, in order.
    ///
    /// # Errors
    /// `NotFound` where there is no such device.
    pub fn mappings(
        &self,
        id: DeviceId,
        each: &mut dyn FnMut(GuestBlock, Mapping) -> ControlFlow<()>,
    ) -> Result<()> {
        self.commit_if_writable()?;
        crate::diff::mappings(&self.shared, id, each)
    }

    /// Checks the metadata as a commit leaves it; other commits wait meanwhile.
    ///
    /// # Errors
    /// As [`check`](crate::check()).
    pub fn check(&self) -> Result<CheckReport> {
        self.commit_if_writable()?;
        let trees = self.shared.trees.lock();
        crate::check(Arc::clone(trees.store().device()))
    }

    fn commit_if_writable(&self) -> Result<()> {
        if self.shared.is_writable() { self.commit() } else { Ok(()) }
    }
}
