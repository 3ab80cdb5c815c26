//! Checking metadata: everything is counted anew and held against what is written down.
//!
//! ```text
//!   superblock --- tree of devices --- mapping trees --- how often each data block is mapped
//!       |     \--- tree of details          |                          |
//!       |          (the same again below    |  who refers to whom      |
//!       |           a metadata snapshot)    v                          v
//!       +--------- metadata space map: one count a block     data space map: one count a block
//! ```
//!
//! Every block in use is read once, in the order of the disk ([`persistent_data::bulk`]), however
//! many snapshots share it. What is found is told apart: *errors*, after which data may be lost or
//! overwritten; *leaks*, counts that are too high, which cost space and nothing else; *warnings*,
//! which are neither.

mod aliases;
mod census;
mod devices;
mod examine;
mod leaks;
mod names;
mod report;
mod spaces;

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;

pub use leaks::{LeakRepair, clear_needs_check, repair_leaks};
pub use report::{CheckReport, Verdict};

/// How far a check goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckDepth {
    /// The superblock alone.
    Superblock,
    /// Also which devices there are; neither mappings nor counts.
    Devices,
    /// Everything.
    #[default]
    Everything,
}

/// How a check is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// How far it goes.
    pub depth: CheckDepth,
    /// Leave leaks out of the report: they cost space and nothing else.
    pub ignore_leaks: bool,
}

/// Checks the metadata of a pool that nobody writes to: the structure of every tree, and every
/// count of both space maps.
///
/// # Errors
/// What keeps the check from being made: the device fails, or the superblock is none.
pub fn check(metadata: Arc<dyn BlockDevice>) -> Result<CheckReport> {
    check_with(metadata, CheckOptions::default())
}

/// The same, as far as `options` say.
///
/// # Errors
/// As [`check`].
pub fn check_with(metadata: Arc<dyn BlockDevice>, options: CheckOptions) -> Result<CheckReport> {
    examine::examine(metadata, options).map(|examined| examined.report)
}
