//! Owning leaves before what their values stand for is changed.

use block_types::Result;

use super::lookup::lookup;
use super::update::Update;
use super::value::{Value, ValueRefs};
use crate::{MetaBlock, Transaction};

/// Makes the leaves that hold `keys`, ascending, this transaction's own, as a change of them would,
/// and returns the tree's root from now on. For trees whose values are roots of other trees: what a
/// leaf shares with another tree is counted there only once the leaf is copied, and has to be
/// before the trees below change. Keys that the tree does not have are passed over.
///
/// # Errors
/// As for [`apply`](super::apply).
///
/// # Panics
/// If the keys do not ascend.
pub fn touch<V: Value, R: ValueRefs<V>>(
    txn: &mut Transaction,
    root: MetaBlock,
    keys: &[u64],
    refs: &mut R,
) -> Result<MetaBlock> {
    assert!(keys.is_sorted_by(|a, b| a < b), "keys have to ascend without repetition");
    let mut same = Vec::with_capacity(keys.len());
    for &key in keys {
        if let Some(value) = lookup::<V>(txn, root, key)? {
            same.push((key, Some(value)));
        }
    }
    if same.is_empty() {
        return Ok(root);
    }
    let mut update = Update::new(txn, refs);
    let outcome = update.node(root, &same, true)?;
    update.root(outcome)
}
