//! A thin pool: made, opened, changed, grown and closed.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use parking_lot::Mutex;
use persistent_data::BLOCK_SIZE;

use crate::admission::Budget;
use crate::allocator::Allocator;
use crate::commit::{end_background, start_background};
use crate::pending::{Op, Pending};
use crate::shared::{Parts, Shared};
use crate::space::{end_ahead, start_ahead};
use crate::superblock::Superblock;
use crate::trees::{Trees, blocks_of};
use crate::volume::{Core, ThinVolume};
use crate::worst_case::Demand;
use crate::{BlockSize, DeviceId, DeviceState};

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
    /// Give the space of discarded blocks back to the data device.
    pub passdown: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, background: true, passdown: true }
    }
}

/// An open thin pool.
///
/// Dropping it commits what waits, as [`Pool::close`] does, but tells nobody if that fails.
pub struct Pool {
    pub(crate) shared: Arc<Shared>,
    background: Mutex<Vec<JoinHandle<()>>>,
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
        let blocks = blocks_of(&**metadata);
        if blocks < FEWEST_METADATA_BLOCKS {
            let least = ByteCount::new(FEWEST_METADATA_BLOCKS * BLOCK_SIZE as u64);
            let problem = format!("is smaller than the {least} that a pool's metadata needs");
            return Err(Error::new(ErrorKind::Invalid, metadata.name(), problem));
        }
        let data_blocks = data.size().get() / block_size.bytes().get();
        if data_blocks == 0 {
            let problem = format!("is smaller than one block of {}", block_size.bytes());
            return Err(Error::new(ErrorKind::Invalid, data.name(), problem));
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
        let read_only = why_read_only(&superblock, &*metadata, &*data, options);
        let trees = Trees::open(metadata, superblock, options.background)?;
        check_data_size(&trees, &*data)?;
        let shared = Arc::new(Shared::new(parts(name, data, trees, options, read_only)));
        let runs = options.background && shared.is_writable();
        let pool = Self { shared, background: Mutex::default() };
        if runs {
            for start in [start_background, start_ahead] {
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
        let core = self.core(id, size)?;
        let shared = Arc::clone(&self.shared);
        Ok(ThinVolume::new(shared, core, name.to_owned(), read_only))
    }

    /// What all who have `id` open share.
    fn core(&self, id: DeviceId, size: ByteCount) -> Result<Arc<Core>> {
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
            let core = Core::new(id, size, device.root, state.snapshotted);
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

    /// The devices with what is known of each.
    pub fn devices(&self) -> Vec<(DeviceId, DeviceState)> {
        let pending = self.shared.pending.lock();
        pending.devices.iter().map(|(id, state)| (*id, *state)).collect()
    }

    /// The transaction id.
    pub fn transaction(&self) -> u64 {
        self.shared.pending.lock().transaction
    }

    /// Takes over a data device that has grown, or makes it grow to `size` if it can.
    ///
    /// # Errors
    /// `Invalid` where that is smaller than the pool: pools do not shrink.
    pub fn grow_data(&self, size: ByteCount) -> Result<()> {
        self.shared.check_writable()?;
        let blocks = size.get() / self.shared.block_size.bytes().get();
        let now = self.shared.pending.lock().data_blocks;
        if blocks < now {
            let problem = format!("has {now} data blocks and cannot shrink to {blocks}");
            return Err(Error::new(ErrorKind::Invalid, &*self.shared.name, problem));
        }
        let bytes = ByteCount::new(blocks * self.shared.block_size.bytes().get());
        if self.shared.data.size() < bytes {
            self.shared.data.resize(bytes)?;
        }
        let share = self.shared.share(Demand::devices(1), false)?;
        let generation = {
            let mut pending = self.shared.pending.lock();
            pending.ops.push(Op::GrowData { blocks });
            pending.data_blocks = blocks;
            share.enter(&mut pending);
            pending.generation
        };
        self.shared.commit_to(generation)?;
        self.shared.allocator.lock().grow(blocks);
        Ok(())
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
        if !self.shared.is_writable() {
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

/// Why the pool may be opened for reading only, if so: `ReadOnly` where the caller chose it.
fn why_read_only(
    superblock: &Superblock,
    metadata: &dyn BlockDevice,
    data: &dyn BlockDevice,
    options: OpenOptions,
) -> Option<(ErrorKind, String)> {
    if superblock.needs_check() {
        let reason = "its metadata needs a check; take the mark off with \
                      'firn pool check --clear-needs-check' if it is sound, or use \
                      'firn pool repair'";
        return Some((ErrorKind::Corrupt, reason.into()));
    }
    if let Some(bits) = superblock.forbids_writing() {
        let reason = format!("its metadata uses features that forbid writing: bits {bits:#x}");
        return Some((ErrorKind::Unsupported, reason));
    }
    let chosen = options.read_only || metadata.limits().read_only || data.limits().read_only;
    chosen.then(|| (ErrorKind::ReadOnly, "it is open read-only".into()))
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
    read_only: Option<(ErrorKind, String)>,
) -> Parts {
    let block_size = trees.superblock().block_size();
    let roots = trees.superblock().roots();
    let map = trees.data_map();
    let allocator = Allocator::new(block_size, map.nr_blocks(), map.counts().used_bits());
    let (free, _) = trees.metadata_blocks();
    let pending = Pending {
        ops: Vec::new(),
        generation: 1,
        devices: trees.devices().iter().map(|(id, device)| (*id, device.state)).collect(),
        time: roots.time,
        transaction: roots.transaction,
        data_blocks: trees.data_map().nr_blocks(),
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
        passdown: options.passdown,
        read_only,
    }
}
