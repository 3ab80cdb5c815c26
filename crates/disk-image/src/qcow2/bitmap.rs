//! The directory of persistent dirty bitmaps: read, and marked before the disk changes.
//!
//! Section "Bitmaps extension" of the specification. The bitmaps' content is not maintained here.
//! So before the first change of the disk every recording bitmap is marked as in use, which tells
//! every reader that it is inconsistent (NEVER-UNDER-REPORT); the others stay true as they are.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use zerocopy::{FromBytes, IntoBytes};

use super::bytes::read_clipped;
use super::geometry::Geometry;
use super::header::{Header, corrupt};
use super::layout::{BitmapHead, BitmapsField, extension, feature};

/// The most bitmaps, as in QEMU.
const BITMAP_LIMIT: u32 = 65535;
/// The largest directory, as in QEMU.
const DIRECTORY_LIMIT: u64 = 64 << 20;
/// The largest table of a bitmap, as in QEMU.
const TABLE_LIMIT: u32 = 0x800_0000;
/// The bitmap was not stored since it last changed.
const IN_USE: u32 = 1;
/// The bitmap records changes.
const AUTO: u32 = 2;

/// The bitmaps of an image.
pub(super) struct Bitmaps {
    pub(super) directory: ByteRange,
    /// As it stands in the file.
    bytes: Vec<u8>,
    pub(super) entries: Vec<Bitmap>,
}

/// A bitmap of the directory.
pub(super) struct Bitmap {
    pub(super) name: String,
    pub(super) flags: u32,
    /// The table of its clusters.
    pub(super) table: ByteRange,
    /// Where its entry begins in the directory.
    place: usize,
}

impl Bitmaps {
    /// Reads the directory of the bitmaps that are consistent; `None` if the image has none.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for a directory or an entry outside its limits.
    pub(super) fn read(file: &dyn BlockDevice, header: &Header) -> Result<Option<Self>> {
        let field = header.extensions.get(extension::BITMAPS);
        let Some(field) = field.filter(|_| header.autoclear & feature::BITMAPS != 0) else {
            return Ok(None);
        };
        let bad = |problem: &str| corrupt(file.name(), format!("bitmaps: {problem}"));
        let (field, _) =
            BitmapsField::read_from_prefix(field).map_err(|_| bad("the extension is cut short"))?;
        let (count, len) = (field.count.get(), field.directory_size.get());
        if count == 0 || count > BITMAP_LIMIT || len > DIRECTORY_LIMIT {
            return Err(bad("there are none or too many, or their directory is too large"));
        }
        let at = ByteOffset::new(field.directory_offset.get());
        let directory = table(header.geometry, file, at, len)
            .ok_or_else(|| bad("the directory lies outside the file or at no cluster's start"))?;
        let mut bytes = vec![0; directory.len.as_usize()];
        read_clipped(file, &mut bytes, at)?;
        let entries = parse(&bytes, count)
            .and_then(|heads| {
                let bitmap = |(place, head, name): (usize, BitmapHead, String)| {
                    let at = ByteOffset::new(head.table_offset.get());
                    let len = u64::from(head.table_size.get()) * 8;
                    let small = head.table_size.get() <= TABLE_LIMIT;
                    let table = table(header.geometry, file, at, len).filter(|_| small)?;
                    Some(Bitmap { name, flags: head.flags.get(), table, place })
                };
                heads.into_iter().map(bitmap).collect::<Option<Vec<_>>>()
            })
            .ok_or_else(|| bad("an entry of the directory is cut short or lies outside"))?;
        Ok(Some(Self { directory, bytes, entries }))
    }

    /// The directory with every recording bitmap in use; `None` if that is so already.
    pub(super) fn marked_in_use(&self) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        let mut changed = false;
        for bitmap in &self.entries {
            if bitmap.flags & AUTO != 0 && bitmap.flags & IN_USE == 0 {
                let flags = (bitmap.flags | IN_USE).to_be_bytes();
                bytes[bitmap.place + 12..bitmap.place + 16].copy_from_slice(&flags);
                changed = true;
                tracing::warn!(bitmap = bitmap.name, "is inconsistent from now on");
            }
        }
        changed.then_some(bytes)
    }
}

/// The heads of `count` entries with their places and names.
fn parse(bytes: &[u8], count: u32) -> Option<Vec<(usize, BitmapHead, String)>> {
    let mut heads = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let (head, rest) = BitmapHead::read_from_prefix(bytes.get(at..)?).ok()?;
        let (extra, name) = (head.extra_size.get() as usize, usize::from(head.name_size.get()));
        let text = rest.get(extra..)?.get(..name)?;
        heads.push((at, head, String::from_utf8_lossy(text).into_owned()));
        at += (head.as_bytes().len() + extra + name).next_multiple_of(8);
    }
    Some(heads)
}

/// A table behind cluster 0 and inside the file.
fn table(
    geometry: Geometry,
    file: &dyn BlockDevice,
    at: ByteOffset,
    len: u64,
) -> Option<ByteRange> {
    let range = ByteRange::checked(at, ByteCount::new(len))?;
    let placed = at != ByteOffset::ZERO && at.is_aligned(geometry.cluster());
    (placed && range.end().get() <= file.size().get()).then_some(range)
}
