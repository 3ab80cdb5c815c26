//! Restoring a pool's metadata from the XML of the thin tools.
//!
//! The metadata is built bottom-up in one pass over the input ([`Builder`]): leaves packed full,
//! written in order in large pieces; the counts of blocks are flat arrays until the space maps are
//! written; the superblock comes last. What the input gives once and refers to (`def`, `ref`) is
//! written once, and devices that have the same leaves in the same places share the nodes above
//! them too.

mod builder;
mod document;
mod leaves;
mod node;
mod output;
mod spaces;
mod times;
mod tree;

use std::io::BufRead;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;

use crate::{BlockSize, DeviceId};

pub use builder::{Builder, PoolFields, Shared};
pub use leaves::Run;

/// What is taken from the caller instead of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The transaction id of the volume manager.
    pub transaction: Option<u64>,
    /// The size of a data block.
    pub block_size: Option<BlockSize>,
    /// Blocks of the data device. The dump of a metadata snapshot does not say.
    pub data_blocks: Option<u64>,
    /// Begin the pool's time anew. Which blocks count as shared stays as it is.
    pub renumber: bool,
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Devices.
    pub devices: u64,
    /// Their mapped blocks, those they share counted for each.
    pub mapped: u64,
    /// Devices that map another number of blocks than the input says of them. The metadata has the
    /// right number.
    pub recounted: Vec<DeviceId>,
}

/// Writes the metadata that `xml` describes to `metadata`, which loses what it held.
///
/// # Errors
/// `Invalid` for input that is not the XML of the thin tools or breaks a rule of the format, with
/// the line; `OutOfSpace` if the device is too small; the failures of both. Without success there
/// is no pool on the device.
pub fn restore(
    xml: impl BufRead,
    metadata: Arc<dyn BlockDevice>,
    overrides: &Overrides,
) -> Result<Restored> {
    document::Document::new(xml, metadata, *overrides).restore()
}
