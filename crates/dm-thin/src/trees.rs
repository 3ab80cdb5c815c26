//! The metadata as it lies on disk: its trees, its space maps, and how a batch of changes gets
//! there.
//!
//! Only a commit is in here, one at a time. Nothing that the last durable superblock names is ever
//! overwritten: changed nodes go to blocks that were free then, side by side, and the superblock
//! follows when they are durable.

mod doomed;

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::btree::{NoRefs, apply, empty, prefetch, release, touch};
use persistent_data::space_map::COUNTS_PER_BITMAP;
use persistent_data::{BLOCK_SIZE, BlockStore, DiskSpaceMap, Hold, MetaBlock, Transaction};

use crate::details::{Details, Device, read_devices};
use crate::held_root;
use crate::pending::{Batch, Op};
use crate::refs::{DataRefs, RootRefs};
use crate::superblock::{Roots, Superblock};
use crate::worst_case::TreeShape;
use crate::{DataBlock, DeviceId, DeviceState, GuestBlock, Mapping, Time};

pub use doomed::ReclaimPace;

/// Clean metadata blocks that are kept in memory: 16 MiB.
const CACHE_BLOCKS: usize = 4096;
/// Changes of mappings that are applied together: their leaves are to fit into the cache.
const TOGETHER: usize = CACHE_BLOCKS / 4;
/// Blocks that one bitmap of a space map counts.
const BITMAP_ENTRIES: u64 = COUNTS_PER_BITMAP as u64;

/// More mappings than this do not fit any metadata.
const MOST_MAPPED: u64 = Transaction::MAX_BLOCKS * 252;

/// The metadata of one pool.
pub(crate) struct Trees {
    pub(crate) metadata: Arc<dyn BlockDevice>,
    store: Arc<BlockStore>,
    pub(crate) txn: Transaction,
    data_map: DiskSpaceMap,
    superblock: Superblock,
    /// The superblock as it is durable.
    durable: Superblock,
    mappings: MetaBlock,
    details: MetaBlock,
    time: Time,
    transaction: u64,
    devices: BTreeMap<DeviceId, Device>,
    /// How much of a deleted device a commit takes down.
    pace: ReclaimPace,
    /// Whether nodes are read side by side; off where runs must repeat exactly.
    parallel: bool,
    /// Whether it was told that little metadata is left.
    pub(crate) told_low: bool,
}

/// What admission says of a batch, in metadata blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    /// What its commit takes at worst.
    pub(crate) most: u64,
    /// Free blocks under which the metadata should grow before.
    pub(crate) comfortable: u64,
}

impl Trees {
    /// Writes the metadata of a new, empty pool: the superblock last.
    pub(crate) fn format(
        metadata: &Arc<dyn BlockDevice>,
        mut superblock: Superblock,
        data_blocks: u64,
    ) -> Result<()> {
        let store = Arc::new(BlockStore::new(Arc::clone(metadata), CACHE_BLOCKS));
        let mut txn = Transaction::format(store, blocks_of(&**metadata))?;
        let mut data_map = DiskSpaceMap::format(&mut txn, data_blocks)?;
        let mappings = empty::<u64>(&mut txn)?;
        let details = empty::<Details>(&mut txn)?;
        let data_root = data_map.commit(&mut txn)?;
        let metadata_root = txn.seal()?;
        txn.write()?;
        metadata.flush()?;
        let roots = Roots {
            time: Time::default(),
            transaction: 0,
            mappings,
            details,
            data_map: data_root,
            metadata_map: metadata_root,
        };
        superblock.write(&**metadata, &roots)?;
        metadata.flush()
    }

    /// Opens the metadata that `superblock` names.
    pub(crate) fn open(
        metadata: Arc<dyn BlockDevice>,
        superblock: Superblock,
        pace: ReclaimPace,
        parallel: bool,
    ) -> Result<Self> {
        let name = metadata.name().to_owned();
        Self::read(metadata, superblock, pace, parallel).map_err(|error| error.within(&name))
    }

    fn read(
        metadata: Arc<dyn BlockDevice>,
        superblock: Superblock,
        pace: ReclaimPace,
        parallel: bool,
    ) -> Result<Self> {
        let store = Arc::new(BlockStore::new(Arc::clone(&metadata), CACHE_BLOCKS));
        let roots = superblock.roots();
        let txn = Transaction::open(Arc::clone(&store), &roots.metadata_map)?;
        let data_map = DiskSpaceMap::open(&*store, &roots.data_map)?;
        let devices = read_devices(&store, &roots)?;
        Ok(Self {
            metadata,
            store,
            txn,
            data_map,
            durable: superblock.clone(),
            superblock,
            mappings: roots.mappings,
            details: roots.details,
            time: roots.time,
            transaction: roots.transaction,
            devices,
            pace,
            parallel,
            told_low: false,
        })
    }

    /// Applies `batch` and makes everything it needs durable but the superblock. Data blocks that
    /// nothing refers to any more are added to `freed`.
    pub(crate) fn prepare(
        &mut self,
        batch: &Batch,
        promise: Promise,
        freed: &mut Vec<DataBlock>,
    ) -> Result<Roots> {
        for op in &batch.ops {
            if let Op::GrowMetadata { blocks } = *op
                && blocks > self.txn.nr_blocks()
            {
                self.txn.extend(blocks)?;
            }
        }
        if self.txn.free_blocks() < promise.comfortable {
            self.grow_metadata(promise.comfortable);
        }
        let room = self.txn.free_blocks();
        self.apply(batch, freed)?;
        let data_map = self.data_map.commit(&mut self.txn)?;
        let metadata_map = self.txn.seal()?;
        debug_assert!(
            room - self.txn.free_blocks() <= promise.most,
            "a commit of {} changes took {} metadata blocks, not {} at most",
            batch.ops.len(),
            room - self.txn.free_blocks(),
            promise.most
        );
        self.txn.write()?;
        self.metadata.flush()?;
        Ok(Roots {
            time: self.time,
            transaction: self.transaction,
            mappings: self.mappings,
            details: self.details,
            data_map,
            metadata_map,
        })
    }

    /// Writes the superblock that names what [`Trees::prepare`] made durable, and makes it durable:
    /// the moment of the commit.
    pub(crate) fn publish(&mut self, roots: &Roots) -> Result<()> {
        self.superblock.write(&*self.metadata, roots)?;
        self.metadata.flush()
    }

    /// Ends the transaction: what it freed may be used again.
    pub(crate) fn finish(&mut self) {
        self.txn.finish();
        self.durable = self.superblock.clone();
    }

    /// Notes durably that the metadata needs a check, and nothing else: the superblock goes on to
    /// name what it named when a commit last succeeded. Nothing may be committed afterwards.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn mark_needs_check(&mut self) -> Result<()> {
        let mut marked = self.durable.clone();
        marked.require_check();
        let roots = marked.roots();
        marked.write(&*self.metadata, &roots)?;
        self.metadata.flush()?;
        self.durable = marked.clone();
        self.superblock = marked;
        Ok(())
    }

    /// Goes back to what is durable, whatever a commit that failed had begun.
    ///
    /// # Errors
    /// The device's, and what it has to say of damage.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        // Nobody keeps blocks for readers from here on.
        self.break_holds();
        let (metadata, durable) = (Arc::clone(&self.metadata), self.durable.clone());
        *self = Self::open(metadata, durable, self.pace, self.parallel)?;
        Ok(())
    }

    /// Holds what the last commit left for readers.
    pub(crate) fn hold(&mut self) -> Hold {
        self.txn.hold()
    }

    /// Ends a hold.
    pub(crate) fn let_go(&mut self, hold: &Hold) {
        self.txn.let_go(hold);
    }

    /// Ends all holds, whoever reads; `false` if there is none.
    pub(crate) fn break_holds(&mut self) -> bool {
        self.txn.break_holds()
    }

    /// The devices as the trees have them.
    pub(crate) fn devices(&self) -> &BTreeMap<DeviceId, Device> {
        &self.devices
    }

    /// The blocks of the metadata, for reading.
    pub(crate) fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }

    /// The data space map.
    pub(crate) fn data_map(&self) -> &DiskSpaceMap {
        &self.data_map
    }

    /// The superblock of the last commit.
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Metadata blocks that are free, and all there are.
    pub(crate) fn metadata_blocks(&self) -> (u64, u64) {
        (self.txn.free_blocks(), self.txn.nr_blocks())
    }

    /// How large the trees are now.
    pub(crate) fn shape(&self) -> TreeShape {
        TreeShape {
            mapped: self.mapped(),
            devices: self.devices.len() as u64,
            is_shared: self.devices.len() > 1 || self.superblock.held_root().is_some(),
            data_bitmaps: self.data_map.nr_blocks().div_ceil(BITMAP_ENTRIES),
            data_allocated: self.data_map.allocated(),
            data_overflow: self.data_map.counts().overflowing(),
            metadata_bitmaps: self.txn.nr_blocks().div_ceil(BITMAP_ENTRIES),
            metadata_allocated: self.txn.counts().allocated(),
            metadata_overflow: self.txn.counts().overflowing(),
        }
    }

    /// Mapped blocks of all devices, by what their details say; broken details may say anything.
    fn mapped(&self) -> u64 {
        let mapped = self.devices.values().map(|device| device.state.mapped.min(MOST_MAPPED));
        mapped.fold(0, u64::saturating_add).min(MOST_MAPPED)
    }

    /// Applies the changes in order; those of mappings between two changes of devices together.
    fn apply(&mut self, batch: &Batch, freed: &mut Vec<DataBlock>) -> Result<()> {
        self.own_roots(batch)?;
        let mut mappings = Vec::new();
        let mut touched = BTreeMap::new();
        for op in &batch.ops {
            if let Op::Map { device, at, to } = *op {
                mappings.push((device, at, to));
                continue;
            }
            self.apply_mappings(&mut mappings, &mut touched, freed)?;
            self.apply_device(*op, &mut touched, freed)?;
        }
        self.apply_mappings(&mut mappings, &mut touched, freed)?;
        self.apply_touched(&touched)?;
        self.hold_root(batch)
    }

    /// Takes the metadata snapshot that the batch asks for: of all that it comes to, so that no
    /// change of the same commit finds the nodes shared that it has just copied.
    fn hold_root(&mut self, batch: &Batch) -> Result<()> {
        let mut last = batch.ops.iter().rev();
        let last = last.find(|op| matches!(op, Op::HoldRoot | Op::ReleaseRoot));
        if last == Some(&Op::HoldRoot) {
            let roots = Roots {
                time: self.time,
                transaction: self.transaction,
                mappings: self.mappings,
                details: self.details,
                ..self.superblock.roots()
            };
            let at = held_root::reserve(&mut self.txn, &self.superblock, &roots)?;
            self.superblock.hold(Some(at));
        }
        Ok(())
    }

    fn release_root_held(&mut self, freed: &mut Vec<DataBlock>) -> Result<()> {
        if let Some(at) = self.superblock.held_root() {
            held_root::let_go(&mut self.txn, &mut self.data_map, at, freed)?;
            self.superblock.hold(None);
        }
        Ok(())
    }

    /// Where a metadata snapshot shares the tree of roots, each root that the batch may change is
    /// counted for it first: else its tree would look like ours alone.
    fn own_roots(&mut self, batch: &Batch) -> Result<()> {
        if self.superblock.held_root().is_none() {
            return Ok(());
        }
        let doomed = self.doomed_devices().map(|(id, _)| id);
        let changed = batch.ops.iter().flat_map(Op::devices);
        let mut keys: Vec<u64> = changed.chain(doomed).map(DeviceId::key).collect();
        keys.sort_unstable();
        keys.dedup();
        self.mappings = touch::<u64, _>(&mut self.txn, self.mappings, &keys, &mut RootRefs)?;
        Ok(())
    }

    fn apply_device(
        &mut self,
        op: Op,
        touched: &mut Touched,
        freed: &mut Vec<DataBlock>,
    ) -> Result<()> {
        match op {
            Op::Map { .. } | Op::HoldRoot | Op::GrowMetadata { .. } => {}
            Op::ReleaseRoot => self.release_root_held(freed)?,
            Op::Create { id } => {
                self.make_way(id, touched);
                let root = empty::<u64>(&mut self.txn)?;
                let state = self.newborn(0);
                self.put(id, Some(Device { state, root }), touched);
            }
            Op::Snapshot { id, origin, time } => {
                self.time = time;
                self.make_way(id, touched);
                let source = self.share(origin, time, touched)?;
                let state = self.newborn(source.state.mapped);
                self.put(id, Some(Device { state, ..source }), touched);
            }
            Op::Rollback { id, source, time } => {
                self.time = time;
                let source = self.share(source, time, touched)?;
                let old = self.device(id)?;
                self.dispose(old, touched, freed)?;
                let state =
                    DeviceState { mapped: source.state.mapped, snapshotted: time, ..old.state };
                self.put(id, Some(Device { state, ..source }), touched);
            }
            Op::Delete { id } => {
                let old = self.device(id)?;
                self.dispose(old, touched, freed)?;
                self.put(id, None, touched);
            }
            Op::Reclaim => self.reclaim(touched, freed)?,
            Op::SetTransaction { new } => self.transaction = new,
            Op::GrowData { blocks } => self.data_map.extend(blocks),
        }
        Ok(())
    }

    /// Adds a reference to the tree of `id` and returns the device, whose blocks count as shared.
    fn share(&mut self, id: DeviceId, time: Time, touched: &mut Touched) -> Result<Device> {
        let mut device = self.device(id)?;
        self.txn.inc(device.root);
        device.state.snapshotted = time;
        self.put(id, Some(device), touched);
        Ok(device)
    }

    fn release_root(&mut self, root: MetaBlock, freed: &mut Vec<DataBlock>) -> Result<()> {
        let mut refs = DataRefs { map: &mut self.data_map, freed };
        release::<u64, _>(&mut self.txn, root, &mut refs)
    }

    fn newborn(&self, mapped: u64) -> DeviceState {
        DeviceState {
            mapped,
            transaction: self.transaction,
            created: self.time,
            snapshotted: self.time,
        }
    }

    fn device(&self, id: DeviceId) -> Result<Device> {
        self.devices.get(&id).copied().ok_or_else(|| {
            let problem = format!("device {id} is not in the trees though it was accepted");
            Error::new(ErrorKind::Corrupt, self.metadata.name(), problem)
        })
    }

    fn put(&mut self, id: DeviceId, device: Option<Device>, touched: &mut Touched) {
        touched.insert(id, device);
        match device {
            Some(device) => self.devices.insert(id, device),
            None => self.devices.remove(&id),
        };
    }

    /// Applies changes of mappings, the last of each block, device by device in order.
    fn apply_mappings(
        &mut self,
        mappings: &mut Vec<(DeviceId, GuestBlock, Option<Mapping>)>,
        touched: &mut Touched,
        freed: &mut Vec<DataBlock>,
    ) -> Result<()> {
        let mut superseded = Vec::new();
        mappings.sort_by_key(|&(device, at, _)| (device, at));
        for changes in mappings.chunk_by(|one, other| one.0 == other.0) {
            let id = changes[0].0;
            let mut device = self.device(id)?;
            for changes in last_of_each(changes, &mut superseded).chunks(TOGETHER) {
                if self.parallel {
                    let keys: Vec<u64> = changes.iter().map(|change| change.0).collect();
                    prefetch(&self.txn, device.root, &keys)?;
                }
                let mut refs = DataRefs { map: &mut self.data_map, freed };
                let applied = apply(&mut self.txn, device.root, changes, &mut refs)?;
                device.root = applied.root;
                let mapped = device.state.mapped.saturating_add(applied.inserted);
                device.state.mapped = mapped.saturating_sub(applied.removed);
            }
            self.put(id, Some(device), touched);
        }
        // Another device may have been given the same block, and kept it.
        superseded.retain(|block| self.data_map.get(block.get()) == 0);
        freed.append(&mut superseded);
        mappings.clear();
        Ok(())
    }

    /// Enters the devices that changed into the tree of roots and the tree of details.
    fn apply_touched(&mut self, touched: &Touched) -> Result<()> {
        let roots: Vec<_> = touched
            .iter()
            .map(|(id, device)| (id.key(), device.map(|device| device.root.get())))
            .collect();
        self.mappings = apply(&mut self.txn, self.mappings, &roots, &mut RootRefs)?.root;
        let details: Vec<_> = touched
            .iter()
            .map(|(id, device)| (id.key(), device.map(|device| Details::of(&device.state))))
            .collect();
        self.details = apply(&mut self.txn, self.details, &details, &mut NoRefs)?.root;
        Ok(())
    }
}

/// Devices that a batch made, changed or (`None`) deleted.
type Touched = BTreeMap<DeviceId, Option<Device>>;

/// Sorted changes of one device with only the last of each block. A block that was mapped and
/// superseded before any tree saw it is free, if it is nobody else's.
fn last_of_each(
    changes: &[(DeviceId, GuestBlock, Option<Mapping>)],
    superseded: &mut Vec<DataBlock>,
) -> Vec<(u64, Option<u64>)> {
    let mut last: Vec<(u64, Option<u64>)> = Vec::with_capacity(changes.len());
    for &(_, at, to) in changes {
        let to = to.map(Mapping::pack);
        match last.last_mut() {
            Some((key, value)) if *key == at.get() => {
                superseded.extend(value.map(|value| Mapping::unpack(value).block));
                *value = to;
            }
            _ => last.push((at.get(), to)),
        }
    }
    last
}

/// Whole metadata blocks of a device, as many as the format can use.
pub(crate) fn blocks_of(metadata: &dyn BlockDevice) -> u64 {
    (metadata.size().get() / BLOCK_SIZE as u64).min(Transaction::MAX_BLOCKS)
}
