//! Merging a snapshot back into its origin, while it is read and written.
//!
//! The list of exceptions shrinks from its end, as the kernel shrinks it, so that either may go on
//! where the other was stopped. What differs is how much is done at once: the kernel takes a run
//! whose chunks are neighbours on both sides; here it is as many exceptions as are in the area,
//! copied in the order of the origin, and taken off by one commit.

use std::sync::Arc;

use block_types::{ByteCount, ByteRange, Error, ErrorKind, Result};

use crate::copy::Debt;
use crate::core::Core;
use crate::shared::Shared;
use crate::workers::{PIECE, for_each, with_scratch};
use crate::{Exception, SnapshotState, SnapshotStatus, commit};

/// Bytes that are merged at once: writes to them wait so long.
const BATCH: u64 = 8 << 20;

/// A merge that was begun: see [`Origin::merge`](crate::Origin::merge).
pub struct Merge {
    shared: Arc<Shared>,
    core: Arc<Core>,
}

/// How far a merge has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Exceptions that are still to be merged; 0 when it is done.
    pub left: u64,
}

impl MergeProgress {
    /// Whether the merge is done, and the store empty.
    pub const fn is_done(self) -> bool {
        self.left == 0
    }
}

impl Merge {
    pub(crate) fn new(shared: Arc<Shared>, core: Arc<Core>) -> Self {
        Self { shared, core }
    }

    /// State and figures of the store. When all is merged, `allocated` equals `metadata`.
    pub fn status(&self) -> SnapshotStatus {
        self.core.status()
    }

    /// Merges the next exceptions, at most 8 MiB. After a crash in it the origin reads the same.
    ///
    /// # Errors
    /// What failed; the merge has then failed for this session ([`SnapshotState::MergeFailed`]),
    /// and the origin goes on as it is.
    pub fn step(&self) -> Result<MergeProgress> {
        if self.core.health.get() != SnapshotState::Merging {
            let reason = self.core.health.reason().unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Stopped,
                &*self.core.name,
                format!("the merge has failed: {reason}"),
            )
            .advise("remove the cause, open the origin again, and merge again"));
        }
        self.shared.check_running()?;
        let left = self.merge_tail().inspect_err(|error| {
            self.core.health.set_for(SnapshotState::MergeFailed, error.to_string());
            tracing::error!(snapshot = self.core.name, "the merge has failed: {error}");
        })?;
        if left == 0 {
            self.finish();
        }
        Ok(MergeProgress { left })
    }

    /// Merges everything.
    ///
    /// # Errors
    /// As [`step`](Merge::step).
    pub fn run(&self) -> Result<()> {
        while !self.step()?.is_done() {}
        Ok(())
    }

    /// Merges the end of the list, and says how many exceptions are left.
    fn merge_tail(&self) -> Result<u64> {
        let (core, shared) = (&self.core, &self.shared);
        let Some(tail) = &core.tail else { return Ok(0) };
        let mut tail = tail.lock();
        if tail.used == 0 && !tail.step_back(&*core.device, core.chunk)? {
            return Ok(0);
        }
        let mut batch = tail.last((BATCH / core.chunk.bytes().get()).max(1));
        batch.sort_unstable_by_key(|exception| exception.old);
        let parts: Vec<ByteRange> = batch
            .iter()
            .map(|exception| core.chunk.origin_range(exception.old, core.size))
            .collect();
        // From here on nobody writes to these chunks, neither in the store nor in the origin.
        let _closed = shared.gate.close(parts.clone());
        let debts = shared.protect(&shared.members(), &parts);
        let copied = self.copy_back(&batch);
        debts.into_iter().for_each(Debt::pay);
        copied?;
        commit::take_off(core, &mut tail, batch.len() as u64)?;
        // The origin has them now: reads may go there, and then writes.
        core.table.remove(batch.iter().map(|exception| exception.old));
        let mut ledger = core.ledger.lock();
        ledger.shrink(batch.len() as u64);
        Ok(ledger.listed())
    }

    /// Copies the chunks of exceptions, which are in the order of the origin, from the store.
    fn copy_back(&self, batch: &[Exception]) -> Result<()> {
        let most = (PIECE / self.core.chunk.bytes().get()).max(1) as usize;
        let runs: Vec<&[Exception]> = batch
            .chunk_by(|one, other| one.old.get() + 1 == other.old.get())
            .flat_map(|run| run.chunks(most))
            .collect();
        for_each(self.shared.workers, &runs, |run| {
            with_scratch(|buffer| self.copy_run(run, buffer))
        })
    }

    /// Copies chunks that follow each other in the origin.
    fn copy_run(&self, run: &[Exception], buffer: &mut [u8]) -> Result<()> {
        let core = &self.core;
        let first = core.chunk.origin_range(run[0].old, core.size);
        let last = core.chunk.origin_range(run[run.len() - 1].old, core.size);
        let range = ByteRange::between(first.start, last.end());
        if range.len.as_usize() > buffer.len() {
            return self.copy_large(run[0], range, buffer);
        }
        let bytes = &mut buffer[..range.len.as_usize()];
        self.read_store(run, bytes)?;
        core.base.write_at(bytes, range.start)
    }

    /// Reads chunks of the store one behind the other, neighbours together.
    fn read_store(&self, run: &[Exception], bytes: &mut [u8]) -> Result<()> {
        let size = self.core.chunk;
        let mut rest = bytes;
        for group in run.chunk_by(|one, other| one.new.get() + 1 == other.new.get()) {
            let whole = group.len() * size.bytes().as_usize();
            let (now, later) = rest.split_at_mut(whole.min(rest.len()));
            self.core.device.read_at(now, size.store_start(group[0].new))?;
            rest = later;
        }
        Ok(())
    }

    /// Copies a chunk that is larger than the buffer.
    fn copy_large(&self, one: Exception, range: ByteRange, buffer: &mut [u8]) -> Result<()> {
        let core = &self.core;
        for piece in range.pieces(ByteCount::of(buffer)) {
            let part = &mut buffer[..piece.len.as_usize()];
            let inside = piece.start.since(range.start);
            core.device.read_at(part, core.chunk.store_start(one.new).plus(inside))?;
            core.base.write_at(part, piece.start)?;
        }
        Ok(())
    }

    /// The store is empty: the origin is a plain device again.
    fn finish(&self) {
        let shared = &self.shared;
        let _alone = shared.changing.lock();
        if shared.merging().is_none_or(|merging| !Arc::ptr_eq(&merging, &self.core)) {
            return;
        }
        let _closed = shared.gate.close_all();
        shared.set_members(shared.members().to_vec(), None);
    }
}
