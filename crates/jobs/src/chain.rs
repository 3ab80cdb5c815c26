//! Long work on the chain of an image: many requests in flight, in bounded memory.

use std::collections::VecDeque;

use block_io::AlignedBuf;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, Result};
use parking_lot::Mutex;
use volume::{ChainChange, Work};

use crate::Monitor;

/// Bytes of the disk that are planned at once.
const WINDOW: ByteCount = ByteCount::new(64 << 20);

/// The largest request.
const PIECE: ByteCount = ByteCount::new(1 << 20);

/// Requests in flight; as many threads. With the largest request, the memory that the job takes.
const REQUESTS: usize = 8;

/// What is left to be done.
struct Feed<'w> {
    work: &'w dyn Work,
    planned: ByteOffset,
    pieces: VecDeque<ByteRange>,
}

impl Feed<'_> {
    /// The next piece.
    fn next(&mut self, monitor: &Monitor) -> Result<Option<ByteRange>> {
        let end = ByteOffset::new(self.work.size().get());
        while self.pieces.is_empty() && self.planned < end {
            monitor.checkpoint()?;
            let window = ByteRange::new(self.planned, end.since(self.planned).min(WINDOW));
            let pieces = self.work.pieces(window)?;
            let wanted: u64 = pieces.iter().map(|piece| piece.len.get()).sum();
            monitor.skip(ByteCount::new(window.len.get().saturating_sub(wanted)));
            self.pieces.extend(pieces.into_iter().flat_map(|range| range.pieces(PIECE)));
            self.planned = window.end();
        }
        Ok(self.pieces.pop_front())
    }
}

/// Does all of `work`, and makes it count. What `monitor` covers is [`Work::size`].
///
/// # Errors
/// The first failure; [`Cancelled`](block_types::ErrorKind::Cancelled). The disk reads the same
/// then, and the work can be begun again.
pub fn run_chain_work(work: &dyn Work, monitor: &Monitor) -> Result<ChainChange> {
    let feed = Mutex::new(Feed { work, planned: ByteOffset::ZERO, pieces: VecDeque::new() });
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..REQUESTS {
            scope.spawn(|| {
                if let Err(error) = copy(work, &feed, monitor, &failure) {
                    failure.lock().get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner() {
        None => work.finish(),
        Some(error) => {
            if let Err(second) = work.abandon() {
                // Why it was broken off matters more.
                tracing::warn!("{second}");
            }
            Err(error)
        }
    }
}

/// Moves pieces until there are none, or somebody fails.
fn copy(
    work: &dyn Work,
    feed: &Mutex<Feed<'_>>,
    monitor: &Monitor,
    failure: &Mutex<Option<Error>>,
) -> Result<()> {
    let mut buffer = AlignedBuf::zeroed(PIECE.as_usize());
    loop {
        monitor.checkpoint()?;
        if failure.lock().is_some() {
            return Ok(());
        }
        let next = feed.lock().next(monitor)?;
        let Some(piece) = next else { return Ok(()) };
        work.copy(piece, &mut buffer)?;
        monitor.advance(piece.len);
    }
}
