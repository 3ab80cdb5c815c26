//! How every verb reaches a pool.

use std::path::Path;

use block_types::Result;
use daemon::PoolAccess;

/// Asks `question` of the pool in `dir`, which is not changed.
pub(crate) fn ask<T>(dir: &Path, question: impl FnOnce(&dyn PoolAccess) -> Result<T>) -> Result<T> {
    with(dir, true, question)
}

/// Has `work` change the pool in `dir`. What it did is committed when this returns.
pub(crate) fn change<T>(dir: &Path, work: impl FnOnce(&dyn PoolAccess) -> Result<T>) -> Result<T> {
    with(dir, false, work)
}

fn with<T>(
    dir: &Path,
    read_only: bool,
    work: impl FnOnce(&dyn PoolAccess) -> Result<T>,
) -> Result<T> {
    let pool = daemon::access(dir, read_only)?;
    let result = work(&*pool)?;
    pool.close()?;
    Ok(result)
}
