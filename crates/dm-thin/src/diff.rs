//! What the devices of a pool map, and where two of them differ.

use std::ops::ControlFlow;

use block_types::Result;
use persistent_data::MetaBlock;
use persistent_data::btree::walk;

use crate::shared::Shared;
use crate::{DeviceId, GuestBlock, Mapping};

/// Guest blocks that are compared between two commits.
const STRIDE: u64 = 1 << 16;

/// A guest block that two devices do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The block.
    pub block: GuestBlock,
    /// Where the first device has it.
    pub left: Option<Mapping>,
    /// Where the second has it.
    pub right: Option<Mapping>,
}

/// Compares two devices as the commits leave them, a stretch at a time, so that no commit waits
/// long.
pub(crate) fn diff(
    shared: &Shared,
    left: DeviceId,
    right: DeviceId,
    each: &mut dyn FnMut(Difference) -> ControlFlow<()>,
) -> Result<()> {
    let mut from = 0;
    loop {
        let (lefts, rights, next) = {
            let trees = shared.trees.lock();
            let root = |id: DeviceId| trees.devices().get(&id).map(|device| device.root);
            let roots = (root(left), root(right));
            let _blocks_stay = shared.reading.read();
            drop(trees);
            for id in [left, right] {
                shared.pending.lock().device(&shared.name, id)?;
            }
            let (lefts, left_next) = stretch(shared, roots.0, from)?;
            let (rights, right_next) = stretch(shared, roots.1, from)?;
            (lefts, rights, left_next.into_iter().chain(right_next).min())
        };
        if compare(&lefts, &rights, each).is_break() {
            return Ok(());
        }
        match next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// Calls `each` with the mappings of a device as the commits leave them, a stretch at a time.
pub(crate) fn mappings(
    shared: &Shared,
    id: DeviceId,
    each: &mut dyn FnMut(GuestBlock, Mapping) -> ControlFlow<()>,
) -> Result<()> {
    let mut from = Some(0);
    while let Some(start) = from {
        let (found, next) = {
            shared.pending.lock().device(&shared.name, id)?;
            let trees = shared.trees.lock();
            let root = trees.devices().get(&id).map(|device| device.root);
            let _blocks_stay = shared.reading.read();
            drop(trees);
            stretch(shared, root, start)?
        };
        for (key, value) in found {
            if each(GuestBlock::new(key), Mapping::unpack(value)).is_break() {
                return Ok(());
            }
        }
        from = next;
    }
    Ok(())
}

/// The mappings of one stretch, by block.
type Stretch = Vec<(u64, u64)>;

/// The mappings of the stretch that begins at `from`, and the first mapped block behind it.
fn stretch(shared: &Shared, root: Option<MetaBlock>, from: u64) -> Result<(Stretch, Option<u64>)> {
    let mut found = Vec::new();
    let mut next = None;
    let Some(root) = root else { return Ok((found, next)) };
    walk(&*shared.store, root, from, &mut |key, value: u64| {
        if key - from >= STRIDE {
            next = Some(key);
            return ControlFlow::Break(());
        }
        found.push((key, value));
        ControlFlow::Continue(())
    })?;
    Ok((found, next))
}

/// Merges two sorted stretches and reports what only one has, or has elsewhere. The time of a
/// mapping alone makes no difference to what a block holds.
fn compare(
    mut left: &[(u64, u64)],
    mut right: &[(u64, u64)],
    each: &mut dyn FnMut(Difference) -> ControlFlow<()>,
) -> ControlFlow<()> {
    while let Some(key) = left.first().into_iter().chain(right.first()).map(|(key, _)| *key).min() {
        let one = take(&mut left, key);
        let other = take(&mut right, key);
        if one.map(|mapping| mapping.block) != other.map(|mapping| mapping.block) {
            each(Difference { block: GuestBlock::new(key), left: one, right: other })?;
        }
    }
    ControlFlow::Continue(())
}

fn take(list: &mut &[(u64, u64)], key: u64) -> Option<Mapping> {
    let (&(first, value), rest) = list.split_first()?;
    if first != key {
        return None;
    }
    *list = rest;
    Some(Mapping::unpack(value))
}

#[cfg(test)]
mod tests {
    use super::compare;
    use std::ops::ControlFlow;

    #[test]
    fn reports_each_side() {
        let left = [(1, 10 << 24), (2, 20 << 24), (5, 50 << 24 | 1)];
        let right = [(2, 21 << 24), (4, 40 << 24), (5, 50 << 24 | 2)];
        let mut found = Vec::new();
        let _ = compare(&left, &right, &mut |difference| {
            found.push((
                difference.block.get(),
                difference.left.is_some(),
                difference.right.is_some(),
            ));
            ControlFlow::Continue(())
        });
        assert_eq!(found, [(1, true, false), (2, true, true), (4, false, true)]);
    }
}
