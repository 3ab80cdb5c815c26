//! The entries of a store that several snapshots share.
//!
//! They have the form of exceptions, and are a log: a snapshot is taken and dropped by an entry
//! too. What an entry is stands in the high bits of its first number, where a chunk of an origin
//! has none.
//!
//! ```text
//!   63..56 kind   55..40 snapshot   39..0 chunk of the origin
//! ```

use crate::{Exception, OriginChunk, StoreChunk};

const CHUNK_BITS: u32 = 40;
const VIEW_BITS: u32 = 16;
const CHUNKS: u64 = 1 << CHUNK_BITS;

/// What entries without data have for a chunk of the store: the first area, which holds none.
const NOWHERE: StoreChunk = StoreChunk::new(1);

/// The number of a snapshot in a store that it shares with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(u16);

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A chunk of the origin as it was, for all snapshots that lack it.
    Copy(OriginChunk),
    /// A chunk of one snapshot, which it was written to.
    Own(ViewId, OriginChunk),
    /// A snapshot is taken.
    Take(ViewId),
    /// A snapshot is dropped.
    Drop(ViewId),
}

impl ViewId {
    /// Snapshot number `number` of a store.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Key {
    /// How many chunks an origin may have.
    pub(crate) const LIMIT: u64 = CHUNKS;

    /// The number that the entry has in place of an exception's old chunk.
    pub(crate) const fn packed(self) -> OriginChunk {
        let (kind, view, chunk) = match self {
            Self::Copy(chunk) => (0, 0, chunk.get()),
            Self::Own(view, chunk) => (1, view.0, chunk.get()),
            Self::Take(view) => (2, view.0, 0),
            Self::Drop(view) => (3, view.0, 0),
        };
        OriginChunk::new(kind << (CHUNK_BITS + VIEW_BITS) | (view as u64) << CHUNK_BITS | chunk)
    }

    /// What the number says; `None` for what this version does not know.
    pub(crate) const fn of(packed: OriginChunk) -> Option<Self> {
        let number = packed.get();
        let chunk = OriginChunk::new(number % CHUNKS);
        let view = ViewId((number >> CHUNK_BITS) as u16);
        match number >> (CHUNK_BITS + VIEW_BITS) {
            0 if view.0 == 0 => Some(Self::Copy(chunk)),
            1 => Some(Self::Own(view, chunk)),
            2 if chunk.get() == 0 => Some(Self::Take(view)),
            3 if chunk.get() == 0 => Some(Self::Drop(view)),
            _ => None,
        }
    }

    /// The entry, for those that name no data.
    pub(crate) const fn entry(self) -> Exception {
        Exception { old: self.packed(), new: NOWHERE }
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, ViewId};
    use crate::OriginChunk;

    #[test]
    fn keys_come_back_and_what_is_unknown_does_not() {
        let (view, chunk) = (ViewId::new(0xfedc), OriginChunk::new((1 << 40) - 1));
        for key in [Key::Copy(chunk), Key::Own(view, chunk), Key::Take(view), Key::Drop(view)] {
            assert_eq!(Key::of(key.packed()), Some(key));
        }
        for number in [1 << 40, 4 << 56, 2 << 56 | 1, u64::MAX] {
            assert_eq!(Key::of(OriginChunk::new(number)), None, "{number:#x}");
        }
        assert_eq!(Key::Copy(OriginChunk::new(7)).packed().get(), 7, "as in the kernel's stores");
    }
}
