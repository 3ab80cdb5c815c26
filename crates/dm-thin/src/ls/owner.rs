//! Which device has each node: one, or several.

use block_types::Result;
use persistent_data::MetaBlock;
use persistent_data::btree::KeyRange;

use crate::dump::Source;

/// Whose a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// One device's: its place in the list of devices.
    One(usize),
    /// More than one device's.
    Several,
}

/// Nobody has the node.
const NOBODY: u32 = 0;
/// Bit of a leaf.
const LEAF: u32 = 1 << 31;
/// More than one device has the node. Devices are fewer: their identifiers have 24 bits.
const SEVERAL: u32 = LEAF - 1;

/// The owner of every node of the mapping trees, by block: the device's place plus one.
pub(super) struct Owners(Vec<u32>);

impl Owners {
    /// Walks the trees of all devices. A node is met twice at most: as the first device's, and when
    /// it turns out to be another's too, as everything below it then is.
    pub(super) fn of(source: &Source) -> Result<Self> {
        let blocks = usize::try_from(source.store.device_blocks()).unwrap_or(usize::MAX);
        let mut owners = Self(vec![NOBODY; blocks]);
        for (device, owner) in source.devices.iter().zip(1..) {
            let depth = source.depth(device.root)?;
            owners.visit(source, device.root, depth, KeyRange::whole(), owner)?;
        }
        Ok(owners)
    }

    /// The leaves in the order in which they lie on the device.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (MetaBlock, Owner)> + '_ {
        let leaves = (0..).zip(&self.0).filter(|(_, entry)| **entry & LEAF != 0);
        leaves.map(|(block, &entry)| {
            let owner = match entry & !LEAF {
                SEVERAL => Owner::Several,
                device => Owner::One(device as usize - 1),
            };
            (MetaBlock::new(block), owner)
        })
    }

    fn visit(
        &mut self,
        source: &Source,
        at: MetaBlock,
        depth: usize,
        place: KeyRange,
        owner: u32,
    ) -> Result<()> {
        let index = usize::try_from(at.get()).unwrap_or(usize::MAX);
        let Some(entry) = self.0.get_mut(index) else {
            return Err(source.corrupt(at, "lies past the end of the device"));
        };
        let leaf = if depth == 0 { LEAF } else { 0 };
        let owner = match *entry & !LEAF {
            SEVERAL => return Ok(()),
            NOBODY => owner,
            _ => SEVERAL,
        };
        *entry = owner | leaf;
        if depth == 0 {
            return Ok(());
        }
        let node = source.internal(at, place)?;
        for (index, child) in node.children().enumerate() {
            self.visit(source, child, depth - 1, place.child(&node, index), owner)?;
        }
        Ok(())
    }
}
