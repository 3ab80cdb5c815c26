//! A metadata block in memory, and the kinds of block there are.

use std::fmt;
use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::BLOCK_SIZE;

/// The bytes of one metadata block, aligned for the 64-bit words inside.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Block([u8; BLOCK_SIZE]);

impl Block {
    /// A block of zeros.
    pub const fn zeroed() -> Self {
        Self([0; BLOCK_SIZE])
    }
}

impl From<[u8; BLOCK_SIZE]> for Block {
    fn from(bytes: [u8; BLOCK_SIZE]) -> Self {
        Self(bytes)
    }
}

impl Deref for Block {
    type Target = [u8; BLOCK_SIZE];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:02x?}...)", &self.0[..16])
    }
}

/// What a block holds. Each kind mixes its own constant into the checksum, so a block that is taken
/// for another kind fails its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// The root of everything, and the copy of it that a metadata snapshot holds.
    Superblock,
    /// A node of a B-tree.
    Node,
    /// The index of the metadata space map.
    Index,
    /// The two-bit counts of a space map.
    Bitmap,
}

impl BlockKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Superblock, Self::Node, Self::Index, Self::Bitmap];

    /// The constant that the checksum of the kind is mixed with.
    pub(crate) const fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Index => 160_478,
            Self::Bitmap => 240_779,
        }
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Node => "B-tree node",
            Self::Index => "space map index",
            Self::Bitmap => "space map bitmap",
        })
    }
}
