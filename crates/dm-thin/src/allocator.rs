//! Free data blocks: which are free, and who gets the next one.
//!
//! A block is free here when neither the committed metadata nor anything since refers to it; a
//! freed block comes back only when the commit that freed it is durable and every lease that could
//! still reach it is dropped (FREE-LATE). Each volume takes its blocks from a window of its own, so
//! that what is written in order lies in order, and the window's space is provided in one step.

use std::collections::HashMap;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};

use crate::{BlockSize, DataBlock, DeviceId};

/// The largest window, in bytes: one allocation of the file system below.
const WINDOW_BYTES: u64 = 64 << 20;
const WORD: u64 = u64::BITS as u64;

/// The free data blocks of a pool.
pub(crate) struct Allocator {
    /// A bit per block, set while the block is not free.
    used: Vec<u64>,
    blocks: u64,
    free: u64,
    cursor: u64,
    window_blocks: u64,
    windows: HashMap<DeviceId, Window>,
}

/// Free blocks that one volume will take next; they still count as free.
#[derive(Clone, Copy, Debug)]
struct Window {
    next: u64,
    end: u64,
}

/// Provides space for data blocks before they are handed out.
pub(crate) trait Provision {
    /// Makes sure that `count` blocks from `first` on can be written.
    fn provision(&self, first: DataBlock, count: u64) -> Result<()>;
}

impl Allocator {
    /// An allocator over `blocks` blocks, of which `used` says the ones in use.
    pub(crate) fn new(
        block_size: BlockSize,
        blocks: u64,
        used: impl Iterator<Item = DataBlock>,
    ) -> Self {
        let mut allocator = Self {
            used: vec![0; blocks.div_ceil(WORD) as usize],
            blocks,
            free: blocks,
            cursor: 0,
            window_blocks: (WINDOW_BYTES / block_size.bytes().get()).max(1),
            windows: HashMap::new(),
        };
        for block in used {
            allocator.mark(block.get());
        }
        allocator
    }

    /// Blocks that are free.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// The next block for `volume`, or `None` when none is free.
    ///
    /// # Errors
    /// `OutOfSpace` where blocks are free but the file system below has no room for even one.
    pub(crate) fn take(
        &mut self,
        volume: DeviceId,
        space: &impl Provision,
    ) -> Result<Option<DataBlock>> {
        let window = match self.windows.get(&volume) {
            Some(window) if window.next < window.end => *window,
            _ => match self.open_window(space)? {
                Some(window) => window,
                None => return Ok(None),
            },
        };
        self.mark(window.next);
        self.windows.insert(volume, Window { next: window.next + 1, ..window });
        Ok(Some(DataBlock::new(window.next)))
    }

    /// Makes `block` free again.
    pub(crate) fn give_back(&mut self, block: DataBlock) {
        let (word, bit) = position(block.get());
        debug_assert_ne!(self.used[word] & bit, 0, "block {} freed twice", block.get());
        self.used[word] &= !bit;
        self.free += 1;
    }

    /// Adds blocks at the end, all free.
    pub(crate) fn grow(&mut self, blocks: u64) {
        self.free += blocks - self.blocks;
        self.blocks = blocks;
        self.used.resize(blocks.div_ceil(WORD) as usize, 0);
    }

    fn mark(&mut self, block: u64) {
        let (word, bit) = position(block);
        if self.used[word] & bit == 0 {
            self.used[word] |= bit;
            self.free -= 1;
        }
    }

    /// Finds a run of free blocks that no window holds and provides space for it.
    fn open_window(&mut self, space: &impl Provision) -> Result<Option<Window>> {
        let Some(mut window) = self.find_run() else {
            // What is still free stands in windows of other volumes: they find new ones.
            self.windows.clear();
            return match self.find_run() {
                Some(window) => self.provide(window, space).map(Some),
                None => Ok(None),
            };
        };
        window = self.provide(window, space)?;
        self.cursor = window.end;
        Ok(Some(window))
    }

    /// Provides space for `window`, or for its first block alone where that is all there is.
    fn provide(&self, window: Window, space: &impl Provision) -> Result<Window> {
        let first = DataBlock::new(window.next);
        match space.provision(first, window.end - window.next) {
            Ok(()) => Ok(window),
            Err(error) if error.kind() == ErrorKind::OutOfSpace => {
                space.provision(first, 1)?;
                Ok(Window { end: window.next + 1, ..window })
            }
            Err(error) => Err(error),
        }
    }

    /// The next run of free blocks from the cursor on, around the end, outside every window.
    fn find_run(&self) -> Option<Window> {
        let first = self
            .find_free(self.cursor, self.blocks)
            .or_else(|| self.find_free(0, self.cursor.min(self.blocks)))?;
        let limit = self.blocks.min(first + self.window_blocks);
        let reserved = self.windows.values().map(|window| window.next).filter(|&next| next > first);
        let limit = reserved.fold(limit, u64::min);
        let end = (first..limit).find(|&block| !self.is_free(block)).unwrap_or(limit);
        Some(Window { next: first, end })
    }

    /// The first free block of `from..to` that no window holds.
    fn find_free(&self, from: u64, to: u64) -> Option<u64> {
        let mut block = from;
        while block < to {
            let (word, _) = position(block);
            let rest = !self.used[word] & (u64::MAX << (block % WORD));
            if rest == 0 {
                block = (block / WORD + 1) * WORD;
                continue;
            }
            block = block / WORD * WORD + u64::from(rest.trailing_zeros());
            match self.windows.values().find(|window| (window.next..window.end).contains(&block)) {
                Some(window) => block = window.end,
                None => return (block < to).then_some(block),
            }
        }
        None
    }

    fn is_free(&self, block: u64) -> bool {
        let (word, bit) = position(block);
        self.used[word] & bit == 0
    }
}

fn position(block: u64) -> (usize, u64) {
    ((block / WORD) as usize, 1 << (block % WORD))
}

/// The space of a data device.
pub(crate) struct DataSpace<'d> {
    /// The device.
    pub(crate) device: &'d dyn BlockDevice,
    /// The size of a data block.
    pub(crate) block_size: BlockSize,
}

impl Provision for DataSpace<'_> {
    fn provision(&self, first: DataBlock, count: u64) -> Result<()> {
        self.device.provision(self.block_size.data_range(first, count))
    }
}

/// The answer to a write that needs a block when none is left.
pub(crate) fn out_of_data_space(pool: &str) -> Error {
    Error::new(ErrorKind::OutOfSpace, pool, "the pool has no free data block left")
        .advise("grow it with 'firn pool grow', or delete or discard what is not needed")
}

#[cfg(test)]
mod tests {
    use super::{Allocator, Provision};
    use crate::{BlockSize, DataBlock, DeviceId};
    use block_types::{ByteCount, Error, ErrorKind, Result};
    use std::collections::HashSet;

    struct Room(u64);

    impl Provision for Room {
        fn provision(&self, first: DataBlock, count: u64) -> Result<()> {
            if first.get() + count <= self.0 {
                return Ok(());
            }
            Err(Error::new(ErrorKind::OutOfSpace, "data", "full"))
        }
    }

    fn id(number: u32) -> DeviceId {
        DeviceId::new(number).expect("24 bits")
    }

    fn allocator(blocks: u64) -> Allocator {
        let size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
        Allocator::new(size, blocks, std::iter::empty())
    }

    #[test]
    fn volumes_write_side_by_side_in_runs() {
        let mut allocator = allocator(10_000);
        let room = Room(u64::MAX);
        for step in 0..100 {
            for volume in 0..3 {
                let block = allocator.take(id(volume), &room).expect("room").expect("free");
                assert_eq!(block.get(), u64::from(volume) * 1024 + step);
            }
        }
    }

    #[test]
    fn every_block_is_given_out_once_windows_or_not() {
        let mut allocator = allocator(3000);
        let room = Room(u64::MAX);
        let mut seen = HashSet::new();
        for step in 0..3000u32 {
            let block = allocator.take(id(step % 7), &room).expect("room").expect("free");
            assert!(seen.insert(block), "{block:?} twice");
        }
        assert_eq!(allocator.take(id(1), &room).expect("an answer"), None);
        allocator.give_back(DataBlock::new(17));
        assert_eq!(allocator.take(id(2), &room).expect("room"), Some(DataBlock::new(17)));
        allocator.grow(3001);
        assert_eq!(allocator.take(id(3), &room).expect("room"), Some(DataBlock::new(3000)));
    }

    #[test]
    fn a_full_file_system_is_out_of_space() {
        let mut allocator = allocator(5000);
        let room = Room(3);
        for _ in 0..3 {
            allocator.take(id(0), &room).expect("room").expect("free");
        }
        let error = allocator.take(id(0), &room).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert_eq!(allocator.free(), 4997);
    }
}
