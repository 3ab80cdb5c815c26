//! Reading the committed blocks of a metadata device, verified, through a cache of clean nodes.

use std::fmt;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use quick_cache::sync::Cache;

use crate::address::blocks_in;
use crate::btree::check_node;
use crate::{Block, BlockKind, MetaBlock, checksum};

/// Whatever metadata blocks can be read from.
pub trait ReadBlocks {
    /// The block at `at`, which has to be a sound block of `kind`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is not, or lies past the end; the device's own failures.
    fn read_block(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>>;
}

/// The committed state of a metadata device.
///
/// Nodes are kept in a bounded cache; everything in it was verified when it came in. The other
/// kinds are read from the device each time: space maps are read once, when a pool is opened, and
/// the superblock is overwritten in place behind the store's back.
pub struct BlockStore {
    device: Arc<dyn BlockDevice>,
    nodes: Cache<u64, Arc<Block>>,
}

impl BlockStore {
    /// The blocks of `device`, with room for about `cache_blocks` nodes of 4 KiB in memory.
    pub fn new(device: Arc<dyn BlockDevice>, cache_blocks: usize) -> Self {
        Self { device, nodes: Cache::new(cache_blocks) }
    }

    /// The device underneath.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// How many whole blocks the device has now.
    pub fn device_blocks(&self) -> u64 {
        blocks_in(self.device.size())
    }

    /// The block at `at`, verified.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is no sound block of `kind` or lies past the end of the device;
    /// the device's own failures.
    pub fn read(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        if kind == BlockKind::Node {
            self.nodes.get_or_insert_with(&at.get(), || self.load(at, kind))
        } else {
            self.load(at, kind)
        }
    }

    /// Takes in a node that was just made durable.
    pub(crate) fn keep(&self, at: MetaBlock, node: Arc<Block>) {
        self.nodes.insert(at.get(), node);
    }

    /// Drops what is known about a block that was freed.
    pub(crate) fn forget(&self, at: MetaBlock) {
        self.nodes.remove(&at.get());
    }

    fn load(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        let offset = match at.offset() {
            Some(offset) if at.get() < self.device_blocks() => offset,
            _ => return Err(self.corrupt(at, "lies past the end of the device")),
        };
        let mut block = Arc::new(Block::zeroed());
        let bytes = Arc::get_mut(&mut block).expect("nobody else has it yet");
        self.device.read_at(&mut bytes[..], offset)?;
        if let Some(problem) = checksum::problem(&block[..], kind, at) {
            return Err(self.corrupt(at, problem));
        }
        if kind == BlockKind::Node {
            check_node(&block).map_err(|problem| self.corrupt(at, problem))?;
        }
        Ok(block)
    }

    fn corrupt(&self, at: MetaBlock, problem: impl Into<String>) -> Error {
        let object = format!("{}: metadata block {at}", self.device.name());
        Error::new(ErrorKind::Corrupt, object, problem)
    }
}

impl ReadBlocks for BlockStore {
    fn read_block(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        self.read(at, kind)
    }
}

impl<T: ReadBlocks + ?Sized> ReadBlocks for Arc<T> {
    fn read_block(&self, at: MetaBlock, kind: BlockKind) -> Result<Arc<Block>> {
        (**self).read_block(at, kind)
    }
}

impl fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockStore({}, {} nodes cached)", self.device.name(), self.nodes.len())
    }
}
