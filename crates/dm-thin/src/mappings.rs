//! What the devices of a pool map.

use std::ops::ControlFlow;

use block_types::Result;
use persistent_data::MetaBlock;
use persistent_data::btree::walk;

use crate::shared::Shared;
use crate::{DeviceId, GuestBlock, Mapping};

/// Guest blocks that are read between two commits.
const STRIDE: u64 = 1 << 16;

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
