//! The guest's data where they lie in a file: as they are, or encrypted.
//!
//! Sectors are encrypted by the number that they have in the file, not by that of the disk. What is
//! not a whole sector is read and written with the rest of it, under the lock of its cluster.

use block_types::{ByteCount, ByteOffset, ByteRange, Result, SECTOR};

use super::bytes::{read_clipped, write_any};
use super::source::Source;
use block_io::ZeroMode;

/// Bytes that are encrypted at once.
const PIECE: ByteCount = ByteCount::new(256 << 10);

impl Source {
    /// Fills `part` with the data at `place`.
    pub(super) fn read_data(&self, part: &mut [u8], place: ByteOffset) -> Result<()> {
        let Some(crypt) = &self.crypt else { return read_clipped(self.data(), part, place) };
        let range = ByteRange::new(place, ByteCount::of(part));
        if range.is_aligned(ByteCount::new(SECTOR)) {
            read_clipped(self.data(), part, place)?;
            crypt.decrypt(part, place.get() / SECTOR);
            return Ok(());
        }
        let whole = sectors(range);
        let mut around = vec![0; whole.len.as_usize()];
        self.read_data(&mut around, whole.start)?;
        let from = place.since(whole.start).as_usize();
        part.copy_from_slice(&around[from..from + part.len()]);
        Ok(())
    }

    /// Writes `bytes` at `place`.
    pub(super) fn write_data(&self, bytes: &[u8], place: ByteOffset) -> Result<()> {
        if self.crypt.is_none() {
            return write_any(self.data(), bytes, place);
        }
        for piece in ByteRange::new(place, ByteCount::of(bytes)).pieces(PIECE) {
            let from = piece.start.since(place).as_usize();
            self.encrypt_and_write(&bytes[from..from + piece.len.as_usize()], piece)?;
        }
        Ok(())
    }

    /// Writes zeros.
    pub(super) fn zero_data(&self, range: ByteRange) -> Result<()> {
        if self.crypt.is_none() {
            return self.data().zero(range, ZeroMode::default());
        }
        let zeros = vec![0; range.len.min(PIECE).as_usize()];
        for piece in range.pieces(PIECE) {
            self.encrypt_and_write(&zeros[..piece.len.as_usize()], piece)?;
        }
        Ok(())
    }

    fn encrypt_and_write(&self, bytes: &[u8], range: ByteRange) -> Result<()> {
        let Some(crypt) = &self.crypt else { return write_any(self.data(), bytes, range.start) };
        let whole = sectors(range);
        let mut sectors = vec![0; whole.len.as_usize()];
        if whole != range {
            // The sectors at both ends; what lies between is written over.
            self.read_data(&mut sectors, whole.start)?;
        }
        let from = range.start.since(whole.start).as_usize();
        sectors[from..from + bytes.len()].copy_from_slice(bytes);
        crypt.encrypt(&mut sectors, whole.start.get() / SECTOR);
        write_any(self.data(), &sectors, whole.start)
    }
}

/// The sectors that `range` touches.
fn sectors(range: ByteRange) -> ByteRange {
    let start = range.start.align_down(ByteCount::new(SECTOR));
    let end = ByteOffset::new(range.end().get().next_multiple_of(SECTOR));
    ByteRange::between(start, end)
}
