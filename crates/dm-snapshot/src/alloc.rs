//! The next free chunk, and the exceptions that are on their way to the disk.
//!
//! Chunks are taken in order, and exceptions are listed in the order in which their chunks were
//! taken, whichever copy is done first: so a crash leaves no chunk behind that nobody refers to
//! and that later ones stand behind.

use std::collections::{HashMap, VecDeque};

use block_types::ByteCount;

use crate::{ChunkSize, Exception, OriginChunk, StoreChunk};

/// What is taken of a store.
pub(crate) struct Ledger {
    chunk: ChunkSize,
    /// Whether the store has a header and areas.
    persistent: bool,
    /// Places of the list that are kept for entries without data: each snapshot of a shared store
    /// can then be dropped, however full it is.
    spare: u64,
    next_free: u64,
    /// Exceptions in the list on disk.
    listed: u64,
    /// The number of the first exception of `queue`; all before it are listed.
    first: u64,
    queue: VecDeque<Queued>,
    /// The numbers of the exceptions in `queue`.
    claimed: HashMap<OriginChunk, u64>,
    /// Whether somebody is committing.
    pub(crate) committing: bool,
}

/// An exception that is not listed yet.
#[derive(Clone, Copy)]
struct Queued {
    exception: Exception,
    /// Whether its data is written.
    written: bool,
}

/// Whose a chunk is.
pub(crate) enum Claim {
    /// The caller's, who has to write the data of this exception.
    Ours(Exception),
    /// Somebody's: it is settled when exceptions below this number are listed.
    Pending(u64),
    /// Nobody's any more: it is in the store.
    There,
    /// There is no free chunk for it.
    Full,
}

impl Ledger {
    /// The ledger of a store that was loaded: chunks from `next_free` on were never taken.
    pub(crate) fn new(chunk: ChunkSize, persistent: bool, next_free: u64, listed: u64) -> Self {
        let mut ledger = Self {
            chunk,
            persistent,
            spare: 0,
            next_free,
            listed,
            first: 0,
            queue: VecDeque::new(),
            claimed: HashMap::new(),
            committing: false,
        };
        ledger.skip_metadata();
        ledger
    }

    /// Keeps so many places for entries without data.
    pub(crate) fn spare(&mut self, places: u64) {
        self.spare = places;
    }

    fn skip_metadata(&mut self) {
        while self.persistent && self.chunk.is_metadata(StoreChunk::new(self.next_free)) {
            self.next_free += 1;
        }
    }

    /// Claims what is listed as `old`, if it is not `there`, in a store of size `room`.
    pub(crate) fn claim(
        &mut self,
        old: OriginChunk,
        there: impl FnOnce() -> bool,
        room: ByteCount,
    ) -> Claim {
        if let Some(&number) = self.claimed.get(&old) {
            return Claim::Pending(number + 1);
        }
        if there() {
            return Claim::There;
        }
        if !self.has_room(room) {
            return Claim::Full;
        }
        let exception = Exception { old, new: StoreChunk::new(self.next_free) };
        self.claimed.insert(old, self.end());
        self.queue.push_back(Queued { exception, written: false });
        self.next_free += 1;
        self.skip_metadata();
        Claim::Ours(exception)
    }

    /// Whether a store of this size has the next chunk, and the area that has to follow if the
    /// exception fills its own. (The kernel does not look for the latter, and its snapshot becomes
    /// invalid there.)
    pub(crate) fn has_room(&self, size: ByteCount) -> bool {
        let chunks = size.get() / self.chunk.bytes().get();
        if !self.persistent {
            return self.next_free < chunks;
        }
        let place = self.listed + self.queue.len() as u64;
        let area = (place + 1 + self.spare) / self.chunk.per_area();
        self.next_free < chunks && self.chunk.area(area).get() < chunks
    }

    /// Whether a store of this size has the area that has to follow if one more entry, which has no
    /// data, fills its own.
    pub(crate) fn has_room_for_entry(&self, size: ByteCount) -> bool {
        let place = self.listed + self.queue.len() as u64;
        let next_area = self.chunk.area((place + 1) / self.chunk.per_area()).get();
        next_area < size.get() / self.chunk.bytes().get()
    }

    /// An entry without data is on the list.
    pub(crate) fn note_mark(&mut self) {
        self.listed += 1;
    }

    /// The data of these exceptions is written.
    pub(crate) fn written(&mut self, exceptions: &[Exception]) {
        for exception in exceptions {
            if let Some(number) = self.claimed.get(&exception.old) {
                self.queue[(number - self.first) as usize].written = true;
            }
        }
    }

    /// The number behind the last exception.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    /// Whether every exception below `number` is listed.
    pub(crate) fn is_listed(&self, number: u64) -> bool {
        number <= self.first
    }

    /// The exceptions that can be listed next, in order: up to the first whose data is not written.
    pub(crate) fn ready(&self) -> Vec<Exception> {
        self.queue
            .iter()
            .take_while(|queued| queued.written)
            .map(|queued| queued.exception)
            .collect()
    }

    /// The number behind the exceptions that can be listed next.
    pub(crate) fn ready_end(&self) -> u64 {
        self.first + self.queue.iter().take_while(|queued| queued.written).count() as u64
    }

    /// The first `count` exceptions are listed.
    pub(crate) fn retire(&mut self, count: usize) {
        for queued in self.queue.drain(..count) {
            self.claimed.remove(&queued.exception.old);
        }
        self.first += count as u64;
        self.listed += count as u64;
    }

    /// The last `count` exceptions are off the list: merged. Nothing is taken any more then, and
    /// the kernel counts as if everything had been taken in order.
    pub(crate) fn shrink(&mut self, count: u64) {
        self.listed -= count;
        let area = self.listed / self.chunk.per_area();
        self.next_free = self.chunk.area(area).get() + self.listed % self.chunk.per_area() + 1;
    }

    /// Exceptions in the list on disk.
    pub(crate) fn listed(&self) -> u64 {
        self.listed
    }

    /// The chunk that is taken next.
    pub(crate) fn next_free(&self) -> u64 {
        self.next_free
    }

    /// Chunks that header and areas take.
    pub(crate) fn metadata_chunks(&self) -> u64 {
        if self.persistent { self.listed / self.chunk.per_area() + 2 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{Claim, Ledger};
    use crate::{ChunkSize, OriginChunk};
    use block_types::ByteCount;

    /// Chunks of 512 bytes: areas of 32 exceptions, at 1, 34, 67.
    fn ledger(persistent: bool) -> Ledger {
        let chunk = ChunkSize::new(ByteCount::new(512)).expect("a chunk size");
        Ledger::new(chunk, persistent, u64::from(persistent), 0)
    }

    fn take(ledger: &mut Ledger, old: u64, chunks: u64) -> Option<u64> {
        let room = ByteCount::new(chunks * 512);
        match ledger.claim(OriginChunk::new(old), || false, room) {
            Claim::Ours(exception) => Some(exception.new.get()),
            Claim::Full => None,
            Claim::Pending(_) | Claim::There => panic!("{old} was not claimed before"),
        }
    }

    #[test]
    fn metadata_chunks_are_passed_over() {
        let mut ledger = ledger(true);
        let taken: Vec<_> = (0..33).map_while(|old| take(&mut ledger, old, 100)).collect();
        assert_eq!((taken[0], taken[31], taken[32]), (2, 33, 35));
        assert_eq!(ledger.metadata_chunks(), 2);
        ledger.written(&ledger.queue.iter().map(|queued| queued.exception).collect::<Vec<_>>());
        ledger.retire(32);
        assert_eq!(ledger.metadata_chunks(), 3);
    }

    #[test]
    fn the_last_place_of_an_area_needs_the_next_area() {
        let count = |chunks| {
            let mut ledger = ledger(true);
            (0..100).map_while(|old| take(&mut ledger, old, chunks)).count()
        };
        assert_eq!(count(16), 14);
        assert_eq!(count(34), 31);
        assert_eq!(count(35), 32);
        assert_eq!(count(36), 33);
    }

    #[test]
    fn a_transient_store_is_data_alone() {
        let mut ledger = ledger(false);
        let taken: Vec<_> = (0..9).map_while(|old| take(&mut ledger, old, 3)).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(ledger.metadata_chunks(), 0);
    }

    #[test]
    fn exceptions_wait_for_those_before_them() {
        let mut ledger = ledger(true);
        let room = ByteCount::new(1 << 20);
        let mut claim = |old| match ledger.claim(OriginChunk::new(old), || false, room) {
            Claim::Ours(exception) => exception,
            _ => panic!("{old} is free"),
        };
        let (one, two) = (claim(7), claim(3));
        ledger.written(&[two]);
        assert!(ledger.ready().is_empty());
        ledger.written(&[one]);
        assert_eq!(ledger.ready(), [one, two]);
        ledger.retire(2);
        assert!(ledger.is_listed(2) && !ledger.is_listed(3));
    }
}
