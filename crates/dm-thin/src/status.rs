//! How full a pool is, and in what state; and what may be asked of the metadata as a whole.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_types::{ByteCount, Error, ErrorKind, Result};
use persistent_data::btree::{MAX_DEPTH, Node};
use persistent_data::{BlockStore, MetaBlock};

use crate::trees::blocks_of;
use crate::{CheckReport, DeviceId, Discards, GuestBlock, Mapping, Pool, PoolMode, PoolSettings};

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
    /// Metadata blocks that the device has room for; more of them come into use with a commit.
    pub metadata_device: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// Data blocks in all.
    pub data_total: u64,
    /// Data blocks that deleted devices map and that come back in the background, unless somebody
    /// shares them.
    pub reclaiming: u64,
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
    /// Its mode.
    pub mode: PoolMode,
    /// How it is to behave.
    pub settings: PoolSettings,
    /// What really becomes of discarded space.
    pub discards: Discards,
    /// Whether a write that finds no space fails at once: by choice, or since others have waited
    /// for too long.
    pub fails_at_once: bool,
}

/// How full a thin device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinStatus {
    /// Its size, which the pool does not keep.
    pub size: ByteCount,
    /// Bytes of a data block.
    pub block_size: ByteCount,
    /// Blocks that are mapped.
    pub mapped: u64,
    /// The last block that is mapped.
    pub highest: Option<GuestBlock>,
}

impl Pool {
    /// How full the pool is, and in what state.
    pub fn status(&self) -> PoolStatus {
        let (held_root, needs_check, metadata, metadata_device) = {
            let trees = self.shared.trees.lock();
            let superblock = trees.superblock();
            let device = blocks_of(&**trees.store().device());
            (superblock.held_root(), superblock.needs_check(), trees.metadata_blocks(), device)
        };
        let (free, total) = metadata;
        let data_free = self.shared.allocator.lock().free();
        let summary = self.shared.condition.summary();
        let pending = self.shared.pending.lock();
        PoolStatus {
            transaction: pending.transaction,
            time: pending.time.get(),
            metadata_used: total - free,
            metadata_total: total,
            metadata_device,
            data_used: pending.data_blocks - data_free,
            data_total: pending.data_blocks,
            reclaiming: self.shared.doomed_blocks.load(Ordering::SeqCst),
            block_size: self.shared.block_size.bytes(),
            devices: pending.devices.len() as u64,
            held_root: held_root.map(MetaBlock::get),
            needs_check,
            degraded: summary
                .halt
                .as_ref()
                .is_some_and(|halt| halt.why.kind() != ErrorKind::ReadOnly),
            mode: summary.mode,
            settings: summary.settings,
            read_only: summary.halt.map(|halt| halt.text),
            discards: self.discards(summary.settings.features.discards),
            fails_at_once: summary.fails_at_once,
        }
    }

    fn discards(&self, wanted: Discards) -> Discards {
        let limits = self.shared.data.limits();
        // A device that is open for reading takes no discards now, but will.
        match wanted {
            Discards::PassedDown if !limits.discards && !limits.read_only => Discards::Kept,
            other => other,
        }
    }

    /// The kernel's status line of the pool, as a commit leaves it.
    ///
    /// # Errors
    /// What stops the commit.
    pub fn status_line(&self) -> Result<String> {
        self.commit_if_writable()?;
        Ok(self.status().line())
    }

    /// How full a device is, as a commit leaves it. `size` is what the volume manager gives it.
    ///
    /// # Errors
    /// `NotFound` where there is no such device.
    pub fn thin_status(&self, id: DeviceId, size: ByteCount) -> Result<ThinStatus> {
        self.commit_if_writable()?;
        let trees = self.shared.trees.lock();
        let device = trees.devices().get(&id).copied().ok_or_else(|| {
            let object = format!("{}, device {id}", self.shared.name);
            Error::new(ErrorKind::NotFound, object, "there is no such device")
        })?;
        Ok(ThinStatus {
            size,
            block_size: self.shared.block_size.bytes(),
            mapped: device.state.mapped,
            highest: highest(trees.store(), device.root)?,
        })
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
        crate::mappings::mappings(&self.shared, id, each)
    }

    /// Checks the metadata as a commit leaves it. Nobody waits for it.
    ///
    /// # Errors
    /// As [`check`](crate::check()).
    pub fn check(&self) -> Result<CheckReport> {
        crate::check(Arc::new(self.hold_metadata()?))
    }

    pub(crate) fn commit_if_writable(&self) -> Result<()> {
        if self.shared.is_writable() { self.commit() } else { Ok(()) }
    }
}

/// The last key of the tree at `root`: down its right edge.
fn highest(store: &BlockStore, root: MetaBlock) -> Result<Option<GuestBlock>> {
    let mut at = root;
    for _ in 0..MAX_DEPTH {
        let node = Node::read(store, at)?;
        match node.len().checked_sub(1) {
            Some(last) if !node.is_leaf() => at = node.child(last),
            last => return Ok(last.map(|last| GuestBlock::new(node.key(last)))),
        }
    }
    let problem = "is the root of a tree that is too deep, perhaps a loop";
    Err(Error::new(ErrorKind::Corrupt, format!("metadata block {root}"), problem))
}
