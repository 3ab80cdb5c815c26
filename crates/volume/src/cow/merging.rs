//! The merge of a snapshot of an open origin, by steps that somebody else takes.

use std::sync::Arc;

use block_types::{ByteCount, Result};
use dm_snapshot::Merge;

use super::CowOrigin;

/// A merge that was begun: see [`CowOrigin::begin_merge`].
///
/// It may be dropped at any moment, and the process killed: the origin reads the same, and whoever
/// opens it next finds in its record what was begun (RERUNNABLE).
#[derive(Clone)]
pub struct CowMerge {
    pub(super) origin: Arc<CowOrigin>,
    pub(super) merge: Arc<Merge>,
    pub(super) name: String,
    pub(super) keep: bool,
}

impl CowMerge {
    /// Bytes that are still to be merged.
    pub fn left(&self) -> ByteCount {
        let status = self.merge.status();
        ByteCount::new(status.exceptions * status.chunk.bytes().get())
    }

    /// Merges the next exceptions, at most 8 MiB, and says what is left. The step after which
    /// nothing is takes the snapshot from the record, and its store away.
    ///
    /// # Errors
    /// What failed; the merge is then to be begun again, once the origin was opened again.
    pub fn step(&self) -> Result<ByteCount> {
        if self.merge.step()?.is_done() {
            self.origin.finish_merge(&self.name, self.keep)?;
            return Ok(ByteCount::ZERO);
        }
        Ok(self.left())
    }
}
