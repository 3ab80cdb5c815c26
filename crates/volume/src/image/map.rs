//! Where every byte of a disk lies: in which image of the chain, and at which place of its file.
//!
//! Every image is opened for itself here, and asked what it has.

use std::ops::ControlFlow;
use std::path::Path;

use block_io::{BlockDevice, Intent};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::ImageOptions;
use super::chain;
use super::layer::{Held, Layer};

/// What is asked of one image at once: bounds the memory that a map takes.
const WINDOW: ByteCount = ByteCount::new(64 << 20);

/// A run of a disk, in the words of `qemu-img map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// Where on the disk.
    pub range: ByteRange,
    /// In which image: 0 is the topmost.
    pub depth: u32,
    /// Whether that image says what is there, and not just nobody else.
    pub present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
    /// Whether it is read from the file.
    pub data: bool,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where it lies in the file, if it lies there as it is.
    pub offset: Option<ByteOffset>,
}

/// The map of an image with everything below it.
pub struct ImageMap {
    /// The topmost first.
    layers: Vec<Layer>,
}

/// Joins runs that continue each other, and passes them on.
struct Joined<'e> {
    open: Option<MapRun>,
    each: &'e mut dyn FnMut(MapRun) -> ControlFlow<()>,
    flow: ControlFlow<()>,
}

impl ImageMap {
    /// Opens the image at `path` with everything below it, for reading.
    ///
    /// # Errors
    /// As [`DiskImage::open`](super::DiskImage::open).
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self> {
        let links = chain::walk(path, &ImageOptions { read_only: true, ..options.clone() })?;
        Ok(Self { layers: links.into_iter().map(Layer::open).collect::<Result<_>>()? })
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.layers[0].device.device().size()
    }

    /// Calls `each` with the runs of the disk, in order and without gaps, until it breaks off.
    ///
    /// # Errors
    /// Those of the files.
    pub fn for_each(&self, each: &mut dyn FnMut(MapRun) -> ControlFlow<()>) -> Result<()> {
        let mut joined = Joined { open: None, each, flow: ControlFlow::Continue(()) };
        for window in ByteRange::new(ByteOffset::ZERO, self.size()).pieces(WINDOW) {
            self.walk(0, window, &mut joined)?;
            if joined.flow.is_break() {
                return Ok(());
            }
        }
        joined.finish();
        Ok(())
    }

    /// Maps `range` as the image at `depth` has it; what that lacks is asked of the next.
    fn walk(&self, depth: usize, range: ByteRange, joined: &mut Joined<'_>) -> Result<()> {
        let layer = &self.layers[depth];
        let end = ByteOffset::new(layer.device.device().size().get()).min(range.end());
        let inside = ByteRange::between(range.start.min(end), end);
        for run in layer.own_runs(inside)? {
            match run.own {
                None if depth + 1 < self.layers.len() => self.walk(depth + 1, run.range, joined)?,
                None => joined.push(hole(run.range, depth, false)),
                Some(held) => push_own(layer, depth, run.range, held, joined),
            }
        }
        // What lies behind the end of a backing file is zeros by the word of the one above.
        let behind = ByteRange::between(inside.end(), range.end());
        joined.push(hole(behind, depth.saturating_sub(1), false));
        Ok(())
    }
}

impl Joined<'_> {
    fn push(&mut self, next: MapRun) {
        if next.range.is_empty() || self.flow.is_break() {
            return;
        }
        match &mut self.open {
            Some(run) if continues(run, &next) => {
                run.range = ByteRange::between(run.range.start, next.range.end());
            }
            _ => {
                self.finish();
                self.open = Some(next);
            }
        }
    }

    fn finish(&mut self) {
        if let Some(run) = self.open.take()
            && self.flow.is_continue()
        {
            self.flow = (self.each)(run);
        }
    }
}

/// Whether `next` is the same run as `run`, only later.
fn continues(run: &MapRun, next: &MapRun) -> bool {
    let offset = run.offset.map(|offset| offset.plus(run.range.len));
    let later = MapRun { range: next.range, offset, ..*run };
    later == *next
}

fn hole(range: ByteRange, depth: usize, present: bool) -> MapRun {
    let depth = depth as u32;
    MapRun { range, depth, present, zero: true, data: false, compressed: false, offset: None }
}

/// Tells of a run that the image at `depth` itself has.
fn push_own(layer: &Layer, depth: usize, range: ByteRange, held: Held, joined: &mut Joined<'_>) {
    let run = hole(range, depth, true);
    let data = MapRun { zero: false, data: true, ..run };
    match held {
        Held::Zero(offset) => joined.push(MapRun { offset, ..run }),
        Held::At(at) => joined.push(MapRun { offset: Some(at), ..data }),
        Held::Compressed => joined.push(MapRun { compressed: true, ..data }),
        Held::Somewhere => {
            if !push_places(&*layer.device.device(), depth, range, joined) {
                joined.push(data);
            }
        }
    }
}

/// Tells of the places of `range`, if they can be told; says whether they could.
fn push_places(
    device: &dyn BlockDevice,
    depth: usize,
    range: ByteRange,
    joined: &mut Joined<'_>,
) -> bool {
    let mut places = Vec::new();
    let Some(resolver) = device.resolver() else { return false };
    let Some(_lease) = resolver.resolve(Intent::Read, range, &mut places) else { return false };
    let mut at = range.start;
    for place in places {
        let run = hole(ByteRange::new(at, place.len), depth, true);
        joined.push(match place.file {
            Some(_) => MapRun { zero: false, data: true, offset: Some(place.at), ..run },
            None => run,
        });
        at = at.plus(place.len);
    }
    true
}
