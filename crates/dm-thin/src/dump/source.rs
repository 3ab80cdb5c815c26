//! The metadata that a tool reads: its superblock, its devices, and its trees.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Error, ErrorKind, Result};
use persistent_data::btree::{KeyRange, MAX_DEPTH, Node, walk};
use persistent_data::{BLOCK_SIZE, BlockStore, MetaBlock};
use zerocopy::FromBytes;

use crate::layout::{DetailsLayout, SuperblockLayout};
use crate::superblock::{LOCATION, Superblock};
use crate::{DeviceId, DeviceState};

/// Nodes above leaves that are kept in memory, since devices share them: 16 MiB at most.
const CACHE_BLOCKS: usize = 4 << 10;

/// Which state of the metadata is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// The last commit. Nobody may write to the metadata meanwhile.
    #[default]
    Live,
    /// The metadata snapshot that is held. It stays readable while the pool is in use.
    Snapshot,
    /// The metadata snapshot at this block, whether or not the superblock names it.
    SnapshotAt(MetaBlock),
}

/// What a superblock says beside its roots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    pub(crate) time: u32,
    pub(crate) transaction: u64,
    pub(crate) flags: u32,
    pub(crate) version: u32,
    /// Sectors of a data block.
    pub(crate) block_sectors: u32,
    /// Blocks of the data device; a metadata snapshot says 0.
    pub(crate) data_blocks: u64,
    pub(crate) held_root: Option<MetaBlock>,
}

/// A device and its mapping tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceDevice {
    pub(crate) id: DeviceId,
    pub(crate) state: DeviceState,
    pub(crate) root: MetaBlock,
}

/// Open metadata.
pub(crate) struct Source {
    pub(crate) store: BlockStore,
    pub(crate) fields: Fields,
    /// Ascending.
    pub(crate) devices: Vec<SourceDevice>,
    /// Blocks of the data device, also where a metadata snapshot is read.
    pub(crate) data_blocks: u64,
}

impl Source {
    /// Opens `metadata` for reading.
    ///
    /// # Errors
    /// `Corrupt` if it is no metadata or its trees of devices are broken, `NotFound` if there is no
    /// metadata snapshot; the device's failures.
    pub(crate) fn open(metadata: Arc<dyn BlockDevice>, view: View) -> Result<Self> {
        let (live, superblock) = read_superblock(&*metadata, LOCATION)?;
        let (fields, superblock) = match view {
            View::Live => (live, superblock),
            View::SnapshotAt(at) => read_superblock(&*metadata, at)?,
            View::Snapshot => match live.held_root {
                Some(at) => read_superblock(&*metadata, at)?,
                None => {
                    let name = metadata.name();
                    let error = Error::new(ErrorKind::NotFound, name, "has no metadata snapshot");
                    return Err(error.advise("have the pool reserve one (reserve_metadata_snap)"));
                }
            },
        };
        let store = BlockStore::new(metadata, CACHE_BLOCKS);
        let roots = superblock.roots();
        let devices = read_devices(&store, roots.mappings, roots.details)?;
        Ok(Self { store, fields, devices, data_blocks: live.data_blocks })
    }

    /// The device with the identifier `id`.
    pub(crate) fn device(&self, id: DeviceId) -> Result<SourceDevice> {
        let found = self.devices.binary_search_by_key(&id, |device| device.id);
        found.map(|index| self.devices[index]).map_err(|_| {
            let object = format!("{}, device {id}", self.metadata().name());
            Error::new(ErrorKind::NotFound, object, "does not exist")
        })
    }

    /// The metadata device.
    pub(crate) fn metadata(&self) -> &dyn BlockDevice {
        &**self.store.device()
    }

    /// The failure of the block at `at`, which breaks the rules of the format.
    pub(crate) fn corrupt(&self, at: MetaBlock, problem: &str) -> Error {
        let object = format!("{}: metadata block {at}", self.metadata().name());
        Error::new(ErrorKind::Corrupt, object, problem)
    }

    /// Calls `each` with the leaves of the tree at `root`, in the order of their keys.
    pub(crate) fn leaves(
        &self,
        root: MetaBlock,
        each: &mut dyn FnMut(MetaBlock) -> Result<()>,
    ) -> Result<()> {
        match self.depth(root)? {
            0 => each(root),
            depth => self.leaves_below(root, depth, KeyRange::whole(), each),
        }
    }

    /// How many levels there are above the leaves of the tree at `root`.
    pub(crate) fn depth(&self, root: MetaBlock) -> Result<usize> {
        let mut at = root;
        for depth in 0..MAX_DEPTH {
            let node = Node::read(&self.store, at)?;
            if node.is_leaf() {
                return Ok(depth);
            }
            at = node.child(0);
        }
        Err(self.corrupt(root, "is the root of a tree that is too deep, perhaps a loop"))
    }

    /// Reads a node which has to be above the leaves, and checks it against its place.
    pub(crate) fn internal(&self, at: MetaBlock, place: KeyRange) -> Result<Node> {
        let node = Node::read(&self.store, at)?;
        place.check(&node).map_err(|error| error.within(self.metadata().name()))?;
        if node.is_leaf() {
            return Err(self.corrupt(at, "is a leaf where others of its tree lie deeper"));
        }
        Ok(node)
    }

    fn leaves_below(
        &self,
        at: MetaBlock,
        depth: usize,
        place: KeyRange,
        each: &mut dyn FnMut(MetaBlock) -> Result<()>,
    ) -> Result<()> {
        let node = self.internal(at, place)?;
        for (index, child) in node.children().enumerate() {
            match depth {
                1 => each(child)?,
                _ => self.leaves_below(child, depth - 1, place.child(&node, index), each)?,
            }
        }
        Ok(())
    }
}

fn read_superblock(metadata: &dyn BlockDevice, at: MetaBlock) -> Result<(Fields, Superblock)> {
    let superblock = if at == LOCATION {
        Superblock::read(metadata)?
    } else {
        Superblock::parse(metadata.name(), read_block(metadata, at)?, at)?
    };
    let bytes = read_block(metadata, at)?;
    let layout = SuperblockLayout::ref_from_prefix(&bytes[..])
        .expect("a block is longer than a superblock")
        .0;
    let fields = Fields {
        time: layout.time.get(),
        transaction: layout.transaction.get(),
        flags: layout.flags.get(),
        version: layout.version.get(),
        block_sectors: layout.data_block_sectors.get(),
        data_blocks: layout.data_map.root.nr_blocks.get(),
        held_root: superblock.held_root(),
    };
    Ok((fields, superblock))
}

fn read_block(metadata: &dyn BlockDevice, at: MetaBlock) -> Result<Box<[u8; BLOCK_SIZE]>> {
    let mut bytes = Box::new([0; BLOCK_SIZE]);
    let offset = at.offset().unwrap_or(ByteOffset::new(u64::MAX));
    metadata.read_at(&mut bytes[..], offset)?;
    Ok(bytes)
}

/// Reads all devices: those of one tree have to be those of the other.
fn read_devices(
    store: &BlockStore,
    mappings: MetaBlock,
    details: MetaBlock,
) -> Result<Vec<SourceDevice>> {
    let mut roots = BTreeMap::new();
    walk(store, mappings, 0, &mut |key, root: u64| {
        roots.insert(key, MetaBlock::new(root));
        ControlFlow::Continue(())
    })?;
    let mut devices = Vec::with_capacity(roots.len());
    let mut stray = None;
    walk(store, details, 0, &mut |key, details: DetailsLayout| {
        let id = u32::try_from(key).ok().and_then(|id| DeviceId::new(id).ok());
        let (Some(id), Some(root)) = (id, roots.remove(&key)) else {
            stray = Some(key);
            return ControlFlow::Break(());
        };
        devices.push(SourceDevice { id, state: details.state(), root });
        ControlFlow::Continue(())
    })?;
    match stray.or_else(|| roots.into_keys().next()) {
        None => Ok(devices),
        Some(id) => {
            let object = format!("{}, device {id}", store.device().name());
            let problem = "is in one of the two trees of devices only";
            let error = Error::new(ErrorKind::Corrupt, object, problem);
            Err(error.advise("repair the metadata first"))
        }
    }
}
