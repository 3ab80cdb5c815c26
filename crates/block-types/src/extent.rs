//! What lies at a range of a device, in the one vocabulary that every format and NBD share.

use crate::ByteRange;

/// How a range of a device reads and whether it takes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentState {
    /// Takes space; may hold anything.
    Data,
    /// Takes space and is known to read as zeros.
    Zero,
    /// Takes no space and reads as zeros.
    Hole,
}

/// A range in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub state: ExtentState,
}

impl ExtentState {
    /// Whether every byte is known to be zero.
    pub const fn reads_zero(self) -> bool {
        matches!(self, Self::Zero | Self::Hole)
    }
}
