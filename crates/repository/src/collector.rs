//! The collector: removes what nobody needs, and merges what can be, several at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_types::{ByteCount, ErrorKind, Result};
use jobs::{Monitor, Registry};
use serde::Serialize;

use crate::plan::{Run, runs};
use crate::repository::Repository;
use crate::state::State;

/// How to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectOptions {
    /// Merges at once.
    pub merges: usize,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { merges: 2 }
    }
}

/// What was collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Collected {
    /// Runs of nodes that were merged.
    pub merges: u64,
    /// Bytes that were copied.
    pub copied: u64,
    /// Files that were removed.
    pub removed: u64,
    /// Merges that could not be done now.
    pub put_off: u64,
}

/// What the threads of a collection have done.
#[derive(Default)]
struct Tally {
    merges: AtomicU64,
    copied: AtomicU64,
    put_off: AtomicU64,
}

/// How long the collector sleeps if nobody wakes it.
const NAP: Duration = Duration::from_secs(10);

impl Repository {
    /// Collects until there is nothing left to do, in as many threads as there may be merges.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`]; the first failure to remove a file. A merge that fails is put off,
    /// with its reason, and does not keep the others from being done.
    pub fn collect(&self, options: &CollectOptions, monitor: &Monitor) -> Result<Collected> {
        let before = self.nodes();
        self.lock().remove_garbage(true)?;
        let tally = Tally::default();
        std::thread::scope(|scope| {
            let work = || self.merge_runs(monitor, &tally);
            (1..options.merges.max(1)).for_each(|_| {
                scope.spawn(work);
            });
            work();
        });
        monitor.checkpoint()?;
        Ok(Collected {
            merges: tally.merges.into_inner(),
            copied: tally.copied.into_inner(),
            removed: before.saturating_sub(self.nodes()),
            put_off: tally.put_off.into_inner(),
        })
    }

    /// Merges one run after the other.
    fn merge_runs(&self, monitor: &Monitor, tally: &Tally) {
        while let Some(run) = self.next_run(monitor) {
            let top = run.top().clone();
            match self.merge(run, monitor) {
                Ok(bytes) => {
                    tally.merges.fetch_add(1, Ordering::Relaxed);
                    tally.copied.fetch_add(bytes.get(), Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => {
                    tracing::debug!(%error, "a merge was ended");
                }
                Err(error) => {
                    tracing::warn!(%error, "a merge is put off");
                    tally.put_off.fetch_add(1, Ordering::Relaxed);
                    self.lock().put_off(&top, error.to_string());
                }
            }
            self.lock().claimed.retain(|claimed| *claimed != top);
        }
    }

    fn nodes(&self) -> u64 {
        self.lock().tree.iter().count() as u64
    }

    /// The next run that nobody has taken, and that was not put off lately.
    fn next_run(&self, monitor: &Monitor) -> Option<Run> {
        if monitor.is_cancelled() || self.is_stopping() {
            return None;
        }
        let mut state = self.lock();
        let run = state.ready_run()?;
        state.claimed.push(run.top().clone());
        Some(run)
    }

    /// Whether there is anything to collect now.
    pub fn has_work(&self) -> bool {
        let mut state = self.lock();
        state.has_garbage() || state.ready_run().is_some()
    }

    /// Collects in the background until the repository is closed: at once, whenever something was
    /// deleted, and now and then. Every collection is a job of `registry`.
    pub fn keep_collected(self: &Arc<Self>, options: CollectOptions, registry: &Registry) {
        while self.await_work() {
            if let Err(error) = self.close_idle() {
                tracing::error!(%error, "a disk was not closed in order");
            }
            if !self.has_work() {
                continue;
            }
            let here = Arc::clone(self);
            let job =
                registry.start("collect", self.folder.name(), ByteCount::ZERO, move |monitor| {
                    here.collect(&options, monitor)
                });
            match job.and_then(|id| registry.wait(id, Duration::from_secs(u64::from(u32::MAX)))) {
                Ok(report) => tracing::info!(?report, "collected"),
                Err(error) => tracing::debug!(%error, "nothing is collected any more"),
            }
        }
    }

    /// Waits until there may be work; whether the repository is still open.
    fn await_work(&self) -> bool {
        let mut work = self.work.lock();
        if !*work && !self.is_stopping() {
            self.wake.wait_for(&mut work, NAP);
        }
        *work = false;
        !self.is_stopping()
    }
}

impl State {
    fn ready_run(&mut self) -> Option<Run> {
        let now = Instant::now();
        self.put_off.retain(|_, put_off| put_off.until > now);
        runs(self).into_iter().find(|run| {
            !self.put_off.contains_key(run.top())
                && !self.claimed.iter().any(|claimed| run.0.contains(claimed))
        })
    }
}
