//! Putting an image on another backing file.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use disk_image::qcow2::{self, BackingName, BackingZeros};

use super::chain;
use super::lock::ImageLock;
use super::node::{Node, check_relinks};
use super::open::{DiskImage, Working};
use super::work::{ChainChange, Work, backing_name, joined};
use super::{ImageFormat, ImageOptions};

/// Taking over what differs between the old and the new backing file.
struct Rebase {
    image: Arc<DiskImage>,
    top: Arc<qcow2::Image>,
    /// The image alone.
    node: Arc<Node>,
    old: Arc<dyn BlockDevice>,
    /// The new chain, the upmost first.
    new: Vec<Arc<Node>>,
    _working: Working,
}

impl Work for Rebase {
    fn size(&self) -> ByteCount {
        self.top.size()
    }

    fn pieces(&self, window: ByteRange) -> Result<Vec<ByteRange>> {
        let own = self.node.own(window)?;
        let absent = own.into_iter().filter(|run| run.held.is_none()).map(|run| run.range);
        Ok(joined(absent, self.top.limits().preferred.get(), window))
    }

    fn copy(&self, piece: ByteRange, buffer: &mut [u8]) -> Result<()> {
        let new = &mut buffer[..piece.len.as_usize()];
        let mut before = vec![0; new.len()];
        read(&*self.old, &mut before, piece.start)?;
        let below = self.new[0].device.device();
        read(&*below, new, piece.start)?;
        let unit = self.top.limits().preferred;
        for part in piece.pieces(unit) {
            let from = part.start.since(piece.start).as_usize();
            let bytes = from..from + part.len.as_usize();
            if before[bytes.clone()] != new[bytes] {
                self.top.copy_up(part, BackingZeros::Keep)?;
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<ChainChange> {
        let name = backing_name(&self.node, &self.new[0]);
        self.top.set_backing(Some(&name))?;
        if let Some(below) = &self.node.below {
            below.exchange(Some(self.new[0].device.device()));
        }
        let dropped = self.image.replace_below(self.new.clone());
        Ok(ChainChange { dropped, backing: Some(name.file.display().to_string()) })
    }
}

/// Reads what lies inside `device`; zeros behind its end.
fn read(device: &dyn BlockDevice, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
    let inside = device.size().get().saturating_sub(at.get()).min(buffer.len() as u64);
    let (inside, behind) = buffer.split_at_mut(ByteCount::new(inside).as_usize());
    behind.fill(0);
    if inside.is_empty() { Ok(()) } else { device.read_at(inside, at) }
}

impl DiskImage {
    /// Begins to put the image on the backing file at `backing`: it takes over what that one has
    /// not, and reads the same. Clients may use the disk meanwhile. What is opened below the new
    /// one, `options` decide.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an image that has no backing file; those of
    /// [`DiskImage::open`] for the new chain.
    pub fn rebase(
        self: &Arc<Self>,
        backing: &Path,
        options: &ImageOptions,
    ) -> Result<Box<dyn Work>> {
        let working = self.begin()?;
        let node = self.node(0)?;
        check_relinks(&node)?;
        let top = Arc::clone(self.qcow2("backing file to be changed")?);
        block_io::check_writable(&*top)?;
        let Some(below) = &node.below else {
            let object = self.path().display().to_string();
            return Err(Error::new(ErrorKind::Invalid, object, "has no backing file to change")
                .advise("say --unsafe to give it one, which changes what it reads"));
        };
        let old = Arc::clone(below) as Arc<dyn BlockDevice>;
        let reading = ImageOptions { read_only: true, cache: self.cache, ..options.clone() };
        let mut links = chain::walk(backing, &reading)?;
        let mut new: Vec<Arc<Node>> = Vec::new();
        while let Some(link) = links.pop() {
            new.push(Arc::new(Node::open(link, new.last().map(|node| &**node), true)?));
        }
        new.reverse();
        let image = Arc::clone(self);
        Ok(Box::new(Rebase { image, top, node, old, new, _working: working }))
    }
}

/// Writes another backing file's name, or none, into the image at `path`, and nothing else. The
/// backing files, the old one and the new one, are not looked at; what the image reads where it has
/// nothing itself is what the new one holds.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for formats but qcow2; [`ErrorKind::Busy`].
pub fn rename_backing(path: &Path, backing: Option<(&str, ImageFormat)>) -> Result<()> {
    let _lock = ImageLock::take(path, false)?;
    let file = HostFile::open(path, FileOptions { cache: CacheMode::Cached, read_only: false })?;
    let name = backing
        .map(|(file, format)| BackingName { file: file.into(), format: format.qemu_name().into() });
    qcow2::set_backing(&file, name.as_ref())
}
