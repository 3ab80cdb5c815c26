//! Freeing volumes from their external origin, and writing one back into it, to the end.

use block_types::{ByteCount, Result};
use serde::{Deserialize, Serialize};
use volume::{Hydration, Merge};

use crate::Monitor;

/// What was copied, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OriginReport {
    /// Written.
    pub copied: u64,
}

/// Runs a hydration to its end: the volumes are free of their origin then.
///
/// # Errors
/// Those of the steps, and [`Cancelled`](block_types::ErrorKind::Cancelled): what was copied stays,
/// and another hydration begins behind it.
pub fn hydrate(mut hydration: Hydration, monitor: &Monitor) -> Result<OriginReport> {
    let mut copied = 0;
    loop {
        monitor.checkpoint()?;
        let Some(step) = hydration.step()? else { return Ok(OriginReport { copied }) };
        copied += step.copied.get();
        // The rate is that of what is copied.
        let moved = step.copied.min(step.covered);
        monitor.advance(moved);
        monitor.skip(ByteCount::new(step.covered.get() - moved.get()));
    }
}

/// Runs a merge to its end: the origin holds what the volume held over it.
///
/// # Errors
/// Those of the steps, and [`Cancelled`](block_types::ErrorKind::Cancelled): the volume reads as
/// before, the origin holds part of it, and another merge begins anew.
pub fn merge(mut merge: Merge, monitor: &Monitor) -> Result<OriginReport> {
    let mut copied = 0;
    loop {
        monitor.checkpoint()?;
        let Some(step) = merge.step()? else { return Ok(OriginReport { copied }) };
        copied += step.get();
        monitor.advance(step);
    }
}
