//! Bitmaps of images: listed, edited, merged from others, copied.

use std::path::Path;

use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::qcow2;
use serde::Serialize;

use super::chain::open_file;
use super::{DiskImage, ImageFormat};
use block_io::CacheMode;

/// A persistent dirty bitmap, under the names that qemu-img has for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageBitmap {
    /// Unique in its image.
    pub name: String,
    /// Bytes of the disk for each bit.
    pub granularity: u64,
    /// `auto`: it records what is written; `in-use`: it is inconsistent.
    pub flags: Vec<&'static str>,
}

impl From<&qcow2::BitmapInfo> for ImageBitmap {
    fn from(info: &qcow2::BitmapInfo) -> Self {
        let flags = [(info.inconsistent, "in-use"), (info.recording, "auto")];
        Self {
            name: info.name.clone(),
            granularity: info.granularity.get(),
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect(),
        }
    }
}

impl DiskImage {
    /// Adds a clean bitmap. Without a granularity it has the image's usual one.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]; [`ErrorKind::Unsupported`] for images without bitmaps.
    pub fn add_bitmap(
        &self,
        name: &str,
        granularity: Option<ByteCount>,
        recording: bool,
    ) -> Result<()> {
        self.qcow2("bitmaps")?.add_bitmap(name, granularity, recording)
    }

    /// Removes a bitmap.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn remove_bitmap(&self, name: &str) -> Result<()> {
        self.qcow2("bitmaps")?.remove_bitmap(name)
    }

    /// Makes a bitmap clean.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for one that is inconsistent.
    pub fn clear_bitmap(&self, name: &str) -> Result<()> {
        self.qcow2("bitmaps")?.clear_bitmap(name)
    }

    /// Makes a bitmap record what is written from now on, or not.
    ///
    /// # Errors
    /// Likewise.
    pub fn record_in_bitmap(&self, name: &str, recording: bool) -> Result<()> {
        self.qcow2("bitmaps")?.record_in_bitmap(name, recording)
    }

    /// Makes dirty in a bitmap what is dirty in the bitmap `source`: of `other`, or of this image.
    ///
    /// # Errors
    /// Likewise; [`ErrorKind::Invalid`] for disks of different sizes.
    pub fn merge_bitmap(&self, name: &str, source: &str, other: Option<&Self>) -> Result<()> {
        let image = self.qcow2("bitmaps")?;
        let bits = other.unwrap_or(self).qcow2("bitmaps")?.bitmap(source)?;
        image.merge_into_bitmap(name, &bits)
    }

    /// Copies the bitmaps of `source` to this image, which has none yet. Those that are
    /// inconsistent are left out if that is wanted; their names come back.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for an inconsistent one that is not to be left out.
    pub fn copy_bitmaps(&self, source: &Self, skip_broken: bool) -> Result<Vec<String>> {
        let (from, to) = (source.qcow2("bitmaps")?, self.qcow2("bitmaps")?);
        let mut left_out = Vec::new();
        for info in from.bitmaps()? {
            if info.inconsistent && skip_broken {
                left_out.push(info.name);
                continue;
            }
            let bits = from.bitmap(&info.name)?;
            to.add_bitmap_with(&info.name, info.recording, bits)?;
        }
        Ok(left_out)
    }
}

impl ImageBitmap {
    /// The bitmaps of the image at `path`. Nothing but that file is opened.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for images without bitmaps; those of the file.
    pub fn list(path: &Path, format: Option<ImageFormat>) -> Result<Vec<Self>> {
        let (format, file) = open_file(path, format, true, CacheMode::Cached)?;
        if format != ImageFormat::Qcow2 {
            let problem = format!("is a {format} image, which has no bitmaps");
            let object = path.display().to_string();
            return Err(Error::new(ErrorKind::Unsupported, object, problem));
        }
        Ok(qcow2::bitmaps(&*file)?.iter().map(Self::from).collect())
    }
}
