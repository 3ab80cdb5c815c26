//! The words every Firn crate shares: byte addresses and ranges, extents, errors, checksums and
//! sizes as text.
//!
//! Nothing here does I/O. Addresses are newtypes, so a byte offset is never taken for a byte count
//! nor one device's block for another's; formats add their own block types on top of these.

mod bitmap;
mod checksum;
mod error;
mod extent;
mod size;
mod units;

pub use bitmap::{DirtyBitmap, Granularity, PartContent};
pub use checksum::{crc32c, crc32c_raw};
pub use error::{Error, ErrorKind, Result};
pub use extent::{Extent, ExtentState};
pub use size::{format_size, parse_size};
pub use units::{ByteCount, ByteOffset, ByteRange, SECTOR};
