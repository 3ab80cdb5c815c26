//! A thin pool: made, opened, changed, grown and closed.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use parking_lot::Mutex;
use persistent_data::BLOCK_SIZE;

use crate::admission::Budget;
use crate::allocator::{Allocator, MarkName};
use crate::commit::{end_background, start_background};
use crate::condition::{Condition, Halt};
use crate::mode::Why;
use crate::origin::Origin;
use crate::pending::Pending;
use crate::reclaim::start_reclaiming;
use crate::shared::{Parts, Shared};
use crate::space::{end_ahead, start_ahead};
use crate::superblock::Superblock;
use crate::trees::{ReclaimPace, Trees, blocks_of};
use crate::volume::{Core, ThinVolume};
use crate::{
    BlockSize, DeviceId, DeviceState, Discards, EventPage, ExternalOrigin, PoolMode, PoolSettings,
    Time,
};

/// The fewest metadata blocks of a pool, as the kernel's tools have it: 1 MiB.
const FEWEST_METADATA_BLOCKS: u64 = 256;

/// How a pool is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Open for reading only: nothing is written, whatever state the pool is in.
    pub read_only: bool,
    /// Run commits in the background, and flushes side by side. Off, everything happens in the
    /// threads of the callers, one step after the other, and a run can be repeated exactly.
    pub background: bool,
    /// How the pool is to behave.
    pub settings: PoolSettings,
    /// Writes that find no space may wait for it, as the settings say: somebody else could provide
    /// it. Off, they fail at once.
    pub waits: bool,
    /// How much of a deleted device one commit takes down.
    pub reclaim: ReclaimPace,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            background: true,
            settings: PoolSettings::default(),
            waits: false,
            reclaim: ReclaimPace::default(),
        }
    }
}

/// An open thin pool.
///
/// Dropping it commits what waits, as [`Pool::close`] does, but tells nobody if that fails.
pub struct Pool {
    pub(crate) shared: Arc<Shared>,
    background: Mutex<Vec<JoinHandle<()>>>,
    /// It grows in one way at a time.
    pub(crate) growing: Mutex<()>,
}

impl Pool {
    /// Makes an empty pool of data blocks of `block_size` on `data`, its metadata on `metadata`.
    /// What the two held is lost.
    ///
    /// # Errors
    /// `Invalid` where one of them is too small.
    pub fn format(
        metadata: &Arc<dyn BlockDevice>,
        data: &dyn BlockDevice,
        block_size: BlockSize,
    ) -> Result<()> {
        let data_blocks = data.size().get() / block_size.bytes().get();
        if data_blocks == 0 {
            let problem = format!("is smaller than one block of {}", block_size.bytes());
            return Err(Error::new(ErrorKind::Invalid, data.name(), problem));
        }
        Self::format_blocks(metadata, data_blocks, block_size)
    }

    /// Makes an empty pool of the first `data_blocks` blocks of its data device likewise.
    ///
    /// # Errors
    /// `Invalid` where the metadata is too small.
    pub fn format_blocks(
        metadata: &Arc<dyn BlockDevice>,
        data_blocks: u64,
        block_size: BlockSize,
    ) -> Result<()> {
        let blocks = blocks_of(&**metadata);
        if blocks < FEWEST_METADATA_BLOCKS {
            let least = ByteCount::new(FEWEST_METADATA_BLOCKS * BLOCK_SIZE as u64);
            let problem = format!("is smaller than the {least} that a pool's metadata needs");
            return Err(Error::new(ErrorKind::Invalid, metadata.name(), problem));
        }
        Trees::format(metadata, Superblock::new(block_size, blocks), data_blocks)
    }

    /// Opens the pool called `name` in messages.
    ///
    /// A pool whose metadata asks for a check, or uses features that forbid writing, opens for
    /// reading only and says so in its status.
    ///
    /// # Errors
    /// `Corrupt` where the metadata breaks its rules or the data device is too short for it,
    /// `Unsupported` for features that are not known here.
    pub fn open(
        name: &str,
        metadata: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        options: OpenOptions,
    ) -> Result<Arc<Self>> {
        let superblock = Superblock::read(&*metadata)?;
        let halt = why_read_only(&superblock, &*metadata, &*data, options);
        let trees = Trees::open(metadata, superblock, options.reclaim, options.background)?;
        check_data_size(&trees, &*data)?;
        let shared = Arc::new(Shared::new(parts(name, data, trees, options, halt)));
        let low_water = options.settings.low_water;
        shared.allocator.lock().set_mark(MarkName::LowWater, Some(low_water));
        // A pool that is read-only by choice may be told otherwise.
        let chosen = options.settings.features.read_only && !options.read_only;
        let runs = options.background && (shared.is_writable() || chosen);
        let pool = Self { shared, background: Mutex::default(), growing: Mutex::default() };
        if runs {
            for start in [start_background, start_ahead, start_reclaiming] {
                pool.background.lock().push(start(&pool.shared)?);
            }
        }
        Ok(Arc::new(pool))
    }

    /// Opens a thin device as a volume of `size`. The pool keeps no sizes: that is the volume
    /// manager's to know. A device that is open already keeps its size.
    ///
    /// # Errors
    /// `NotFound` where there is no such device.
    pub fn open_volume(
        &self,
        id: DeviceId,
        name: &str,
        size: ByteCount,
        read_only: bool,
    ) -> Result<ThinVolume> {
        self.open_volume_over(id, name, size, read_only, None)
    }

    /// Opens a thin device as a volume that shows `origin` where it maps nothing. The pool keeps no
    /// origins either: a device has to be opened with the same one, and as much of it, each time,
    /// and so have its snapshots. One that is open already keeps what it was opened with.
    ///
    /// # Errors
    /// `NotFound` where there is no such device.
    pub fn open_volume_over(
        &self,
        id: DeviceId,
        name: &str,
        size: ByteCount,
        read_only: bool,
        origin: Option<ExternalOrigin>,
    ) -> Result<ThinVolume> {
        let core = self.core(id, size, origin)?;
        let shared = Arc::clone(&self.shared);
        Ok(ThinVolume::new(shared, core, name.to_owned(), read_only))
    }

    /// Whether somebody has `id` open.
    pub fn is_open(&self, id: DeviceId) -> bool {
        self.shared.open.lock().get(&id).is_some_and(|core| core.strong_count() > 0)
    }

    /// What all who have `id` open share.
    fn core(
        &self,
        id: DeviceId,
        size: ByteCount,
        origin: Option<ExternalOrigin>,
    ) -> Result<Arc<Core>> {
        let origin = origin.map(Origin::new);
        loop {
            let trees = self.shared.trees.lock();
            let mut open = self.shared.open.lock();
            if let Some(core) = open.get(&id).and_then(Weak::upgrade) {
                return Ok(core);
            }
            let pending = self.shared.pending.lock();
            let state = *pending.device(&self.shared.name, id)?;
            let changed = pending.changed.get(&id).copied();
            drop(pending);
            // A volume reads its mappings from the committed tree: what was changed by others, or
            // by a handle that is closed by now, has to be there.
            if let Some(generation) = changed {
                drop(open);
                drop(trees);
                self.shared.commit_to(generation)?;
                continue;
            }
            let device = trees.devices().get(&id).ok_or_else(|| {
                let object = format!("{}, device {id}", self.shared.name);
                Error::new(ErrorKind::NotFound, object, "there is no such device in the trees")
            })?;
            let core = Core::new(id, size, device.root, state.snapshotted, origin);
            open.retain(|_, core| core.strong_count() > 0);
            let core = Arc::new(core);
            open.insert(id, Arc::downgrade(&core));
            return Ok(core);
        }
    }

    /// Changes the size of a volume that is open; of one that is not, nothing needs to change here.
    /// What lies behind a smaller size is discarded.
    pub fn resize_volume(&self, volume: &ThinVolume, size: ByteCount) -> Result<()> {
        let old = volume.core.size();
        let _nobody_writes = volume.core.slow.write();
        if size < old {
            volume.core.set_size(size);
            self.shared.leases.drain();
        }
        // Behind a device's end blocks may be mapped, left by a shrinking that a crash cut short or
        // by the kernel: a device that grows must not show them.
        let block = self.shared.block_size.bytes().get();
        let kept = |size: ByteCount| ByteOffset::new(self.shared.block_size.count(size) * block);
        let (least, most) = (kept(size.min(old)), kept(size).max(kept(old)));
        volume.drop_tail(ByteRange::between(least, most))?;
        if size < old {
            return volume.zero_tail(size, least);
        }
        volume.core.set_size(size);
        Ok(())
    }

    /// Gives a volume that was rolled back to a larger snapshot that size again. Other than where
    /// it grows by [`Pool::resize_volume`], what is mapped there is the snapshot's, and shows.
    pub fn restore_size(&self, volume: &ThinVolume, size: ByteCount) {
        let _nobody_writes = volume.core.slow.write();
        volume.core.set_size(size);
    }

    /// The devices with what is known of each.
    pub fn devices(&self) -> Vec<(DeviceId, DeviceState)> {
        let pending = self.shared.pending.lock();
        pending.devices.iter().map(|(id, state)| (*id, *state)).collect()
    }

    /// The transaction id.
    pub fn transaction(&self) -> u64 {
        self.shared.pending.lock().transaction
    }

    /// Behaves by `settings` from now on. The low water mark is to be reached anew, and writes that
    /// wait for space begin to wait anew. What was changed before the pool becomes read-only is
    /// committed first.
    ///
    /// # Errors
    /// What stops that commit. `Unsupported` for ignoring discards
    /// or not ignoring them any more: clients of open volumes were told.
    pub fn configure(&self, settings: PoolSettings) -> Result<()> {
        let condition = &self.shared.condition;
        let ignores = |settings: &PoolSettings| settings.features.discards == Discards::Ignored;
        if ignores(&settings) != ignores(&condition.settings()) {
            let problem = "whether discards are ignored cannot change while the pool is open";
            return Err(Error::new(ErrorKind::Unsupported, &*self.shared.name, problem)
                .advise("change it while nobody serves the pool"));
        }
        if settings.features.read_only && self.shared.is_writable() {
            condition.halt(Halt::new(Why::Chosen, CHOSEN));
            condition.enter_mode(PoolMode::ReadOnly);
            // Writes that were under way may have entered something since.
            self.commit()?;
        }
        condition.configure(settings);
        if !settings.features.read_only {
            condition.resume();
        }
        let mut allocator = self.shared.allocator.lock();
        allocator.set_mark(MarkName::LowWater, Some(settings.low_water));
        Ok(())
    }

    /// How the pool is to behave.
    pub fn settings(&self) -> PoolSettings {
        self.shared.condition.settings()
    }

    /// Raises [`EventKind::Alarm`](crate::EventKind::Alarm) once when a block is asked for while no
    /// more than `free` are free, or at no number any more.
    pub fn set_alarm(&self, free: Option<u64>) {
        self.shared.allocator.lock().set_mark(MarkName::Alarm, free);
    }

    /// The events after number `after`, of those that are kept; waits for one for `patience` at
    /// most.
    pub fn events(&self, after: u64, patience: Duration) -> EventPage {
        self.shared.condition.events.after(after, patience)
    }

    /// There are no more events, and nobody waits for them any longer.
    pub fn end_events(&self) {
        self.shared.condition.events.end();
    }

    /// Commits what waits.
    pub fn commit(&self) -> Result<()> {
        let generation = {
            let pending = self.shared.pending.lock();
            if pending.ops.is_empty() { pending.generation - 1 } else { pending.generation }
        };
        self.shared.commit_to(generation)
    }

    /// Makes everything durable and takes no more requests, from volumes that are still open
    /// neither.
    pub fn close(&self) -> Result<()> {
        self.end_background();
        if self.shared.condition.check_commits().is_err() {
            self.shared.condition.events.end();
            return Ok(());
        }
        self.commit()?;
        self.shared.wait_for_reclaim();
        self.shared.close();
        self.shared.data.flush()
    }

    fn end_background(&self) {
        end_background(&self.shared);
        end_ahead(&self.shared);
        for thread in self.background.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!(pool = self.shared.name, "a thread of the pool panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(pool = self.shared.name, "not closed cleanly: {error}");
        }
    }
}

/// Why a pool with the feature `read_only` takes no writes.
const CHOSEN: &str = "it is read-only by choice; 'firn pool set --read-only off' ends that";

/// Why the pool may be opened for reading only, if so.
fn why_read_only(
    superblock: &Superblock,
    metadata: &dyn BlockDevice,
    data: &dyn BlockDevice,
    options: OpenOptions,
) -> Option<Halt> {
    if superblock.needs_check() {
        let reason = "its metadata needs a check; take the mark off with \
                      'firn pool check --clear-needs-check' if it is sound, or use \
                      'firn pool repair'";
        return Some(Halt::new(Why::NeedsCheck, reason));
    }
    if superblock.roots().time > Time::MAX {
        let reason = "its time has run over the 24 bits of a mapping, where another program went \
                      on and mapped blocks to wrong places; begin its time anew with 'firn pool \
                      dump' and 'firn pool restore --renumber', and see with 'firn pool check' \
                      which blocks are mapped twice";
        return Some(Halt::new(Why::NeedsCheck, reason));
    }
    if let Some(bits) = superblock.forbids_writing() {
        let reason = format!("its metadata uses features that forbid writing: bits {bits:#x}");
        return Some(Halt::new(Why::Foreign, reason));
    }
    if options.read_only || metadata.limits().read_only || data.limits().read_only {
        return Some(Halt::new(Why::Observed, "it is open read-only"));
    }
    options.settings.features.read_only.then(|| Halt::new(Why::Chosen, CHOSEN))
}

fn check_data_size(trees: &Trees, data: &dyn BlockDevice) -> Result<()> {
    let block = trees.superblock().block_size().bytes();
    let blocks = trees.data_map().nr_blocks();
    if data.size().get() / block.get() >= blocks {
        return Ok(());
    }
    let problem =
        format!("is {} long, but the metadata has {blocks} blocks of {block}", data.size());
    Err(Error::new(ErrorKind::Corrupt, data.name(), problem)
        .advise("give it back its full length; the pool was not changed"))
}

fn parts(
    name: &str,
    data: Arc<dyn BlockDevice>,
    trees: Trees,
    options: OpenOptions,
    halt: Option<Halt>,
) -> Parts {
    let block_size = trees.superblock().block_size();
    let roots = trees.superblock().roots();
    let map = trees.data_map();
    let allocator = Allocator::new(block_size, map.nr_blocks(), map.counts().used_bits());
    let (free, _) = trees.metadata_blocks();
    let devices = trees.devices().iter().map(|(id, device)| (*id, device.state));
    let devices = devices.filter(|(_, state)| !state.is_doomed());
    let pending = Pending {
        ops: Vec::new(),
        generation: 1,
        devices: devices.collect(),
        time: roots.time,
        transaction: roots.transaction,
        data_blocks: trees.data_map().nr_blocks(),
        frees: false,
        holds_root: trees.superblock().held_root().is_some(),
        changed: std::collections::HashMap::new(),
        budget: Budget::new(free, trees.shape()),
    };
    Parts {
        name: name.to_owned(),
        data,
        trees,
        pending,
        allocator,
        block_size,
        parallel: options.background,
        condition: Condition::new(name, options.settings, options.waits, halt),
    }
}
