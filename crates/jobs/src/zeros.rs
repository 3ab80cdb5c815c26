//! Telling zeros from data.

use std::ops::Range;

/// A run of a buffer that is all zeros, or that is to be taken for data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Which bytes.
    pub(crate) part: Range<usize>,
    /// Whether they are all zeros.
    pub(crate) zero: bool,
}

/// Cuts `bytes` into runs, looked at in units of `unit` bytes from its start: a unit that is not
/// all zeros is data. Neighbours differ.
pub(crate) fn runs(bytes: &[u8], unit: usize) -> impl Iterator<Item = Run> {
    let mut units = bytes.chunks(unit).map(is_zero).peekable();
    let mut start = 0;
    std::iter::from_fn(move || {
        let zero = units.next()?;
        let mut end = start + unit;
        while units.next_if_eq(&zero).is_some() {
            end += unit;
        }
        let part = start..end.min(bytes.len());
        start = part.end;
        Some(Run { part, zero })
    })
}

/// Whether every byte is zero. Stops at the first block that is not, so that data costs little.
fn is_zero(bytes: &[u8]) -> bool {
    const BLOCK: usize = 256;
    let mut blocks = bytes.chunks_exact(BLOCK);
    // Without a way out inside a block, the fold becomes a few vector instructions.
    let clear = |block: &[u8]| block.iter().fold(0, |any, byte| any | byte) == 0;
    blocks.all(clear) && clear(blocks.remainder())
}

#[cfg(test)]
mod tests {
    use super::{Run, is_zero, runs};

    #[test]
    fn one_byte_anywhere_makes_data() {
        for length in [1, 255, 256, 257, 4096, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length - 1] {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn runs_join_and_cover() {
        let mut bytes = vec![0; 100];
        bytes[25] = 1;
        bytes[30] = 1;
        bytes[99] = 1;
        let found: Vec<_> = runs(&bytes, 10).collect();
        let run = |part, zero| Run { part, zero };
        assert_eq!(
            found,
            [run(0..20, true), run(20..40, false), run(40..90, true), run(90..100, false)]
        );
        assert_eq!(runs(&bytes[..5], 10).collect::<Vec<_>>(), [run(0..5, true)]);
        assert_eq!(runs(&[], 10).count(), 0);
    }
}
