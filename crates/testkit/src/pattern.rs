//! Content that tells where and by which write it was written.
//!
//! A disk is taken as cells of one sector. A write has a [`Stamp`], and each cell that it writes
//! gets bytes that follow from the stamp and the cell's place; so a cell that turns up at another
//! place, half written, or from another time is not only wrong but can be named.

use std::fmt;

use block_types::{ByteOffset, SECTOR};

use crate::rng::mix;

/// Bytes of a cell.
pub const CELL: usize = SECTOR as usize;

/// Bytes at the start of a cell that hold stamp and place as they are.
const LABEL: usize = 16;

/// Which write a cell's content is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(u32);

/// A cell's place: how many cells are before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellIndex(u64);

impl Stamp {
    /// Zeros: never written, or made zero.
    pub const ZERO: Self = Self(0);

    /// The stamp after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("no test makes 2^32 writes"))
    }
}

impl CellIndex {
    /// The cell that begins at `at`.
    ///
    /// # Panics
    /// If `at` lies inside a cell.
    pub fn at(at: ByteOffset) -> Self {
        assert!(at.get().is_multiple_of(SECTOR), "{at} lies inside a cell");
        Self(at.get() / SECTOR)
    }

    /// The cell `count` further on.
    #[must_use]
    pub const fn plus(self, count: usize) -> Self {
        Self(self.0 + count as u64)
    }

    /// Cells before this one.
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("the disks of tests fit in memory")
    }
}

/// Writes the content of write `stamp` at `place` into `cell`.
pub fn fill(cell: &mut [u8], stamp: Stamp, place: CellIndex) {
    if stamp == Stamp::ZERO {
        cell.fill(0);
        return;
    }
    let (label, body) = cell.split_at_mut(LABEL);
    label[..8].copy_from_slice(&u64::from(stamp.0).to_le_bytes());
    label[8..].copy_from_slice(&place.0.to_le_bytes());
    let seed = mix(u64::from(stamp.0) << 32 ^ place.0);
    for (number, word) in (0u64..).zip(body.chunks_exact_mut(8)) {
        word.copy_from_slice(&mix(seed.wrapping_add(number)).to_le_bytes());
    }
}

/// Whether `cell` holds the content of write `stamp` at `place`.
pub fn holds(cell: &[u8], stamp: Stamp, place: CellIndex) -> bool {
    let mut expected = [0; CELL];
    fill(&mut expected, stamp, place);
    cell == expected
}

/// What `cell` seems to hold, for messages.
pub fn describe(cell: &[u8]) -> String {
    if cell.iter().all(|&byte| byte == 0) {
        return "zeros".to_owned();
    }
    let number = |at: usize| u64::from_le_bytes(cell[at..at + 8].try_into().expect("eight bytes"));
    if let Ok(stamp) = u32::try_from(number(0)).map(Stamp)
        && holds(cell, stamp, CellIndex(number(8)))
    {
        return format!("{stamp} of {}", CellIndex(number(8)));
    }
    format!("no whole cell: {:02x?}...", &cell[..LABEL])
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("zeros"),
            stamp => write!(f, "write {stamp}"),
        }
    }
}

impl fmt::Display for CellIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell {} (at {:#x})", self.0, self.0 * SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::{CELL, CellIndex, Stamp, describe, fill, holds};

    #[test]
    fn a_cell_knows_its_write_and_its_place() {
        let (stamp, place) = (Stamp(7), CellIndex(9));
        let mut cell = [0; CELL];
        assert!(holds(&cell, Stamp::ZERO, place));
        fill(&mut cell, stamp, place);
        assert!(holds(&cell, stamp, place));
        assert!(!holds(&cell, stamp.next(), place));
        assert!(!holds(&cell, stamp, place.plus(1)));
        assert_eq!(describe(&cell), "write 7 of cell 9 (at 0x1200)");
        cell[CELL - 1] ^= 1;
        assert!(!holds(&cell, stamp, place));
        assert!(describe(&cell).starts_with("no whole cell"), "{}", describe(&cell));
    }
}
