//! New trees.

use block_types::Result;

use super::node::Entries;
use super::value::Value;
use crate::{BlockKind, MetaBlock, Transaction};

/// Makes a tree without entries: one leaf, with a count of 1 for whoever holds it.
///
/// # Errors
/// [`OutOfSpace`](block_types::ErrorKind::OutOfSpace).
pub fn empty<V: Value>(txn: &mut Transaction) -> Result<MetaBlock> {
    let at = txn.alloc()?;
    txn.put(at, BlockKind::Node, Entries::<V>::with_capacity(0).encode(0..0, true))?;
    Ok(at)
}
