//! Long work on the chain of an open image, in bounded steps.
//!
//! A step may be the last one at any instant: the disk reads the same all the time, and what has
//! been done already shows in what the images have (RERUNNABLE). Names in headers change in
//! [`Work::finish`] only, after the data that they count on is durable (DATA-FIRST).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use disk_image::qcow2::{self, BackingName, BackingZeros};
use serde::Serialize;

use super::gate::folder_of;
use super::node::{Held, HeldRun, Node, check_relinks, held};
use super::open::{DiskImage, Opened, Working};

/// What long work on a chain came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainChange {
    /// The images that the disk does not need any more, the upmost first.
    pub dropped: Vec<String>,
    /// What the topmost image stands on now.
    pub backing: Option<String>,
}

/// Long work on the chain of an image. Used by several threads at once.
pub trait Work: Send + Sync {
    /// The bytes of the disk that are looked at.
    fn size(&self) -> ByteCount;

    /// What is to be moved of `window`, in order.
    ///
    /// # Errors
    /// Those of the files.
    fn pieces(&self, window: ByteRange) -> Result<Vec<ByteRange>>;

    /// Moves `piece`, or a part of one.
    ///
    /// # Errors
    /// Those of the files.
    fn copy(&self, piece: ByteRange, buffer: &mut [u8]) -> Result<()>;

    /// Makes it count, after every piece was moved.
    ///
    /// # Errors
    /// Those of the files.
    fn finish(&self) -> Result<ChainChange>;

    /// Leaves everything in order, after it was broken off.
    ///
    /// # Errors
    /// Those of the files.
    fn abandon(&self) -> Result<()> {
        Ok(())
    }
}

/// Joins neighbours, with their borders moved out to multiples of `unit`, inside `window`.
pub(super) fn joined(
    ranges: impl Iterator<Item = ByteRange>,
    unit: u64,
    window: ByteRange,
) -> Vec<ByteRange> {
    let mut all: Vec<ByteRange> = Vec::new();
    for range in ranges {
        let start = range.start.align_down(ByteCount::new(unit)).max(window.start);
        let end = range.end().get().next_multiple_of(unit).min(window.end().get());
        match all.last_mut() {
            Some(last) if last.end() >= start => {
                *last = ByteRange::between(last.start, last.end().max(ByteOffset::new(end)));
            }
            _ => all.push(ByteRange::between(start, ByteOffset::new(end))),
        }
    }
    all
}

fn has(run: &HeldRun) -> bool {
    run.held.is_some()
}

/// Pulling what the images below have up into the topmost one.
pub(super) struct Stream {
    pub(super) image: Arc<DiskImage>,
    pub(super) top: Arc<qcow2::Image>,
    /// The topmost image first, the new base last if there is to be one.
    pub(super) nodes: Vec<Arc<Node>>,
    /// The place of the new base in them.
    pub(super) base: usize,
    pub(super) _working: Working,
}

impl Work for Stream {
    fn size(&self) -> ByteCount {
        self.top.size()
    }

    fn pieces(&self, window: ByteRange) -> Result<Vec<ByteRange>> {
        let mut wanted = Vec::new();
        // What the topmost image has is done: so a job that is begun again finds what is left.
        for run in self.nodes[0].own(window)?.into_iter().filter(|run| run.held.is_none()) {
            let below = held(&self.nodes[1..self.base], run.range)?;
            wanted.extend(below.into_iter().filter(has).map(|run| run.range));
        }
        let unit = self.top.limits().preferred.get();
        Ok(joined(wanted.into_iter(), unit, window))
    }

    fn copy(&self, piece: ByteRange, _buffer: &mut [u8]) -> Result<()> {
        let last = self.base == self.nodes.len();
        let zeros = if last { BackingZeros::Drop } else { BackingZeros::Keep };
        self.top.copy_up(piece, zeros).map(drop)
    }

    fn finish(&self) -> Result<ChainChange> {
        let base = self.nodes.get(self.base);
        let name = base.map(|base| backing_name(&self.nodes[0], base));
        self.top.set_backing(name.as_ref())?;
        if let Some(below) = &self.nodes[0].below {
            below.exchange(base.map(|base| base.device.device()));
        }
        let dropped = self.image.drop_nodes(1, self.base);
        Ok(ChainChange { dropped, backing: name.map(|name| name.file.display().to_string()) })
    }
}

/// Writing what images have into the one below them.
pub(super) struct Commit {
    pub(super) image: Arc<DiskImage>,
    pub(super) nodes: Vec<Arc<Node>>,
    /// The place of the upmost image that is committed.
    pub(super) top: usize,
    /// The place of the one that takes it all.
    pub(super) base: usize,
    /// That one, open for writing.
    pub(super) target: Opened,
    pub(super) _working: Working,
}

impl Commit {
    fn committed(&self) -> &[Arc<Node>] {
        &self.nodes[self.top..self.base]
    }

    /// Makes the base durable, and reads from it again as from all that nobody writes.
    fn settle(&self) -> Result<()> {
        self.target.close()?;
        self.image.restore(self.base)
    }
}

impl Work for Commit {
    fn size(&self) -> ByteCount {
        self.nodes[self.top].device.device().size()
    }

    fn pieces(&self, window: ByteRange) -> Result<Vec<ByteRange>> {
        let runs = held(self.committed(), window)?;
        let unit = self.target.device().limits().minimum.get();
        Ok(joined(runs.into_iter().filter(has).map(|run| run.range), unit, window))
    }

    fn copy(&self, piece: ByteRange, buffer: &mut [u8]) -> Result<()> {
        let source = self.nodes[self.top].device.device();
        let target = self.target.device();
        for run in held(self.committed(), piece)? {
            match run.held {
                None => {}
                Some(Held::Zero) => {
                    let mode = ZeroMode { may_unmap: true, only_if_fast: false };
                    target.zero(run.range, mode)?;
                }
                Some(Held::Data) => {
                    let bytes = &mut buffer[..run.range.len.as_usize()];
                    source.read_at(bytes, run.range.start)?;
                    target.write_at(bytes, run.range.start)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<ChainChange> {
        self.settle()?;
        let base = &self.nodes[self.base];
        let backing = self.nodes.get(1).map(|node| node.path.display().to_string());
        if self.top == 0 {
            // The image stays, and reads the same; what it has stands in the base, too.
            return Ok(ChainChange { dropped: Vec::new(), backing });
        }
        let above = &self.nodes[self.top - 1];
        let name = backing_name(above, base);
        self.image.relink(above, &name)?;
        if let Some(below) = &above.below {
            below.exchange(Some(self.image.node(self.base)?.device.device()));
        }
        let dropped = self.image.drop_nodes(self.top, self.base);
        let backing = if self.top == 1 { Some(name.file.display().to_string()) } else { backing };
        Ok(ChainChange { dropped, backing })
    }

    fn abandon(&self) -> Result<()> {
        self.settle()
    }
}

/// How `above` is to name `base`: relative to its own folder if that is possible.
pub(super) fn backing_name(above: &Node, base: &Node) -> BackingName {
    let folder = folder_of(&above.path);
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let path = base.path.canonicalize().unwrap_or_else(|_| base.path.clone());
    let file = path.strip_prefix(&folder).map(Path::to_owned).unwrap_or(path);
    BackingName { file: file.into(), format: base.format.qemu_name().into() }
}

impl DiskImage {
    /// Begins to pull what the images below the topmost have up into it, as far down as `base`,
    /// which the disk stands on afterwards; without one it stands alone then. Clients may use the
    /// disk meanwhile. The images in between stay as they are.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where there is nothing below, or no such base; [`ErrorKind::Busy`]
    /// while other work on the chain goes on; [`ErrorKind::Unsupported`] for formats but qcow2.
    pub fn stream(self: &Arc<Self>, base: Option<&Path>) -> Result<Box<dyn Work>> {
        let working = self.begin()?;
        let nodes = self.nodes();
        check_relinks(&nodes[0])?;
        let top = Arc::clone(self.qcow2("backing file to be changed")?);
        block_io::check_writable(&*top)?;
        let base = match base {
            Some(base) => place_of(&nodes, base)?,
            None => nodes.len(),
        };
        if nodes.len() == 1 || base == 0 {
            return Err(self.nothing_below());
        }
        let nodes = nodes[..nodes.len().min(base + 1)].to_vec();
        Ok(Box::new(Stream { image: Arc::clone(self), top, nodes, base, _working: working }))
    }

    /// Begins to write what `top`, and the images between it and `base`, have into `base`. Without
    /// a `top` it is the image itself, which stays and reads the same; else what stood on `top`
    /// stands on `base` afterwards, and clients may use the disk meanwhile. Without a `base` it is
    /// the next image below `top`.
    ///
    /// Other images that stand on the base, or on an image in between, read something else
    /// afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where there is nothing below, or no such image; [`ErrorKind::Busy`]
    /// while other work on the chain goes on, or another process uses the base.
    pub fn commit(
        self: &Arc<Self>,
        top: Option<&Path>,
        base: Option<&Path>,
    ) -> Result<Box<dyn Work>> {
        let working = self.begin()?;
        let nodes = self.nodes();
        let top = top.map_or(Ok(0), |top| place_of(&nodes, top))?;
        let base = base.map_or(Ok(top + 1), |base| place_of(&nodes, base))?;
        if base >= nodes.len() || base <= top {
            return Err(self.nothing_below());
        }
        if top > 0 {
            check_relinks(&nodes[top - 1])?;
        }
        if nodes[base].external {
            let problem = "keeps its data in another file, and nothing is committed to such images";
            let object = nodes[base].path.display().to_string();
            return Err(Error::new(ErrorKind::Unsupported, object, problem));
        }
        let target = self.reopen_for_writing(base)?;
        let size = nodes[top].device.device().size();
        let grown = if target.device().size() < size { target.resize(size) } else { Ok(()) };
        if let Err(error) = grown {
            target.close().and_then(|()| self.restore(base))?;
            return Err(error);
        }
        Ok(Box::new(Commit {
            image: Arc::clone(self),
            nodes,
            top,
            base,
            target,
            _working: working,
        }))
    }

    fn nothing_below(&self) -> Error {
        let object = self.path().display().to_string();
        Error::new(ErrorKind::Invalid, object, "there is no image below to do that with")
            .advise("'firn image map' shows the chain")
    }
}

/// The place of the image at `path` in a chain.
fn place_of(nodes: &[Arc<Node>], path: &Path) -> Result<usize> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    let wanted = real(path);
    nodes.iter().position(|node| real(&node.path) == wanted).ok_or_else(|| {
        let chain: Vec<_> = nodes.iter().map(|node| node.path.display().to_string()).collect();
        let problem = format!("is no image of the chain {}", chain.join(", "));
        Error::new(ErrorKind::Invalid, path.display().to_string(), problem)
    })
}
