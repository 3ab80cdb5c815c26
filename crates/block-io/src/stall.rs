//! Requests that may have to wait for what only somebody else can do: for space, say.

use std::time::Duration;

use block_types::{ByteOffset, ByteRange, Result};

use crate::ZeroMode;

/// What has become of a request that was only tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It is done.
    Done,
    /// It would have to wait. Parts of it may be done; trying it again does all of it.
    Stalled(Ticket),
}

/// The moment at which a request stalled, as its device counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// The ability to say that a request would have to wait, instead of waiting.
///
/// [`write_at`](crate::BlockDevice::write_at) and [`zero`](crate::BlockDevice::zero) of such a
/// device wait, for as long as the device thinks right. Whoever has other things to do tries them
/// here, puts those that stall aside, and tries them again when something has changed. A request
/// that stalled holds nothing of the device.
pub trait Stall: Send + Sync {
    /// Writes as `write_at` does, unless that would have to wait.
    ///
    /// # Errors
    /// As `write_at`.
    fn try_write(&self, bytes: &[u8], at: ByteOffset) -> Result<Attempt>;

    /// Makes zeros as `zero` does, unless that would have to wait.
    ///
    /// # Errors
    /// As `zero`.
    fn try_zero(&self, range: ByteRange, mode: ZeroMode) -> Result<Attempt>;

    /// Waits until a request that got `ticket` is worth another try, for `limit` at most; whether
    /// it is.
    fn await_change(&self, ticket: Ticket, limit: Duration) -> bool;
}
