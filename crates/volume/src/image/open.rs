//! An image that is open, with everything below it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::qcow2;
use disk_image::vhd::{self, VhdImage};

use super::chain::{self, Link};
use super::lock::ImageLock;
use super::{BackingPolicy, ImageFormat};

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Its format, if it is not to be found out.
    pub format: Option<ImageFormat>,
    /// For reading only. What is below it is opened for reading in any case.
    pub read_only: bool,
    /// Through the page cache or not.
    pub cache: CacheMode,
    /// What may be opened that it names.
    pub backing: BackingPolicy,
    /// Read it without a lock, even while somebody writes it: what is found may be out of date, or
    /// look damaged.
    pub force_share: bool,
}

impl ImageOptions {
    /// To read an image whose format is to be found out, through the page cache.
    pub fn reading() -> Self {
        Self {
            format: None,
            read_only: true,
            cache: CacheMode::Cached,
            backing: BackingPolicy::SameFolder,
            force_share: false,
        }
    }
}

/// An image, open with its chain, under a lock.
///
/// [`DiskImage::device`] is the disk. Whoever wrote [closes](DiskImage::close) at the end: an image
/// that is dropped is as after a crash.
pub struct DiskImage {
    path: PathBuf,
    /// What is below it stays open as long as this does: the devices know each other.
    top: Opened,
    read_only: bool,
    /// Of the whole chain.
    _locks: Vec<ImageLock>,
}

/// An image of a chain, open.
#[derive(Clone)]
pub(super) enum Opened {
    Raw(Arc<dyn BlockDevice>),
    Qcow2(Arc<qcow2::Image>),
    Vhd(Arc<VhdImage>),
}

impl Opened {
    /// Opens the image of `link` over `below`.
    pub(super) fn open(link: &Link, below: Option<&Self>, read_only: bool) -> Result<Self> {
        let file = Arc::clone(&link.file);
        match link.format {
            ImageFormat::Raw => Ok(Self::Raw(file)),
            ImageFormat::Qcow2 => {
                let options = qcow2::OpenOptions {
                    backing: below.map(Self::device),
                    data: link.data.clone(),
                    read_only,
                    ..qcow2::OpenOptions::default()
                };
                qcow2::Image::open(file, options).map(Self::Qcow2)
            }
            ImageFormat::Vhd => {
                let parent = below.map(|below| match below {
                    Self::Vhd(image) => vhd::Parent::vhd(image),
                    other => vhd::Parent::raw(other.device()),
                });
                let options = vhd::OpenOptions { read_only, ..vhd::OpenOptions::default() };
                VhdImage::open(file, parent, options).map(|image| Self::Vhd(Arc::new(image)))
            }
        }
    }

    /// The disk.
    pub(super) fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Raw(file) => Arc::clone(file),
            Self::Qcow2(image) => Arc::clone(image) as Arc<dyn BlockDevice>,
            Self::Vhd(image) => Arc::clone(image) as Arc<dyn BlockDevice>,
        }
    }
}

impl DiskImage {
    /// Opens the image at `path` with everything below it, as far as the options let it.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] for a backing file that may not be opened (GATED-OPEN), and for
    /// writing to what only seems to be raw; [`ErrorKind::Busy`] where another process writes one
    /// of the files; those of the formats.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self> {
        let mut links = chain::walk(path, options)?;
        let mut locks = Vec::new();
        let mut top = None;
        while let Some(link) = links.pop() {
            let read_only = options.read_only || !links.is_empty();
            top = Some(Opened::open(&link, top.as_ref(), read_only)?);
            locks.extend(link.locks);
        }
        let top = top.expect("a chain has the file that it begins with");
        Ok(Self { path: path.to_owned(), top, read_only: options.read_only, _locks: locks })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> ImageFormat {
        match self.top {
            Opened::Raw(_) => ImageFormat::Raw,
            Opened::Qcow2(_) => ImageFormat::Qcow2,
            Opened::Vhd(_) => ImageFormat::Vhd,
        }
    }

    /// The disk.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.top.device()
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.device().size()
    }

    /// Changes the size of the disk. What is added reads as zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a VHD that is to become smaller, or larger than its table
    /// lets it; those of the format.
    pub fn resize(&self, size: ByteCount) -> Result<()> {
        match &self.top {
            Opened::Vhd(image) => image.grow(size),
            other => other.device().resize(size),
        }
    }

    /// Makes everything durable and leaves the file as its format wants it. Clients of the device
    /// are to be gone by then.
    ///
    /// # Errors
    /// Those of the file.
    pub fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        match &self.top {
            Opened::Raw(file) => file.flush(),
            Opened::Qcow2(image) => image.close(),
            Opened::Vhd(image) => image.close(),
        }
    }

    /// The image as qcow2, for what only that format has.
    pub(super) fn qcow2(&self, what: &str) -> Result<&Arc<qcow2::Image>> {
        match &self.top {
            Opened::Qcow2(image) => Ok(image),
            _ => {
                let problem = format!("is a {} image, which has no {what}", self.format());
                let object = self.path.display().to_string();
                Err(Error::new(ErrorKind::Unsupported, object, problem)
                    .advise("convert it with 'firn image convert -O qcow2'"))
            }
        }
    }
}
