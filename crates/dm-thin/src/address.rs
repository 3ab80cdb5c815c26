//! The addresses of a thin pool: devices, their blocks, the pool's data blocks, and time.

use std::fmt;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

/// The number of a thin device in its pool: 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u32);

/// A block of a thin device, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestBlock(u64);

/// A block of the pool's data device, counted from its start: 40 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataBlock(u64);

/// A moment in the pool's life: how many snapshots had been taken.
///
/// The superblock keeps 32 bits but a mapping only 24, and the kernel packs the one into the other
/// without a mask; after 2^24 snapshots its mappings point at other blocks. Here a time has 24
/// bits, and [`Time::next`] ends with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u32);

/// Where a guest block lies, and when it was put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The data block.
    pub block: DataBlock,
    /// The pool's time when the mapping was made.
    pub time: Time,
}

/// The size of a pool's data blocks: a multiple of 64 KiB from 64 KiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u64);

impl DeviceId {
    /// The largest identifier.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// An identifier.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] beyond 24 bits, as the kernel's EINVAL.
    pub fn new(id: u32) -> Result<Self> {
        if id > Self::MAX.0 {
            let problem = format!("is larger than the largest identifier, {}", Self::MAX.0);
            return Err(Error::new(ErrorKind::Invalid, format!("device {id}"), problem));
        }
        Ok(Self(id))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The key of the device in the pool's trees.
    pub(crate) const fn key(self) -> u64 {
        self.0 as u64
    }
}

impl GuestBlock {
    /// Block number `index` of a device.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl DataBlock {
    /// Block number `index` of the data device.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Time {
    /// The last moment that a mapping can hold.
    pub const MAX: Self = Self((1 << 24) - 1);

    /// A moment, as the superblock or the details of a device hold it.
    pub const fn new(time: u32) -> Self {
        Self(time)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The moment after this one, or `None` where mappings could not hold it.
    pub fn next(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }
}

impl Mapping {
    /// The value in a mapping tree: 40 bits of block above 24 bits of time.
    pub const fn pack(self) -> u64 {
        self.block.0 << 24 | self.time.0 as u64
    }

    /// The mapping that a value of a mapping tree stands for.
    pub const fn unpack(value: u64) -> Self {
        Self { block: DataBlock(value >> 24), time: Time((value & 0xff_ffff) as u32) }
    }
}

impl BlockSize {
    const STEP: u64 = 64 << 10;
    const MAX: u64 = 1 << 30;

    /// A block size.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] outside the format's limits.
    pub fn new(size: ByteCount) -> Result<Self> {
        let bytes = size.get();
        if bytes == 0 || !bytes.is_multiple_of(Self::STEP) || bytes > Self::MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("block size {size}"),
                "is not a multiple of 64 KiB from 64 KiB to 1 GiB",
            ));
        }
        Ok(Self(bytes))
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> ByteCount {
        ByteCount::new(self.0)
    }

    /// The guest block that holds `at`, and how far into it that is.
    pub const fn locate(self, at: ByteOffset) -> (GuestBlock, ByteCount) {
        (GuestBlock(at.get() / self.0), ByteCount::new(at.get() % self.0))
    }

    /// Blocks that hold a device of `size`, the last perhaps in part.
    pub const fn count(self, size: ByteCount) -> u64 {
        size.get().div_ceil(self.0)
    }

    /// Where data block `block` begins on the data device.
    pub const fn data_start(self, block: DataBlock) -> ByteOffset {
        ByteOffset::new(block.0 * self.0)
    }

    /// Where guest block `block` begins on its device.
    pub const fn guest_start(self, block: GuestBlock) -> ByteOffset {
        ByteOffset::new(block.0 * self.0)
    }

    /// The bytes of `count` data blocks from `first` on.
    pub const fn data_range(self, first: DataBlock, count: u64) -> ByteRange {
        ByteRange::new(self.data_start(first), ByteCount::new(count * self.0))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSize, DataBlock, DeviceId, Mapping, Time};
    use block_types::{ByteCount, ByteOffset};

    #[test]
    fn mappings_pack_as_the_kernel_does() {
        let mapping = Mapping { block: DataBlock::new(300), time: Time::new(1) };
        assert_eq!(mapping.pack(), 0x12c_000_001);
        assert_eq!(Mapping::unpack(0x12c_000_001), mapping);
    }

    #[test]
    fn limits_of_the_format() {
        assert!(DeviceId::new(1 << 24).is_err());
        assert_eq!(Time::MAX.next(), None);
        for (bytes, good) in [
            (0, false),
            (4096, false),
            (65536, true),
            (98304, false),
            (1 << 30, true),
            (2 << 30, false),
        ] {
            assert_eq!(BlockSize::new(ByteCount::new(bytes)).is_ok(), good, "{bytes}");
        }
    }

    #[test]
    fn locates_bytes_in_blocks() {
        let size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
        let (block, inside) = size.locate(ByteOffset::new(3 * 65536 + 5));
        assert_eq!((block.get(), inside.get()), (3, 5));
        assert_eq!(size.count(ByteCount::new(65537)), 2);
    }
}
