//! The engine behind every long job.
//!
//! A job is a loop over bounded steps. The formats offer the steps, which return quickly and keep
//! every invariant; what a loop needs besides is here. A [`Monitor`] shows how far it is and lets
//! others pause, slow down and cancel it; a [`Registry`] runs jobs on threads and remembers how
//! they ended; [`CopyJob`] makes one device read like another.
//!
//! ```text
//!   source.extents() -> Plan -> pieces -> workers: read, look for zeros, write -> target
//!                                            |
//!   Registry: start, list, wait, end ---> Monitor: bytes done, pause, rate, cancel
//! ```
//!
//! A job calls nobody back. It may be killed at any instant and begun again (RERUNNABLE): it only
//! ever writes to the target what the source holds.

mod chain;
mod copy;
mod monitor;
mod origin;
mod plan;
mod registry;
mod report;
mod worker;
mod zeros;

pub use chain::run_chain_work;
pub use copy::{CopyJob, CopyOptions, CopyReport, TargetContent};
pub use monitor::Monitor;
pub use origin::{OriginReport, hydrate, merge};
pub use registry::Registry;
pub use report::{JobId, JobReport, JobState};
