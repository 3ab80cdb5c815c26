//! An image as a plain device, which keeps its chain open and locked as long as it lives.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, Resolve, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};

use super::DiskImage;

/// The disk of an image, and the image.
struct Held {
    device: Arc<dyn BlockDevice>,
    _image: DiskImage,
}

impl DiskImage {
    /// The disk, which keeps the image open and locked as long as anybody has it.
    pub fn into_device(self) -> Arc<dyn BlockDevice> {
        Arc::new(Held { device: self.device(), _image: self })
    }
}

impl BlockDevice for Held {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> ByteCount {
        self.device.size()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.device.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.device.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.device.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.device.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn provision(&self, range: ByteRange) -> Result<()> {
        self.device.provision(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.device.extents(range, each)
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.device.resize(size)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        self.device.resolver()
    }
}
