//! The address of a metadata block.

use std::fmt;

use block_types::{ByteCount, ByteOffset};

/// Bytes of a metadata block, in every version of the format.
pub const BLOCK_SIZE: usize = 4096;

/// The number of a 4 KiB block of a metadata device, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetaBlock(u64);

impl MetaBlock {
    /// The block with this number. Numbers read from a disk may lie past the device's end: whoever
    /// reads or counts the block finds that out.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Where it begins on the device, or `None` for a number that no device can reach.
    pub const fn offset(self) -> Option<ByteOffset> {
        match self.0.checked_mul(BLOCK_SIZE as u64) {
            Some(bytes) => Some(ByteOffset::new(bytes)),
            None => None,
        }
    }
}

/// How many whole metadata blocks `size` bytes hold.
pub(crate) const fn blocks_in(size: ByteCount) -> u64 {
    size.get() / BLOCK_SIZE as u64
}

impl fmt::Display for MetaBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
