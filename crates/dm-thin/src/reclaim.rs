//! Taking down what is left of deleted devices, a bounded step and a commit at a time.
//!
//! A thread does it in the background, at most half of the time, so that others get their commits
//! in between. Who finds the pool short of space does it too, and without a pause, before the
//! answer is that the pool is full.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use block_types::{Error, ErrorKind, Result};

use crate::Pool;
use crate::pending::Op;
use crate::shared::Shared;
use crate::worst_case::Demand;

/// How long to wait before another try where metadata is too full even to free some.
const PATIENCE: Duration = Duration::from_secs(1);

impl Pool {
    /// Takes down what is left of deleted devices, until nothing is.
    ///
    /// # Errors
    /// What stops the pool; `OutOfSpace` where the metadata is too full even to free some.
    pub fn reclaim(&self) -> Result<()> {
        while self.reclaim_step()? {}
        self.shared.wait_for_reclaim();
        Ok(())
    }

    /// Takes down the next piece of what is left of deleted devices, durably; `false` if nothing is
    /// left.
    ///
    /// # Errors
    /// As [`Pool::reclaim`].
    pub fn reclaim_step(&self) -> Result<bool> {
        self.shared.reclaim_step()
    }
}

impl Shared {
    /// Takes a step and waits for its commit; `false` if there is nothing to do.
    pub(crate) fn reclaim_step(&self) -> Result<bool> {
        if self.doomed.load(Ordering::SeqCst) == 0 {
            return Ok(false);
        }
        let share = self.share_to_free(Demand::RECLAIM)?;
        let generation = {
            let mut pending = self.pending.lock();
            pending.ops.push(Op::Reclaim);
            share.enter(&mut pending);
            pending.generation
        };
        self.commit_to(generation)?;
        Ok(true)
    }
}

/// Starts the thread that reclaims.
pub(crate) fn start_reclaiming(shared: &Arc<Shared>) -> Result<thread::JoinHandle<()>> {
    let name = shared.name.clone();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("firn-reclaim".into())
        .spawn(move || background(&shared))
        .map_err(|error| Error::io(name, "cannot start the thread that reclaims", error))
}

fn background(shared: &Shared) {
    while shared.await_doomed() {
        let begun = Instant::now();
        let pause = match shared.reclaim_step() {
            Ok(_) => begun.elapsed(),
            Err(error) if error.kind() == ErrorKind::OutOfSpace => PATIENCE,
            // The pool has stopped and said so.
            Err(_) => return,
        };
        shared.rest(pause);
    }
}
