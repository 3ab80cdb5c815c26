//! Metadata of a pool that was long in use, for the tools that work on metadata.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use block_io::{CacheMode, HostFile};
use block_types::ByteCount;
use dm_thin::restore::{Builder, PoolFields, Run, Shared};
use dm_thin::{BlockSize, DataBlock, DeviceId, DeviceState, GuestBlock, Time};
use testkit::rng::Rng;

/// What the pool is like, for the tables.
pub(super) const SHAPE: &str = "10 million mappings, 100 snapshots";

/// Mappings in a leaf of a tree: a leaf has room for a few more.
const LEAF: u64 = 240;
/// Leaves of each device.
const LEAVES: u64 = 42_000;
/// Snapshots beside the volume.
const SNAPSHOTS: u32 = 100;
/// Leaves that each snapshot has to itself, about.
const CHANGED: u64 = LEAVES / 100;
/// Blocks that lie side by side.
const RUN: u64 = 8;
/// Room for the metadata.
const SIZE: ByteCount = ByteCount::new(1 << 30);
/// Data blocks, with some that nobody uses.
pub(super) const DATA_BLOCKS: u64 = 2 * LEAVES * LEAF + SNAPSHOTS as u64 * CHANGED * LEAF;
/// Bytes of a data block.
pub(super) const BLOCK: u64 = 64 << 10;

/// Makes it in the file `path`: a volume of ten million mappings in runs of eight, and snapshots of
/// it that share all leaves but a hundredth.
pub(super) fn make(path: &Path) -> Result<()> {
    let device = Arc::new(HostFile::create(path, SIZE, CacheMode::Cached)?);
    let builder = Builder::new(device, DATA_BLOCKS)?;
    let mut maker = Maker { builder, rng: Rng::new(1), next: 0 };
    let mut shared = Vec::new();
    for at in 0..LEAVES {
        maker.builder.begin_shared()?;
        maker.leaf(at, 0)?;
        shared.push(maker.builder.end_shared()?);
    }
    for device in 0..=SNAPSHOTS {
        maker.device(device, &shared)?;
    }
    let block_size = BlockSize::new(ByteCount::new(BLOCK))?;
    let fields = PoolFields { block_size, time: Time::new(SNAPSHOTS + 1), transaction: 0 };
    maker.builder.finish(&fields)?;
    Ok(())
}

struct Maker {
    builder: Builder,
    rng: Rng,
    /// The next data block that nothing maps.
    next: u64,
}

impl Maker {
    /// A device: what is shared, in parts replaced by its own unless it is the first.
    fn device(&mut self, number: u32, shared: &[Shared]) -> Result<()> {
        let created = Time::new(number);
        let state = DeviceState { mapped: 0, transaction: 0, created, snapshotted: created };
        self.builder.begin_device(DeviceId::new(number)?, state)?;
        for (at, &part) in (0..).zip(shared) {
            if number > 0 && self.rng.chance(CHANGED, LEAVES) {
                self.leaf(at, number)?;
            } else {
                self.builder.share(part)?;
            }
        }
        self.builder.end_device()?;
        Ok(())
    }

    /// The mappings of the leaf `at`, in data blocks of their own.
    fn leaf(&mut self, at: u64, time: u32) -> Result<()> {
        for run in 0..LEAF / RUN {
            // Now and then a run does not follow the one before.
            self.next += if self.rng.chance(1, 50) { RUN } else { 0 };
            let from = GuestBlock::new(at * LEAF + run * RUN);
            let (to, time) = (DataBlock::new(self.next), Time::new(time + (run % 2) as u32));
            self.builder.run(Run { from, to, len: RUN, time })?;
            self.next += RUN;
        }
        Ok(())
    }
}
