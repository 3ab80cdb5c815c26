//! A pool's metadata as the tools take it: read where it lies, and written beside it.
//!
//! Where it lies is a pool directory, a regular file, or a block device; the last two may be
//! anybody's, LVM's for example. What is written is a new file, which takes the place of the old
//! one when it is complete and was checked:
//!
//! ```text
//!   metadata.new: written --> checked --> metadata linked to metadata.old --> renamed to metadata
//! ```
//!
//! A crash leaves the old or the new metadata in its place, whole. Only a block device is written
//! in place, and only when it is demanded.

mod claim;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use source::{MetadataSource, MetadataUse};
pub use target::{MetadataTarget, TargetOptions};
