//! An image that is open, with everything below it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::qcow2::{self, Secret};
use disk_image::vhd::{self, VhdImage};
use parking_lot::Mutex;

use super::chain::{self, Link};
use super::node::Node;
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
    /// What opens it, and what is below it, as far as that is encrypted.
    pub secret: Option<Secret>,
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
            secret: None,
        }
    }
}

/// An image, open with its chain, under a lock.
///
/// [`DiskImage::device`] is the disk. Whoever wrote [closes](DiskImage::close) at the end: an image
/// that is dropped is as after a crash.
pub struct DiskImage {
    path: PathBuf,
    top: Opened,
    read_only: bool,
    pub(super) cache: CacheMode,
    /// The chain, the topmost first, each with its locks.
    pub(super) nodes: Mutex<Vec<Arc<Node>>>,
    /// Whether work on the chain goes on.
    pub(super) working: Arc<AtomicBool>,
}

/// Says, as long as it lives, that work on a chain goes on.
pub(super) struct Working(Arc<AtomicBool>);

impl Working {
    /// `None` if other work goes on.
    pub(super) fn begin(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(flag)))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
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
                    secret: link.secret.clone(),
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

    /// Makes it durable and leaves the file as its format wants it.
    pub(super) fn close(&self) -> Result<()> {
        match self {
            Self::Raw(file) => file.flush(),
            Self::Qcow2(image) => image.close(),
            Self::Vhd(image) => image.close(),
        }
    }

    /// Changes the size of the disk.
    pub(super) fn resize(&self, size: ByteCount) -> Result<()> {
        match self {
            Self::Vhd(image) => image.grow(size),
            other => other.device().resize(size),
        }
    }

    /// The UUID of a VHD.
    pub(super) fn vhd_id(&self) -> Option<vhd::DiskId> {
        match self {
            Self::Vhd(image) => Some(image.id()),
            _ => None,
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
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        while let Some(link) = links.pop() {
            let read_only = options.read_only || !links.is_empty();
            let node = Node::open(link, nodes.last().map(|node| &**node), read_only)?;
            nodes.push(Arc::new(node));
        }
        nodes.reverse();
        let top = nodes.first().expect("a chain has the file that it begins with").device.clone();
        Ok(Self {
            path: path.to_owned(),
            top,
            read_only: options.read_only,
            cache: options.cache,
            nodes: Mutex::new(nodes),
            working: Arc::default(),
        })
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
        self.top.resize(size)
    }

    /// Moves about `most` bytes from the end of a qcow2 image's file into gaps before it. To be
    /// called until it is done.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for other formats; those of the file, with the image as it was
    /// before the step.
    pub fn compact_step(&self, most: ByteCount) -> Result<qcow2::Compaction> {
        self.qcow2("gaps to close")?.compact_step(most)
    }

    /// Bytes of the file as it is now.
    ///
    /// # Errors
    /// Those of the file.
    pub fn file_size(&self) -> Result<ByteCount> {
        let found = self.path.metadata().map_err(|error| {
            Error::io(self.path.display().to_string(), "cannot be examined", error)
        })?;
        Ok(ByteCount::new(found.len()))
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
        self.top.close()
    }

    /// The topmost image.
    pub(super) fn opened(&self) -> &Opened {
        &self.top
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
