//! The collector: removes what nobody needs, and merges what can be, several at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::plan::{Run, runs};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::state::State;

/// How to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectOptions {
    /// Merges at once.
    pub merges: usize,
    /// Bytes that each may copy in a second; as many as it can if not said.
    pub rate: Option<ByteCount>,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { merges: 2, rate: None }
    }
}

/// What was collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Runs of nodes that were merged.
    pub merges: u64,
    /// Bytes that were copied.
    pub copied: ByteCount,
    /// Files that were removed.
    pub removed: u64,
    /// Merges that could not be done now.
    pub put_off: u64,
}

/// How long the collector sleeps if nobody wakes it.
const NAP: Duration = Duration::from_secs(10);

impl Repository {
    /// Collects until there is nothing left to do. All merges report to `progress`.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`]; the first failure to remove a file. A merge that fails is put off,
    /// with its reason, and does not keep the others from being done.
    pub fn collect(&self, options: &CollectOptions, progress: &Arc<Progress>) -> Result<Collected> {
        progress.limit(options.rate);
        let before = self.nodes();
        self.lock().remove_garbage(true)?;
        let (merges, copied, put_off) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            while let Some(run) = self.next_run(progress) {
                let top = run.top().clone();
                // A progress for each, so that one can be ended for a snapshot without the others.
                let own = Arc::new(Progress::below(progress));
                match self.merge(run, &own) {
                    Ok(bytes) => {
                        merges.fetch_add(1, Ordering::Relaxed);
                        copied.fetch_add(bytes.get(), Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::Cancelled => {
                        tracing::debug!(%error, "a merge was ended");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a merge is put off");
                        put_off.fetch_add(1, Ordering::Relaxed);
                        self.lock().put_off(&top, error.to_string());
                    }
                }
                let mut state = self.lock();
                state.claimed.retain(|claimed| *claimed != top);
            }
        };
        std::thread::scope(|scope| {
            (1..options.merges.max(1)).for_each(|_| {
                scope.spawn(work);
            });
            work();
        });
        if progress.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, self.folder.name(), "collecting was ended"));
        }
        Ok(Collected {
            merges: merges.into_inner(),
            copied: ByteCount::new(copied.into_inner()),
            removed: before.saturating_sub(self.nodes()),
            put_off: put_off.into_inner(),
        })
    }

    fn nodes(&self) -> u64 {
        self.lock().tree.iter().count() as u64
    }

    /// The next run that nobody has taken, and that was not put off lately.
    fn next_run(&self, progress: &Progress) -> Option<Run> {
        if progress.is_cancelled() || self.is_stopping() {
            return None;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.put_off.retain(|_, put_off| put_off.until > now);
        let run = runs(&state).into_iter().find(|run| state.is_ready(run))?;
        state.claimed.push(run.top().clone());
        Some(run)
    }

    /// Collects in the background until the repository is closed: at once, whenever something was
    /// deleted, and now and then.
    pub fn keep_collected(self: &Arc<Self>, options: CollectOptions) {
        while !self.is_stopping() {
            {
                let mut work = self.work.lock();
                if !*work {
                    self.wake.wait_for(&mut work, NAP);
                }
                *work = false;
            }
            if self.is_stopping() {
                return;
            }
            if let Err(error) = self.close_idle() {
                tracing::error!(%error, "a disk was not closed in order");
            }
            let progress = Arc::new(Progress::default());
            match self.collect(&options, &progress) {
                Ok(done) if done.merges + done.removed > 0 => {
                    tracing::info!(?done, "collected");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "collecting ended early"),
            }
        }
    }
}

impl State {
    fn is_ready(&self, run: &Run) -> bool {
        !self.put_off.contains_key(run.top())
            && !self.claimed.iter().any(|claimed| run.0.contains(claimed))
    }
}
