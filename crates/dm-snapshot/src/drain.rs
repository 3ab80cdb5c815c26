//! Draining the buffer of mode deferred: copies, exceptions, and then the origin.
//!
//! A batch goes through two gates, one after the other and none overtaking: copies and exceptions
//! are made in the first, the origin is written in the second. So the copies of one batch are made
//! while the one before is written: what it writes to has its exceptions already, and is not read.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block_io::{AlignedBuf, Intent};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, Result, SECTOR};

use crate::buffer::{Batch, PAGE, Page};
use crate::copy::Debt;
use crate::scatter::{Part, transfer};
use crate::shared::Shared;
use crate::workers::{PIECE, for_each, with_scratch};

/// What is buffered waits at most about so long.
const INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// Brings everything that was buffered before the call to the origin, which is not flushed.
    pub(crate) fn drain(&self) -> Result<()> {
        self.drain_batch(|| true)
    }

    /// Drains, unless somebody has made room meanwhile.
    pub(crate) fn drain_for_room(&self) -> Result<()> {
        self.drain_batch(|| !self.buffer.has_room())
    }

    /// Drains what is there, if that is still wanted once it can be begun, and waits for the
    /// batches before it.
    fn drain_batch(&self, wanted: impl FnOnce() -> bool) -> Result<()> {
        let copying = self.draining.copying.lock();
        self.check_running()?;
        if !wanted() {
            return Ok(());
        }
        let Some(batch) = self.buffer.begin() else {
            // One may be on its way.
            drop(self.draining.writing.lock());
            return self.check_running();
        };
        let ranges = batch.pages.iter().map(|(number, page)| page_range(*number, page));
        let debts = self.protect(&self.members(), &ranges.collect::<Vec<_>>());
        // From here on every snapshot has its past durably, or has lost it durably.
        let _writing = self.draining.writing.lock();
        drop(copying);
        // The batch before may have failed: nothing overtakes it.
        let written = self.check_running().and_then(|()| self.write_batch(&batch));
        debts.into_iter().for_each(Debt::pay);
        drop(batch);
        if let Err(error) = written {
            // The batch stays, so that reads go on finding what was answered.
            self.stop(format!("a write that was answered did not get there: {error}"));
            return Err(error);
        }
        self.buffer.finish();
        Ok(())
    }

    fn write_batch(&self, batch: &Batch) -> Result<()> {
        let groups: Vec<&[(u64, Page)]> = batch.pages.chunks((PIECE / PAGE) as usize).collect();
        for_each(self.workers, &groups, |group| {
            with_scratch(|buffer| self.write_group(group, buffer))
        })
    }

    /// Writes what was written of pages, neighbours together.
    fn write_group(&self, group: &[(u64, Page)], buffer: &mut AlignedBuf) -> Result<()> {
        let mut parts: Vec<Part> = Vec::with_capacity(group.len());
        for (place, (number, page)) in group.iter().enumerate() {
            let inside = place * PAGE as usize;
            buffer[inside..inside + page.bytes.len()].copy_from_slice(&page.bytes[..]);
            for (from, to) in sector_runs(page.sectors) {
                let at = ByteOffset::new(number * PAGE + from as u64);
                let bytes = inside + from..inside + to;
                match parts.last_mut() {
                    Some(last) if last.bytes.end == bytes.start && end_of(last) == at => {
                        last.bytes.end = bytes.end;
                    }
                    _ => parts.push(Part { at, bytes }),
                }
            }
        }
        transfer(&*self.base, Intent::Write, buffer, &parts)
    }
}

/// Where a part ends on the device.
fn end_of(part: &Part) -> ByteOffset {
    part.at.plus(ByteCount::new(part.bytes.len() as u64))
}

/// The bytes of the origin from the first to the last sector that was written of a page.
fn page_range(number: u64, page: &Page) -> ByteRange {
    let first = u64::from(page.sectors.trailing_zeros());
    let end = u64::from(8 - page.sectors.leading_zeros());
    let at = |sector: u64| ByteOffset::new(number * PAGE + sector * SECTOR);
    ByteRange::between(at(first), at(end))
}

/// The runs of sectors of a page that were written, as bytes of the page.
fn sector_runs(sectors: u8) -> impl Iterator<Item = (usize, usize)> {
    let mut rest = u32::from(sectors);
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let len = (rest >> first).trailing_ones();
        rest &= !(((1 << len) - 1) << first);
        let sector = SECTOR as usize;
        Some((first as usize * sector, (first + len) as usize * sector))
    })
}

/// Starts the threads that drain what waits: one copies while the other writes.
pub(crate) fn start_background(shared: &Arc<Shared>) -> Result<Vec<JoinHandle<()>>> {
    let start = |_| {
        let name = shared.base.name().to_owned();
        let shared = Arc::clone(shared);
        std::thread::Builder::new()
            .name("firn-drain".into())
            .spawn(move || background(&shared))
            .map_err(|error| Error::io(name, "cannot start a thread that drains", error))
    };
    (0..2).map(start).collect()
}

fn background(shared: &Shared) {
    loop {
        {
            let mut ending = shared.ending.lock();
            if !*ending {
                shared.wake.wait_until(&mut ending, Instant::now() + INTERVAL);
            }
            if *ending {
                return;
            }
        }
        if shared.is_running()
            && let Err(error) = shared.drain()
        {
            tracing::error!(origin = shared.base.name(), "draining ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sector_runs;

    #[test]
    fn runs_of_sectors() {
        let runs = |sectors| sector_runs(sectors).collect::<Vec<_>>();
        assert_eq!(runs(0b1111_1111), [(0, 4096)]);
        assert_eq!(runs(0b1000_0110), [(512, 1536), (3584, 4096)]);
        assert!(runs(0).is_empty());
    }
}
