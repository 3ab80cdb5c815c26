//! What the values in the leaves of a pool's trees refer to.

use block_types::Result;
use persistent_data::btree::ValueRefs;
use persistent_data::{DiskSpaceMap, MetaBlock, Transaction};

use crate::{DataBlock, Mapping};

/// What the leaves of a mapping tree count: data blocks, once for each leaf that names them.
pub(crate) struct DataRefs<'m> {
    pub(crate) map: &'m mut DiskSpaceMap,
    /// Blocks that nothing refers to any more.
    pub(crate) freed: &'m mut Vec<DataBlock>,
}

impl ValueRefs<u64> for DataRefs<'_> {
    fn inc(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        self.map.inc(Mapping::unpack(value).block.get());
        Ok(())
    }

    fn dec(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        let block = Mapping::unpack(value).block;
        if self.map.dec(block.get()) == 0 {
            self.freed.push(block);
        }
        Ok(())
    }
}

/// What the leaves of the tree of roots count: trees. A root that is entered or taken out brings or
/// takes its reference by itself, since the tree below changed hands; only a leaf that is copied,
/// because a metadata snapshot shares it, makes new references.
pub(crate) struct RootRefs;

impl ValueRefs<u64> for RootRefs {
    fn inc(&mut self, txn: &mut Transaction, value: u64) -> Result<()> {
        txn.inc(MetaBlock::new(value));
        Ok(())
    }

    fn dec(&mut self, txn: &mut Transaction, value: u64) -> Result<()> {
        txn.dec(MetaBlock::new(value));
        Ok(())
    }

    fn inserted(&mut self, _: &mut Transaction, _: u64) -> Result<()> {
        Ok(())
    }

    fn removed(&mut self, _: &mut Transaction, _: u64) -> Result<()> {
        Ok(())
    }
}
