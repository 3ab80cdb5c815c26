//! A thin pool as small as can be: enough of one to give trees and space maps something to do, and
//! to let other programs look at the result.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Result};
use persistent_data::btree::{
    NoRefs, Record, Value, ValueRefs, apply, empty, lookup, release, touch, walk,
};
use persistent_data::{
    BLOCK_SIZE, Block, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, ReadBlocks, SpaceMapRoot,
    Transaction, seal, verify,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The superblock of a thin pool, as far as it is used.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Superblock {
    checksum: U32,
    flags: U32,
    number: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    time: U32,
    transaction: U64,
    pub(crate) held_root: U64,
    pub(crate) data_map: SpaceMapRoot,
    data_map_rest: [u8; 96],
    pub(crate) metadata_map: SpaceMapRoot,
    metadata_map_rest: [u8; 96],
    pub(crate) mappings: U64,
    pub(crate) details: U64,
    data_block_sectors: U32,
    metadata_block_sectors: U32,
    metadata_blocks: U64,
    features: [U32; 3],
}

const _: () = assert!(size_of::<Superblock>() == 364);

/// What a pool records about a volume.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Details {
    pub(crate) mapped: U64,
    transaction: U64,
    created: U32,
    snapshotted: U32,
}

impl Record for Details {}

/// A mapping as it is stored: the data block, and the time in the lower 24 bits.
pub(crate) fn mapping(block: u64) -> u64 {
    block << 24
}

/// Mappings count data blocks.
pub(crate) struct MappingRefs<'d>(pub(crate) &'d mut DiskSpaceMap);

impl ValueRefs<u64> for MappingRefs<'_> {
    fn inc(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        self.0.inc(value >> 24);
        Ok(())
    }

    fn dec(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        self.0.dec(value >> 24);
        Ok(())
    }
}

/// The top level counts the roots of mapping trees.
pub(crate) struct RootRefs<'d>(pub(crate) &'d mut DiskSpaceMap);

impl ValueRefs<MetaBlock> for RootRefs<'_> {
    fn inc(&mut self, txn: &mut Transaction, root: MetaBlock) -> Result<()> {
        txn.inc(root);
        Ok(())
    }

    fn dec(&mut self, txn: &mut Transaction, root: MetaBlock) -> Result<()> {
        release(txn, root, &mut MappingRefs(self.0))
    }
}

/// Roots of mapping trees that changed: the new one has taken over the reference to the old one.
struct MovedRoots<'d>(RootRefs<'d>);

impl ValueRefs<MetaBlock> for MovedRoots<'_> {
    fn inc(&mut self, txn: &mut Transaction, root: MetaBlock) -> Result<()> {
        self.0.inc(txn, root)
    }

    fn dec(&mut self, txn: &mut Transaction, root: MetaBlock) -> Result<()> {
        self.0.dec(txn, root)
    }

    fn inserted(&mut self, _: &mut Transaction, _: MetaBlock) -> Result<()> {
        Ok(())
    }

    fn removed(&mut self, _: &mut Transaction, _: MetaBlock) -> Result<()> {
        Ok(())
    }
}

/// A pool and its transaction.
pub(crate) struct World {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) txn: Transaction,
    pub(crate) data: DiskSpaceMap,
    pub(crate) mappings: MetaBlock,
    pub(crate) details: MetaBlock,
    pub(crate) held: Option<MetaBlock>,
}

impl World {
    /// A new pool, committed.
    pub(crate) fn format(device: Arc<dyn BlockDevice>, data_blocks: u64) -> Result<Self> {
        let store = Arc::new(BlockStore::new(Arc::clone(&device), 256));
        let mut txn = Transaction::format(Arc::clone(&store), store.device_blocks())?;
        let data = DiskSpaceMap::format(&mut txn, data_blocks)?;
        let mappings = empty::<MetaBlock>(&mut txn)?;
        let details = empty::<Details>(&mut txn)?;
        let mut world = Self { device, txn, data, mappings, details, held: None };
        world.commit()?;
        Ok(world)
    }

    /// The pool on `device`.
    pub(crate) fn open(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let store = Arc::new(BlockStore::new(Arc::clone(&device), 256));
        let superblock = read_superblock(&*device)?;
        let txn = Transaction::open(Arc::clone(&store), &superblock.metadata_map)?;
        let data = DiskSpaceMap::open(&*store, &superblock.data_map)?;
        let held = superblock.held_root.get();
        Ok(Self {
            device,
            txn,
            data,
            mappings: MetaBlock::new(superblock.mappings.get()),
            details: MetaBlock::new(superblock.details.get()),
            held: (held != 0).then_some(MetaBlock::new(held)),
        })
    }

    /// Makes everything durable.
    pub(crate) fn commit(&mut self) -> Result<()> {
        let data_map = self.data.commit(&mut self.txn)?;
        let metadata_map = self.txn.seal()?;
        self.txn.write()?;
        self.device.flush()?;
        let mut block = self.superblock(data_map, metadata_map);
        seal(&mut block[..], BlockKind::Superblock, MetaBlock::new(0));
        self.device.write_at(&block[..], ByteOffset::ZERO)?;
        self.device.flush()?;
        self.txn.finish();
        Ok(())
    }

    /// A new volume without mappings.
    pub(crate) fn create(&mut self, id: u64) -> Result<()> {
        let root = empty::<u64>(&mut self.txn)?;
        self.add(id, root)?;
        self.txn.dec(root);
        self.set_details(id, 0)
    }

    /// A snapshot of a volume.
    pub(crate) fn snapshot(&mut self, origin: u64, id: u64) -> Result<()> {
        let root = lookup(&self.txn, self.mappings, origin)?.expect("the origin is there");
        self.add(id, root)?;
        let details: Details =
            lookup(&self.txn, self.details, origin)?.expect("the origin is there");
        self.set_details(id, details.mapped.get())
    }

    /// Deletes a volume.
    pub(crate) fn delete(&mut self, id: u64) -> Result<()> {
        let refs = &mut RootRefs(&mut self.data);
        self.mappings =
            apply::<MetaBlock, _>(&mut self.txn, self.mappings, &[(id, None)], refs)?.root;
        let gone = [(id, None::<Details>)];
        self.details = apply(&mut self.txn, self.details, &gone, &mut NoRefs)?.root;
        Ok(())
    }

    /// Changes mappings of a volume.
    pub(crate) fn map(&mut self, id: u64, changes: &[(u64, Option<u64>)]) -> Result<()> {
        let Self { txn, data, .. } = self;
        self.mappings = touch(txn, self.mappings, &[id], &mut RootRefs(data))?;
        let root = lookup(txn, self.mappings, id)?.expect("the volume is there");
        let applied = apply(txn, root, changes, &mut MappingRefs(data))?;
        let moved = [(id, Some(applied.root))];
        self.mappings = apply(txn, self.mappings, &moved, &mut MovedRoots(RootRefs(data)))?.root;
        let details: Details = lookup(txn, self.details, id)?.expect("it has details");
        self.set_details(id, details.mapped.get() + applied.inserted - applied.removed)
    }

    /// Takes a metadata snapshot.
    pub(crate) fn hold(&mut self) -> Result<()> {
        let at = self.txn.alloc()?;
        let none = SpaceMapRoot::new_zeroed();
        self.txn.put(at, BlockKind::Superblock, self.superblock(none, none))?;
        self.txn.inc(self.mappings);
        self.txn.inc(self.details);
        self.held = Some(at);
        Ok(())
    }

    /// Gives the metadata snapshot up.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        let at = self.held.take().expect("there is a metadata snapshot");
        let copy = held_superblock(&self.txn, at)?;
        self.txn.dec(at);
        let mappings = MetaBlock::new(copy.mappings.get());
        release(&mut self.txn, mappings, &mut RootRefs(&mut self.data))?;
        let details = MetaBlock::new(copy.details.get());
        release::<Details, _>(&mut self.txn, details, &mut NoRefs)
    }

    /// The mappings of every volume: virtual block to data block.
    pub(crate) fn contents(&self) -> Result<BTreeMap<u64, BTreeMap<u64, u64>>> {
        contents(&self.txn, self.mappings)
    }

    fn add(&mut self, id: u64, root: MetaBlock) -> Result<()> {
        let refs = &mut RootRefs(&mut self.data);
        let applied = apply(&mut self.txn, self.mappings, &[(id, Some(root))], refs)?;
        self.mappings = applied.root;
        Ok(())
    }

    fn set_details(&mut self, id: u64, mapped: u64) -> Result<()> {
        let mut details = Details::new_zeroed();
        details.mapped = mapped.into();
        let change = [(id, Some(details))];
        self.details = apply(&mut self.txn, self.details, &change, &mut NoRefs)?.root;
        Ok(())
    }

    fn superblock(&self, data_map: SpaceMapRoot, metadata_map: SpaceMapRoot) -> Block {
        let mut superblock = Superblock::new_zeroed();
        superblock.magic = 27_022_010.into();
        superblock.version = 2.into();
        superblock.held_root = self.held.map_or(0, MetaBlock::get).into();
        superblock.data_map = data_map;
        superblock.metadata_map = metadata_map;
        superblock.mappings = self.mappings.get().into();
        superblock.details = self.details.get().into();
        superblock.data_block_sectors = 128.into();
        superblock.metadata_block_sectors = 8.into();
        superblock.metadata_blocks = self.txn.nr_blocks().into();
        let mut block = Block::zeroed();
        block[..size_of::<Superblock>()].copy_from_slice(superblock.as_bytes());
        block
    }
}

/// The mappings of every volume below a top level.
pub(crate) fn contents(
    reader: &impl ReadBlocks,
    mappings: MetaBlock,
) -> Result<BTreeMap<u64, BTreeMap<u64, u64>>> {
    let mut volumes = BTreeMap::new();
    for (id, root) in entries::<MetaBlock>(reader, mappings)? {
        let map = entries::<u64>(reader, root)?.into_iter().map(|(key, value)| (key, value >> 24));
        volumes.insert(id, map.collect());
    }
    Ok(volumes)
}

/// Every entry of a tree.
pub(crate) fn entries<V: Value>(
    reader: &impl ReadBlocks,
    root: MetaBlock,
) -> Result<Vec<(u64, V)>> {
    let mut found = Vec::new();
    walk(reader, root, 0, &mut |key, value| {
        found.push((key, value));
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// The superblock of the pool on `device`.
pub(crate) fn read_superblock(device: &dyn BlockDevice) -> Result<Superblock> {
    let mut block = [0; BLOCK_SIZE];
    device.read_at(&mut block, ByteOffset::ZERO)?;
    verify(&block, BlockKind::Superblock, MetaBlock::new(0))?;
    Ok(superblock_of(&block))
}

/// The copy of the superblock in a metadata snapshot.
pub(crate) fn held_superblock(reader: &impl ReadBlocks, at: MetaBlock) -> Result<Superblock> {
    Ok(superblock_of(&reader.read_block(at, BlockKind::Superblock)?[..]))
}

fn superblock_of(block: &[u8]) -> Superblock {
    Superblock::read_from_prefix(block).expect("a block is longer than a superblock").0
}
