//! The new metadata device: its blocks are given out and written one after another.

use std::sync::Arc;

use block_io::{AlignedBuf, BlockDevice, check_writable};
use block_types::{Error, ErrorKind, Result};
use persistent_data::{
    BLOCK_SIZE, Block, BlockKind, MetaBlock, RefCounts, Transaction, seal, verify,
};

/// Blocks that are written at once: 1 MiB.
const BATCH: usize = 256;

/// A device that is written from its second block on, in order, and the counts of its blocks.
pub(super) struct Output {
    device: Arc<dyn BlockDevice>,
    /// Parents of every block so far. A block that never gets one is free.
    pub(super) counts: RefCounts,
    buffer: AlignedBuf,
    /// The block that the buffer begins with.
    first: u64,
    /// The next block to be given out.
    next: u64,
}

impl Output {
    /// Takes `device`, which loses what it held: its superblock is gone, durably, before anything
    /// else is written, so that nobody takes a half-written device for a pool.
    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Result<Self> {
        check_writable(&*device)?;
        let blocks = (device.size().get() / BLOCK_SIZE as u64).min(Transaction::MAX_BLOCKS);
        if blocks == 0 {
            return Err(too_small(&*device));
        }
        device.write_at(&AlignedBuf::zeroed(BLOCK_SIZE), block_types::ByteOffset::ZERO)?;
        device.flush()?;
        let mut counts = RefCounts::new(blocks);
        counts.set(0, 1);
        let buffer = AlignedBuf::zeroed(BATCH * BLOCK_SIZE);
        Ok(Self { device, counts, buffer, first: 1, next: 1 })
    }

    /// The device.
    pub(super) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Gives out the next block, of `kind`; `fill` gets its bytes, all zero. Nobody refers to it
    /// yet.
    pub(super) fn append(
        &mut self,
        kind: BlockKind,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<MetaBlock> {
        if self.next == self.counts.len() {
            return Err(too_small(&*self.device));
        }
        if self.buffered() == BATCH {
            self.write()?;
        }
        let at = MetaBlock::new(self.next);
        let start = self.buffered() * BLOCK_SIZE;
        let block = &mut self.buffer[start..start + BLOCK_SIZE];
        block.fill(0);
        fill(block);
        seal(block, kind, at);
        self.next += 1;
        Ok(at)
    }

    /// As [`append`](Output::append), for a block with one parent that does not count it itself.
    pub(super) fn append_owned(
        &mut self,
        kind: BlockKind,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<MetaBlock> {
        let at = self.append(kind, fill)?;
        self.adopt(at);
        Ok(at)
    }

    /// Another parent refers to the block at `at`.
    pub(super) fn adopt(&mut self, at: MetaBlock) {
        let count = self.counts.inc(at.get());
        debug_assert!(count.is_some(), "block {at} was given out");
    }

    /// The number that the block after `ahead` more will get.
    pub(super) fn upcoming(&self, ahead: u64) -> MetaBlock {
        MetaBlock::new(self.next + ahead)
    }

    /// Reads a block back.
    pub(super) fn read(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        let mut block = Arc::new(Block::zeroed());
        let bytes = Arc::get_mut(&mut block).expect("nobody else has it yet");
        if let Some(index) = at.get().checked_sub(self.first) {
            let start = index as usize * BLOCK_SIZE;
            bytes.copy_from_slice(&self.buffer[start..start + BLOCK_SIZE]);
        } else {
            let offset = at.offset().expect("the block lies on the device");
            self.device.read_at(&mut bytes[..], offset)?;
            verify(&bytes[..], kind, at)?;
        }
        Ok(block)
    }

    /// Writes what is still in memory and makes everything durable.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.write()?;
        self.device.flush()
    }

    fn buffered(&self) -> usize {
        (self.next - self.first) as usize
    }

    fn write(&mut self) -> Result<()> {
        let bytes = &self.buffer[..self.buffered() * BLOCK_SIZE];
        let offset = MetaBlock::new(self.first).offset().expect("the block lies on the device");
        self.device.write_at(bytes, offset)?;
        self.first = self.next;
        Ok(())
    }
}

/// The failure of a device that the metadata does not fit.
pub(super) fn too_small(device: &dyn BlockDevice) -> Error {
    let problem = format!("is too small for this metadata, with {} bytes", device.size().get());
    Error::new(ErrorKind::OutOfSpace, device.name(), problem)
        .advise("restore to a larger device; the format allows up to 15.875 GiB")
}
