//! The file as this format uses it: sectors of 512 bytes, and reads of any bytes.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

/// Checks that `file` takes requests of single sectors: bitmaps, footers and tables are written by
/// the sector, and a larger unit would be read and written back around them, which a crash could
/// cut short.
///
/// # Errors
/// [`ErrorKind::Unsupported`].
pub(super) fn check_sectors(file: &dyn BlockDevice) -> Result<()> {
    let unit = file.limits().minimum;
    if unit.get() <= SECTOR {
        return Ok(());
    }
    let problem = format!("takes requests of {unit} only, and a VHD needs sectors of 512 bytes");
    Err(Error::new(ErrorKind::Unsupported, file.name(), problem)
        .advise("open it through the page cache"))
}

/// Fills `buffer` from `at`, whatever the alignment.
pub(super) fn read_bytes(file: &dyn BlockDevice, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
    let unit = file.limits().minimum;
    let range = ByteRange::new(at, ByteCount::of(buffer));
    if range.is_aligned(unit) {
        return file.read_at(buffer, at);
    }
    let start = at.align_down(unit);
    let end = range.end().get().next_multiple_of(unit.get());
    let mut around = vec![0; ByteOffset::new(end).since(start).as_usize()];
    file.read_at(&mut around, start)?;
    let skip = at.since(start).as_usize();
    buffer.copy_from_slice(&around[skip..skip + buffer.len()]);
    Ok(())
}

/// Reads a whole structure of `N` bytes at `at`; `None` where the file ends before its end.
pub(super) fn read_structure<const N: usize>(
    file: &dyn BlockDevice,
    at: ByteOffset,
) -> Result<Option<[u8; N]>> {
    let range = ByteRange::checked(at, ByteCount::new(N as u64));
    if range.is_none_or(|range| range.end().get() > file.size().get()) {
        return Ok(None);
    }
    let mut bytes = [0; N];
    read_bytes(file, &mut bytes, at)?;
    Ok(Some(bytes))
}
