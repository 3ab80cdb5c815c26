//! Bitmaps that record while the image is open, and are believed after a crash.
//!
//! Whoever records keeps the bits of a bitmap himself, and puts here what must not be lost. With
//! the first change of a bit the bitmap becomes *kept*: in one exchange it is marked as in use,
//! which tells everybody else that it is inconsistent, gets a place for every bit, and is entered
//! in the levels extension, which Firn believes as long as the autoclear feature beside it is set.
//! From then on bits are put in place: what lies there is at least what has changed, to the last
//! consistent level.
//!
//! - A crash leaves it so. The next opening for writing makes it an ordinary consistent bitmap.
//! - Another program that writes the image finds the bitmap in use, and clears a feature that it
//!   does not know: from then on nobody believes the bitmap any more, which is right.
//! - At the end another exchange stores the exact bits and takes the marks off.
//!
//! A disk that nobody changes, or only where it is dirty, leaves its bitmaps as they are.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, DirtyBitmap, Error, ErrorKind, Result};

use super::bitmap::{Bitmap, Bitmaps, IN_USE, Levels};
use super::bitmap_edit::Content;
use super::bytes::write_any;
use super::header::Header;
use super::image::Image;
use super::layout::feature;

impl Image {
    /// Begins to record in the bitmap `name`: returns what it holds. From now on the caller
    /// [puts](Self::put_bits) there what must not be lost, before the disk is changed, and at the
    /// end [stores](Self::end_recording) all of it. Nothing is written yet.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for one that is inconsistent;
    /// [`ErrorKind::Busy`] if somebody records in it already; [`ErrorKind::ReadOnly`].
    pub fn begin_recording(&self, name: &str) -> Result<DirtyBitmap> {
        self.state()?;
        let bits = self.bitmap(name)?;
        if !self.recorded.lock().insert(name.to_owned()) {
            let problem = "records already";
            return Err(Error::new(ErrorKind::Busy, self.bitmap_object(name), problem));
        }
        Ok(bits)
    }

    /// Puts bytes of the bitmap `name` in place, durably, each with where in the bitmap it begins.
    /// The bitmap holds more than has changed by groups of `1 << region_bits` bits at most.
    ///
    /// # Errors
    /// Those of the file, which stop the image (FAIL-STOP); [`ErrorKind::NotFound`].
    pub fn put_bits(&self, name: &str, region_bits: u8, parts: &[(u64, &[u8])]) -> Result<()> {
        let _one_at_a_time = self.putting.lock();
        let file = &*self.source.file;
        let mut bitmap = self.find_bitmap(name)?;
        if bitmap.level.is_none() && bitmap.flags & IN_USE == 0 {
            self.keep(name, region_bits)?;
            bitmap = self.find_bitmap(name)?;
        }
        if bitmap.level.is_none() {
            // There is no room to say that it is kept. It is marked as in use, and will be stored
            // at the end; a crash loses it, as it does with every other writer.
            return Ok(());
        }
        let places = bitmap.clusters(file)?;
        let cluster = self.source.geometry.cluster().get();
        for &(at, bytes) in parts {
            let mut rest = bytes;
            let mut at = at;
            while !rest.is_empty() {
                let inside = at % cluster;
                let (now, later) = rest.split_at(rest.len().min((cluster - inside) as usize));
                let Some(place) = places.get((at / cluster) as usize) else { break };
                write_any(file, now, place.plus(ByteCount::new(inside)))
                    .inspect_err(|error| self.stop(error))?;
                (at, rest) = (at + now.len() as u64, later);
            }
        }
        file.flush().inspect_err(|error| self.stop(error))
    }

    /// Stores what the bitmap `name` holds at last, and records in it no more. One that holds just
    /// that already is left as it is.
    ///
    /// # Errors
    /// Those of the file; [`ErrorKind::NotFound`].
    pub fn end_recording(&self, name: &str, bits: DirtyBitmap) -> Result<()> {
        let _one_at_a_time = self.putting.lock();
        let found = self.find_bitmap(name)?;
        let is_there = found.flags & IN_USE == 0
            && found.read(&*self.source.file, self.source.geometry, self.size())? == bits;
        if !is_there {
            self.change_bitmaps(|entries| {
                let entry = entries.iter_mut().find(|entry| entry.text == name.as_bytes());
                let entry = entry.ok_or_else(|| self.no_bitmap(name))?;
                entry.flags &= !IN_USE;
                entry.level = None;
                entry.content = Content::New(bits);
                Ok(())
            })?;
        }
        self.recorded.lock().remove(name);
        Ok(())
    }

    /// Checks that nobody records: what is about to change the whole disk is noted in the bitmaps
    /// as they are stored.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`].
    pub(super) fn check_unrecorded(&self, what: &str) -> Result<()> {
        if self.recorded.lock().is_empty() {
            return Ok(());
        }
        let problem = format!("cannot be {what} while its bitmaps are being recorded in");
        Err(Error::new(ErrorKind::Busy, &*self.source.name, problem)
            .advise("stop serving it first; the bitmaps follow by themselves then"))
    }

    /// Whether somebody records in the bitmap `name`.
    pub(super) fn is_recorded(&self, name: &str) -> bool {
        self.recorded.lock().contains(name)
    }

    /// Marks the bitmap as in use and kept.
    fn keep(&self, name: &str, region_bits: u8) -> Result<()> {
        let mark = |level: Option<u8>| {
            self.change_bitmaps(|entries| {
                let place = entries.iter().position(|entry| entry.text == name.as_bytes());
                let place = place.ok_or_else(|| self.no_bitmap(name))?;
                let bits = self.bitmap(name)?;
                let entry = &mut entries[place];
                entry.flags |= IN_USE;
                entry.level = level.filter(|_| place < Levels::MOST);
                entry.content = Content::New(bits);
                Ok(())
            })
        };
        match mark(Some(region_bits)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::warn!(bitmap = name, "would not survive a crash: {error}");
                mark(None)
            }
            done => done,
        }
    }

    fn find_bitmap(&self, name: &str) -> Result<Bitmap> {
        let found = Bitmaps::read(&*self.source.file, &self.header.read())?;
        let mut entries = found.into_iter().flat_map(|found| found.entries);
        entries.find(|bitmap| bitmap.name == name).ok_or_else(|| self.no_bitmap(name))
    }
}

/// Makes bitmaps consistent that a crash has left in use, and that were kept: as coarse as they
/// are, they hold all that has changed.
pub(super) fn recover(file: &dyn BlockDevice, header: &mut Header) -> Result<()> {
    if header.autoclear & feature::LEVELS == 0 {
        return Ok(());
    }
    let found = Bitmaps::read(file, header)?;
    let write = |bytes: &[u8], at| write_any(file, bytes, at).and_then(|()| file.flush());
    if let Some((found, directory)) =
        found.as_ref().and_then(|found| Some((found, found.recovered()?)))
    {
        for bitmap in found.entries.iter().filter(|bitmap| bitmap.level.is_some()) {
            tracing::info!(bitmap = bitmap.name, "is recovered after a crash");
        }
        write(&directory, found.directory.start)?;
    }
    // Last: as long as it is set, what was in use is believed.
    header.autoclear &= !feature::LEVELS;
    write(&header.sector_zero(), ByteOffset::ZERO)
}
