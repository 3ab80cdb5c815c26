//! What all users of an open pool share: the devices below, the maps in memory, the state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use block_io::{BlockDevice, LeaseSet};
use block_types::{Error, Result};
use parking_lot::{Condvar, Mutex, RwLock};
use persistent_data::BlockStore;

use crate::allocator::Allocator;
use crate::commit::Progress;
use crate::condition::{Condition, Halt};
use crate::hydrate::shared_time;
use crate::mode::Why;
use crate::pending::Pending;
use crate::share::Share;
use crate::trees::Trees;
use crate::volume::Core;
use crate::worst_case::Demand;
use crate::{BlockSize, DataBlock, DeviceId, GuestBlock, Mapping, PoolMode};

/// An open pool, as its volumes and its commits see it.
///
/// Locks are taken in this order: a volume's `slow`, a block of it, `trees`, `pending`,
/// `allocator`; the condition's own lock is taken last and never held over anything.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) block_size: BlockSize,
    pub(crate) data: Arc<dyn BlockDevice>,
    pub(crate) leases: LeaseSet,
    pub(crate) pending: Mutex<Pending>,
    pub(crate) allocator: Mutex<Allocator>,
    /// A volume has used up half of its window.
    pub(crate) space_wanted: Condvar,
    /// A window was opened, or could not be.
    pub(crate) window_opened: Condvar,
    pub(crate) trees: Mutex<Trees>,
    /// Committed metadata blocks, for reading mapping trees beside a commit.
    pub(crate) store: Arc<BlockStore>,
    /// Held for reading while a mapping tree is read for a page; for writing while a commit ends,
    /// after which the next one may reuse what the old trees occupied.
    pub(crate) reading: RwLock<()>,
    /// Volumes that somebody has open.
    pub(crate) open: Mutex<HashMap<DeviceId, Weak<Core>>>,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) progressed: Condvar,
    /// Whether data and metadata are flushed side by side; off where runs must repeat exactly.
    pub(crate) parallel: bool,
    /// Its mode, and how it is to behave.
    pub(crate) condition: Condition,
    /// Devices that were deleted and whose trees are still to be taken down, as the last commit
    /// left it.
    pub(crate) doomed: AtomicU64,
    /// What they map.
    pub(crate) doomed_blocks: AtomicU64,
}

/// What a pool is made of when it opens.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) data: Arc<dyn BlockDevice>,
    pub(crate) trees: Trees,
    pub(crate) pending: Pending,
    pub(crate) allocator: Allocator,
    pub(crate) block_size: BlockSize,
    pub(crate) parallel: bool,
    pub(crate) condition: Condition,
}

/// A data block that was taken for a write, with its share of the metadata. Publishing consumes it;
/// dropping it gives block and share back.
pub(crate) struct Prepared<'p> {
    shared: &'p Shared,
    block: DataBlock,
    /// Gone once it is published.
    share: Option<Share<'p>>,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let committed = parts.pending.generation - 1;
        let (doomed, doomed_blocks) = parts.trees.doomed();
        Self {
            doomed: AtomicU64::new(doomed),
            doomed_blocks: AtomicU64::new(doomed_blocks),
            name: parts.name,
            block_size: parts.block_size,
            data: parts.data,
            leases: LeaseSet::new(),
            pending: Mutex::new(parts.pending),
            allocator: Mutex::new(parts.allocator),
            space_wanted: Condvar::new(),
            window_opened: Condvar::new(),
            store: Arc::clone(parts.trees.store()),
            trees: Mutex::new(parts.trees),
            reading: RwLock::new(()),
            open: Mutex::new(HashMap::new()),
            progress: Mutex::new(Progress::new(committed)),
            progressed: Condvar::new(),
            parallel: parts.parallel,
            condition: parts.condition,
        }
    }

    /// Whether writes are taken.
    pub(crate) fn is_writable(&self) -> bool {
        self.condition.is_writable()
    }

    /// Checks that writes are taken.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.condition.check_writable()
    }

    /// FAIL-STOP: takes no more writes, since `error` leaves open what is durable. That the
    /// metadata needs a check is durable before anybody is told; where that cannot be, the pool has
    /// failed. Must be called without a lock.
    pub(crate) fn stop(&self, error: &Error) {
        tracing::error!(pool = self.name, "stopped: {error}");
        let text = format!("{error}; what the last commit made durable is kept");
        self.condition.halt(Halt::new(Why::Stopped, text));
        let mut trees = self.trees.lock();
        let marked = trees.mark_needs_check();
        drop(trees);
        if let Err(error) = &marked {
            tracing::error!(pool = self.name, "failed: {error}");
        }
        let mode = if marked.is_ok() { PoolMode::ReadOnly } else { PoolMode::Fail };
        self.condition.enter_mode(mode);
        // Whoever waits for a commit is to look again.
        self.progressed.notify_all();
    }

    /// The pool is closed: its volumes answer no more.
    pub(crate) fn close(&self) {
        self.condition.halt(Halt::new(Why::Closed, "it is closed"));
        self.condition.events.end();
    }

    /// Takes a data block for `device`, and the metadata that `change`, mapping it, may need.
    ///
    /// # Errors
    /// `OutOfSpace` where one of them is used up and cannot grow; nothing has happened then.
    pub(crate) fn prepare(&self, device: DeviceId, change: Demand) -> Result<Prepared<'_>> {
        let share = self.share(change, false)?;
        let block = self.take_block(device)?;
        Ok(Prepared { shared: self, block, share: Some(share) })
    }
}

impl Prepared<'_> {
    /// The block to write.
    pub(crate) fn block(&self) -> DataBlock {
        self.block
    }

    /// Maps `at` of `core` to the block, whose data is written.
    pub(crate) fn publish(mut self, core: &Core, at: GuestBlock) -> Mapping {
        let share = self.share.take().expect("published once");
        let mut pending = self.shared.pending.lock();
        let mapping = pending.map(core.id, at, self.block, share.replaces());
        share.enter(&mut pending);
        core.table.set(at, Some(mapping));
        core.dirty.store(pending.generation, Ordering::SeqCst);
        if pending.budget.is_strained() {
            self.shared.progressed.notify_all();
        }
        mapping
    }

    /// Maps `at` of `core`, and of each of `others`, which have a share each, to the block, whose
    /// data is written: all of them, or, should the power fail, none. Where there are others all of
    /// them had a snapshot, or are one, and the block counts as shared.
    pub(crate) fn publish_for_all(
        self,
        core: &Core,
        others: &[&Core],
        shares: Vec<Share<'_>>,
        at: GuestBlock,
    ) {
        if others.is_empty() {
            self.publish(core, at);
            return;
        }
        let (shared, block) = (self.shared, self.block);
        let mut taken = self;
        let own = taken.share.take().expect("published once");
        let mut pending = shared.pending.lock();
        let cores = || std::iter::once(core).chain(others.iter().copied());
        let snapshotted =
            cores().filter_map(|core| Some(pending.devices.get(&core.id)?.snapshotted));
        let mapping = Mapping { block, time: shared_time(snapshotted) };
        for (core, share) in cores().zip(std::iter::once(own).chain(shares)) {
            pending.enter_mapping(core.id, at, mapping, false);
            share.enter(&mut pending);
            core.table.set(at, Some(mapping));
            core.dirty.store(pending.generation, Ordering::SeqCst);
        }
        if pending.budget.is_strained() {
            shared.progressed.notify_all();
        }
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if self.share.is_some() {
            self.shared.allocator.lock().give_back(self.block);
        }
    }
}
