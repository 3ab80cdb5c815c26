//! The values of a tree, and what they count.

use block_types::Result;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{MetaBlock, Transaction};

/// The largest value that a tree may hold, in bytes.
pub(super) const MAX_VALUE_SIZE: usize = 64;

/// A value of fixed size. Implemented for `u32` and `u64`, for block numbers, and for every on-disk
/// struct that is a [`Record`].
pub trait Value: Copy {
    /// Bytes on the disk, 1 to 64.
    const SIZE: usize;

    /// Reads a value from exactly [`SIZE`](Value::SIZE) bytes.
    fn read(bytes: &[u8]) -> Self;

    /// Writes the value to exactly [`SIZE`](Value::SIZE) bytes.
    fn write(&self, bytes: &mut [u8]);
}

/// A struct that is stored in a tree as it lies in memory, so its integers have to say their byte
/// order.
pub trait Record: Copy + FromBytes + IntoBytes + Immutable {}

impl<T: Record> Value for T {
    const SIZE: usize = size_of::<T>();

    fn read(bytes: &[u8]) -> Self {
        T::read_from_bytes(bytes).expect("the node cut the value to its size")
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.as_bytes());
    }
}

impl Value for u64 {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("the node cut the value to its size"))
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }
}

impl Value for u32 {
    const SIZE: usize = 4;

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("the node cut the value to its size"))
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }
}

impl Value for MetaBlock {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> Self {
        Self::new(u64::read(bytes))
    }

    fn write(&self, bytes: &mut [u8]) {
        self.get().write(bytes);
    }
}

/// What the values in leaves refer to, so that it can be counted.
///
/// A value is counted once for each leaf that holds it, however many trees share the leaf.
pub trait ValueRefs<V> {
    /// Another leaf holds `value`.
    ///
    /// # Errors
    /// Whatever keeps it from being counted; the transaction cannot go on then.
    fn inc(&mut self, txn: &mut Transaction, value: V) -> Result<()>;

    /// A leaf that held `value` holds it no more.
    ///
    /// # Errors
    /// As for [`inc`](ValueRefs::inc).
    fn dec(&mut self, txn: &mut Transaction, value: V) -> Result<()>;

    /// A change put `value` into a leaf. Counts it, unless whoever made the change brought the
    /// reference along.
    ///
    /// # Errors
    /// As for [`inc`](ValueRefs::inc).
    fn inserted(&mut self, txn: &mut Transaction, value: V) -> Result<()> {
        self.inc(txn, value)
    }

    /// A change took `value` out of a leaf. Drops its reference, unless whoever made the change
    /// took that along.
    ///
    /// # Errors
    /// As for [`inc`](ValueRefs::inc).
    fn removed(&mut self, txn: &mut Transaction, value: V) -> Result<()> {
        self.dec(txn, value)
    }
}

/// Values that refer to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRefs;

impl<V> ValueRefs<V> for NoRefs {
    fn inc(&mut self, _: &mut Transaction, _: V) -> Result<()> {
        Ok(())
    }

    fn dec(&mut self, _: &mut Transaction, _: V) -> Result<()> {
        Ok(())
    }
}
