//! A node in memory: a view of its block, checked once, and the writing of whole nodes.

use std::ops::Range;
use std::sync::Arc;

use block_types::Result;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{HEADER_SIZE, INTERNAL, KEY_SIZE, LEAF, NodeHeader, max_entries};
use super::value::Value;
use crate::checksum::corrupt;
use crate::{BLOCK_SIZE, Block, BlockKind, MetaBlock, ReadBlocks};

/// A node whose header was checked. Keys and values are read where they lie in the block.
#[derive(Clone, Debug)]
pub struct Node {
    block: Arc<Block>,
    at: MetaBlock,
    shape: Shape,
}

/// What the header says, once it is known to make sense.
#[derive(Clone, Copy, Debug)]
struct Shape {
    leaf: bool,
    len: usize,
    max: usize,
    value_size: usize,
}

impl Node {
    /// Takes `block`, which was found at `at`, for a node.
    ///
    /// # Errors
    /// [`Corrupt`](block_types::ErrorKind::Corrupt) if its header breaks the rules. That its keys
    /// ascend is checked where blocks come from the device, not here.
    pub fn parse(block: Arc<Block>, at: MetaBlock) -> Result<Self> {
        let shape = Shape::read(&block).map_err(|problem| corrupt(at, problem))?;
        Ok(Self { block, at, shape })
    }

    /// Reads a node, of whichever kind of tree.
    ///
    /// # Errors
    /// As [`ReadBlocks::read_block`], and [`Node::parse`].
    pub fn read(reader: &(impl ReadBlocks + ?Sized), at: MetaBlock) -> Result<Self> {
        Self::parse(reader.read_block(at, BlockKind::Node)?, at)
    }

    /// Reads a node of a tree with values `V`.
    ///
    /// # Errors
    /// As [`Node::read`], and if a leaf's values have another size.
    pub fn read_of<V: Value>(reader: &(impl ReadBlocks + ?Sized), at: MetaBlock) -> Result<Self> {
        let node = Self::read(reader, at)?;
        if node.is_leaf() && node.shape.value_size != V::SIZE {
            let problem = format!("has values of {} bytes, not {}", node.shape.value_size, V::SIZE);
            return Err(corrupt(at, problem));
        }
        Ok(node)
    }

    /// Where the node lies.
    pub fn at(&self) -> MetaBlock {
        self.at
    }

    /// Whether the values are the tree's own, not blocks of the next level.
    pub fn is_leaf(&self) -> bool {
        self.shape.leaf
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.shape.len
    }

    /// Whether it has no entries, which only an empty tree's root has.
    pub fn is_empty(&self) -> bool {
        self.shape.len == 0
    }

    /// How many entries it has room for.
    pub fn max_entries(&self) -> usize {
        self.shape.max
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> usize {
        self.shape.value_size
    }

    /// The keys, ascending.
    pub fn keys(&self) -> &[U64] {
        self.shape.keys(&self.block)
    }

    /// The key at `index`.
    ///
    /// # Panics
    /// Past the last entry.
    pub fn key(&self, index: usize) -> u64 {
        self.keys()[index].get()
    }

    /// The key at `index`, if there is such an entry.
    pub fn get_key(&self, index: usize) -> Option<u64> {
        self.keys().get(index).map(|key| key.get())
    }

    /// The value at `index` of a leaf that was read as one of a tree with values `V`.
    ///
    /// # Panics
    /// Past the last entry, and in a leaf with values of another size.
    pub fn value<V: Value>(&self, index: usize) -> V {
        assert_eq!(self.shape.value_size, V::SIZE, "the node was read for other values");
        V::read(&self.block[self.shape.value_range(index)])
    }

    /// The block of the child at `index` of an internal node.
    ///
    /// # Panics
    /// Past the last entry, and in a leaf.
    pub fn child(&self, index: usize) -> MetaBlock {
        assert!(!self.shape.leaf, "a leaf has no children");
        self.value(index)
    }

    /// The children of an internal node, in the order of their keys.
    pub fn children(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        (0..self.len()).map(|index| self.child(index))
    }

    /// The index of `key`, or where it would have to be inserted.
    pub fn search(&self, key: u64) -> std::result::Result<usize, usize> {
        self.keys().binary_search_by(|probe| probe.get().cmp(&key))
    }

    /// The child of an internal node below which `key` belongs: the last one whose own key is not
    /// above it. `None` if the key lies below them all.
    pub fn child_for(&self, key: u64) -> Option<usize> {
        self.keys().partition_point(|probe| probe.get() <= key).checked_sub(1)
    }

    /// The bytes of the value at `index`.
    pub(super) fn value_bytes(&self, index: usize) -> &[u8] {
        &self.block[self.shape.value_range(index)]
    }

    /// The block itself.
    pub(super) fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// The same node in another block, which has a copy of this one's content.
    pub(super) fn moved_to(self, at: MetaBlock) -> Self {
        Self { at, ..self }
    }
}

impl Shape {
    /// The rules that the kernel has for a node, and that an internal node is of some use.
    fn read(block: &Block) -> std::result::Result<Self, String> {
        let (header, _) = NodeHeader::ref_from_prefix(&block[..])
            .map_err(|_| "is shorter than a node's header".to_owned())?;
        let (len, max) = (u64::from(header.entries.get()), u64::from(header.max_entries.get()));
        let value_size = u64::from(header.value_size.get());
        let leaf = match header.flags.get() {
            LEAF => true,
            INTERNAL => false,
            flags => return Err(format!("is neither leaf nor internal (flags {flags:#x})")),
        };
        // Both factors are below 2^33, so that nothing overflows.
        let room = max.checked_mul(KEY_SIZE as u64 + value_size);
        if room.is_none_or(|room| room > (BLOCK_SIZE - HEADER_SIZE) as u64) {
            return Err(format!("has no room for {max} entries with {value_size}-byte values"));
        }
        if len > max {
            return Err(format!("has {len} entries in room for {max}"));
        }
        if !leaf && value_size != MetaBlock::SIZE as u64 {
            return Err(format!("points to children with {value_size}-byte values"));
        }
        if !leaf && len == 0 {
            return Err("is internal and has no children".to_owned());
        }
        // The room is below a block, so all three fit every integer, but for the size of values
        // that there is no room for.
        let value_size = if max == 0 { 0 } else { value_size as usize };
        Ok(Self { leaf, len: len as usize, max: max as usize, value_size })
    }

    fn keys<'b>(&self, block: &'b Block) -> &'b [U64] {
        let bytes = &block[HEADER_SIZE..HEADER_SIZE + self.len * KEY_SIZE];
        <[U64]>::ref_from_bytes(bytes).expect("keys have no alignment and fill the bytes")
    }

    fn value_range(&self, index: usize) -> Range<usize> {
        assert!(index < self.len, "entry {index} of {}", self.len);
        let start = HEADER_SIZE + self.max * KEY_SIZE + index * self.value_size;
        start..start + self.value_size
    }
}

/// Checks that a block that came from the device is a node with ascending keys.
pub(crate) fn check_node(block: &Block) -> std::result::Result<(), String> {
    let keys = Shape::read(block)?.keys(block);
    match keys.windows(2).position(|pair| pair[0].get() >= pair[1].get()) {
        Some(index) => Err(format!("has keys out of order at entry {}", index + 1)),
        None => Ok(()),
    }
}

/// The entries of a node, or of more than one node, while they are edited.
#[derive(Clone, Debug)]
pub(super) struct Entries<T> {
    pub(super) keys: Vec<u64>,
    pub(super) values: Vec<T>,
}

impl<T: Value> Entries<T> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { keys: Vec::with_capacity(capacity), values: Vec::with_capacity(capacity) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn push(&mut self, key: u64, value: T) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// Adds the entries of `node` in `range` at the end.
    pub(super) fn copy(&mut self, node: &Node, range: Range<usize>) {
        self.keys.extend(node.keys()[range.clone()].iter().map(|key| key.get()));
        self.values.extend(range.map(|index| node.value::<T>(index)));
    }

    /// The node that holds the entries in `range`, complete but for its seal.
    pub(super) fn encode(&self, range: Range<usize>, leaf: bool) -> Block {
        let max = max_entries(T::SIZE);
        assert!(range.len() <= max, "entries were cut to what a node has room for");
        let header = NodeHeader {
            checksum: 0.into(),
            flags: if leaf { LEAF } else { INTERNAL }.into(),
            number: 0.into(),
            entries: (range.len() as u32).into(),
            max_entries: (max as u32).into(),
            value_size: (T::SIZE as u32).into(),
            padding: 0.into(),
        };
        let mut block = Block::zeroed();
        block[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        let (keys, values) = block[HEADER_SIZE..].split_at_mut(max * KEY_SIZE);
        for (bytes, key) in keys.chunks_exact_mut(KEY_SIZE).zip(&self.keys[range.clone()]) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        for (bytes, value) in values.chunks_exact_mut(T::SIZE).zip(&self.values[range]) {
            value.write(bytes);
        }
        block
    }
}

/// Overwrites values of a node whose header was checked.
pub(super) fn set_values<T: Value>(block: &mut Block, values: &[(usize, T)]) {
    let shape = Shape::read(block).expect("the header was checked when the node was read");
    for (index, value) in values {
        value.write(&mut block[shape.value_range(*index)]);
    }
}
