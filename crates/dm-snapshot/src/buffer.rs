//! The buffer of mode deferred: writes that were answered and are not on the origin yet.
//!
//! It holds pages, of which those sectors count that were written. New writes go to the active
//! batch; batches that are being drained are still read, and changed no more. Memory is taken
//! beforehand and used again, so that a host which writes back through the device need not find
//! more in order to get on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block_types::{ByteCount, ByteOffset, ByteRange, SECTOR};
use parking_lot::Mutex;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Counters of the filter; a power of two, well above the pages of a usual buffer.
const FILTER: usize = 1 << 16;

/// Writes that wait for their copies.
pub(crate) struct Buffer {
    state: Mutex<State>,
    /// Pages, of all batches together.
    limit: usize,
    filter: Filter,
}

#[derive(Default)]
struct State {
    active: HashMap<u64, Page>,
    /// The oldest first.
    draining: VecDeque<Arc<Batch>>,
    spare: Vec<Box<[u8; PAGE as usize]>>,
}

/// Part of a page of the origin.
pub(crate) struct Page {
    pub(crate) bytes: Box<[u8; PAGE as usize]>,
    /// The sectors of it that were written, from the lowest bit on.
    pub(crate) sectors: u8,
}

/// The pages that are drained together, in order.
pub(crate) struct Batch {
    pub(crate) pages: Vec<(u64, Page)>,
}

/// For each page whether it may be buffered, without a lock: counts under a hash of its number.
struct Filter(Box<[AtomicU32]>);

impl Buffer {
    /// An empty buffer of at most `limit` bytes.
    pub(crate) fn new(limit: ByteCount) -> Self {
        let limit = (limit.get() / PAGE).max(1) as usize;
        Self { state: Mutex::default(), limit, filter: Filter::new() }
    }

    /// Takes all the memory that it may need, so that nobody has to wait for it later.
    pub(crate) fn reserve(&self) {
        let mut state = self.state.lock();
        let missing = self.limit.saturating_sub(state.pages() + state.spare.len());
        state.spare.extend((0..missing).map(|_| Box::new([0; PAGE as usize])));
        state.active.reserve(self.limit);
    }

    /// Whether some of `range` may be in the buffer.
    pub(crate) fn touches(&self, range: ByteRange) -> bool {
        pages(range).any(|(page, _)| self.filter.contains(page))
    }

    /// Takes over `bytes` at `at`, which are whole sectors; says how many had room, and whether so
    /// much waits that it should be drained.
    pub(crate) fn insert(&self, at: ByteOffset, bytes: &[u8]) -> (usize, bool) {
        let mut state = self.state.lock();
        let mut done = 0;
        for (number, part) in pages(ByteRange::new(at, ByteCount::of(bytes))) {
            let taken = state.pages();
            if !state.active.contains_key(&number) {
                if taken >= self.limit {
                    break;
                }
                let bytes = state.spare.pop().unwrap_or_else(|| Box::new([0; PAGE as usize]));
                state.active.insert(number, Page { bytes, sectors: 0 });
                self.filter.insert(number);
            }
            let now = &bytes[done..done + part.len()];
            if let Some(page) = state.active.get_mut(&number) {
                page.bytes[part.clone()].copy_from_slice(now);
                page.sectors |= sectors(&part);
            }
            done += now.len();
        }
        // One batch fills while one is copied and one is written.
        (done, state.active.len() * 4 >= self.limit)
    }

    /// Whether a page could be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.state.lock().pages() < self.limit
    }

    /// Copies what it holds of the bytes at `at` to `buffer`; calls `gap` with every range that it
    /// does not hold, in order. What is a gap here is on the origin already.
    pub(crate) fn read(&self, at: ByteOffset, buffer: &mut [u8], mut gap: impl FnMut(ByteRange)) {
        let state = self.state.lock();
        let mut open = ByteRange::new(at, ByteCount::ZERO);
        let mut done = 0;
        for (number, part) in pages(ByteRange::new(at, ByteCount::of(buffer))) {
            for sector in ByteRange::new(
                ByteOffset::new(part.start as u64),
                ByteCount::new(part.len() as u64),
            )
            .pieces(ByteCount::new(SECTOR))
            {
                let inside = sector.start.get() as usize..sector.end().get() as usize;
                let target = &mut buffer[done..done + inside.len()];
                done += inside.len();
                let here = ByteOffset::new(number * PAGE + inside.start as u64);
                if let Some(page) = state.find(number, sectors(&inside)) {
                    target.copy_from_slice(&page.bytes[inside]);
                    if !open.is_empty() {
                        gap(open);
                    }
                    open = ByteRange::new(here.plus(sector.len), ByteCount::ZERO);
                } else {
                    open = ByteRange::between(open.start, here.plus(sector.len));
                }
            }
        }
        if !open.is_empty() {
            gap(open);
        }
    }

    /// Makes the active pages the next batch to drain; `None` if there are none.
    pub(crate) fn begin(&self) -> Option<Arc<Batch>> {
        let mut state = self.state.lock();
        if state.active.is_empty() {
            return None;
        }
        let mut pages: Vec<_> = state.active.drain().collect();
        pages.sort_unstable_by_key(|(number, _)| *number);
        let batch = Arc::new(Batch { pages });
        state.draining.push_back(Arc::clone(&batch));
        Some(batch)
    }

    /// The oldest batch is on the origin. Whoever drained it has let go of it.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock();
        let Some(batch) = state.draining.pop_front() else { return };
        for (number, _) in &batch.pages {
            self.filter.remove(*number);
        }
        if let Some(batch) = Arc::into_inner(batch) {
            state.spare.extend(batch.pages.into_iter().map(|(_, page)| page.bytes));
        }
    }
}

impl State {
    /// Pages of all batches.
    fn pages(&self) -> usize {
        self.active.len() + self.draining.iter().map(|batch| batch.pages.len()).sum::<usize>()
    }

    /// The newest page that has this sector of page `number`.
    fn find(&self, number: u64, sector: u8) -> Option<&Page> {
        let has = |page: &&Page| page.sectors & sector == sector;
        let in_batch = |batch: &'_ Arc<Batch>| {
            let place = batch.pages.binary_search_by_key(&number, |(number, _)| *number);
            place.ok()
        };
        self.active.get(&number).filter(has).or_else(|| {
            self.draining.iter().rev().find_map(|batch| {
                let place = in_batch(batch)?;
                Some(&batch.pages[place].1).filter(has)
            })
        })
    }
}

impl Filter {
    fn new() -> Self {
        Self((0..FILTER).map(|_| AtomicU32::new(0)).collect())
    }

    /// Fibonacci hashing: neighbours fall far apart.
    fn counter(&self, page: u64) -> &AtomicU32 {
        let hash = page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        &self.0[hash as usize % FILTER]
    }

    fn insert(&self, page: u64) {
        self.counter(page).fetch_add(1, Ordering::SeqCst);
    }

    fn remove(&self, page: u64) {
        self.counter(page).fetch_sub(1, Ordering::SeqCst);
    }

    fn contains(&self, page: u64) -> bool {
        self.counter(page).load(Ordering::SeqCst) > 0
    }
}

/// The pages that `range` touches, and the bytes of each.
fn pages(range: ByteRange) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    range.pieces(ByteCount::new(PAGE)).map(|piece| {
        let start = (piece.start.get() % PAGE) as usize;
        (piece.start.get() / PAGE, start..start + piece.len.as_usize())
    })
}

/// The bits of the sectors that these bytes of a page are.
fn sectors(part: &std::ops::Range<usize>) -> u8 {
    let sector = SECTOR as usize;
    (part.start / sector..part.end / sector).fold(0, |bits, number| bits | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::{Buffer, PAGE};
    use block_types::{ByteCount, ByteOffset};

    fn at(offset: u64) -> ByteOffset {
        ByteOffset::new(offset)
    }

    /// What is read over a device of 0xff, and the gaps.
    fn read(buffer: &Buffer, offset: u64, len: usize) -> (Vec<u8>, Vec<(u64, u64)>) {
        let (mut bytes, mut gaps) = (vec![0xff; len], Vec::new());
        buffer.read(at(offset), &mut bytes, |gap| gaps.push((gap.start.get(), gap.len.get())));
        (bytes, gaps)
    }

    #[test]
    fn the_newest_sector_is_read_and_gaps_are_told() {
        let buffer = Buffer::new(ByteCount::new(8 * PAGE));
        assert_eq!(buffer.insert(at(3584), &[1; 1024]).0, 1024);
        buffer.begin().expect("a batch");
        buffer.insert(at(4096), &[2; 512]);
        let (bytes, gaps) = read(&buffer, 3072, 2560);
        assert_eq!((bytes[0], bytes[512], bytes[1024], bytes[1536]), (0xff, 1, 2, 0xff));
        assert_eq!(gaps, [(3072, 512), (4608, 1024)]);
        buffer.finish();
        let (bytes, gaps) = read(&buffer, 3584, 1024);
        assert_eq!((bytes[0], bytes[512]), (0xff, 2));
        assert_eq!(gaps, [(3584, 512)]);
        assert!(buffer.begin().is_some());
    }

    #[test]
    fn of_batches_under_way_the_later_counts() {
        let buffer = Buffer::new(ByteCount::new(8 * PAGE));
        for value in 1..=3 {
            buffer.insert(at(0), &[value; PAGE as usize]);
            buffer.begin().expect("a batch");
        }
        buffer.insert(at(512), &[4; 512]);
        let first = |buffer: &Buffer| read(buffer, 0, 1024).0[0];
        assert_eq!((first(&buffer), read(&buffer, 512, 512).0[0]), (3, 4));
        buffer.finish();
        assert_eq!(first(&buffer), 3);
        buffer.finish();
        assert_eq!(first(&buffer), 3, "the oldest goes first");
        buffer.finish();
        assert_eq!(first(&buffer), 0xff, "it is on the device");
    }

    #[test]
    fn it_is_bounded_and_its_memory_is_used_again() {
        let buffer = Buffer::new(ByteCount::new(2 * PAGE));
        assert_eq!(buffer.insert(at(0), &[1; 4 * PAGE as usize]), (2 * PAGE as usize, true));
        assert_eq!(buffer.insert(at(0), &[2; PAGE as usize]).0, PAGE as usize, "it is there");
        assert!(!buffer.has_room());
        drop(buffer.begin());
        assert_eq!(buffer.insert(at(0), &[3; PAGE as usize]).0, 0, "all batches count");
        buffer.finish();
        assert_eq!(buffer.state.lock().spare.len(), 2);
        assert!(!buffer.touches(super::ByteRange::new(at(0), ByteCount::new(1 << 20))));
        assert_eq!(buffer.insert(at(0), &[3; PAGE as usize]).0, PAGE as usize);
        assert!(buffer.touches(super::ByteRange::new(at(100), ByteCount::new(1))));
    }
}
