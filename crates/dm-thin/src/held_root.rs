//! The metadata snapshot that the kernel's tools read beside a running pool: a copy of the
//! superblock in a block of its own, named by the superblock as its held root.
//!
//! The copy counts as one more parent of the tree of roots and of the tree of details, so every
//! node that it leads to stays as it is: whoever changes the pool copies those nodes first, as for
//! any snapshot. The copy has no space maps. What the devices hold is not kept: a block that no
//! device shares is written in place, as the kernel does it, too.

use block_types::Result;
use persistent_data::btree::{NoRefs, ValueRefs, release};
use persistent_data::{Block, BlockKind, DiskSpaceMap, MetaBlock, ReadBlocks, Transaction};

use crate::DataBlock;
use crate::layout::DetailsLayout;
use crate::refs::DataRefs;
use crate::superblock::{Roots, Superblock};

/// Makes a metadata snapshot of what `roots` name, and returns its block. The superblock of the
/// same transaction has to name it.
///
/// # Errors
/// `OutOfSpace` if no metadata block is free.
pub(crate) fn reserve(
    txn: &mut Transaction,
    superblock: &Superblock,
    roots: &Roots,
) -> Result<MetaBlock> {
    let at = txn.alloc()?;
    txn.inc(roots.mappings);
    txn.inc(roots.details);
    txn.put(at, BlockKind::Superblock, Block::from(superblock.snapshot(roots)))?;
    Ok(at)
}

/// Lets go of the metadata snapshot in block `at`, and of what nothing else refers to any more:
/// data blocks among it are added to `freed`.
///
/// # Errors
/// `Corrupt` if the copy or what it leads to is broken; the transaction cannot go on then.
pub(crate) fn let_go(
    txn: &mut Transaction,
    data_map: &mut DiskSpaceMap,
    at: MetaBlock,
    freed: &mut Vec<DataBlock>,
) -> Result<()> {
    let bytes = Box::new(**txn.read_block(at, BlockKind::Superblock)?);
    let name = txn.store().device().name().to_owned();
    let roots = Superblock::parse(&name, bytes, at)?.roots();
    release::<u64, _>(txn, roots.mappings, &mut TreeRefs(DataRefs { map: data_map, freed }))?;
    release::<DetailsLayout, _>(txn, roots.details, &mut NoRefs)?;
    txn.dec(at);
    Ok(())
}

/// What the leaves of a tree of roots lead to when the tree goes: mapping trees, as a whole.
struct TreeRefs<'m>(DataRefs<'m>);

impl ValueRefs<u64> for TreeRefs<'_> {
    fn inc(&mut self, txn: &mut Transaction, value: u64) -> Result<()> {
        txn.inc(MetaBlock::new(value));
        Ok(())
    }

    fn dec(&mut self, txn: &mut Transaction, value: u64) -> Result<()> {
        release::<u64, _>(txn, MetaBlock::new(value), &mut self.0)
    }
}
