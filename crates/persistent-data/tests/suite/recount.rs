//! Counting everything anew: the space maps have to say exactly what the trees say.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;
use persistent_data::btree::{Descend, max_entries, visit_nodes};
use persistent_data::space_map::IndexEntry;
use persistent_data::{
    BlockKind, BlockStore, DiskSpaceMap, MetaBlock, ReadBlocks, SpaceMapRoot, Transaction,
};

use crate::world::{Superblock, entries, held_superblock, read_superblock};

/// References found, by block number.
pub(crate) type Counts = BTreeMap<u64, u32>;

/// The references of a pool to metadata blocks and to data blocks.
#[derive(Default)]
pub(crate) struct Recount {
    pub(crate) metadata: Counts,
    pub(crate) data: Counts,
    /// Nodes with less than a third of their room in use that are no roots.
    pub(crate) small: Vec<MetaBlock>,
}

impl Recount {
    /// Counts every reference of the pool with this superblock.
    pub(crate) fn of(reader: &impl ReadBlocks, superblock: &Superblock) -> Result<Self> {
        let mut recount = Self::default();
        recount.reference(MetaBlock::new(0));
        recount.trees(reader, superblock)?;
        if superblock.held_root.get() != 0 {
            let at = MetaBlock::new(superblock.held_root.get());
            recount.reference(at);
            recount.trees(reader, &held_superblock(reader, at)?)?;
        }
        recount.data_map(reader, &superblock.data_map)?;
        recount.metadata_map(reader, &superblock.metadata_map)?;
        Ok(recount)
    }

    /// Says whether it is the first reference.
    fn reference(&mut self, at: MetaBlock) -> bool {
        let count = self.metadata.entry(at.get()).or_default();
        *count += 1;
        *count == 1
    }

    fn trees(&mut self, reader: &impl ReadBlocks, superblock: &Superblock) -> Result<()> {
        let mut roots = Vec::new();
        let top = MetaBlock::new(superblock.mappings.get());
        self.tree(reader, top, &mut |root| roots.push(MetaBlock::new(root)))?;
        for root in roots {
            let mut blocks = Vec::new();
            self.tree(reader, root, &mut |mapping| blocks.push(mapping >> 24))?;
            blocks.into_iter().for_each(|block| *self.data.entry(block).or_default() += 1);
        }
        self.tree(reader, MetaBlock::new(superblock.details.get()), &mut |_| {})
    }

    /// Counts the nodes of a tree, and hands out the values of leaves that were not seen before.
    fn tree(
        &mut self,
        reader: &dyn ReadBlocks,
        root: MetaBlock,
        value: &mut dyn FnMut(u64),
    ) -> Result<()> {
        visit_nodes(reader, root, &mut |at, info| {
            if !self.reference(at) {
                return Ok(Descend::No);
            }
            let node = info.node()?;
            if info.parent.is_some() && node.len() < max_entries(node.value_size()) / 3 {
                self.small.push(at);
            }
            if node.is_leaf() && node.value_size() == 8 {
                (0..node.len()).for_each(|index| value(node.value(index)));
            }
            Ok(Descend::Yes)
        })
    }

    fn data_map(&mut self, reader: &impl ReadBlocks, root: &SpaceMapRoot) -> Result<()> {
        let index = MetaBlock::new(root.bitmap_root.get());
        self.tree(reader, index, &mut |_| {})?;
        for (_, entry) in entries::<IndexEntry>(reader, index)? {
            self.reference(MetaBlock::new(entry.bitmap.get()));
        }
        self.tree(reader, MetaBlock::new(root.ref_count_root.get()), &mut |_| {})
    }

    fn metadata_map(&mut self, reader: &impl ReadBlocks, root: &SpaceMapRoot) -> Result<()> {
        let index = MetaBlock::new(root.bitmap_root.get());
        self.reference(index);
        let block = reader.read_block(index, BlockKind::Index)?;
        for entry in block[16..].chunks(16).take(root.nr_blocks.get().div_ceil(16320) as usize) {
            let at = u64::from_le_bytes(entry[..8].try_into().expect("eight bytes"));
            self.reference(MetaBlock::new(at));
        }
        self.tree(reader, MetaBlock::new(root.ref_count_root.get()), &mut |_| {})
    }
}

/// The counts of the metadata space map.
pub(crate) fn metadata_counts(txn: &Transaction) -> Counts {
    let counts = (0..txn.nr_blocks()).map(|block| (block, txn.count(MetaBlock::new(block))));
    counts.filter(|(_, count)| *count != 0).collect()
}

/// Checks that the pool on `device` counts every block as often as it refers to it, and that its
/// nodes are filled as they should be.
pub(crate) fn check(device: &Arc<dyn BlockDevice>) -> Result<()> {
    let store = Arc::new(BlockStore::new(Arc::clone(device), 1024));
    let superblock = read_superblock(&**device)?;
    let recount = Recount::of(&store, &superblock)?;
    let txn = Transaction::open(Arc::clone(&store), &superblock.metadata_map)?;
    assert_eq!(metadata_counts(&txn), recount.metadata, "metadata counts");
    assert_eq!(superblock.metadata_map.nr_allocated.get(), recount.metadata.len() as u64);
    let data = DiskSpaceMap::open(&store, &superblock.data_map)?;
    assert_eq!(data.counts().used().collect::<Counts>(), recount.data, "data counts");
    assert_eq!(superblock.data_map.nr_allocated.get(), recount.data.len() as u64);
    assert_eq!(recount.small, [], "nodes that are too small");
    Ok(())
}
