//! The images of an open chain, and what each has by itself.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use disk_image::qcow2::{self, Own};
use disk_image::vhd::{self, Kind, VhdImage};
use parking_lot::Mutex;

use super::ImageFormat;
use super::below::Below;
use super::chain::{Link, open_file};
use super::lock::ImageLock;
use super::open::Opened;

/// An image of a chain.
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) format: ImageFormat,
    pub(super) device: Opened,
    /// What it stands on.
    pub(super) below: Option<Arc<Below>>,
    /// Whether its data lie in another file.
    pub(super) external: bool,
    /// What an encrypted image was opened with.
    secret: Option<qcow2::Secret>,
    locks: Mutex<Vec<ImageLock>>,
}

/// What the upmost image that has anything of a range has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Data,
    Zero,
}

/// A range, and what is there; `None` where no image has anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldRun {
    pub(super) range: ByteRange,
    pub(super) held: Option<Held>,
}

impl Node {
    /// Opens the image of `link` over `below`.
    ///
    /// # Errors
    /// Those of the format.
    pub(super) fn open(link: Link, lower: Option<&Self>, read_only: bool) -> Result<Self> {
        let name = link.path.display().to_string();
        let below = lower.map(|lower| Below::new(&name, lower.device.device()));
        let id = lower.and_then(|lower| lower.device.vhd_id());
        let device = open_over(&link, below.as_ref(), id, read_only)?;
        Ok(Self {
            path: link.path,
            format: link.format,
            device,
            below,
            external: link.data.is_some(),
            secret: link.secret,
            locks: Mutex::new(link.locks),
        })
    }

    /// The same image, opened anew for writing, or for reading only. The lock is this node's; there
    /// is a moment without one between the two.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where another process uses the file; those of the format. The lock is as
    /// it was then.
    pub(super) fn reopen(&self, read_only: bool, cache: CacheMode) -> Result<Opened> {
        let mut locks = self.locks.lock();
        locks.clear();
        let opened = ImageLock::take(&self.path, read_only)
            .and_then(|lock| self.open_again(read_only, cache).map(|opened| (lock, opened)));
        match opened {
            Ok((lock, opened)) => {
                locks.push(lock);
                Ok(opened)
            }
            Err(error) => {
                // Nobody writes what is open here only for reading, unless somebody was quicker.
                locks.extend(ImageLock::take(&self.path, true).ok());
                Err(error)
            }
        }
    }

    fn open_again(&self, read_only: bool, cache: CacheMode) -> Result<Opened> {
        let (_, file) = open_file(&self.path, Some(self.format), read_only, cache)?;
        let path = self.path.clone();
        let secret = self.secret.clone();
        let link = Link { path, format: self.format, file, data: None, secret, locks: Vec::new() };
        let id = match &self.device {
            Opened::Vhd(image) => image.parent_info()?.and_then(|parent| parent.id),
            _ => None,
        };
        open_over(&link, self.below.as_ref(), id, read_only)
    }

    /// The same node with its image opened anew.
    pub(super) fn with(&self, device: Opened) -> Self {
        Self {
            path: self.path.clone(),
            format: self.format,
            device,
            below: self.below.clone(),
            external: self.external,
            secret: self.secret.clone(),
            locks: Mutex::new(std::mem::take(&mut self.locks.lock())),
        }
    }

    fn size(&self) -> ByteCount {
        self.device.device().size()
    }

    /// What the image itself has of `range`, in order and without gaps.
    pub(super) fn own(&self, range: ByteRange) -> Result<Vec<HeldRun>> {
        let mut runs = Vec::new();
        let mut push = |range, held| {
            runs.push(HeldRun { range, held });
            ControlFlow::Continue(())
        };
        match &self.device {
            _ if range.is_empty() => {}
            Opened::Raw(_) => drop(push(range, Some(Held::Data))),
            Opened::Qcow2(image) => image.own_extents(range, &mut |extent| {
                let held = match extent.own {
                    Own::Absent => None,
                    Own::Zero(_) => Some(Held::Zero),
                    Own::Data(_) | Own::Compressed => Some(Held::Data),
                };
                push(extent.range, held)
            })?,
            Opened::Vhd(image) => vhd_runs(image, range, &mut push)?,
        }
        Ok(runs)
    }
}

/// Opens an image over what is below it.
fn open_over(
    link: &Link,
    below: Option<&Arc<Below>>,
    parent: Option<vhd::DiskId>,
    read_only: bool,
) -> Result<Opened> {
    let below = below.map(|below| Arc::clone(below) as Arc<dyn BlockDevice>);
    let file = Arc::clone(&link.file);
    match link.format {
        ImageFormat::Raw => Ok(Opened::Raw(file)),
        ImageFormat::Qcow2 => {
            let options = qcow2::OpenOptions {
                backing: below,
                data: link.data.clone(),
                read_only,
                secret: link.secret.clone(),
                ..qcow2::OpenOptions::default()
            };
            qcow2::Image::open(file, options).map(Opened::Qcow2)
        }
        ImageFormat::Vhd => {
            let parent = below.map(|device| vhd::Parent { device, id: parent });
            let options = vhd::OpenOptions { read_only, ..vhd::OpenOptions::default() };
            VhdImage::open(file, parent, options).map(|image| Opened::Vhd(Arc::new(image)))
        }
    }
}

/// What a VHD has; one without a parent has its holes, too.
fn vhd_runs(
    image: &VhdImage,
    range: ByteRange,
    push: &mut dyn FnMut(ByteRange, Option<Held>) -> ControlFlow<()>,
) -> Result<()> {
    let others = (image.kind() != Kind::Differencing).then_some(Held::Zero);
    let mut at = range.start;
    image.own_extents(range, &mut |own| {
        if at < own.start {
            let _ = push(ByteRange::between(at, own.start), others);
        }
        at = own.end();
        push(own, Some(Held::Data))
    })?;
    if at < range.end() {
        let _ = push(ByteRange::between(at, range.end()), others);
    }
    Ok(())
}

/// What the upmost of `nodes` that has anything of `range` has there, piece by piece.
///
/// # Errors
/// Those of the files.
pub(super) fn held(nodes: &[Arc<Node>], range: ByteRange) -> Result<Vec<HeldRun>> {
    let mut runs = Vec::new();
    gather(nodes, range, &mut runs)?;
    Ok(runs)
}

fn gather(nodes: &[Arc<Node>], range: ByteRange, runs: &mut Vec<HeldRun>) -> Result<()> {
    let Some((first, rest)) = nodes.split_first() else {
        runs.push(HeldRun { range, held: None });
        return Ok(());
    };
    let end = ByteOffset::new(first.size().get()).clamp(range.start, range.end());
    for run in first.own(ByteRange::between(range.start, end))? {
        match run.held {
            Some(_) => runs.push(run),
            None => gather(rest, run.range, runs)?,
        }
    }
    if end < range.end() {
        // What lies behind its end is zeros by its word, whatever is below.
        let behind = ByteRange::between(end, range.end());
        runs.push(HeldRun { range: behind, held: Some(Held::Zero) });
    }
    Ok(())
}

/// Refuses to write another name into an image that is not qcow2.
pub(super) fn check_relinks(node: &Node) -> Result<()> {
    if node.format == ImageFormat::Qcow2 {
        return Ok(());
    }
    let problem = format!("is a {} image, whose backing file is not changed here", node.format);
    Err(Error::new(ErrorKind::Unsupported, node.path.display().to_string(), problem)
        .advise("'firn repo' works on trees of VHDs; other images: convert them to qcow2"))
}
