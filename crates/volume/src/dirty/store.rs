//! Where the bits of a bitmap are kept.

use block_types::Result;

/// Some bytes of a bitmap; see [`block_types::DirtyBitmap::export`] for what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapPart {
    /// Where in the bitmap they begin, in bytes; a multiple of 8.
    pub at: u64,
    /// What they are.
    pub bytes: Vec<u8>,
}

/// A place for the bits of one bitmap that survives a crash.
pub trait BitmapStore: Send + Sync {
    /// Puts `parts` there, in place of what was there. When this returns they are durable, and a
    /// crash while it runs leaves each bit as it was or as it is to be. Before the first change the
    /// bitmap is marked, durably, as being in use, where the format has such a mark.
    ///
    /// Called by one thread at a time.
    ///
    /// # Errors
    /// Those of the device. It is then not known what is there, but for the rule above.
    fn put(&self, parts: &[BitmapPart]) -> Result<()>;
}
