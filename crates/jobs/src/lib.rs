//! The copy engine behind every long job.
//!
//! A job is a plan of what to do to which range, a few requests in flight, a bound on memory, and a
//! figure that whoever started it may look at. This crate has the first of them, [`CopyJob`]: it
//! makes one device read like another.
//!
//! ```text
//!   source.extents() -> Plan -> pieces -> workers: read, look for zeros, write -> target
//!                                            |
//!                                         Monitor: bytes done, cancel
//! ```
//!
//! A job calls nobody back. It may be killed at any instant and begun again (RERUNNABLE): it only
//! ever writes to the target what the source holds.

mod copy;
mod monitor;
mod plan;
mod worker;
mod zeros;

pub use copy::{CopyJob, CopyOptions, CopyReport, TargetContent};
pub use monitor::Monitor;
