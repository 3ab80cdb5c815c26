//! Free data blocks: which are free, and who gets the next one.
//!
//! A block is free here when neither the committed metadata nor anything since refers to it; a
//! freed block comes back only when the commit that freed it is durable and every lease that could
//! still reach it is dropped (FREE-LATE). Each volume takes its blocks from a window of its own, so
//! that what is written in order lies in order. A window opens when its space is provided
//! (`crate::space`): that takes time, so the next one is carved before the last is used up.

use std::collections::HashMap;

use crate::{BlockSize, DataBlock, DeviceId};

/// The largest window, in bytes: so much of a file is provided in well under a millisecond.
const WINDOW_BYTES: u64 = 16 << 20;
const WORD: u64 = u64::BITS as u64;

/// The free data blocks of a pool.
pub(crate) struct Allocator {
    /// A bit per block, set while the block is not free.
    used: Vec<u64>,
    blocks: u64,
    free: u64,
    cursor: u64,
    window_blocks: u64,
    windows: HashMap<DeviceId, Windows>,
    /// Volumes whose next window should be opened ahead.
    wanted: Vec<DeviceId>,
    /// Free blocks that are being given back to the data device, and count as used meanwhile.
    lent: u64,
    ended: bool,
    marks: [Mark; 2],
}

/// A number of free blocks that somebody wants to be told of.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    free: u64,
    /// Whether it has not been reached yet.
    armed: bool,
}

/// Which mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkName {
    /// The low water mark.
    LowWater,
    /// The one of a policy that provides space.
    Alarm,
}

/// Free blocks that one volume will take next; they still count as free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    next: u64,
    end: u64,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default)]
struct Windows {
    /// Where it takes its blocks.
    open: Option<Window>,
    /// Where it will.
    following: Option<Following>,
}

#[derive(Clone, Copy, Debug)]
enum Following {
    /// Its space is being provided.
    Opening(Window),
    Open(Window),
}

/// The answer to who wants a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carved {
    /// Its space is to be provided; then it opens.
    Window(Window),
    /// Somebody provides the space of one for the same volume.
    Opening,
    /// No block is free.
    Nothing,
}

impl Window {
    /// Its blocks: the first, and how many.
    pub(crate) fn blocks(self) -> (DataBlock, u64) {
        (DataBlock::new(self.next), self.end - self.next)
    }

    /// The window with its first block alone.
    pub(crate) fn first(self) -> Self {
        Self { end: self.next + 1, ..self }
    }

    fn contains(&self, block: u64) -> bool {
        (self.next..self.end).contains(&block)
    }
}

impl Windows {
    fn all(&self) -> impl Iterator<Item = Window> + use<> {
        let following = self.following.map(|following| match following {
            Following::Opening(window) | Following::Open(window) => window,
        });
        self.open.into_iter().chain(following).filter(|window| window.next < window.end)
    }
}

impl Allocator {
    /// An allocator over `blocks` blocks. In `used` each has a bit, set if it is in use; those of
    /// which nothing is said are free.
    pub(crate) fn new(block_size: BlockSize, blocks: u64, used: impl Iterator<Item = u64>) -> Self {
        let mut used: Vec<u64> = used.collect();
        used.resize(blocks.div_ceil(WORD) as usize, 0);
        let in_use: u64 = used.iter().map(|word| u64::from(word.count_ones())).sum();
        Self {
            used,
            blocks,
            free: blocks - in_use,
            cursor: 0,
            window_blocks: (WINDOW_BYTES / block_size.bytes().get()).max(1),
            windows: HashMap::new(),
            wanted: Vec::new(),
            lent: 0,
            ended: false,
            marks: [Mark::default(); 2],
        }
    }

    /// Blocks that are free.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Sets the mark `name` at so many free blocks, to be reached anew.
    pub(crate) fn set_mark(&mut self, name: MarkName, free: Option<u64>) {
        self.marks[name as usize] = Mark { free: free.unwrap_or_default(), armed: free.is_some() };
    }

    /// The mark `name`, if a block is asked for while no more than that are free: once.
    pub(crate) fn reach(&mut self, name: MarkName) -> Option<u64> {
        let mark = &mut self.marks[name as usize];
        let reached = mark.armed && self.free <= mark.free;
        mark.armed &= !reached;
        reached.then_some(mark.free)
    }

    /// The next block of the window of `volume`, or `None` when it is used up.
    pub(crate) fn take(&mut self, volume: DeviceId) -> Option<DataBlock> {
        let windows = self.windows.get_mut(&volume)?;
        let is_used_up = windows.open.is_none_or(|window| window.next == window.end);
        if is_used_up && let Some(Following::Open(window)) = windows.following {
            *windows = Windows { open: Some(window), following: None };
        }
        let window = windows.open.as_mut().filter(|window| window.next < window.end)?;
        let block = window.next;
        window.next += 1;
        let is_half = (window.end - window.next) * 2 == self.window_blocks;
        if is_half && windows.following.is_none() && !self.wanted.contains(&volume) {
            self.wanted.push(volume);
        }
        self.mark(block);
        Some(DataBlock::new(block))
    }

    /// Finds a window for `volume`, which has used up the last.
    pub(crate) fn carve(&mut self, volume: DeviceId) -> Carved {
        let following = self.windows.get(&volume).and_then(|windows| windows.following);
        if let Some(Following::Opening(_)) = following {
            return Carved::Opening;
        }
        let window = self.find_run().or_else(|| {
            // What is still free stands in windows of other volumes: they find new ones.
            self.take_windows_back();
            self.find_run()
        });
        window.map_or(Carved::Nothing, |window| self.hold(volume, window))
    }

    /// Finds the next window of a volume that has used up half of its own, if one has.
    pub(crate) fn carve_ahead(&mut self) -> Option<(DeviceId, Window)> {
        while let Some(volume) = self.wanted.pop() {
            let windows = self.windows.get(&volume).copied().unwrap_or_default();
            if windows.following.is_none()
                && let Some(window) = self.find_run()
                && let Carved::Window(window) = self.hold(volume, window)
            {
                return Some((volume, window));
            }
        }
        None
    }

    /// Whether a volume waits for its next window to be opened ahead.
    pub(crate) fn wants_ahead(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The pool closes: no more windows ahead.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether the pool closes.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Opens the window that was carved for `volume`: as much of it as has space, or nothing.
    pub(crate) fn open(&mut self, volume: DeviceId, window: Option<Window>) {
        let windows = self.windows.entry(volume).or_default();
        windows.following = window.map(Following::Open);
    }

    fn hold(&mut self, volume: DeviceId, window: Window) -> Carved {
        self.windows.entry(volume).or_default().following = Some(Following::Opening(window));
        self.cursor = window.end;
        Carved::Window(window)
    }

    fn take_windows_back(&mut self) {
        self.windows.retain(|_, windows| {
            windows.open = None;
            matches!(windows.following, Some(Following::Opening(_)))
        });
    }

    /// Makes `block` free again.
    pub(crate) fn give_back(&mut self, block: DataBlock) {
        let (word, bit) = position(block.get());
        debug_assert_ne!(self.used[word] & bit, 0, "block {} freed twice", block.get());
        self.used[word] &= !bit;
        self.free += 1;
    }

    /// Lends the next run of free blocks from `from` on that are in no window, `most` of them at
    /// most: nobody gets them until they are brought back.
    pub(crate) fn lend(&mut self, from: DataBlock, most: u64) -> Option<(DataBlock, u64)> {
        let first = self.find_free(from.get(), self.blocks)?;
        let (first, count) = self.run_from(first, most.max(1)).blocks();
        (0..count).for_each(|ahead| self.mark(first.get() + ahead));
        self.lent += count;
        Some((first, count))
    }

    /// Takes back a run that was lent.
    pub(crate) fn bring_back(&mut self, first: DataBlock, count: u64) {
        (0..count).for_each(|ahead| self.give_back(DataBlock::new(first.get() + ahead)));
        self.lent -= count;
    }

    /// Whether free blocks are lent, and will be back in a moment.
    pub(crate) fn lends(&self) -> bool {
        self.lent > 0
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

    /// The next run of free blocks from the cursor on, around the end, outside every window.
    fn find_run(&self) -> Option<Window> {
        let first = self
            .find_free(self.cursor, self.blocks)
            .or_else(|| self.find_free(0, self.cursor.min(self.blocks)))?;
        Some(self.run_from(first, self.window_blocks))
    }

    /// The free blocks from `first` on, which is one, up to the next window, `most` at most.
    fn run_from(&self, first: u64, most: u64) -> Window {
        let limit = self.blocks.min(first.saturating_add(most));
        let held = self.windows.values().flat_map(Windows::all).map(|window| window.next);
        let limit = held.filter(|&next| next > first).fold(limit, u64::min);
        let end = (first..limit).find(|&block| !self.is_free(block)).unwrap_or(limit);
        Window { next: first, end }
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
            match self.windows.values().flat_map(Windows::all).find(|held| held.contains(block)) {
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

#[cfg(test)]
mod tests {
    use super::{Allocator, Carved};
    use crate::{BlockSize, DataBlock, DeviceId};
    use block_types::ByteCount;
    use std::collections::HashSet;

    /// Blocks of a window.
    const WINDOW: u64 = 256;

    fn id(number: u32) -> DeviceId {
        DeviceId::new(number).expect("24 bits")
    }

    fn allocator(blocks: u64) -> Allocator {
        let size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
        Allocator::new(size, blocks, std::iter::empty())
    }

    /// Takes a block, with all space there is.
    fn take(allocator: &mut Allocator, volume: DeviceId) -> Option<DataBlock> {
        allocator.take(volume).or_else(|| match allocator.carve(volume) {
            Carved::Window(window) => {
                allocator.open(volume, Some(window));
                allocator.take(volume)
            }
            Carved::Opening => panic!("nobody else opens windows"),
            Carved::Nothing => None,
        })
    }

    #[test]
    fn volumes_write_side_by_side_in_runs() {
        let mut allocator = allocator(10_000);
        for step in 0..100 {
            for volume in 0..3 {
                let block = take(&mut allocator, id(volume)).expect("free");
                assert_eq!(block.get(), u64::from(volume) * WINDOW + step);
            }
        }
    }

    #[test]
    fn every_block_is_given_out_once_windows_or_not() {
        let mut allocator = allocator(3000);
        let mut seen = HashSet::new();
        for step in 0..3000u32 {
            if let Some((volume, window)) = allocator.carve_ahead() {
                allocator.open(volume, (step % 2 == 0).then_some(window));
            }
            let block = take(&mut allocator, id(step % 7)).expect("free");
            assert!(seen.insert(block), "{block:?} twice");
        }
        assert_eq!(take(&mut allocator, id(1)), None);
        allocator.give_back(DataBlock::new(17));
        assert_eq!(take(&mut allocator, id(2)), Some(DataBlock::new(17)));
        allocator.grow(3001);
        assert_eq!(take(&mut allocator, id(3)), Some(DataBlock::new(3000)));
    }

    #[test]
    fn the_next_window_is_opened_ahead_and_follows() {
        let mut allocator = allocator(10_000);
        for step in 0..WINDOW / 2 {
            assert!(!allocator.wants_ahead(), "at {step}");
            take(&mut allocator, id(0)).expect("free");
        }
        assert!(allocator.wants_ahead());
        let (volume, window) = allocator.carve_ahead().expect("one wants a window");
        assert_eq!((volume, window.blocks()), (id(0), (DataBlock::new(WINDOW), WINDOW)));
        assert_eq!(allocator.carve(id(0)), Carved::Opening);
        allocator.open(volume, Some(window));
        for step in WINDOW / 2..2 * WINDOW {
            assert_eq!(allocator.take(id(0)), Some(DataBlock::new(step)));
        }
        assert_eq!(allocator.take(id(0)), None);
    }

    #[test]
    fn a_window_without_space_is_free_again() {
        let mut allocator = allocator(10);
        let Carved::Window(window) = allocator.carve(id(0)) else { panic!("all is free") };
        assert_eq!(allocator.carve(id(1)), Carved::Nothing, "it is held while it opens");
        allocator.open(id(0), None);
        let again = allocator.carve(id(1));
        assert_eq!(again, Carved::Window(window));
        allocator.open(id(1), Some(window.first()));
        assert_eq!(allocator.take(id(1)), Some(DataBlock::new(0)));
        assert_eq!(allocator.free(), 9);
    }
}
