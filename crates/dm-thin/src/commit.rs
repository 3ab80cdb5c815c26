//! The commit: the only place that decides in which order things become durable.
//!
//! 1. The batch of changes is taken over; new ones gather for the next commit.
//! 2. The data device is flushed: whatever the batch reveals was written before (DATA-FIRST).
//!    Beside it the changed metadata is written to free blocks and flushed.
//! 3. The superblock is written and flushed. Before this moment a crash leaves the old state, from
//!    it on the new one.
//! 4. What the batch freed may be used again, once nobody holds a lease on it (FREE-LATE).
//!
//! Commits run one at a time; all who wait for changes of one batch share its commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use block_types::{ByteRange, Error, ErrorKind, Result};

use crate::mode::Lack;
use crate::shared::Shared;
use crate::{DataBlock, Discards, EventKind};

/// How far commits have come.
pub(crate) struct Progress {
    /// The last commit that is durable.
    committed: u64,
    /// Whether somebody runs one.
    running: bool,
    /// Whether the background thread is to end.
    ending: bool,
}

/// Changes wait at most about so long before they are committed without being asked for, as the
/// kernel's do.
const INTERVAL: Duration = Duration::from_secs(1);

impl Progress {
    pub(crate) fn new(committed: u64) -> Self {
        Self { committed, running: false, ending: false }
    }
}

impl Shared {
    /// Returns once the changes of `generation` are durable.
    ///
    /// # Errors
    /// What stopped the pool, if it did not come to that.
    pub(crate) fn commit_to(&self, generation: u64) -> Result<()> {
        let mut progress = self.progress.lock();
        while progress.committed < generation {
            if progress.running {
                self.progressed.wait(&mut progress);
                continue;
            }
            self.condition.check_commits()?;
            progress.running = true;
            drop(progress);
            let freed = self.commit_next();
            if let Ok(freed) = &freed {
                self.reclaim(freed);
            }
            progress = self.progress.lock();
            progress.running = false;
            self.progressed.notify_all();
            freed?;
        }
        Ok(())
    }

    /// The last commit that is durable.
    pub(crate) fn committed(&self) -> u64 {
        self.progress.lock().committed
    }

    /// Waits until no commit runs, so that what it freed is to be had.
    pub(crate) fn wait_for_reclaim(&self) {
        let mut progress = self.progress.lock();
        while progress.running {
            self.progressed.wait(&mut progress);
        }
    }

    /// Waits until something is doomed; `false` if the pool closes before.
    pub(crate) fn await_doomed(&self) -> bool {
        let mut progress = self.progress.lock();
        while !progress.ending && self.doomed.load(Ordering::SeqCst) == 0 {
            self.progressed.wait(&mut progress);
        }
        !progress.ending
    }

    /// Waits for so long, or until the pool closes.
    pub(crate) fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let mut progress = self.progress.lock();
        while !progress.ending && !self.progressed.wait_until(&mut progress, end).timed_out() {}
    }

    /// Commits everything that waits and returns the data blocks that it freed.
    fn commit_next(&self) -> Result<Vec<DataBlock>> {
        self.run_commit().inspect_err(|error| self.stop(error))
    }

    fn run_commit(&self) -> Result<Vec<DataBlock>> {
        let mut trees = self.trees.lock();
        let (_, metadata_blocks) = trees.metadata_blocks();
        let (batch, promise) = {
            let mut pending = self.pending.lock();
            (pending.take(), pending.budget.promise())
        };
        let mut freed = Vec::new();
        let (flushed, prepared) =
            self.side_by_side(|| self.data.flush(), || trees.prepare(&batch, promise, &mut freed));
        flushed?;
        let roots = prepared?;
        trees.publish(&roots)?;
        {
            let _nobody_reads = self.reading.write();
            trees.finish();
            for (id, core) in self.open.lock().iter() {
                if let (Some(core), Some(device)) = (core.upgrade(), trees.devices().get(id)) {
                    core.root.store(device.root.get(), Ordering::SeqCst);
                }
            }
        }
        let (free, total) = trees.metadata_blocks();
        // Not under the lock: it looks at every device.
        let shape = trees.shape();
        let mut pending = self.pending.lock();
        pending.committed(batch.generation, free, shape);
        let (has_room, least) = (pending.budget.has_room(), pending.budget.least());
        drop(pending);
        let low = trees.metadata_low(least);
        let (doomed, mapped) = trees.doomed();
        drop(trees);
        self.doomed_blocks.store(mapped, Ordering::SeqCst);
        self.doomed.store(doomed, Ordering::SeqCst);
        if total > metadata_blocks {
            let event = EventKind::MetadataGrown { from: metadata_blocks, to: total };
            self.condition.events.push(event);
        }
        if let Some((free, mark)) = low {
            self.condition.events.push(EventKind::MetadataLow { free, mark });
        }
        if has_room {
            self.condition.provide(Lack::Metadata);
        }
        self.progress.lock().committed = batch.generation;
        self.progressed.notify_all();
        Ok(freed)
    }

    /// Runs both, on two threads where the pool may.
    fn side_by_side<A: Send, B>(
        &self,
        one: impl FnOnce() -> A + Send,
        other: impl FnOnce() -> B,
    ) -> (A, B) {
        if !self.parallel {
            return (one(), other());
        }
        thread::scope(|scope| {
            let one = scope.spawn(one);
            let other = other();
            (one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), other)
        })
    }

    /// Gives freed blocks back: to the data device first, for behind the allocator somebody may
    /// write them at once.
    fn reclaim(&self, freed: &[DataBlock]) {
        if freed.is_empty() {
            return;
        }
        self.leases.drain();
        let mut blocks = freed.to_vec();
        blocks.sort_unstable();
        blocks.dedup();
        if self.condition.settings().features.discards == Discards::PassedDown {
            for run in blocks.chunk_by(|one, other| one.get() + 1 == other.get()) {
                self.pass_down(self.block_size.data_range(run[0], run.len() as u64));
            }
        }
        let mut allocator = self.allocator.lock();
        for block in blocks {
            allocator.give_back(block);
        }
        drop(allocator);
        self.condition.provide(Lack::Data);
    }

    fn pass_down(&self, range: ByteRange) {
        if let Err(error) = self.data.discard(range) {
            tracing::warn!(pool = self.name, "space is not given back: {error}");
        }
    }
}

/// Starts the thread that commits what waits, every second or when much has gathered.
pub(crate) fn start_background(shared: &Arc<Shared>) -> Result<thread::JoinHandle<()>> {
    let name = shared.name.clone();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("firn-commit".into())
        .spawn(move || background(&shared))
        .map_err(|error| Error::io(name, "cannot start the commit thread", error))
}

/// Makes the background thread end.
pub(crate) fn end_background(shared: &Shared) {
    shared.progress.lock().ending = true;
    shared.progressed.notify_all();
}

fn background(shared: &Shared) {
    let mut due = Instant::now() + INTERVAL;
    loop {
        {
            let mut progress = shared.progress.lock();
            if progress.ending {
                return;
            }
            shared.progressed.wait_until(&mut progress, due);
            if progress.ending {
                return;
            }
        }
        shared.condition.look_at_the_clock();
        let pending = shared.pending.lock();
        let helps = pending.frees && shared.condition.is_out_of_data();
        let wanted = helps || pending.budget.is_strained() || Instant::now() >= due;
        // Metadata that is full may have become larger: a commit finds out.
        let is_due = !pending.ops.is_empty() || shared.condition.is_out_of_metadata();
        let generation = (wanted && is_due).then_some(pending.generation);
        drop(pending);
        if let Some(generation) = generation
            && let Err(error) = shared.commit_to(generation)
            && error.kind() != ErrorKind::ReadOnly
        {
            // The pool has stopped and said so.
            return;
        }
        if wanted {
            due = Instant::now() + INTERVAL;
        }
    }
}
