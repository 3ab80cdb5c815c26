//! Room for metadata: how it grows with need, and when little is left.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};
use persistent_data::{BLOCK_SIZE, Transaction};

use crate::trees::{Trees, blocks_of};

impl Trees {
    /// Grows the metadata where the device can; where it cannot, admission does its work.
    pub(crate) fn grow_metadata(&mut self, comfortable: u64) {
        let now = self.txn.nr_blocks();
        let wanted = (now + now / 4).max(now + comfortable).min(Transaction::MAX_BLOCKS);
        if wanted == now {
            return;
        }
        let grown = grow_device(&*self.metadata, now, wanted).or_else(|error| {
            let device = blocks_of(&*self.metadata);
            // A device that only others can make larger is used as far as it goes.
            let is_fixed = error.kind() == ErrorKind::Unsupported && device > now;
            if is_fixed { Ok(device) } else { Err(error) }
        });
        if let Err(error) = grown.and_then(|blocks| self.txn.extend(blocks))
            && error.kind() != ErrorKind::Unsupported
        {
            tracing::warn!("the metadata cannot grow: {error}");
        }
    }

    /// Blocks that are left for metadata and the mark they are below, once, until there are more:
    /// the kernel's, or twice `least`, that without which nothing would be accepted.
    pub(crate) fn metadata_low(&mut self, least: u64) -> Option<(u64, u64)> {
        let device = blocks_of(&*self.metadata);
        let left = self.txn.free_blocks() + device.saturating_sub(self.txn.nr_blocks());
        let mark = low_water(device).max(2 * least);
        let is_low = left < mark;
        let tell = is_low && !self.told_low;
        self.told_low = is_low;
        tell.then_some((left, mark))
    }
}

/// Free metadata blocks at which an event is raised, on a device of so many.
pub(crate) fn low_water(device: u64) -> u64 {
    (device.min(Transaction::MAX_BLOCKS) / 4).min(1024)
}

/// Gives `metadata`, of which `now` blocks are in use, room for `blocks`, really there; returns how
/// many there are.
pub(crate) fn grow_device(metadata: &dyn BlockDevice, now: u64, blocks: u64) -> Result<u64> {
    let end = |blocks| ByteOffset::new(blocks * BLOCK_SIZE as u64);
    if end(blocks).get() > metadata.size().get() {
        metadata.resize(ByteCount::new(end(blocks).get()))?;
    }
    // All that is new to the pool, not to the device alone: an earlier attempt may have found room
    // for the size and none for the bytes.
    metadata.provision(ByteRange::between(end(now), end(blocks)))?;
    Ok(blocks)
}
