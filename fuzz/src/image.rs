//! Metadata devices out of arbitrary bytes.
//!
//! Every block carries a checksum and its own number, which no mutation would ever get right; a
//! target that had to guess them would test nothing but the check. So each block is sealed here,
//! for the kind that the input chooses, and what is behind the checksum is reached.
//!
//! An input is [`HEADER`] bytes and then the blocks, the last one perhaps broken:
//!
//! ```text
//! 0..32    the kind of each block: 0 superblock, 1 node, 2 index, 3 bitmap, 4 left as it is
//! 32..64   a space map's root
//! 64..72   a tree's root, little-endian
//! ```

use std::sync::Arc;

use block_io::MemoryDevice;
use block_types::ByteCount;
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock, SpaceMapRoot, seal};
use zerocopy::FromBytes;

/// Bytes before the blocks.
pub const HEADER: usize = 72;

/// Blocks of an input at most.
const BLOCKS: usize = 32;

/// A device made from an input, and the roots that the input names.
pub struct Image {
    /// The metadata.
    pub device: Arc<MemoryDevice>,
    /// The root of some tree.
    pub tree: MetaBlock,
    /// The root of some space map.
    pub map: SpaceMapRoot,
}

impl Image {
    /// The image that `input` describes, on a device of `size`; `None` for an input without blocks.
    pub fn new(input: &[u8], size: ByteCount) -> Option<Self> {
        let (header, blocks) = input.split_at_checked(HEADER)?;
        if blocks.is_empty() {
            return None;
        }
        let mut bytes = vec![0; size.as_usize()];
        let held = blocks.len().min(BLOCKS * BLOCK_SIZE).min(bytes.len());
        bytes[..held].copy_from_slice(&blocks[..held]);
        let used = held.div_ceil(BLOCK_SIZE);
        for (number, block) in bytes.chunks_exact_mut(BLOCK_SIZE).take(used).enumerate() {
            if let Some(kind) = BlockKind::ALL.get(usize::from(header[number] % 5)) {
                seal(block, *kind, MetaBlock::new(number as u64));
            }
        }
        let (map, _) = SpaceMapRoot::read_from_prefix(&header[32..]).ok()?;
        let tree = u64::from_le_bytes(header[64..72].try_into().ok()?);
        let device = Arc::new(MemoryDevice::from_bytes("fuzz", bytes));
        Some(Self { device, tree: MetaBlock::new(tree), map })
    }
}
