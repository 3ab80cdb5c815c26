//! The one word that joins the floors: [`BlockDevice`].
//!
//! A device answers in two ways. Every device *does*: blocking calls that are right in every case,
//! and that the crash simulator drives. A device that can also *resolves* ([`Resolve`]): a request
//! whose bytes lie, here and now, at known places of files comes back as those places and a lease.
//! Whoever asked does the I/O on its own queue and drops the lease when it is complete.

use std::ops::ControlFlow;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};

use crate::{HostFile, Lease, Stall};

/// What a device asks of those who use it, and what it offers them. Fixed while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests are multiples of this at multiples of this: a power of two, 1 if all are welcome.
    pub minimum: ByteCount,
    /// Requests of this size and alignment are served best; a power of two.
    pub preferred: ByteCount,
    /// Whether every write is refused.
    pub read_only: bool,
    /// Whether discarding a range gives its space back.
    pub discards: bool,
    /// Whether zeroing is as a rule much faster than writing zeros.
    pub zeroes_fast: bool,
}

/// How a range is to be made zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// The space under the range may be given back.
    pub may_unmap: bool,
    /// Fail at once, with [`ErrorKind::Unsupported`] and nothing changed, where zeros would have to
    /// be written like data.
    pub only_if_fast: bool,
}

/// A disk: so many bytes that can be read, written and made durable.
///
/// Every method checks its range against the device's size ([`ErrorKind::OutOfRange`]) and blocks
/// until it is done. Writes that overlap and run at once may be applied in any order. A write that
/// has returned is durable only after a [`flush`](BlockDevice::flush) that began later succeeded;
/// one that failed may be there, in part or not at all.
pub trait BlockDevice: Send + Sync {
    /// What to call the device in messages.
    fn name(&self) -> &str;

    /// Its size now.
    fn size(&self) -> ByteCount;

    /// Its alignment and abilities.
    fn limits(&self) -> Limits;

    /// Fills `buffer` from `at`.
    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()>;

    /// Writes `bytes` at `at`.
    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()>;

    /// Makes `range` read as zeros.
    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()>;

    /// Tells the device that nobody needs the content of `range`. It may give back the space of any
    /// part of it; what such a part reads as afterwards is zeros or what it was.
    fn discard(&self, range: ByteRange) -> Result<()>;

    /// Makes every write that returned before durable.
    fn flush(&self) -> Result<()>;

    /// Sees to it that writes to `range` will not fail for want of space. Devices that take all
    /// their space beforehand, or cannot say, have nothing to do.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`] where there is none.
    fn provision(&self, range: ByteRange) -> Result<()> {
        let _ = range;
        Ok(())
    }

    /// Calls `each` with what lies in `range`, in order and without gaps, until it breaks off.
    /// Neighbours may be in the same state.
    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()>;

    /// Changes the size. New bytes read as zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] unless the device says otherwise.
    fn resize(&self, size: ByteCount) -> Result<()> {
        let _ = size;
        Err(Error::new(ErrorKind::Unsupported, self.name(), "cannot be resized"))
    }

    /// The device's ability to say where its bytes lie, if it has it.
    fn resolver(&self) -> Option<&dyn Resolve> {
        None
    }

    /// The device's ability to say that a request would have to wait for long, if its requests may.
    fn stall(&self) -> Option<&dyn Stall> {
        None
    }
}

/// What a request that is to be resolved will do with its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Read them.
    Read,
    /// Overwrite them.
    Write,
}

/// Where a run of a request's bytes lies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'d> {
    /// The file, or `None` where the bytes are zeros that lie nowhere (only for reads).
    pub file: Option<&'d HostFile>,
    /// The offset in the file.
    pub at: ByteOffset,
    /// How many bytes.
    pub len: ByteCount,
}

/// The ability to say where bytes lie.
pub trait Resolve: Send + Sync {
    /// Appends to `places` where the bytes of `range` lie, in order and whole, and returns the
    /// lease that keeps them there; or returns `None`, with `places` as it was, for a request that
    /// has to be *done*: a write to a block that is absent or shared, a mapping that is not in
    /// memory, a range past the end. Never blocks and never does I/O.
    ///
    /// While the lease lives, what it covers is neither moved nor given to anybody else. It is to
    /// be dropped as soon as the I/O is complete: whoever changes mappings waits for it. It also
    /// covers what the same device resolves later, while it lives, so who resolves piece by piece
    /// keeps the first, which may be one of no bytes at all.
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>>;
}

/// Checks that `range` lies inside `device`.
///
/// # Errors
/// [`ErrorKind::OutOfRange`] with both figures.
pub fn check_range(device: &dyn BlockDevice, range: ByteRange) -> Result<()> {
    let size = device.size();
    if range.end().get() <= size.get() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::OutOfRange,
        device.name(),
        format!("{range} lie past its end at {} bytes", size.get()),
    ))
}

/// Checks that `device` may be written.
///
/// # Errors
/// [`ErrorKind::ReadOnly`].
pub fn check_writable(device: &dyn BlockDevice) -> Result<()> {
    if device.limits().read_only {
        return Err(Error::new(ErrorKind::ReadOnly, device.name(), "is open read-only"));
    }
    Ok(())
}
