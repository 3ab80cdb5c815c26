//! The directory of persistent dirty bitmaps, and the content of each: read as they stand.
//!
//! Section "Bitmaps extension" of the specification. What is recorded while a guest writes is not
//! maintained here. So before the first write of a guest every recording bitmap is marked as in
//! use, which tells every reader that it is inconsistent (NEVER-UNDER-REPORT); the others stay true
//! as they are.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, DirtyBitmap, Granularity, Result};
use zerocopy::{FromBytes, IntoBytes};

use super::bytes::{read_clipped, words_of};
use super::geometry::Geometry;
use super::header::{Header, corrupt};
use super::layout::{BitmapHead, BitmapsField, LevelsField, extension, feature};

/// The most bitmaps, as in QEMU.
pub(super) const BITMAP_LIMIT: u32 = 65535;
/// The largest directory, as in QEMU.
pub(super) const DIRECTORY_LIMIT: u64 = 64 << 20;
/// The largest table of a bitmap, as in QEMU.
const TABLE_LIMIT: u32 = 0x800_0000;
/// The bitmap was not stored since it last changed.
pub(super) const IN_USE: u32 = 1;
/// The bitmap records changes.
pub(super) const AUTO: u32 = 2;
/// The one type of bitmaps.
pub(super) const DIRTY_TRACKING: u8 = 1;
/// Where the data of a bitmap lie.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Data that lie nowhere are all ones.
const ONES: u64 = 1;

/// The bitmaps of an image.
pub(super) struct Bitmaps {
    pub(super) directory: ByteRange,
    /// As it stands in the file.
    bytes: Vec<u8>,
    pub(super) entries: Vec<Bitmap>,
}

/// Which bitmaps that are in use are kept, and how coarsely.
pub(super) struct Levels {
    region_bits: u8,
    kept: u64,
}

/// A bitmap of the directory.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    pub(super) name: String,
    /// The name as it stands there.
    pub(super) text: Vec<u8>,
    /// What nobody here knows; it stays.
    pub(super) extra: Vec<u8>,
    pub(super) kind: u8,
    pub(super) flags: u32,
    pub(super) granularity_bits: u8,
    /// The last consistent level, if it is in use and kept all the same: so many bits, as a power
    /// of two, are set together. See [`super::recording`].
    pub(super) level: Option<u8>,
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
        let levels = Levels::of_header(header);
        let entries = parse(&bytes, count)
            .and_then(|heads| {
                let bitmap = |(index, (place, head, extra, text)): (usize, Parsed<'_>)| {
                    let at = ByteOffset::new(head.table_offset.get());
                    let len = u64::from(head.table_size.get()) * 8;
                    let small = head.table_size.get() <= TABLE_LIMIT;
                    let table = table(header.geometry, file, at, len).filter(|_| small)?;
                    let (flags, granularity_bits) = (head.flags.get(), head.granularity_bits);
                    let (text, extra, kind) = (text.to_vec(), extra.to_vec(), head.kind);
                    let name = String::from_utf8_lossy(&text).into_owned();
                    let level = levels.of(index).filter(|_| flags & IN_USE != 0);
                    let entry = Bitmap {
                        name,
                        text,
                        extra,
                        kind,
                        flags,
                        granularity_bits,
                        level,
                        table,
                        place,
                    };
                    Some(entry)
                };
                heads.into_iter().enumerate().map(bitmap).collect::<Option<Vec<_>>>()
            })
            .ok_or_else(|| bad("an entry of the directory is cut short or lies outside"))?;
        Ok(Some(Self { directory, bytes, entries }))
    }

    /// The directory with every bitmap in use that is to record and that nobody records in, which
    /// `is_recorded` knows by its name; `None` if that is so already.
    pub(super) fn marked_in_use(&self, is_recorded: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
        let mark = |bitmap: &&Bitmap| {
            bitmap.flags & AUTO != 0 && bitmap.flags & IN_USE == 0 && !is_recorded(&bitmap.name)
        };
        let marked: Vec<_> = self.entries.iter().filter(mark).collect();
        for bitmap in &marked {
            tracing::warn!(bitmap = bitmap.name, "is inconsistent from now on");
        }
        self.with_flags(&marked, |flags| flags | IN_USE)
    }

    /// The directory with every bitmap consistent that is in use and kept; `None` if there is none.
    pub(super) fn recovered(&self) -> Option<Vec<u8>> {
        let kept: Vec<_> = self.entries.iter().filter(|bitmap| bitmap.level.is_some()).collect();
        self.with_flags(&kept, |flags| flags & !IN_USE)
    }

    /// The directory with the flags of `some` of its bitmaps changed, if there are any.
    fn with_flags(&self, some: &[&Bitmap], change: impl Fn(u32) -> u32) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        for bitmap in some {
            let flags = change(bitmap.flags).to_be_bytes();
            bytes[bitmap.place + 12..bitmap.place + 16].copy_from_slice(&flags);
        }
        (!some.is_empty()).then_some(bytes)
    }
}

impl Levels {
    /// The most bitmaps that can be kept: those of the first entries.
    pub(super) const MOST: usize = 64;

    /// What the header says, if nobody has written the image since who does not know of it.
    fn of_header(header: &Header) -> Self {
        let field = header.extensions.get(extension::LEVELS);
        let field = field.filter(|_| header.autoclear & feature::LEVELS != 0);
        match field.and_then(|data| LevelsField::read_from_prefix(data).ok()) {
            Some((field, _)) if field.version == 1 => {
                Self { region_bits: field.region_bits, kept: field.kept.get() }
            }
            _ => Self { region_bits: 0, kept: 0 },
        }
    }

    /// The level of the entry at `index`, if that is kept.
    fn of(&self, index: usize) -> Option<u8> {
        let is_kept = index < Self::MOST && self.kept >> index & 1 != 0;
        is_kept.then_some(self.region_bits)
    }

    /// Has the header say which entries are kept: those that have a level.
    pub(super) fn enter(header: &mut Header, levels: impl Iterator<Item = Option<u8>>) {
        let (mut kept, mut region_bits) = (0, 0);
        for (index, level) in levels.take(Self::MOST).enumerate() {
            if let Some(level) = level {
                kept |= 1 << index;
                region_bits = region_bits.max(level);
            }
        }
        if kept == 0 {
            header.autoclear &= !feature::LEVELS;
            header.extensions = header.extensions.without(extension::LEVELS);
            return;
        }
        let field = LevelsField { version: 1, region_bits, reserved: [0; 6], kept: kept.into() };
        header.autoclear |= feature::LEVELS;
        header.extensions.set(extension::LEVELS, field.as_bytes().to_vec());
    }
}

impl Bitmap {
    /// Whether its content is not to be believed.
    pub(super) fn is_inconsistent(&self) -> bool {
        self.flags & IN_USE != 0 && self.level.is_none()
    }

    /// Whether it records what a guest writes.
    pub(super) fn records(&self) -> bool {
        self.flags & AUTO != 0
    }

    /// The places of its clusters, as its table has them.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn words(&self, file: &dyn BlockDevice) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.table.len.as_usize()];
        read_clipped(file, &mut bytes, self.table.start)?;
        Ok(words_of(&bytes))
    }

    /// The clusters that hold its content.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn clusters(&self, file: &dyn BlockDevice) -> Result<Vec<ByteOffset>> {
        let places = self.words(file)?.into_iter().map(|word| word & OFFSET);
        Ok(places.filter(|&at| at != 0).map(ByteOffset::new).collect())
    }

    /// Its content, for a disk of `size`.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for a table of another length, or one that names what
    /// is no cluster of the file.
    pub(super) fn read(
        &self,
        file: &dyn BlockDevice,
        geometry: Geometry,
        size: ByteCount,
    ) -> Result<DirtyBitmap> {
        let object = format!("{}, bitmap {}", file.name(), self.name);
        let bad = |problem: &str| Err(corrupt(&object, problem));
        let granularity = Granularity::from_exponent(self.granularity_bits);
        let Some(granularity) = granularity.filter(|_| self.kind == DIRTY_TRACKING) else {
            return bad("has granules of an impossible size, or is of an unknown type");
        };
        let Ok(bits) = DirtyBitmap::new(size, granularity) else {
            return bad("would take more than 512 MiB");
        };
        if self.table.len.get() / 8 != geometry.clusters(ByteCount::new(bits.byte_len())) {
            return bad("has a table that is not as long as its disk wants it");
        }
        let step = geometry.cluster().get();
        let mut cluster = vec![0; geometry.cluster().as_usize()];
        for (from, word) in (0..).step_by(step as usize).zip(self.words(file)?) {
            let at = ByteOffset::new(word & OFFSET);
            if at != ByteOffset::ZERO {
                if geometry.host_cluster(at).is_none() || at.get() >= file.size().get() {
                    return bad("lies outside the file or at no cluster's start");
                }
                read_clipped(file, &mut cluster, at)?;
                bits.import(from, &cluster);
            } else if word & ONES != 0 {
                bits.set_part(from..from + step);
            }
        }
        Ok(bits)
    }
}

/// The place of an entry, its head, its extra data and its name.
type Parsed<'b> = (usize, BitmapHead, &'b [u8], &'b [u8]);

/// `count` entries of a directory.
fn parse(bytes: &[u8], count: u32) -> Option<Vec<Parsed<'_>>> {
    let mut heads = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let (head, rest) = BitmapHead::read_from_prefix(bytes.get(at..)?).ok()?;
        let (extra, name) = (head.extra_size.get() as usize, usize::from(head.name_size.get()));
        let text = rest.get(extra..)?.get(..name)?;
        heads.push((at, head, &rest[..extra], text));
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
