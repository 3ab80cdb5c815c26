//! The job that gives the space of a pool's free blocks back to its file system.

use std::sync::Arc;

use block_types::{ByteCount, Result};
use jobs::{JobId, Registry};
use volume::{DataBlock, PoolDirectory};

/// Begins it.
///
/// # Errors
/// As [`Registry::start`].
pub(crate) fn start(jobs: &Registry, pool: &Arc<PoolDirectory>) -> Result<JobId> {
    let status = pool.status();
    let free = ByteCount::new(status.size.saturating_sub(status.data_used));
    let pool = Arc::clone(pool);
    jobs.start("trim", &status.path, free, move |monitor| {
        let mut from = DataBlock::new(0);
        while let Some(step) = pool.trim_step(from)? {
            monitor.advance(step.bytes);
            monitor.checkpoint()?;
            from = step.next;
        }
        Ok(())
    })
}
