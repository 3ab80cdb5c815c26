//! Keeps a pool from filling: a thread that grows it when its policy says so.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use block_types::{Error, Result};
use volume::PoolDirectory;

/// How long it waits for an event before it looks at the pool by itself: what could not grow may be
/// able to now.
const ROUND: Duration = Duration::from_secs(1);

/// The keeper of one pool. It ends with the pool's events.
pub(crate) struct Keeper {
    pool: Arc<PoolDirectory>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Looks after `pool` from now on.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub(crate) fn start(pool: &Arc<PoolDirectory>) -> Result<Self> {
        let watched = Arc::clone(pool);
        let thread = std::thread::Builder::new()
            .name("firn-keeper".to_owned())
            .spawn(move || watch(&watched))
            .map_err(|error| Error::io("auto-grow", "cannot start its thread", error))?;
        Ok(Self { pool: Arc::clone(pool), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.pool.end_events();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that grows the pool panicked");
        }
    }
}

fn watch(pool: &PoolDirectory) {
    let mut seen = 0;
    let mut complaint = None;
    loop {
        let problem = pool.grow_by_policy().err().map(|error| error.to_string());
        // Once, not every second.
        if let Some(text) = problem.as_ref().filter(|_| problem != complaint) {
            tracing::warn!("the pool cannot grow by itself: {text}");
        }
        complaint = problem;
        let page = pool.events(seen, ROUND);
        if page.ended {
            return;
        }
        seen = page.events.last().map_or(seen, |event| event.sequence);
    }
}
