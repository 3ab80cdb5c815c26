//! Checking a store: every rule of the format, and hints at how it came to be.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Result};

use crate::header::Header;
use crate::store::List;
use crate::{ChunkSize, Exception, views};

/// What a check of a store found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The size of its chunks.
    pub chunk: ChunkSize,
    /// Whether it is marked valid; nothing else was looked at if it is not.
    pub valid: bool,
    /// Whether it is marked invalid because a snapshot of mode async has not closed it.
    pub in_use: bool,
    /// How many exceptions it lists.
    pub exceptions: u64,
    /// Broken rules; a store with any does not open.
    pub errors: Vec<String>,
    /// What is unusual and harmless.
    pub hints: Vec<String>,
}

/// Checks the persistent store on `device`, which is not in use, for an origin of `origin` bytes if
/// that is known. Writes nothing.
///
/// # Errors
/// As [`Store::open`](crate::Store::open) for a header that cannot be read; broken exceptions are
/// in the report.
pub fn check(device: &Arc<dyn BlockDevice>, origin: Option<ByteCount>) -> Result<CheckReport> {
    let header = Header::read(&**device)?;
    let mut report = CheckReport {
        chunk: header.chunk,
        valid: header.valid,
        in_use: header.in_use,
        exceptions: 0,
        errors: Vec::new(),
        hints: Vec::new(),
    };
    if !header.valid {
        return Ok(report);
    }
    let list = List::read(&**device, header.chunk)?;
    report.exceptions = list.exceptions.len() as u64;
    report.errors = header.problems(&list.exceptions, device.size(), origin);
    if !header.shared {
        report.hints = hints(&list, header.chunk);
    }
    Ok(report)
}

impl Header {
    /// The rules that the entries of the store break, one line each.
    pub(crate) fn problems(
        &self,
        entries: &[Exception],
        store: ByteCount,
        origin: Option<ByteCount>,
    ) -> Vec<String> {
        match self.shared {
            true => views::problems(entries, self.chunk, store, origin),
            false => problems(entries, self.chunk, store, origin),
        }
    }
}

/// The rules that these exceptions break, one line each. The kernel takes all of it.
fn problems(
    exceptions: &[Exception],
    chunk: ChunkSize,
    store: ByteCount,
    origin: Option<ByteCount>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let chunks = store.get() / chunk.bytes().get();
    for (number, Exception { old, new }) in exceptions.iter().enumerate() {
        let (old, at) = (old.get(), new.get());
        if let Some(origin) = origin
            && old >= chunk.count(origin)
        {
            problems.push(format!("exception {number} is of chunk {old}, past the origin's end"));
        }
        if at >= chunks {
            problems.push(format!("exception {number} is in chunk {at}, past the store's end"));
        } else if chunk.is_metadata(*new) {
            problems.push(format!("exception {number} is in chunk {at}, which holds no data"));
        }
    }
    let olds = exceptions.iter().map(|exception| exception.old.get());
    problems.extend(twice(olds).map(|old| format!("chunk {old} of the origin is listed twice")));
    let news = exceptions.iter().map(|exception| exception.new.get());
    problems.extend(twice(news).map(|new| format!("chunk {new} of the store is listed twice")));
    problems
}

/// The numbers that occur more than once.
fn twice(numbers: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let mut sorted: Vec<u64> = numbers.collect();
    sorted.sort_unstable();
    let mut repeated: Vec<u64> =
        sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    repeated.dedup();
    repeated.into_iter()
}

fn hints(list: &List, chunk: ChunkSize) -> Vec<String> {
    let mut hints = Vec::new();
    if !list.exceptions.is_sorted_by_key(|exception| exception.new) {
        hints.push("the exceptions are not in the order of their chunks".to_owned());
    }
    // Data chunks up to the highest that is used: all but the header and the areas among them.
    let highest = list.exceptions.iter().map(|exception| exception.new.get()).max();
    let taken = highest.map_or(0, |highest| highest - 1 - (highest - 1) / (chunk.per_area() + 1));
    let unused = taken.saturating_sub(list.exceptions.len() as u64);
    if unused > 0 {
        hints.push(format!("{unused} data chunks belong to no exception"));
    }
    if list.tail.stale {
        hints.push("there are bytes behind the end of the list, from a write cut short".to_owned());
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::problems;
    use crate::{ChunkSize, Exception, OriginChunk, StoreChunk};
    use block_types::ByteCount;

    fn found(pairs: &[(u64, u64)]) -> Vec<String> {
        let chunk = ChunkSize::new(ByteCount::new(4096)).expect("a chunk size");
        let exceptions: Vec<Exception> = pairs
            .iter()
            .map(|&(old, new)| Exception { old: OriginChunk::new(old), new: StoreChunk::new(new) })
            .collect();
        let store = ByteCount::new(300 * 4096);
        problems(&exceptions, chunk, store, Some(ByteCount::new(99 * 4096 + 1)))
    }

    #[test]
    fn every_rule_is_looked_at() {
        assert!(found(&[(5, 2), (99, 299), (0, 3)]).is_empty());
        for (pairs, word) in [
            (&[(100, 2)][..], "origin's end"),
            (&[(1, 300)], "store's end"),
            (&[(1, 1)], "no data"),
            (&[(1, 258)], "no data"),
            (&[(1, 2), (1, 3)], "of the origin is listed twice"),
            (&[(1, 2), (2, 2), (3, 2)], "of the store is listed twice"),
        ] {
            let problems = found(pairs);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(word), "{problems:?}");
        }
    }
}
