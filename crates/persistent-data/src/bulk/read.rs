//! Reading many blocks in the order of the disk, on several threads.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, thread};

use block_io::{AlignedBuf, BlockDevice};
use block_types::Result;
use zerocopy::FromBytes;

use crate::address::blocks_in;
use crate::{BLOCK_SIZE, Block, MetaBlock};

/// Blocks of the largest read: 1 MiB.
const RUN: u64 = 256;
/// Blocks that are read in vain to join two runs: cheaper than a read of their own.
const GAP: u64 = 16;
/// The fewest threads: while one waits for the disk, another has something to do.
const FEWEST_THREADS: usize = 2;
/// The most threads: the disk is busy with as many large reads.
const MOST_THREADS: usize = 8;

/// Reads blocks of a metadata device in bulk.
#[derive(Clone)]
pub struct BulkReader {
    device: Arc<dyn BlockDevice>,
    threads: usize,
}

impl BulkReader {
    /// Reads `device` with as many threads as suit the machine.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { device, threads: threads.clamp(FEWEST_THREADS, MOST_THREADS) }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// How many whole blocks the device has.
    pub fn blocks(&self) -> u64 {
        blocks_in(self.device.size())
    }

    /// Shows every block of `blocks`, which ascend, to `each`, on several threads and in no order;
    /// each thread has a state of its own from `new`. Returns the states, at least one.
    ///
    /// A block that cannot be read is shown as the device's error, and the others are read all the
    /// same. What the blocks hold is not looked at.
    pub fn for_each<S: Send>(
        &self,
        blocks: &[MetaBlock],
        new: impl Fn() -> S + Sync,
        each: impl Fn(&mut S, MetaBlock, Result<&Block>) + Sync,
    ) -> Vec<S> {
        debug_assert!(blocks.is_sorted());
        let rest = Mutex::new(blocks);
        let work = || {
            let mut state = new();
            let mut buffer = AlignedBuf::zeroed(0);
            while let Some(run) = next_run(&rest) {
                self.read_run(run, &mut buffer, &mut |at, block| each(&mut state, at, block));
            }
            state
        };
        // Small lists are not worth a thread.
        let threads = self.threads.min(blocks.len().div_ceil(RUN as usize));
        if threads <= 1 {
            return vec![work()];
        }
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut states = vec![work()];
            states.extend(others.into_iter().map(|other| match other.join() {
                Ok(state) => state,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
            states
        })
    }

    fn read_run(
        &self,
        run: &[MetaBlock],
        buffer: &mut AlignedBuf,
        each: &mut dyn FnMut(MetaBlock, Result<&Block>),
    ) {
        let (first, last) = (run[0], run[run.len() - 1]);
        let len = (last.get() - first.get() + 1) as usize * BLOCK_SIZE;
        if buffer.len() < len {
            *buffer = AlignedBuf::zeroed(len);
        }
        if self.read(&mut buffer[..len], first).is_ok() {
            for &at in run {
                let start = (at.get() - first.get()) as usize * BLOCK_SIZE;
                each(at, Ok(block_in(&buffer[start..start + BLOCK_SIZE])));
            }
            return;
        }
        // One bad sector must not hide its neighbours.
        for &at in run {
            let read = self.read(&mut buffer[..BLOCK_SIZE], at);
            each(at, read.map(|()| block_in(&buffer[..BLOCK_SIZE])));
        }
    }

    fn read(&self, buffer: &mut [u8], at: MetaBlock) -> Result<()> {
        let offset = at
            .offset()
            .ok_or_else(|| crate::checksum::corrupt(at, "lies behind the end of every device"))?;
        self.device.read_at(buffer, offset)
    }
}

/// Takes the blocks of the next read off the list.
fn next_run<'b>(rest: &Mutex<&'b [MetaBlock]>) -> Option<&'b [MetaBlock]> {
    let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
    let first = rest.first()?.get();
    let joined = rest
        .windows(2)
        .take_while(|pair| pair[1].get() - pair[0].get() <= GAP + 1 && pair[1].get() - first < RUN);
    let (run, behind) = rest.split_at(1 + joined.count());
    *rest = behind;
    Some(run)
}

fn block_in(bytes: &[u8]) -> &Block {
    Block::ref_from_bytes(bytes).expect("the buffer is aligned, and cut by the block")
}

impl fmt::Debug for BulkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BulkReader({}, {} threads)", self.device.name(), self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::{BulkReader, GAP, RUN, next_run};
    use crate::{BLOCK_SIZE, MetaBlock};
    use block_io::{FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
    use block_types::ErrorKind;
    use std::sync::{Arc, Mutex};

    fn blocks(numbers: impl IntoIterator<Item = u64>) -> Vec<MetaBlock> {
        numbers.into_iter().map(MetaBlock::new).collect()
    }

    fn device(count: u64) -> MemoryDevice {
        let byte = |block: u64| vec![block as u8; BLOCK_SIZE];
        MemoryDevice::from_bytes("numbers", (0..count).flat_map(byte).collect())
    }

    #[test]
    fn runs_join_neighbours_over_small_gaps() {
        let list = blocks([0, 1, GAP + 2, 2 * GAP + 4, 100, RUN + 99, RUN + 100]);
        let rest = Mutex::new(&list[..]);
        let runs: Vec<usize> = std::iter::from_fn(|| next_run(&rest).map(<[_]>::len)).collect();
        assert_eq!(runs, [3, 1, 1, 2]);
        let long = blocks(0..2 * RUN + 1);
        let rest = Mutex::new(&long[..]);
        let runs: Vec<usize> = std::iter::from_fn(|| next_run(&rest).map(<[_]>::len)).collect();
        assert_eq!(runs, [RUN as usize, RUN as usize, 1]);
    }

    #[test]
    fn every_block_is_shown_once() {
        let reader = BulkReader::new(Arc::new(device(4 * RUN)));
        let wanted = blocks((0..4 * RUN).filter(|number| number % 3 != 1));
        let states = reader.for_each(&wanted, Vec::new, |seen, at, block| {
            assert_eq!(block.expect("read")[77], at.get() as u8);
            seen.push(at);
        });
        let mut seen: Vec<MetaBlock> = states.into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, wanted);
        assert_eq!(reader.for_each(&[], || 7, |_, _, _| ()), [7]);
    }

    #[test]
    fn a_bad_block_does_not_hide_its_neighbours() {
        // The first call is the whole run; the third is the second block alone.
        let failing = |fail_at| {
            let calls = FaultCalls { reads: true, ..FaultCalls::default() };
            FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky: false }
        };
        let inner = FaultyDevice::new(Arc::new(device(4)), failing(1));
        let reader = BulkReader::new(FaultyDevice::new(inner, failing(3)));
        let states = reader.for_each(&blocks(0..4), Vec::new, |seen, at, block| {
            seen.push((at.get(), block.is_ok()));
        });
        assert_eq!(states[0], [(0, true), (1, false), (2, true), (3, true)]);
    }

    #[test]
    fn blocks_past_the_end_are_errors() {
        let reader = BulkReader::new(Arc::new(device(4)));
        let list = blocks([3, 4, u64::MAX]);
        let states = reader.for_each(&list, Vec::new, |seen, at, block| {
            seen.push((at.get(), block.is_ok()));
        });
        assert_eq!(states[0], [(3, true), (4, false), (u64::MAX, false)]);
    }
}
