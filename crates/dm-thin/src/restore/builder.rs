//! Building a pool's metadata from its mappings, in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::space_map::COUNTS_PER_BITMAP;
use persistent_data::{MetaBlock, RefCounts};

use super::leaves::{Finished, Leaves, Run, Sink, release_unused};
use super::output::{Output, too_small};
use super::spaces::{write_data_map, write_metadata_map};
use super::tree::{Child, Upper, pack};
use crate::details::Details;
use crate::superblock::{Roots, Superblock};
use crate::{BlockSize, DataBlock, DeviceId, DeviceState, GuestBlock, Time};

/// What the superblock of a new pool says beside its roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFields {
    /// The size of a data block.
    pub block_size: BlockSize,
    /// The pool's time. The field has 32 bits, of which mappings hold 24.
    pub time: Time,
    /// The transaction id of the volume manager.
    pub transaction: u64,
}

/// Leaves that any number of devices may have: of a [`Builder`], by which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared(usize);

/// Writes the metadata of a pool bottom-up: leaves as mappings come, then the levels above them,
/// the trees of devices, the space maps, and the superblock last.
///
/// Everything is written once, in order, in large pieces; counts are kept in flat arrays, a byte
/// for each block. Nothing on the device is a pool before [`finish`](Builder::finish) has returned.
///
/// ```text
///   begin_device  mapping | run | share ...  end_device      in any order of devices
///   begin_shared  mapping | run ...          end_shared      before the first share
///   finish
/// ```
pub struct Builder {
    sink: Sink,
    upper: Upper,
    /// Roots and details of the devices that are complete.
    devices: BTreeMap<DeviceId, (MetaBlock, DeviceState)>,
    /// Leaves that devices may share, one run behind the other.
    leaves: Vec<Child>,
    runs: Vec<SharedRun>,
    open: Option<(Open, Leaves)>,
}

/// What a [`Shared`] names.
struct SharedRun {
    /// Its part of the leaves.
    leaves: Range<usize>,
    /// The last guest block that is mapped in them.
    last: Option<u64>,
}

/// What is being built.
enum Open {
    Device(DeviceId, DeviceState),
    Shared,
}

impl Builder {
    /// Begins the metadata of a pool with `data_blocks` blocks. What `metadata` held is lost.
    ///
    /// # Errors
    /// `OutOfSpace` if the device is too small even for the map of the data blocks; `ReadOnly`; the
    /// device's failures.
    pub fn new(metadata: Arc<dyn BlockDevice>, data_blocks: u64) -> Result<Self> {
        let output = Output::new(metadata)?;
        // Also keeps the array of counts in proportion to the device, whatever was asked for.
        if data_blocks.div_ceil(COUNTS_PER_BITMAP as u64) >= output.counts.len() {
            return Err(too_small(&**output.device()));
        }
        let sink = Sink { output, data: RefCounts::new(data_blocks) };
        Ok(Self {
            sink,
            upper: Upper::default(),
            devices: BTreeMap::new(),
            leaves: Vec::new(),
            runs: Vec::new(),
            open: None,
        })
    }

    /// Begins the device `id`. Its number of mapped blocks is counted, whatever `details` says.
    ///
    /// # Errors
    /// `Exists` if there is one of that number; `Invalid` inside another device.
    pub fn begin_device(&mut self, id: DeviceId, details: DeviceState) -> Result<()> {
        if self.devices.contains_key(&id) {
            return Err(Error::new(ErrorKind::Exists, format!("device {id}"), "is there twice"));
        }
        self.begin(Open::Device(id, details))
    }

    /// Maps one block of what is being built; blocks have to ascend.
    ///
    /// # Errors
    /// As [`run`](Builder::run).
    pub fn mapping(&mut self, from: GuestBlock, to: DataBlock, time: Time) -> Result<()> {
        self.run(Run { from, to, len: 1, time })
    }

    /// Maps a run of blocks of what is being built; blocks have to ascend.
    ///
    /// # Errors
    /// `Invalid` out of order, past the end of the data, with a time beyond 24 bits, or outside of
    /// a device; `OutOfSpace`; the device's failures.
    pub fn run(&mut self, run: Run) -> Result<()> {
        match &mut self.open {
            Some((_, leaves)) => leaves.push(&mut self.sink, run),
            None => Err(misplaced("a mapping", "stands outside of a device")),
        }
    }

    /// Ends the device that is being built, and returns how many blocks it maps.
    ///
    /// # Errors
    /// `Invalid` outside of a device; `OutOfSpace`; the device's failures.
    pub fn end_device(&mut self) -> Result<u64> {
        let Some((Open::Device(id, details), leaves)) = self.open.take() else {
            return Err(misplaced("the end of a device", "has no beginning"));
        };
        let Finished { leaves, mapped, .. } = leaves.finish(&mut self.sink)?;
        let root = self.upper.build(&mut self.sink.output, leaves)?;
        self.devices.insert(id, (root, DeviceState { mapped, ..details }));
        Ok(mapped)
    }

    /// Begins mappings that several devices share: they are written once.
    ///
    /// # Errors
    /// `Invalid` inside a device.
    pub fn begin_shared(&mut self) -> Result<()> {
        self.begin(Open::Shared)
    }

    /// Ends mappings that several devices share, and returns what names them.
    ///
    /// # Errors
    /// `Invalid` without a beginning; `OutOfSpace`; the device's failures.
    pub fn end_shared(&mut self) -> Result<Shared> {
        let Some((Open::Shared, leaves)) = self.open.take() else {
            return Err(misplaced("the end of shared mappings", "has no beginning"));
        };
        let Finished { leaves, last, .. } = leaves.finish(&mut self.sink)?;
        let start = self.leaves.len();
        self.leaves.extend(leaves.into_iter().map(|leaf| Child { shared: true, ..leaf }));
        self.runs.push(SharedRun { leaves: start..self.leaves.len(), last });
        Ok(Shared(self.runs.len() - 1))
    }

    /// Gives the device that is being built mappings that others have too.
    ///
    /// # Errors
    /// `Invalid` out of order, or outside of a device; `OutOfSpace`; the device's failures.
    ///
    /// # Panics
    /// If `shared` is another builder's.
    pub fn share(&mut self, shared: Shared) -> Result<()> {
        match &mut self.open {
            Some((Open::Device(..), leaves)) => {
                let run = &self.runs[shared.0];
                leaves.share(&mut self.sink, &self.leaves[run.leaves.clone()], run.last)
            }
            _ => Err(misplaced("a reference", "stands outside of a device")),
        }
    }

    /// Writes what stands above the devices: their two trees, the space maps, and, once all of that
    /// is durable, the superblock.
    ///
    /// # Errors
    /// `Invalid` inside a device; `OutOfSpace`; the device's failures. Without success there is no
    /// pool on the device.
    pub fn finish(mut self, fields: &PoolFields) -> Result<()> {
        if self.open.is_some() {
            return Err(misplaced("the end of the metadata", "stands inside a device"));
        }
        let sink = &mut self.sink;
        let roots = self.devices.iter().map(|(id, (root, _))| (id.key(), *root));
        roots.clone().for_each(|(_, root)| sink.output.adopt(root));
        let mappings = pack(&mut sink.output, roots)?;
        let details = self.devices.iter().map(|(id, (_, state))| (id.key(), Details::of(state)));
        let details = pack(&mut sink.output, details)?;
        sink.output.adopt(mappings);
        sink.output.adopt(details);
        release_unused(sink, &self.leaves)?;
        let data_map = write_data_map(&mut sink.output, &sink.data)?;
        let metadata_map = write_metadata_map(&mut sink.output)?;
        sink.output.finish()?;
        let device = sink.output.device();
        let &PoolFields { block_size, time, transaction } = fields;
        let roots = Roots { time, transaction, mappings, details, data_map, metadata_map };
        Superblock::new(block_size, metadata_map.nr_blocks.get()).write(&**device, &roots)?;
        device.flush()
    }

    fn begin(&mut self, open: Open) -> Result<()> {
        if self.open.is_some() {
            return Err(misplaced("a beginning", "stands inside a device or shared mappings"));
        }
        self.open = Some((open, Leaves::new()));
        Ok(())
    }
}

fn misplaced(object: &str, problem: &str) -> Error {
    Error::new(ErrorKind::Invalid, object, problem)
}
