//! The devices of a pool, and how much of each is its own.
//!
//! A block is *exclusive* to a device if no other mapping, of any device, leads to its data block;
//! the rest of what a device maps is *shared*. Leaves are read in the order in which they lie on
//! the device, those of single devices twice; counting takes a byte for each data block and four
//! for each metadata block.

mod column;
mod owner;
mod table;

use std::io::Write;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use persistent_data::MetaBlock;
use persistent_data::btree::{MAX_DEPTH, Node};

use crate::dump::{Feeder, Item, Source, View, stream};
use crate::{DeviceId, DeviceState, GuestBlock, Mapping};
use owner::{Owner, Owners};

pub use column::{Amount, Column, Unit};

/// What is known of a pool's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The size of a data block.
    pub block_size: ByteCount,
    /// The devices, ascending.
    pub rows: Vec<Row>,
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its identifier.
    pub id: DeviceId,
    /// What its details say.
    pub state: DeviceState,
    /// Blocks that no other mapping leads to; `None` unless it was asked for.
    pub exclusive: Option<u64>,
    /// The last mapped block, if any is.
    pub highest: Option<GuestBlock>,
}

impl Row {
    /// Blocks whose data other mappings lead to as well; `None` unless it was asked for.
    pub fn shared(&self) -> Option<u64> {
        self.exclusive.map(|exclusive| self.state.mapped.saturating_sub(exclusive))
    }
}

/// Lists the devices, with what is exclusive to each if `count` asks for it: that takes reading all
/// mappings.
///
/// # Errors
/// `Corrupt` for broken metadata, `NotFound` if there is no metadata snapshot; the device's
/// failures.
pub fn list(metadata: Arc<dyn BlockDevice>, view: View, count: bool) -> Result<Listing> {
    let source = Source::open(metadata, view)?;
    let exclusive = if count { Some(exclusive(&source)?) } else { None };
    let mut rows = Vec::with_capacity(source.devices.len());
    for (index, device) in source.devices.iter().enumerate() {
        rows.push(Row {
            id: device.id,
            state: device.state,
            exclusive: exclusive.as_ref().map(|counts| counts[index]),
            highest: highest(&source, device.root)?,
        });
    }
    let block_size = ByteCount::from_sectors(u64::from(source.fields.block_sectors));
    Ok(Listing { block_size, rows })
}

/// Writes `columns` of the devices as a table, right-aligned, as `thin_ls` lays it out.
///
/// # Errors
/// As [`list`], and the failures of `out`.
pub fn write_table(
    metadata: Arc<dyn BlockDevice>,
    view: View,
    columns: &[Column],
    headers: bool,
    out: impl Write,
) -> Result<()> {
    let count = columns.iter().any(|column| column.counts());
    table::write(&list(metadata, view, count)?, columns, headers, out)
}

/// The last key of the tree at `root`: down its right edge.
fn highest(source: &Source, root: MetaBlock) -> Result<Option<GuestBlock>> {
    let mut at = root;
    for _ in 0..MAX_DEPTH {
        let node = Node::read(&source.store, at)?;
        if node.is_leaf() {
            return Ok(node.keys().last().map(|key| GuestBlock::new(key.get())));
        }
        at = node.child(node.len() - 1);
    }
    Err(source.corrupt(root, "is the root of a tree that is too deep, perhaps a loop"))
}

/// How many mappings of each device lead where no other mapping does.
fn exclusive(source: &Source) -> Result<Vec<u64>> {
    let owners = Owners::of(source)?;
    let blocks = usize::try_from(source.data_blocks).unwrap_or(usize::MAX);
    let mut counts = Counts::new(blocks)?;
    each_leaf(source, &owners, |_| true, &mut |owner, value| {
        let step = if owner == Owner::Several { 2 } else { 1 };
        counts.add(Mapping::unpack(value), step)
    })?;
    let mut exclusive = vec![0; source.devices.len()];
    each_leaf(source, &owners, |owner| owner != Owner::Several, &mut |owner, value| {
        if let Owner::One(device) = owner {
            exclusive[device] += u64::from(counts.is_single(Mapping::unpack(value)));
        }
        Ok(())
    })?;
    Ok(exclusive)
}

/// Calls `each` with the mappings in all leaves whose owner is `wanted`.
fn each_leaf(
    source: &Source,
    owners: &Owners,
    wanted: fn(Owner) -> bool,
    each: &mut dyn FnMut(Owner, u64) -> Result<()>,
) -> Result<()> {
    let mut now = Owner::Several;
    let feed = |feeder: &mut Feeder<'_, Owner>| {
        for (at, owner) in owners.leaves().filter(|(_, owner)| wanted(*owner)) {
            feeder.event(owner)?;
            feeder.leaf(at)?;
        }
        Ok(())
    };
    stream(source.metadata(), feed, |item| match item {
        Item::Event(owner) => {
            now = owner;
            Ok(())
        }
        Item::Leaf(leaf) => leaf.values().try_for_each(|value| each(now, value)),
    })
}

/// How many mappings lead to each data block: none, one, or more.
struct Counts(Vec<u8>);

impl Counts {
    fn new(blocks: usize) -> Result<Self> {
        let mut counts = Vec::new();
        counts.try_reserve_exact(blocks).map_err(|_| {
            let problem = format!("has {blocks} blocks, too many to count in memory");
            Error::new(ErrorKind::Corrupt, "the data device", problem)
        })?;
        counts.resize(blocks, 0);
        Ok(Self(counts))
    }

    #[inline]
    fn add(&mut self, mapping: Mapping, step: u8) -> Result<()> {
        let block = mapping.block.get();
        let blocks = self.0.len();
        let Some(count) = self.0.get_mut(block as usize) else {
            let problem = format!("is mapped, but the data device has {blocks} blocks");
            return Err(Error::new(ErrorKind::Corrupt, format!("data block {block}"), problem));
        };
        *count = (*count + step).min(2);
        Ok(())
    }

    #[inline]
    fn is_single(&self, mapping: Mapping) -> bool {
        self.0[mapping.block.get() as usize] == 1
    }
}
