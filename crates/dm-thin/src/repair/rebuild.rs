//! Writing what was chosen to the new device.

use std::collections::HashMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::bulk::{BulkReader, NodeView};
use persistent_data::{Block, MetaBlock};

use super::catalogue::{Catalogue, Class, Reading};
use super::choose::{Chosen, ChosenDevice};
use super::report::{LostRange, RepairReport, RepairedDevice, Roots};
use crate::restore::{Builder, Overrides, PoolFields, Run, Shared};
use crate::superblock::Superblock;
use crate::{BlockSize, DataBlock, DeviceState, GuestBlock, Mapping, Time};

/// Leaves that are read at once: 16 MiB.
const BATCH: usize = 4096;

/// A repair while it writes.
struct Rebuild<'r> {
    reader: &'r BulkReader,
    builder: Builder,
    data_blocks: u64,
    /// The leaves that occur more than once, and how many of their mappings were dropped.
    shared: HashMap<MetaBlock, (Shared, u64)>,
}

/// Writes the pool to `repaired`.
pub(super) fn rebuild(
    reader: &BulkReader,
    catalogue: &Catalogue,
    chosen: Chosen,
    superblock: Option<&Superblock>,
    repaired: Arc<dyn BlockDevice>,
    overrides: &Overrides,
) -> Result<RepairReport> {
    let fields = fields(reader, catalogue, &chosen, superblock, overrides)?;
    let readings: Vec<Reading> = chosen.devices.iter().map(|one| read(catalogue, one)).collect();
    let data_blocks = match overrides.data_blocks.or(superblock.map(data_blocks)) {
        Some(blocks) => blocks,
        None => last_data_block(reader, &readings) + 1,
    };
    let builder = Builder::new(repaired, data_blocks)?;
    let mut rebuild = Rebuild { reader, builder, data_blocks, shared: HashMap::new() };
    rebuild.shared_leaves(&readings)?;
    let mut devices = Vec::new();
    for (device, reading) in chosen.devices.iter().zip(&readings) {
        let state = state(device, &chosen, &fields);
        devices.push(rebuild.device(device, state, reading)?);
    }
    rebuild.builder.finish(&fields)?;
    let Chosen { roots, details, notes, .. } = chosen;
    Ok(RepairReport { roots, details, devices, notes })
}

/// What is left of the mappings of a device.
fn read(catalogue: &Catalogue, device: &ChosenDevice) -> Reading {
    match device.root {
        Some(root) => catalogue.read(root, Class::Mappings),
        None => Reading { leaves: Vec::new(), lost: vec![(MetaBlock::new(0), 0, u64::MAX)] },
    }
}

impl Rebuild<'_> {
    /// Writes the leaves that occur in more than one device, once.
    fn shared_leaves(&mut self, readings: &[Reading]) -> Result<()> {
        let mut uses: HashMap<MetaBlock, u32> = HashMap::new();
        for leaf in readings.iter().flat_map(|reading| &reading.leaves) {
            *uses.entry(*leaf).or_default() += 1;
        }
        let mut leaves: Vec<MetaBlock> =
            uses.into_iter().filter(|(_, uses)| *uses > 1).map(|(leaf, _)| leaf).collect();
        leaves.sort_unstable();
        for batch in leaves.chunks(BATCH) {
            let blocks = read_leaves(self.reader, batch);
            for &at in batch {
                self.builder.begin_shared()?;
                let dropped = self.mappings(at, &blocks)?;
                let shared = self.builder.end_shared()?;
                self.shared.insert(at, (shared, dropped));
            }
        }
        Ok(())
    }

    /// Writes a device.
    fn device(
        &mut self,
        device: &ChosenDevice,
        state: DeviceState,
        reading: &Reading,
    ) -> Result<RepairedDevice> {
        self.builder.begin_device(device.id, state)?;
        let mut dropped = 0;
        for batch in reading.leaves.chunks(BATCH) {
            let own: Vec<MetaBlock> =
                batch.iter().filter(|at| !self.shared.contains_key(at)).copied().collect();
            let blocks = read_leaves(self.reader, &own);
            for at in batch {
                dropped += match self.shared.get(at) {
                    Some(&(shared, dropped)) => {
                        self.builder.share(shared)?;
                        dropped
                    }
                    None => self.mappings(*at, &blocks)?,
                };
            }
        }
        let mapped = self.builder.end_device()?;
        let stated = device.details.map(|details| details.mapped.get());
        let range = |&(_, first, last): &(MetaBlock, u64, u64)| LostRange {
            first: GuestBlock::new(first),
            last: (last != u64::MAX).then(|| GuestBlock::new(last)),
        };
        let lost = reading.lost.iter().map(range).collect();
        let id = device.id;
        let doubtful = device.doubtful && device.root.is_some();
        Ok(RepairedDevice { id, mapped, stated, lost, dropped, doubtful })
    }

    /// Adds the mappings of a leaf to what is being built. Returns how many lead nowhere.
    fn mappings(&mut self, at: MetaBlock, blocks: &Blocks) -> Result<u64> {
        let mut dropped = 0;
        let leaf = blocks.get(&at).ok_or_else(|| gone(at))?;
        for (guest, value) in NodeView::read(leaf, at)?.entries::<u64>() {
            let Mapping { block, time } = Mapping::unpack(value);
            if block.get() < self.data_blocks && guest < u64::MAX {
                let from = GuestBlock::new(guest);
                self.builder.run(Run { from, to: block, len: 1, time })?;
            } else {
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}

/// Leaves in memory.
type Blocks = HashMap<MetaBlock, Box<Block>>;

/// Reads leaves, in the order of the disk.
fn read_leaves(reader: &BulkReader, leaves: &[MetaBlock]) -> Blocks {
    let mut order = leaves.to_vec();
    order.sort_unstable();
    let read = reader.for_each(&order, Vec::new, |found, at, block| {
        found.extend(block.ok().map(|block| (at, Box::new(block.clone()))));
    });
    read.into_iter().flatten().collect()
}

fn gone(at: MetaBlock) -> Error {
    let object = format!("metadata block {at}");
    Error::new(ErrorKind::Io, object, "could be read at first, and then no more")
        .advise("copy the damaged device to a sound one first")
}

/// What the new superblock says.
fn fields(
    reader: &BulkReader,
    catalogue: &Catalogue,
    chosen: &Chosen,
    superblock: Option<&Superblock>,
    overrides: &Overrides,
) -> Result<PoolFields> {
    let copy = catalogue.superblocks.first().map(|(_, copy)| copy);
    let known = superblock.or(copy).map(Superblock::block_size);
    let block_size: BlockSize = overrides.block_size.or(known).ok_or_else(|| {
        let problem = "has lost its superblock, and with it the size of data blocks";
        Error::new(ErrorKind::Invalid, reader.device().name(), problem)
            .advise("say how large data blocks are")
    })?;
    let details = || chosen.devices.iter().filter_map(|device| device.details);
    let transaction = overrides.transaction.or(superblock.map(|sb| sb.roots().transaction));
    let latest = details().map(|details| details.transaction.get()).max().unwrap_or(0);
    Ok(PoolFields {
        block_size,
        time: superblock.map_or_else(|| later(catalogue, chosen), |sb| sb.roots().time),
        transaction: transaction.unwrap_or(latest),
    })
}

/// A time after everything that was found: what was there before it may be shared by snapshots that
/// nobody remembers.
fn later(catalogue: &Catalogue, chosen: &Chosen) -> Time {
    let roots = chosen.devices.iter().filter_map(|device| catalogue.sum(device.root?));
    let mapped = roots.map(|sum| sum.newest).max().unwrap_or(0);
    let details = chosen.devices.iter().filter_map(|device| device.details);
    let times = details.map(|details| details.snapshotted.get().max(details.created.get()));
    let latest = Time::new(times.max().unwrap_or(0).max(mapped));
    latest.next().unwrap_or(latest)
}

/// The details of a device, made safe where they may be too old to know of all sharing.
fn state(device: &ChosenDevice, chosen: &Chosen, fields: &PoolFields) -> DeviceState {
    let known = device.details;
    let snapshotted = known
        .filter(|_| chosen.details == Some(Roots::Superblock))
        .map_or(fields.time, |details| Time::new(details.snapshotted.get()));
    DeviceState {
        mapped: 0,
        transaction: known.map_or(fields.transaction, |details| details.transaction.get()),
        created: known.map_or(Time::default(), |details| Time::new(details.created.get())),
        snapshotted,
    }
}

fn data_blocks(superblock: &Superblock) -> u64 {
    superblock.roots().data_map.nr_blocks.get()
}

/// The last data block that is mapped anywhere.
fn last_data_block(reader: &BulkReader, readings: &[Reading]) -> u64 {
    let mut leaves: Vec<MetaBlock> =
        readings.iter().flat_map(|reading| reading.leaves.iter().copied()).collect();
    leaves.sort_unstable();
    leaves.dedup();
    let last = reader.for_each(
        &leaves,
        || 0,
        |last: &mut u64, at, block| {
            let Ok(leaf) = block.and_then(|block| NodeView::read(block, at)) else { return };
            let blocks = leaf.words().iter().map(|word| Mapping::unpack(word.get()).block);
            *last = blocks.map(DataBlock::get).fold(*last, u64::max);
        },
    );
    last.into_iter().max().unwrap_or(0)
}
