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
    /// accepted changes really need, and grows the metadata if it can; where that does not help,
    /// deleted devices are taken down, and what readers of past states hold is taken back. Must be
    /// called without a lease, since a commit waits for leases.
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
        let mut share = self.try_share(change, frees)?;
        if share.is_none() {
            self.settle_accounts()?;
            share = self.try_share(change, frees)?;
        }
        while share.is_none() && self.reclaim_step()? {
            share = self.try_share(change, frees)?;
        }
        if share.is_none() && self.trees.lock().break_holds() {
            self.settle_accounts()?;
            share = self.try_share(change, frees)?;
        }
        share.ok_or_else(|| {
            self.condition.lacks(Lack::Metadata, ticket);
            metadata_full(&self.name)
        })
    }

    /// Takes the metadata for a change that can only free some.
    ///
    /// # Errors
    /// As [`Shared::share`].
    pub(crate) fn share_to_free(&self, change: Demand) -> Result<Share<'_>> {
        if let Some(share) = self.try_share(change, true)? {
            return Ok(share);
        }
        self.settle_accounts()?;
        self.try_share(change, true)?.ok_or_else(|| metadata_full(&self.name))
    }

    fn try_share(&self, change: Demand, frees: bool) -> Result<Option<Share<'_>>> {
        self.condition.check_commits()?;
        let fits = self.pending.lock().budget.take(change, frees);
        Ok(fits.then(|| Share { shared: self, change }))
    }

    /// Commits, after which it is known how much metadata is free.
    fn settle_accounts(&self) -> Result<()> {
        let generation = self.pending.lock().generation;
        self.commit_to(generation)
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
