//! Page-aligned memory, as O_DIRECT wants it.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// The alignment of every buffer: enough for every host's O_DIRECT.
const PAGE: usize = 4096;

/// Owned memory that begins at a page boundary. Its address does not change when it is moved.
pub struct AlignedBuf {
    /// One page more than is used, so that an aligned start lies within.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { memory: Vec::new(), start: 0, len: 0 };
        }
        let memory = vec![0; len + PAGE - 1];
        let start = memory.as_ptr().addr().wrapping_neg() % PAGE;
        Self { memory, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::{AlignedBuf, PAGE};

    #[test]
    fn buffers_begin_at_a_page_and_are_zero() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let buffer = AlignedBuf::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(PAGE));
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn buffers_stay_where_they_are_when_moved() {
        let mut buffer = AlignedBuf::zeroed(8192);
        buffer[8191] = 7;
        let address = buffer.as_ptr().addr();
        let mut moved = Vec::new();
        moved.push(buffer);
        moved.reserve(1000);
        assert_eq!(moved[0].as_ptr().addr(), address);
        assert_eq!(moved[0][8191], 7);
    }
}
