//! What an image stands on, so that it can be made to stand on something else while it is open.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::RwLock;

/// The backing file of an open image: a device that can be exchanged, for reading only.
///
/// Requests hold the lock while they are in flight, so an exchange waits for them, and no request
/// sees both devices.
pub(super) struct Below {
    name: String,
    device: RwLock<Option<Arc<dyn BlockDevice>>>,
}

impl Below {
    /// What the image called `above` stands on.
    pub(super) fn new(above: &str, device: Arc<dyn BlockDevice>) -> Arc<Self> {
        let name = format!("backing file of {above}");
        Arc::new(Self { name, device: RwLock::new(Some(device)) })
    }

    /// Puts another device, or none, in its place. Both are to read the same as far as the image
    /// above has nothing itself.
    pub(super) fn exchange(&self, device: Option<Arc<dyn BlockDevice>>) {
        *self.device.write() = device;
    }

    fn refuse(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, self.name(), "is only read through the image above it")
    }
}

impl BlockDevice for Below {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        self.device.read().as_ref().map_or(ByteCount::ZERO, |device| device.size())
    }

    fn limits(&self) -> Limits {
        let none = Limits {
            minimum: ByteCount::new(1),
            preferred: ByteCount::new(4096),
            read_only: true,
            discards: false,
            zeroes_fast: false,
        };
        let limits = self.device.read().as_ref().map_or(none, |device| device.limits());
        Limits { read_only: true, discards: false, zeroes_fast: false, ..limits }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        match &*self.device.read() {
            Some(device) => device.read_at(buffer, at),
            // It has become smaller since its size was asked for: it reads as zeros there.
            None => {
                buffer.fill(0);
                Ok(())
            }
        }
    }

    fn write_at(&self, _bytes: &[u8], _at: ByteOffset) -> Result<()> {
        Err(self.refuse())
    }

    fn zero(&self, _range: ByteRange, _mode: ZeroMode) -> Result<()> {
        Err(self.refuse())
    }

    fn discard(&self, _range: ByteRange) -> Result<()> {
        Err(self.refuse())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        // Not held while `each` runs, which may use the image above.
        let device = self.device.read().clone();
        match device {
            Some(device) => device.extents(range, each),
            None if range.is_empty() => Ok(()),
            None => {
                let state = block_types::ExtentState::Hole;
                let _ = each(Extent { range, state });
                Ok(())
            }
        }
    }
}
