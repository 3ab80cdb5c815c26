//! What an image has by itself, as opposed to what it leaves to its backing file.

use std::ops::ControlFlow;

use block_io::check_range;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::image::Image;
use super::mapping::Kind;

/// Runs that are looked for before they are told: the callback may use the image.
const BATCH: usize = 256;

/// A run of the disk that is of one sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnExtent {
    /// Where on the disk.
    pub range: ByteRange,
    /// What the image has there.
    pub own: Own,
}

/// What an image has of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Nothing: the backing file counts, or zeros if there is none.
    Absent,
    /// Zeros; at a place in the file that is kept for data, if there is one.
    Zero(Option<ByteOffset>),
    /// Data; at this place of the image or of its external data file, unless they are encrypted.
    Data(Option<ByteOffset>),
    /// Data that are compressed.
    Compressed,
}

impl Image {
    /// Calls `each` with what the image itself has of `range`, in order and without gaps, until it
    /// breaks off. The backing file is not asked.
    ///
    /// # Errors
    /// As [`BlockDevice::extents`](block_io::BlockDevice::extents).
    pub fn own_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(OwnExtent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        let mut at = range.start;
        let mut found = Vec::new();
        while at < range.end() {
            {
                let _reads = self.reading.read();
                while at < range.end() && found.len() < BATCH {
                    let run = self.source.run(ByteRange::between(at, range.end()))?;
                    let here = ByteRange::new(at, ByteCount::new(run.len));
                    found.push(OwnExtent { range: here, own: self.own(run.kind) });
                    at = here.end();
                }
            }
            for extent in found.drain(..) {
                if each(extent).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn own(&self, kind: Kind) -> Own {
        match kind {
            Kind::Absent => Own::Absent,
            Kind::Zero { host } => Own::Zero(host),
            Kind::Data(at) => Own::Data(self.source.crypt.is_none().then_some(at)),
            Kind::Compressed(_) => Own::Compressed,
        }
    }
}
