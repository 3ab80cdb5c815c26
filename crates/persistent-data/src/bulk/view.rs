//! A node where it lies in a buffer.

use block_types::Result;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::btree::{HEADER_SIZE, KEY_SIZE, LEAF, NodeHeader, Value, check_node};
use crate::checksum::{corrupt, identify, problem};
use crate::{Block, BlockKind, MetaBlock};

/// A sound node: header checked, keys ascending. Copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'b> {
    at: MetaBlock,
    leaf: bool,
    value_size: usize,
    keys: &'b [U64],
    values: &'b [u8],
}

/// What `block`, which was found at `at`, is: its kind, if its checksum makes it one and it was
/// written for this place.
pub fn inspect(block: &Block, at: MetaBlock) -> Option<BlockKind> {
    let kind = identify(&block[..])?;
    problem(&block[..], kind, at).is_none().then_some(kind)
}

impl<'b> NodeView<'b> {
    /// Takes a block that came from the device for a node at `at`: checks checksum, number, header,
    /// and that the keys ascend.
    ///
    /// # Errors
    /// [`Corrupt`](block_types::ErrorKind::Corrupt) with the check that failed.
    pub fn read(block: &'b Block, at: MetaBlock) -> Result<Self> {
        match problem(&block[..], BlockKind::Node, at) {
            Some(problem) => Err(corrupt(at, problem)),
            None => Self::parse(block, at),
        }
    }

    /// Takes a block whose checksum was looked at already for a node at `at`.
    ///
    /// # Errors
    /// [`Corrupt`](block_types::ErrorKind::Corrupt) if the header breaks a rule or keys do not
    /// ascend.
    pub fn parse(block: &'b Block, at: MetaBlock) -> Result<Self> {
        check_node(block).map_err(|problem| corrupt(at, problem))?;
        let (header, _) = NodeHeader::ref_from_prefix(&block[..]).expect("a block is longer");
        let (len, room) = (header.entries.get() as usize, header.max_entries.get() as usize);
        // The check has shown that all of them together fit the block.
        let value_size = if room == 0 { 0 } else { header.value_size.get() as usize };
        let keys = <[U64]>::ref_from_bytes(&block[HEADER_SIZE..HEADER_SIZE + len * KEY_SIZE])
            .expect("keys have no alignment and fill the bytes");
        let values = HEADER_SIZE + room * KEY_SIZE;
        let values = &block[values..values + len * value_size];
        Ok(Self { at, leaf: header.flags.get() == LEAF, value_size, keys, values })
    }

    /// Where the node lies.
    pub fn at(&self) -> MetaBlock {
        self.at
    }

    /// Whether the values are the tree's own, not blocks of the next level.
    pub fn is_leaf(&self) -> bool {
        self.leaf
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none, as only the root of an empty tree does.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// The keys, ascending.
    pub fn keys(&self) -> &'b [U64] {
        self.keys
    }

    /// Values of eight bytes: children, roots, mappings. Empty for values of another size.
    pub fn words(&self) -> &'b [U64] {
        if self.value_size != size_of::<U64>() {
            return &[];
        }
        <[U64]>::ref_from_bytes(self.values).expect("values have no alignment and fill the bytes")
    }

    /// The keys and values of a leaf.
    ///
    /// # Panics
    /// In a leaf with values of another size.
    pub fn entries<V: Value>(&self) -> impl Iterator<Item = (u64, V)> + use<'b, V> {
        assert_eq!(self.value_size, V::SIZE, "the node was read for other values");
        self.keys.iter().map(|key| key.get()).zip(self.values.chunks_exact(V::SIZE).map(V::read))
    }

    /// The children of an internal node, each with its key.
    pub fn children(&self) -> impl Iterator<Item = (u64, MetaBlock)> + use<'b> {
        let words = if self.leaf { &[] } else { self.words() };
        let block = |word: &U64| MetaBlock::new(word.get());
        self.keys.iter().map(|key| key.get()).zip(words.iter().map(block))
    }
}

#[cfg(test)]
mod tests {
    use super::{NodeView, inspect};
    use crate::{Block, BlockKind, MetaBlock, seal};

    fn node(value_size: u32, room: u32, keys: &[u64]) -> Block {
        let mut block = Block::zeroed();
        block[4] = 2;
        block[16..20].copy_from_slice(&(keys.len() as u32).to_le_bytes());
        block[20..24].copy_from_slice(&room.to_le_bytes());
        block[24..28].copy_from_slice(&value_size.to_le_bytes());
        for (place, key) in keys.iter().enumerate() {
            block[32 + 8 * place..][..8].copy_from_slice(&key.to_le_bytes());
            let value = 32 + 8 * room as usize + place * value_size as usize;
            block[value] = 10 + place as u8;
        }
        seal(&mut block[..], BlockKind::Node, MetaBlock::new(5));
        block
    }

    #[test]
    fn shows_keys_and_values_where_they_lie() {
        let block = node(8, 252, &[3, 9]);
        let view = NodeView::read(&block, MetaBlock::new(5)).expect("sound");
        assert!(view.is_leaf() && view.children().next().is_none());
        assert_eq!(view.entries::<u64>().collect::<Vec<_>>(), [(3, 10), (9, 11)]);
        assert_eq!(view.words()[1].get(), 11);
        let block = node(4, 336, &[7]);
        let view = NodeView::read(&block, MetaBlock::new(5)).expect("sound");
        assert!(view.words().is_empty());
        assert_eq!(view.entries::<u32>().collect::<Vec<_>>(), [(7, 10)]);
    }

    #[test]
    fn refuses_what_is_no_node_here() {
        let block = node(8, 252, &[3, 9]);
        assert!(NodeView::read(&block, MetaBlock::new(6)).is_err());
        assert_eq!(inspect(&block, MetaBlock::new(5)), Some(BlockKind::Node));
        assert_eq!(inspect(&block, MetaBlock::new(6)), None);
        let block = node(8, 252, &[9, 3]);
        assert!(NodeView::read(&block, MetaBlock::new(5)).is_err());
        let block = node(u32::MAX, 0, &[]);
        assert_eq!(NodeView::read(&block, MetaBlock::new(5)).expect("empty").value_size(), 0);
    }
}
