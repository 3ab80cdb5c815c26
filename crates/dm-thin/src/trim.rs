//! Giving the space of free blocks back to the data device while the pool is in use.
//!
//! What is freed is given back when the commit that freed it is durable; what a crash, another
//! program or a pool without passing down left behind is found here. Each step takes a run of free
//! blocks out of everybody's reach, discards it, and brings it back: a block that the durable
//! metadata names, or that somebody writes, is never among them.

use block_types::{ByteCount, Result};

use crate::{DataBlock, Pool};

/// What one step gives back at most, in bytes: so that whoever finds the pool full meanwhile waits
/// for a moment only.
const STEP: u64 = 64 << 20;

/// A step of a trim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// What was given back.
    pub bytes: ByteCount,
    /// Where to go on.
    pub next: DataBlock,
}

impl Pool {
    /// Gives back the space of the next run of free blocks from `from` on, or a part of it; `None`
    /// where there is none. Blocks that were provided for a volume that writes are left out.
    ///
    /// # Errors
    /// As the data device fails; `Unsupported` where it cannot take space back.
    pub fn trim_step(&self, from: DataBlock) -> Result<Option<Trimmed>> {
        self.shared.check_writable()?;
        let size = self.shared.block_size;
        let most = STEP / size.bytes().get();
        let Some((first, count)) = self.shared.allocator.lock().lend(from, most) else {
            return Ok(None);
        };
        let range = size.data_range(first, count);
        let done = self.shared.data.discard(range);
        self.shared.allocator.lock().bring_back(first, count);
        self.shared.window_opened.notify_all();
        done?;
        let next = DataBlock::new(first.get() + count);
        Ok(Some(Trimmed { bytes: range.len, next }))
    }
}
