//! A device whose bytes are memory.

use std::ops::ControlFlow;

use block_types::{ByteCount, ByteOffset, ByteRange, Extent, ExtentState, Result};
use parking_lot::RwLock;

use crate::request::{indices, request_range};
use crate::{BlockDevice, Limits, ZeroMode, check_range};

/// The unit in which extents tell zeros from data.
const BLOCK: ByteCount = ByteCount::new(4096);

/// A disk in memory, of any size and alignment; gone when it is dropped.
#[derive(Debug)]
pub struct MemoryDevice {
    name: String,
    bytes: RwLock<Vec<u8>>,
}

impl MemoryDevice {
    /// `size` zeros.
    pub fn new(name: impl Into<String>, size: ByteCount) -> Self {
        Self::from_bytes(name, vec![0; size.as_usize()])
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), bytes: RwLock::new(bytes) }
    }

    /// What it holds now.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

/// Reports which blocks of `range`, which holds `bytes`, are all zeros.
pub(crate) fn memory_extents(
    bytes: &[u8],
    range: ByteRange,
    each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
) {
    for piece in range.pieces(BLOCK) {
        let start = piece.start.since(range.start).as_usize();
        let held = &bytes[start..start + piece.len.as_usize()];
        let zero = held.iter().all(|&byte| byte == 0);
        let state = if zero { ExtentState::Zero } else { ExtentState::Data };
        if each(Extent { range: piece, state }).is_break() {
            return;
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        ByteCount::of(&self.bytes.read())
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(1),
            preferred: BLOCK,
            read_only: false,
            discards: true,
            zeroes_fast: true,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = request_range(self, buffer.len(), at)?;
        buffer.copy_from_slice(&self.bytes.read()[indices(range)]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = request_range(self, bytes.len(), at)?;
        self.bytes.write()[indices(range)].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, range: ByteRange, _mode: ZeroMode) -> Result<()> {
        check_range(self, range)?;
        self.bytes.write()[indices(range)].fill(0);
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.zero(range, ZeroMode::default())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        // A copy, so that `each` may use the device.
        let bytes = self.bytes.read()[indices(range)].to_vec();
        memory_extents(&bytes, range, each);
        Ok(())
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.bytes.write().resize(size.as_usize(), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryDevice;
    use crate::BlockDevice;
    use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, ExtentState};
    use std::ops::ControlFlow;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    #[test]
    fn extents_tell_zeros_by_the_block_and_may_call_back() {
        let device = MemoryDevice::new("memory", ByteCount::new(12288));
        device.write_at(&[1], ByteOffset::new(4100)).unwrap();
        let mut found = Vec::new();
        let mut each = |extent: Extent| {
            device.write_at(&[0], ByteOffset::ZERO).unwrap();
            found.push((extent.range, extent.state));
            ControlFlow::Continue(())
        };
        device.extents(range(100, 10000), &mut each).unwrap();
        assert_eq!(
            found,
            [
                (range(100, 3996), ExtentState::Zero),
                (range(4096, 4096), ExtentState::Data),
                (range(8192, 1908), ExtentState::Zero),
            ]
        );
    }

    #[test]
    fn requests_past_the_end_are_refused() {
        let device = MemoryDevice::new("memory", ByteCount::new(100));
        let error = device.read_at(&mut [0; 2], ByteOffset::new(99)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        let error = device.write_at(&[0; 2], ByteOffset::new(u64::MAX)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        device.resize(ByteCount::new(101)).unwrap();
        device.read_at(&mut [0; 2], ByteOffset::new(99)).unwrap();
    }
}
