//! From a buffer and an offset to a range that was checked.

use std::ops::Range;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use crate::{BlockDevice, check_range};

/// The range of a request for `len` bytes at `at`, which lies inside `device`.
pub(crate) fn request_range(
    device: &dyn BlockDevice,
    len: usize,
    at: ByteOffset,
) -> Result<ByteRange> {
    let Some(range) = ByteRange::checked(at, ByteCount::new(len as u64)) else {
        let problem = format!("{len} bytes at {at} lie past every end");
        return Err(Error::new(ErrorKind::OutOfRange, device.name(), problem));
    };
    check_range(device, range)?;
    Ok(range)
}

/// The indices of `range` in memory that holds all of it.
pub(crate) fn indices(range: ByteRange) -> Range<usize> {
    let start = ByteCount::new(range.start.get()).as_usize();
    start..start + range.len.as_usize()
}
