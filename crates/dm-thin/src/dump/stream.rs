//! Leaves in a given order, read ahead by a thread of their own.
//!
//! One thread walks the trees and feeds what it wants read, with events of its own in between; many
//! leaves are read at once, in the order in which they lie on the device, and checked. The other
//! takes leaves and events in the order in which they were fed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use block_io::{AlignedBuf, BlockDevice};
use block_types::{Error, ErrorKind, Result};
use persistent_data::{BLOCK_SIZE, MetaBlock};

use super::leaf::Leaf;

/// Leaves that are read together.
const BATCH: usize = 128;
/// Blocks that a batch has room for: leaves, and what lies between them.
const ROOM: u64 = 2 * BATCH as u64;
/// Blocks between two leaves that are read along rather than begin another request.
const GAP: u64 = 8;
/// Batches under way. Each takes 1 MiB.
const AHEAD: usize = 2;

/// What comes out of a stream.
pub(crate) enum Item<'b, E> {
    /// A leaf that was fed.
    Leaf(Leaf<'b>),
    /// An event that was fed.
    Event(E),
}

enum Step<E> {
    /// A leaf, at this place of the batch's memory.
    Leaf(u32),
    Event(E),
}

struct Batch<E> {
    steps: Vec<Step<E>>,
    memory: AlignedBuf,
}

impl<E> Batch<E> {
    fn new() -> Self {
        Self { steps: Vec::new(), memory: AlignedBuf::zeroed(ROOM as usize * BLOCK_SIZE) }
    }
}

/// Takes what a stream is to bring.
pub(crate) struct Feeder<'d, E> {
    device: &'d dyn BlockDevice,
    batch: Batch<E>,
    /// Leaves of the batch, and which step each is.
    wanted: Vec<(u64, usize)>,
    full: SyncSender<Batch<E>>,
    empty: Receiver<Batch<E>>,
}

/// Runs `feed` on a thread of its own and calls `each` with what it feeds from `device`, in order.
///
/// # Errors
/// `Corrupt` for a leaf that is none; the device's failures, and those of `feed` and `each`.
pub(crate) fn stream<E: Send>(
    device: &dyn BlockDevice,
    feed: impl FnOnce(&mut Feeder<'_, E>) -> Result<()> + Send,
    mut each: impl FnMut(Item<'_, E>) -> Result<()>,
) -> Result<()> {
    let (full, batches) = sync_channel(AHEAD);
    let (back, empty) = sync_channel(AHEAD + 1);
    thread::scope(|scope| {
        let feeding = scope.spawn(move || {
            let batch = Batch::new();
            let mut feeder = Feeder { device, batch, wanted: Vec::new(), full, empty };
            feed(&mut feeder)?;
            feeder.send()
        });
        let taken = take_all(batches, &back, &mut each);
        let fed = feeding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Where taking failed, feeding only says that nobody takes any more.
        taken.and(fed)
    })
}

fn take_all<E>(
    batches: Receiver<Batch<E>>,
    back: &SyncSender<Batch<E>>,
    each: &mut impl FnMut(Item<'_, E>) -> Result<()>,
) -> Result<()> {
    for mut batch in batches {
        for step in batch.steps.drain(..) {
            match step {
                Step::Event(event) => each(Item::Event(event))?,
                Step::Leaf(place) => {
                    let start = place as usize * BLOCK_SIZE;
                    each(Item::Leaf(Leaf::view(&batch.memory[start..start + BLOCK_SIZE])))?;
                }
            }
        }
        // Whoever feeds may be at its end already.
        let _ = back.try_send(batch);
    }
    Ok(())
}

impl<E> Feeder<'_, E> {
    /// The leaf at `at` comes next.
    pub(crate) fn leaf(&mut self, at: MetaBlock) -> Result<()> {
        self.wanted.push((at.get(), self.batch.steps.len()));
        self.batch.steps.push(Step::Leaf(0));
        if self.wanted.len() == BATCH { self.send() } else { Ok(()) }
    }

    /// An event comes next.
    pub(crate) fn event(&mut self, event: E) -> Result<()> {
        self.batch.steps.push(Step::Event(event));
        // Events alone must not pile up either.
        if self.batch.steps.len() >= 8 * BATCH { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        self.read()?;
        let next = self.empty.try_recv().unwrap_or_else(|_| Batch::new());
        let full = std::mem::replace(&mut self.batch, next);
        self.full.send(full).map_err(|_| {
            Error::new(ErrorKind::Cancelled, self.device.name(), "is not read any further")
        })
    }

    /// Reads and checks the leaves of the batch.
    fn read(&mut self) -> Result<()> {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_unstable();
        let blocks = self.device.size().get() / BLOCK_SIZE as u64;
        let mut rest = &wanted[..];
        let mut place = 0;
        while let Some(&(first, _)) = rest.first() {
            let (now, later) = rest.split_at(together(rest, ROOM - place));
            let last = now.last().map_or(first, |(block, _)| *block);
            if last >= blocks {
                let object = format!("{}: metadata block {last}", self.device.name());
                let problem = "lies past the end of the device";
                return Err(Error::new(ErrorKind::Corrupt, object, problem));
            }
            let (start, end) = (place as usize, (place + last - first + 1) as usize);
            let bytes = &mut self.batch.memory[start * BLOCK_SIZE..end * BLOCK_SIZE];
            let offset = MetaBlock::new(first).offset().expect("the block lies on the device");
            self.device.read_at(bytes, offset)?;
            for &(block, step) in now {
                let start = (block - first) as usize * BLOCK_SIZE;
                Leaf::check(&bytes[start..start + BLOCK_SIZE], MetaBlock::new(block))
                    .map_err(|error| error.within(self.device.name()))?;
                self.batch.steps[step] = Step::Leaf((place + block - first) as u32);
            }
            place = end as u64;
            rest = later;
        }
        wanted.clear();
        self.wanted = wanted;
        Ok(())
    }
}

/// How many of `wanted`, which ascend, are read with one request, so that all find room.
fn together(wanted: &[(u64, usize)], room: u64) -> usize {
    let first = wanted[0].0;
    let fits = |index: usize| {
        let (before, here) = (wanted[index - 1].0, wanted[index].0);
        let behind = (wanted.len() - index - 1) as u64;
        here - before <= GAP && here - first + 1 + behind <= room
    };
    (1..wanted.len()).find(|&index| !fits(index)).unwrap_or(wanted.len())
}

#[cfg(test)]
mod tests {
    use super::{GAP, together};

    #[test]
    fn near_leaves_are_read_together_as_far_as_there_is_room() {
        let wanted: Vec<(u64, usize)> = [1, 1, 2, 2 + GAP, 3 + 2 * GAP].map(|at| (at, 0)).into();
        assert_eq!(together(&wanted, 100), 4);
        assert_eq!(together(&wanted[4..], 100), 1);
        // Blocks 1 and 2, and one of its own for each that follows.
        assert_eq!(together(&wanted, 4), 3);
    }
}
