//! Bitmaps changed: added, removed, cleared, merged, and fitted to a disk that changes.
//!
//! Each change is one exchange: new content, tables and directory are written where nothing is, and
//! one write of the header makes them count. So a crash leaves all bitmaps as they were, or all as
//! they are to be.

use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{
    ByteCount, ByteOffset, ByteRange, DirtyBitmap, Error, ErrorKind, Granularity, PartContent,
    Result,
};
use zerocopy::IntoBytes;

use super::bitmap::{
    AUTO, BITMAP_LIMIT, Bitmap, Bitmaps, DIRECTORY_LIMIT, DIRTY_TRACKING, IN_USE, Levels,
};
use super::bytes::bytes_of;
use super::exchange::Exchange;
use super::header::Header;
use super::image::{Gate, Image};
use super::layout::{BitmapHead, BitmapsField, extension, feature};

/// The longest name, as in QEMU.
const NAME_LIMIT: usize = 1023;
/// The least and the largest granule of a bitmap that is not told another, as in QEMU.
const USUAL_GRANULES: [u64; 2] = [4 << 10, 64 << 10];

/// The table of a disk of no bytes has to lie somewhere, too.
const LEAST_TABLE: ByteCount = ByteCount::new(8);

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Unique in its image.
    pub name: String,
    /// Bytes of the disk for each bit.
    pub granularity: ByteCount,
    /// Whether it is to record what a guest writes.
    pub recording: bool,
    /// Whether what it holds is not to be believed, since it was not stored when it was last used.
    /// All that can be done with it is to remove it.
    pub inconsistent: bool,
}

/// A bitmap as it is to be.
pub(super) struct Entry {
    pub(super) text: Vec<u8>,
    extra: Vec<u8>,
    kind: u8,
    pub(super) flags: u32,
    granularity_bits: u8,
    pub(super) level: Option<u8>,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// As it lies there.
    Kept(ByteRange),
    New(DirtyBitmap),
    /// So many clusters of zeros: of one that is inconsistent nothing counts.
    Blank(u64),
}

impl Image {
    /// The persistent dirty bitmaps, in the order of their directory.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a directory outside its limits.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        list(&*self.source.file, &self.header.read())
    }

    /// What the bitmap `name` holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`], also for one that is inconsistent.
    pub fn bitmap(&self, name: &str) -> Result<DirtyBitmap> {
        let found = Bitmaps::read(&*self.source.file, &self.header.read())?;
        let entries = found.iter().flat_map(|found| &found.entries);
        let bitmap = entries
            .into_iter()
            .find(|bitmap| bitmap.name == name)
            .ok_or_else(|| self.no_bitmap(name))?;
        self.check_consistent(bitmap)?;
        bitmap.read(&*self.source.file, self.source.geometry, self.size())
    }

    /// Adds a clean bitmap called `name`. Without `granularity` it has the image's clusters, or 4
    /// or 64 KiB where those are smaller or larger. One that is `recording` is to hold what a guest
    /// writes from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]; [`ErrorKind::Invalid`]; [`ErrorKind::Unsupported`] for an image of
    /// version 2.
    pub fn add_bitmap(
        &self,
        name: &str,
        granularity: Option<ByteCount>,
        recording: bool,
    ) -> Result<()> {
        let [least, largest] = USUAL_GRANULES;
        let usual = self.source.geometry.cluster().get().clamp(least, largest);
        let granularity = Granularity::new(granularity.unwrap_or(ByteCount::new(usual)))?;
        let bits = DirtyBitmap::new(self.size(), granularity)?;
        self.add_bitmap_with(name, recording, bits)
    }

    /// Adds a bitmap that holds `bits` from the beginning.
    ///
    /// # Errors
    /// Likewise; [`ErrorKind::Invalid`] also for bits of a disk of another size.
    pub fn add_bitmap_with(&self, name: &str, recording: bool, bits: DirtyBitmap) -> Result<()> {
        let invalid = |problem: &str| {
            Err(Error::new(ErrorKind::Invalid, self.bitmap_object(name), problem.to_owned()))
        };
        if name.is_empty() || name.len() > NAME_LIMIT {
            return invalid("a bitmap's name has 1 to 1023 bytes");
        }
        if bits.size() != self.size() {
            return invalid("is of a disk of another size");
        }
        self.change_bitmaps(|entries| {
            if entries.iter().any(|entry| entry.text == name.as_bytes()) {
                let problem = "exists already";
                return Err(Error::new(ErrorKind::Exists, self.bitmap_object(name), problem));
            }
            if entries.len() >= BITMAP_LIMIT as usize {
                return invalid("is one too many");
            }
            let flags = if recording { AUTO } else { 0 };
            let granularity_bits = bits.granularity().exponent();
            let (text, extra) = (name.as_bytes().to_vec(), Vec::new());
            let (kind, content) = (DIRTY_TRACKING, Content::New(bits));
            let level = None;
            entries.push(Entry { text, extra, kind, flags, granularity_bits, level, content });
            Ok(())
        })
    }

    /// Removes the bitmap `name`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn remove_bitmap(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|entries| {
            let place = entries.iter().position(|entry| entry.text == name.as_bytes());
            entries.remove(place.ok_or_else(|| self.no_bitmap(name))?);
            Ok(())
        })
    }

    /// Makes the bitmap `name` clean.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for one that is inconsistent.
    pub fn clear_bitmap(&self, name: &str) -> Result<()> {
        self.change_content(name, |bits| {
            bits.clear_all();
            Ok(())
        })
    }

    /// Makes the bitmap `name` record what a guest writes from now on, or not.
    ///
    /// # Errors
    /// Likewise.
    pub fn record_in_bitmap(&self, name: &str, recording: bool) -> Result<()> {
        self.change_bitmaps(|entries| {
            let entry = self.usable(entries, name)?;
            entry.flags = entry.flags & !AUTO | if recording { AUTO } else { 0 };
            Ok(())
        })
    }

    /// Makes dirty in the bitmap `name` what is dirty in `more`.
    ///
    /// # Errors
    /// Likewise; [`ErrorKind::Invalid`] for bits of a disk of another size.
    pub fn merge_into_bitmap(&self, name: &str, more: &DirtyBitmap) -> Result<()> {
        self.change_content(name, |bits| {
            if bits.size() != more.size() {
                let problem = "cannot take what is of a disk of another size";
                return Err(Error::new(ErrorKind::Invalid, self.bitmap_object(name), problem));
            }
            bits.merge(more);
            Ok(())
        })
    }

    fn change_content(
        &self,
        name: &str,
        change: impl FnOnce(&DirtyBitmap) -> Result<()>,
    ) -> Result<()> {
        self.change_bitmaps(|entries| {
            let entry = self.usable(entries, name)?;
            let bits = self.bitmap(name)?;
            change(&bits)?;
            entry.content = Content::New(bits);
            Ok(())
        })
    }

    pub(super) fn usable<'e>(&self, entries: &'e mut [Entry], name: &str) -> Result<&'e mut Entry> {
        let found = entries.iter_mut().find(|entry| entry.text == name.as_bytes());
        let entry = found.ok_or_else(|| self.no_bitmap(name))?;
        if entry.flags & IN_USE != 0 && entry.level.is_none() {
            return Err(self.inconsistent(name));
        }
        Ok(entry)
    }

    pub(super) fn change_bitmaps(
        &self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<()>,
    ) -> Result<()> {
        self.state()?;
        self.check_running()?;
        if self.header.read().version() < 3 {
            let problem = "is of version 2 of the format, which has no bitmaps";
            return Err(Error::new(ErrorKind::Unsupported, &*self.source.name, problem)
                .advise("make it version 3 with 'firn image amend -o compat=1.1'"));
        }
        self.prepare_tables()?;
        self.alone(Gate::Reads, || {
            let old = Bitmaps::read(&*self.source.file, &self.header.read())?;
            let mut entries = kept(old.as_ref());
            change(&mut entries)?;
            let mut exchange = Exchange::begin(self)?;
            exchange.write_bitmaps(old.as_ref(), &entries)?;
            exchange.finish()?;
            // The next write of a guest has to mark those that record.
            self.prepared.store(false, Ordering::SeqCst);
            Ok(())
        })
    }

    fn check_consistent(&self, bitmap: &Bitmap) -> Result<()> {
        if bitmap.is_inconsistent() { Err(self.inconsistent(&bitmap.name)) } else { Ok(()) }
    }

    fn inconsistent(&self, name: &str) -> Error {
        let problem = "is inconsistent: it was not stored when it was last used";
        Error::new(ErrorKind::Corrupt, self.bitmap_object(name), problem)
            .advise("remove it, and begin anew with a full backup")
    }

    pub(super) fn no_bitmap(&self, name: &str) -> Error {
        Error::new(ErrorKind::NotFound, self.bitmap_object(name), "does not exist")
    }

    pub(super) fn bitmap_object(&self, name: &str) -> String {
        format!("{}, bitmap {name}", self.source.name)
    }
}

/// The persistent dirty bitmaps of the image in `file`; nothing else of it is read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a header or a directory outside its limits.
pub fn bitmaps(file: &dyn BlockDevice) -> Result<Vec<BitmapInfo>> {
    list(file, &Header::read(file)?)
}

fn list(file: &dyn BlockDevice, header: &Header) -> Result<Vec<BitmapInfo>> {
    let found = Bitmaps::read(file, header)?;
    let info = |bitmap: &Bitmap| BitmapInfo {
        name: bitmap.name.clone(),
        granularity: ByteCount::new(1u64 << (bitmap.granularity_bits & 63)),
        recording: bitmap.records(),
        inconsistent: bitmap.is_inconsistent(),
    };
    Ok(found.iter().flat_map(|found| &found.entries).map(info).collect())
}

/// The entries of bitmaps that stay as they are.
fn kept(bitmaps: Option<&Bitmaps>) -> Vec<Entry> {
    let entry = |bitmap: &Bitmap| Entry {
        text: bitmap.text.clone(),
        extra: bitmap.extra.clone(),
        kind: bitmap.kind,
        flags: bitmap.flags,
        granularity_bits: bitmap.granularity_bits,
        level: bitmap.level,
        content: Content::Kept(bitmap.table),
    };
    bitmaps.into_iter().flat_map(|bitmaps| &bitmaps.entries).map(entry).collect()
}

impl Exchange<'_> {
    /// Fits the bitmaps to a disk that is to have `size` and differs in `changed` from what it was:
    /// those that record hold all of that from now on, and of the disk what is added to it
    /// (NEVER-UNDER-REPORT). Those that are inconsistent stay so.
    pub(super) fn fit_bitmaps(&mut self, size: ByteCount, changed: &[ByteRange]) -> Result<()> {
        let image = self.image();
        let file = &*image.source.file;
        let old_size = self.header.size();
        let Some(old) = Bitmaps::read(file, &self.header)? else { return Ok(()) };
        let mut entries = kept(Some(&old));
        let mut touched = false;
        for (entry, bitmap) in entries.iter_mut().zip(&old.entries) {
            let records = bitmap.records() && !(changed.is_empty() && size <= old_size);
            if bitmap.is_inconsistent() || (size == old_size && !records) {
                continue;
            }
            let old_bits = bitmap.read(file, image.source.geometry, old_size)?;
            let bits = DirtyBitmap::new(size, old_bits.granularity())?;
            bits.merge(&old_bits);
            if records {
                for range in changed {
                    bits.set(*range);
                }
                let end = |size: ByteCount| ByteOffset::new(size.get());
                bits.set(ByteRange::between(end(old_size.min(size)), end(size)));
            }
            entry.content = Content::New(bits);
            touched = true;
        }
        if touched { self.write_bitmaps(Some(&old), &entries) } else { Ok(()) }
    }

    /// Writes all bitmaps anew, as they are.
    pub(super) fn rewrite_bitmaps(&mut self) -> Result<()> {
        let source = &self.image().source;
        let size = self.header.size();
        let Some(old) = Bitmaps::read(&*source.file, &self.header)? else { return Ok(()) };
        let mut entries = kept(Some(&old));
        for (entry, bitmap) in entries.iter_mut().zip(&old.entries) {
            entry.content = if bitmap.is_inconsistent() {
                Content::Blank(bitmap.table.len.get() / 8)
            } else {
                Content::New(bitmap.read(&*source.file, source.geometry, size)?)
            };
        }
        self.write_bitmaps(Some(&old), &entries)
    }

    /// Writes the directory `new` with the content that it does not share with `old`, whose other
    /// clusters lose their user.
    fn write_bitmaps(&mut self, old: Option<&Bitmaps>, new: &[Entry]) -> Result<()> {
        let geometry = self.image().source.geometry;
        let keeps = |entry: &Entry, bitmap: &Bitmap| match entry.content {
            Content::Kept(table) => table == bitmap.table,
            Content::New(_) | Content::Blank(_) => false,
        };
        let is_kept = |bitmap: &Bitmap| new.iter().any(|entry| keeps(entry, bitmap));
        if let Some(old) = old {
            self.take_range(old.directory)?;
            for bitmap in old.entries.iter().filter(|bitmap| !is_kept(bitmap)) {
                for at in bitmap.clusters(&*self.image().source.file)? {
                    self.take_range(ByteRange::new(at, geometry.cluster()))?;
                }
                if !bitmap.table.is_empty() {
                    self.take_range(bitmap.table)?;
                }
            }
        }
        let mut directory = Vec::new();
        for entry in new {
            let table = match &entry.content {
                Content::Kept(table) => *table,
                Content::New(bits) => self.write_bits(bits, entry.level.is_some())?,
                Content::Blank(words) => {
                    let len = ByteCount::new(words * 8);
                    ByteRange::new(self.write_run(vec![0; len.max(LEAST_TABLE).as_usize()])?, len)
                }
            };
            push_entry(&mut directory, entry, table);
        }
        if directory.len() as u64 > DIRECTORY_LIMIT {
            let problem = "has no room for more bitmaps in their directory";
            return Err(Error::new(ErrorKind::Invalid, &*self.image().source.name, problem));
        }
        Levels::enter(&mut self.header, new.iter().map(|entry| entry.level));
        if new.is_empty() {
            self.header.extensions = self.header.extensions.without(extension::BITMAPS);
            self.header.autoclear &= !feature::BITMAPS;
            return Ok(());
        }
        let field = BitmapsField {
            count: (new.len() as u32).into(),
            reserved: 0.into(),
            directory_size: (directory.len() as u64).into(),
            directory_offset: self.write_run(directory)?.get().into(),
        };
        self.header.extensions.set(extension::BITMAPS, field.as_bytes().to_vec());
        self.header.autoclear |= feature::BITMAPS;
        Ok(())
    }

    /// Writes the content of a bitmap and its table, and says where that lies; with a place also
    /// for what is clean if it is to be `whole`.
    fn write_bits(&mut self, bits: &DirtyBitmap, whole: bool) -> Result<ByteRange> {
        let geometry = self.image().source.geometry;
        let mut words = Vec::new();
        let step = geometry.cluster().get();
        for from in (0..bits.byte_len()).step_by(step as usize) {
            if !whole && bits.content(from..from + step) == PartContent::Clean {
                words.push(0);
                continue;
            }
            let mut bytes = vec![0; geometry.cluster().as_usize()];
            bits.export(from, &mut bytes);
            words.push(self.write_run(bytes)?.get());
        }
        let len = ByteCount::new(words.len() as u64 * 8);
        let mut table = bytes_of(&words);
        table.resize(table.len().max(LEAST_TABLE.as_usize()), 0);
        Ok(ByteRange::new(self.write_run(table)?, len))
    }
}

fn push_entry(directory: &mut Vec<u8>, entry: &Entry, table: ByteRange) {
    let head = BitmapHead {
        table_offset: table.start.get().into(),
        table_size: ((table.len.get() / 8) as u32).into(),
        flags: entry.flags.into(),
        kind: entry.kind,
        granularity_bits: entry.granularity_bits,
        name_size: (entry.text.len() as u16).into(),
        extra_size: (entry.extra.len() as u32).into(),
    };
    directory.extend_from_slice(head.as_bytes());
    directory.extend_from_slice(&entry.extra);
    directory.extend_from_slice(&entry.text);
    directory.resize(directory.len().next_multiple_of(8), 0);
}
