//! The commit: the only place that decides in which order things become durable.
//!
//! 1. The batch of changes is taken over, as it is at that moment.
//! 2. New tables and higher counts are written, then everything is flushed: with them the data that
//!    the batch reveals (DATA-FIRST).
//! 3. New refcount blocks are entered into the refcount table, if there are any; flushed.
//! 4. L2 and L1 tables are written where they lie; flushed. Entry by entry either the old one is
//!    there or the new one, and what either names is counted.
//! 5. What the batch freed is released once nobody reads it any more: counts go down (FREE-LATE).
//!
//! So at every instant every user of a cluster is counted. A crash leaves counts that are too high,
//! which are leaks, and nothing else. What cannot be had in such steps, since flags and counts of
//! many tables have to change together, is an exchange: everything is built beside what is there,
//! flushed, and the first sector of the header, which is one write, makes it count.
//!
//! Commits run one at a time; all who wait for changes of one batch share its commit.

use block_types::{ByteOffset, Error, ErrorKind, Result};

use super::bytes::write_any;
use super::header::{Header, SECTOR_ZERO};
use super::header_layout::HeaderChange;
use super::image::Image;
use super::stage::Stage;
use super::state::Freed;

/// How far commits have come.
#[derive(Default)]
pub(super) struct Progress {
    /// The last commit that is durable.
    committed: u64,
    /// Whether somebody runs one.
    running: bool,
}

impl Image {
    /// Makes every write that returned before durable.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.check_running()?;
        let (last, untaken) = {
            let state = self.state()?.lock();
            let untaken = state.has_changes();
            (if untaken { state.generation } else { state.generation - 1 }, untaken)
        };
        self.commit_to(last)?;
        if untaken {
            // That commit began after this call, and so did its flush.
            return Ok(());
        }
        self.flush_files()
    }

    /// Returns once the changes of `generation` are durable.
    ///
    /// # Errors
    /// What stopped the image, if it did not come to that.
    pub(super) fn commit_to(&self, generation: u64) -> Result<()> {
        let mut progress = self.progress.lock();
        while progress.committed < generation {
            if progress.running {
                self.progressed.wait(&mut progress);
                continue;
            }
            self.check_running()?;
            progress.running = true;
            drop(progress);
            let done = self.run_commit().inspect_err(|error| self.stop(error));
            progress = self.progress.lock();
            progress.running = false;
            if let Ok(committed) = &done {
                progress.committed = *committed;
            }
            self.progressed.notify_all();
            done?;
        }
        Ok(())
    }

    fn run_commit(&self) -> Result<u64> {
        let file = &*self.source.file;
        let mut batch = {
            let mut state = self.state()?.lock();
            state.take(&self.source.tree, &mut self.header.write())
        };
        batch.ahead.write(file)?;
        self.flush_files()?;
        if !batch.links.is_empty() {
            batch.links.write(file)?;
            file.flush()?;
        }
        if !batch.tables.is_empty() {
            batch.tables.write(file)?;
            file.flush()?;
        }
        self.release(&batch.freed)?;
        Ok(batch.generation)
    }

    /// Flushes the file and the external data file.
    fn flush_files(&self) -> Result<()> {
        let data = self.source.data.as_ref().map_or(Ok(()), |data| data.flush());
        data.and_then(|()| self.source.file.flush()).inspect_err(|error| self.stop(error))
    }

    /// Gives freed clusters back, now that no crash can bring their users back.
    fn release(&self, freed: &[Freed]) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        self.source.leases.drain();
        self.source.decompressed.clear();
        if self.discards {
            // Before anybody can get them, so that nobody's data are thrown away.
            let unused = self.state()?.lock().unused(freed)?;
            for range in unused {
                if let Err(error) = self.source.file.discard(range) {
                    tracing::warn!(image = self.source.name, "space is not given back: {error}");
                    break;
                }
            }
        }
        let mut counts = self.state()?.lock().release(freed)?;
        counts.write(&*self.source.file)
    }

    /// Commits until nothing has changed, and makes that durable. Nobody else changes anything
    /// meanwhile.
    pub(super) fn settle(&self) -> Result<()> {
        self.commit_all()?;
        self.flush_files()
    }

    /// Commits until nothing has changed, so that the files hold what memory does. Nobody else
    /// changes anything meanwhile.
    pub(super) fn commit_all(&self) -> Result<()> {
        self.check_running()?;
        loop {
            let (changed, last) = {
                let state = self.state()?.lock();
                (state.has_changes(), state.generation)
            };
            if !changed {
                return Ok(());
            }
            self.commit_to(last)?;
        }
    }

    /// Writes a header whose first sector alone has changed, durably.
    pub(super) fn write_header(&self, header: &Header) -> Result<()> {
        let file = &*self.source.file;
        write_any(file, &header.sector_zero(), ByteOffset::ZERO)?;
        file.flush()
    }

    /// Writes and flushes what nothing durable names yet, then the header that names it: the one
    /// write that makes an exchange of tables count.
    pub(super) fn flip(&self, built: &mut Stage, change: HeaderChange) -> Result<()> {
        if let Some((at, bytes)) = change.ahead {
            built.push(at, bytes);
        }
        built.write(&*self.source.file)?;
        self.flush_files()?;
        // From here on nobody knows which of the two headers is there until the flush is over.
        let behind = ByteOffset::new(SECTOR_ZERO as u64);
        let counts = self.write_durably(&change.sector, ByteOffset::ZERO);
        let named = counts.and_then(|()| match change.names {
            None => Ok(()),
            Some((names, sector)) => self
                .write_durably(&names, behind)
                .and_then(|()| self.write_durably(&sector, ByteOffset::ZERO)),
        });
        named.inspect_err(|error| self.stop(error))
    }

    /// Writes `bytes` at `at` durably: what must be there before anything else changes.
    pub(super) fn write_durably(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        write_any(&*self.source.file, bytes, at)?;
        self.source.file.flush()
    }

    /// Refuses everything that writes from now on (FAIL-STOP).
    pub(super) fn stop(&self, error: &Error) {
        if self.stopped.set(error.to_string()).is_ok() {
            tracing::error!(image = self.source.name, "stopped: {error}");
        }
    }

    /// Whether nothing has stopped the image.
    ///
    /// # Errors
    /// [`ErrorKind::Stopped`] with what did.
    pub(super) fn check_running(&self) -> Result<()> {
        match self.stopped.get() {
            None => Ok(()),
            Some(reason) => Err(Error::new(
                ErrorKind::Stopped,
                &self.source.name,
                format!("takes no more writes since one failed ({reason})"),
            )
            .advise("close it, look at the system's log and the disk, and check it before use")),
        }
    }
}
