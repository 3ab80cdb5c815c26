//! Leaves of mapping trees, read where they lie.

use block_types::{Error, ErrorKind, Result};
use persistent_data::btree::{HEADER_SIZE, KEY_SIZE, LEAF, NodeHeader};
use persistent_data::{BlockKind, MetaBlock, verify};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Entries that a leaf of mappings has room for, however it came about.
const MOST: usize = (persistent_data::BLOCK_SIZE - HEADER_SIZE) / (2 * KEY_SIZE);

/// The entries of a leaf: guest blocks, and where they lie.
#[derive(Clone, Copy)]
pub(crate) struct Leaf<'b> {
    keys: &'b [U64],
    values: &'b [U64],
}

impl<'b> Leaf<'b> {
    /// Checks the block that was read from `at`: its seal, that it is a leaf of mappings, and that
    /// its keys ascend.
    ///
    /// # Errors
    /// `Corrupt`, saying which check failed.
    pub(super) fn check(block: &'b [u8], at: MetaBlock) -> Result<()> {
        verify(block, BlockKind::Node, at)?;
        let corrupt = |problem: String| {
            Error::new(ErrorKind::Corrupt, format!("metadata block {at}"), problem)
        };
        let head = head(block);
        let (entries, max) = (head.entries.get() as usize, head.max_entries.get() as usize);
        if head.flags.get() != LEAF {
            return Err(corrupt(format!("is no leaf (flags {:#x})", head.flags.get())));
        }
        if head.value_size.get() as usize != size_of::<U64>() {
            return Err(corrupt(format!("has values of {} bytes", head.value_size.get())));
        }
        if entries > max || max > MOST {
            return Err(corrupt(format!("has {entries} entries in room for {max}")));
        }
        let keys = Self::view(block).keys;
        // Without a way out in the middle, so that it takes several keys at a time.
        let unordered = keys.windows(2).filter(|pair| pair[0].get() >= pair[1].get()).count();
        if unordered > 0 {
            return Err(corrupt("has keys out of order".into()));
        }
        Ok(())
    }

    /// The entries in a block that was checked.
    pub(super) fn view(block: &'b [u8]) -> Self {
        let head = head(block);
        let (entries, max) = (head.entries.get() as usize, head.max_entries.get() as usize);
        Self {
            keys: words(block, HEADER_SIZE, entries),
            values: words(block, HEADER_SIZE + max * KEY_SIZE, entries),
        }
    }

    /// The guest blocks, ascending, with their packed mappings.
    pub(crate) fn entries(self) -> impl Iterator<Item = (u64, u64)> + 'b {
        self.keys.iter().zip(self.values).map(|(key, value)| (key.get(), value.get()))
    }

    /// The first and the last guest block; `None` if there are none.
    pub(crate) fn ends(self) -> Option<(u64, u64)> {
        self.keys.first().zip(self.keys.last()).map(|(first, last)| (first.get(), last.get()))
    }

    /// The packed mappings.
    pub(crate) fn values(self) -> impl Iterator<Item = u64> + 'b {
        self.values.iter().map(|value| value.get())
    }
}

fn head(block: &[u8]) -> &NodeHeader {
    NodeHeader::ref_from_prefix(block).expect("a block is longer than a node's head").0
}

fn words(block: &[u8], start: usize, count: usize) -> &[U64] {
    let bytes = &block[start..start + count * size_of::<U64>()];
    <[U64]>::ref_from_bytes(bytes).expect("words have no alignment and fill the bytes")
}
