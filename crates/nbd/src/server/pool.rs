//! Buffers of one connection, to be used again.

use block_io::AlignedBuf;

use super::execute::HEADROOM;

/// Classes of data sizes: 4 KiB to 32 MiB, each with room for a header in front.
const CLASSES: usize = 14;
const SMALLEST: usize = 4 << 10;
/// Bytes that are kept in all classes together: enough for a client with eight requests of 1 MiB,
/// little enough for hundreds of idle clients.
const KEPT: usize = 16 << 20;

/// Free buffers by size, for one thread.
#[derive(Debug, Default)]
pub(super) struct Pool {
    classes: [Vec<AlignedBuf>; CLASSES],
    kept: usize,
}

impl Pool {
    /// A buffer for `len` bytes behind the headroom; it holds anything.
    pub(super) fn take(&mut self, len: usize) -> AlignedBuf {
        let size = len.max(SMALLEST).next_power_of_two();
        let kept = class_of(size).and_then(|class| self.classes[class].pop());
        let Some(buffer) = kept else { return AlignedBuf::zeroed(HEADROOM + size) };
        self.kept -= buffer.len();
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buffer: AlignedBuf) {
        let class = buffer.len().checked_sub(HEADROOM).and_then(class_of);
        if let Some(class) = class
            && self.kept + buffer.len() <= KEPT
        {
            self.kept += buffer.len();
            self.classes[class].push(buffer);
        }
    }
}

/// The class of buffers for exactly `size` bytes.
fn class_of(size: usize) -> Option<usize> {
    if !size.is_power_of_two() || size < SMALLEST {
        return None;
    }
    let class = (size / SMALLEST).trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

#[cfg(test)]
mod tests {
    use super::{CLASSES, KEPT, Pool, SMALLEST};
    use crate::server::execute::HEADROOM;
    use block_io::AlignedBuf;

    #[test]
    fn gives_out_again_what_fits() {
        let mut pool = Pool::default();
        let buffer = pool.take(5000);
        assert_eq!(buffer.len(), HEADROOM + 8192);
        let address = buffer.as_ptr().addr();
        pool.give(buffer);
        assert_ne!(pool.take(4096).as_ptr().addr(), address);
        assert_eq!(pool.take(8192).as_ptr().addr(), address);
    }

    #[test]
    fn keeps_a_bounded_number_of_bytes_and_no_odd_sizes() {
        let mut pool = Pool::default();
        for _ in 0..64 {
            pool.give(AlignedBuf::zeroed(HEADROOM + (1 << 20)));
        }
        for odd in [0, 100, HEADROOM + 100, HEADROOM + (SMALLEST << CLASSES)] {
            pool.give(AlignedBuf::zeroed(odd));
        }
        let kept: usize = pool.classes.iter().flatten().map(|buffer| buffer.len()).sum();
        assert_eq!(kept, pool.kept);
        assert!(kept <= KEPT && kept + HEADROOM + (1 << 20) > KEPT, "{kept}");
    }
}
