//! A device in memory that keeps only sectors which are not zero: large, and cheap to copy.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use block_io::{BlockDevice, Limits, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, ExtentState, Result};
use parking_lot::Mutex;

const SECTOR: usize = 512;

pub(super) struct Sparse(Mutex<Content>);

#[derive(Clone)]
struct Content {
    size: u64,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

impl Sparse {
    pub(super) fn new(size: u64) -> Self {
        Self(Mutex::new(Content { size, sectors: BTreeMap::new() }))
    }

    pub(super) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }
}

/// The sectors of a range that begins and ends with one.
fn sectors(at: u64, len: usize) -> std::ops::Range<u64> {
    let (first, count) = (at / SECTOR as u64, len / SECTOR);
    assert!(at.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR), "whole sectors");
    first..first + count as u64
}

impl BlockDevice for Sparse {
    fn name(&self) -> &str {
        "data"
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.0.lock().size)
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(SECTOR as u64),
            preferred: ByteCount::new(4096),
            read_only: false,
            discards: true,
            zeroes_fast: true,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        check_range(self, ByteRange::new(at, ByteCount::of(buffer)))?;
        let range = sectors(at.get(), buffer.len());
        buffer.fill(0);
        for (sector, bytes) in self.0.lock().sectors.range(range.clone()) {
            let place = (sector - range.start) as usize * SECTOR;
            buffer[place..place + SECTOR].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        check_range(self, ByteRange::new(at, ByteCount::of(bytes)))?;
        let mut content = self.0.lock();
        for (sector, bytes) in sectors(at.get(), bytes.len()).zip(bytes.as_chunks().0) {
            if *bytes == [0; SECTOR] {
                content.sectors.remove(&sector);
            } else {
                content.sectors.insert(sector, *bytes);
            }
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, _mode: ZeroMode) -> Result<()> {
        check_range(self, range)?;
        let range = sectors(range.start.get(), range.len.as_usize());
        self.0.lock().sectors.retain(|sector, _| !range.contains(sector));
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
        // One extent is all there is to say.
        let _ = each(Extent { range, state: ExtentState::Data });
        Ok(())
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.0.lock().size = size.get();
        Ok(())
    }
}
