//! Bytes of any place and length, of devices that want aligned requests or end too early.

use block_io::{AlignedBuf, BlockDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

/// Fills `buffer` from `at`; what lies past the end of the device reads as zeros.
///
/// # Errors
/// As the device's `read_at`.
pub(super) fn read_clipped(
    device: &dyn BlockDevice,
    buffer: &mut [u8],
    at: ByteOffset,
) -> Result<()> {
    let size = device.size().get();
    let here = size.saturating_sub(at.get()).min(buffer.len() as u64) as usize;
    let (inside, behind) = buffer.split_at_mut(here);
    behind.fill(0);
    if inside.is_empty() {
        return Ok(());
    }
    let range = ByteRange::new(at, ByteCount::of(inside));
    let unit = device.limits().minimum;
    if range.is_aligned(unit) {
        return device.read_at(inside, at);
    }
    let start = at.align_down(unit);
    let end = range.end().get().next_multiple_of(unit.get()).min(size);
    let mut around = AlignedBuf::zeroed((end - start.get()) as usize);
    device.read_at(&mut around, start)?;
    let from = at.since(start).as_usize();
    inside.copy_from_slice(&around[from..from + here]);
    Ok(())
}

/// Writes `bytes` at `at`. What lies around them, up to the device's alignment, is read and written
/// back: nobody else may be writing there.
///
/// # Errors
/// As the device's `read_at` and `write_at`.
pub(super) fn write_any(device: &dyn BlockDevice, bytes: &[u8], at: ByteOffset) -> Result<()> {
    let range = ByteRange::new(at, ByteCount::of(bytes));
    let unit = device.limits().minimum;
    if range.is_aligned(unit) {
        return device.write_at(bytes, at);
    }
    let start = at.align_down(unit);
    let end = range.end().get().next_multiple_of(unit.get());
    let mut around = AlignedBuf::zeroed((end - start.get()) as usize);
    device.read_at(&mut around, start)?;
    let from = at.since(start).as_usize();
    around[from..from + bytes.len()].copy_from_slice(bytes);
    device.write_at(&around, start)
}

/// The words of a table as it stands in the file.
pub(super) fn words_of(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// A table as it stands in the file.
pub(super) fn bytes_of(words: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; words.len() * 8];
    let (chunks, _) = bytes.as_chunks_mut::<8>();
    chunks.iter_mut().zip(words).for_each(|(chunk, word)| *chunk = word.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::{bytes_of, read_clipped, words_of};
    use block_io::MemoryDevice;
    use block_types::ByteOffset;

    #[test]
    fn past_the_end_are_zeros() {
        let device = MemoryDevice::from_bytes("memory", vec![7; 10]);
        let mut buffer = [1; 6];
        read_clipped(&device, &mut buffer, ByteOffset::new(8)).unwrap();
        assert_eq!(buffer, [7, 7, 0, 0, 0, 0]);
        read_clipped(&device, &mut buffer, ByteOffset::new(100)).unwrap();
        assert_eq!(buffer, [0; 6]);
    }

    #[test]
    fn words_and_bytes() {
        assert_eq!(bytes_of(&[1, 2 << 56]), [0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(words_of(&bytes_of(&[5, 6])), [5, 6]);
    }
}
