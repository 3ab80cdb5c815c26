//! A share of the metadata, as a token: taken before a change is accepted, entered with it.

use block_types::{Error, ErrorKind, Result};

use crate::mode::Lack;
use crate::pending::Pending;
use crate::shared::Shared;
use crate::worst_case::Demand;

/// The metadata that one change may need. Entering the change consumes it; dropping it gives it
/// back.
#[must_use]
pub(crate) struct Share<'p> {
    shared: &'p Shared,
    change: Demand,
}

impl Shared {
    /// Takes the metadata that `change` may need. Where it is used up a commit settles what the
    /// accepted changes really need, and grows the metadata if it can. Must be called without a
    /// lease, since a commit waits for leases.
    ///
    /// # Errors
    /// `OutOfSpace` where the metadata is full and cannot grow; what stopped the pool.
    pub(crate) fn share(&self, change: Demand, frees: bool) -> Result<Share<'_>> {
        self.check_writable()?;
        self.share_of_commit(change, frees)
    }

    /// Likewise, also where writes are refused by choice.
    pub(crate) fn share_of_commit(&self, change: Demand, frees: bool) -> Result<Share<'_>> {
        let ticket = self.condition.ticket();
        for _ in 0..2 {
            self.condition.check_commits()?;
            let mut pending = self.pending.lock();
            if pending.budget.take(change, frees) {
                return Ok(Share { shared: self, change });
            }
            let generation = pending.generation;
            drop(pending);
            self.commit_to(generation)?;
        }
        self.condition.lacks(Lack::Metadata, ticket);
        Err(metadata_full(&self.name))
    }
}

impl Share<'_> {
    /// Whether the change is one of a block that was mapped before.
    pub(crate) fn replaces(&self) -> bool {
        self.change == Demand::REPLACED
    }

    /// The change is entered in `pending`.
    pub(crate) fn enter(mut self, pending: &mut Pending) {
        pending.budget.enter(std::mem::take(&mut self.change));
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.change != Demand::default() {
            self.shared.pending.lock().budget.give_back(self.change);
        }
    }
}

/// The answer to a change whose commit might not find room in the metadata.
fn metadata_full(pool: &str) -> Error {
    Error::new(ErrorKind::OutOfSpace, pool, "the pool's metadata is full and cannot grow")
        .advise("free space on its file system, enlarge its device, or delete snapshots")
}
