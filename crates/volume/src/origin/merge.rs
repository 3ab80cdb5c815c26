//! Writing a volume back into its origin: what it holds over the origin is copied there, and then
//! given up, so that the volume shows it where it is now.
//!
//! RERUNNABLE: while blocks are copied the volume reads them in the pool, and the rest in the
//! origin, which is written only where the volume does not look. Blocks are given up only when the
//! origin holds them durably, and from then on both hold the same.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use block_io::{AlignedBuf, BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use dm_thin::{DeviceId, ThinVolume};

use crate::open::open_image;
use crate::{
    DiskImage, NodeName, OriginEntry, OriginSource, PoolDirectory, RecordedChange, VolumeName,
};

/// How much a step copies.
const STEP: ByteCount = ByteCount::new(4 << 20);
/// How much a step gives up.
const RELEASE: ByteCount = ByteCount::new(256 << 20);

/// A merge that has begun.
pub struct Merge {
    pool: Arc<PoolDirectory>,
    name: VolumeName,
    volume: ThinVolume,
    target: Target,
    /// What the volume holds, in order.
    runs: Vec<ByteRange>,
    phase: Phase,
}

/// The origin, open for writing.
pub(super) enum Target {
    Image(DiskImage),
    Device(Arc<dyn BlockDevice>),
}

/// What comes next.
#[derive(Clone, Copy)]
enum Phase {
    /// Zeros, where the volume shows nothing of the origin that the origin has.
    Hide(ByteRange),
    /// Copying, from this byte of this run on.
    Copy {
        run: usize,
        at: ByteOffset,
    },
    /// Giving up, from there on.
    Release(ByteOffset),
    Done,
}

impl Target {
    fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Image(image) => image.device(),
            Self::Device(device) => Arc::clone(device),
        }
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        match self {
            Self::Image(image) => image.resize(size),
            Self::Device(device) => device.resize(size),
        }
    }

    fn close(&self) -> Result<()> {
        match self {
            Self::Image(image) => image.close(),
            Self::Device(device) => device.flush(),
        }
    }
}

impl PoolDirectory {
    /// Begins to write a volume back into its external origin. Nobody may use the volume, nor the
    /// origin, which grows where it is smaller.
    ///
    /// # Errors
    /// `Invalid` where there is no origin; `Busy` where the volume or the origin is in use, and
    /// where others in the pool stand on the origin, unless that is `forced`: what they read
    /// changes then. Those of opening the origin for writing.
    pub fn merge(self: &Arc<Self>, name: &VolumeName, forced: bool) -> Result<Merge> {
        let origin = self.check_merge(name, forced)?;
        // Our own lock would be in the way.
        self.origins.retain(|source| *source != origin.origin);
        let target = open_target(&origin.origin)
            .and_then(|target| self.merge_into(name, target, ByteCount::new(origin.shown)));
        if target.is_err() {
            self.origins.keep(std::iter::once(origin.origin));
        }
        target
    }

    /// The origin of a volume that may be merged.
    pub(super) fn check_merge(&self, name: &VolumeName, forced: bool) -> Result<OriginEntry> {
        let refuse = |kind, problem: String, advice: &str| {
            Err(Error::new(kind, format!("volume {name}"), problem).advise(advice))
        };
        let mut state = self.names.lock();
        self.writable_log(&mut state.log)?;
        let known = state.table.known(&NodeName { volume: name.clone(), snapshot: None })?;
        let Some(origin) = known.origin else {
            let advice = "'firn volume show' tells what a volume stands on";
            return refuse(ErrorKind::Invalid, "stands on no external origin".into(), advice);
        };
        let others: Vec<String> = state
            .table
            .over_origins()
            .filter(|(other, entry)| other.id != known.id && entry.origin == origin.origin)
            .map(|(other, _)| match state.table.name_of(other.id) {
                Some(node) => node.to_string(),
                None => format!("#{}", other.id),
            })
            .collect();
        if !others.is_empty() && !forced {
            let problem = format!(
                "shares its origin {} with {}, which would read otherwise after the merge",
                origin.origin.address,
                others.join(", ")
            );
            let advice = "free them with 'firn volume hydrate', delete them, or say --force if \
                          what they hold does not matter any more";
            return refuse(ErrorKind::Busy, problem, advice);
        }
        if self.pool.is_open(DeviceId::new(known.id)?) {
            let advice = "disconnect its clients first";
            return refuse(ErrorKind::Busy, "is in use".into(), advice);
        }
        Ok(origin)
    }

    pub(super) fn merge_into(
        self: &Arc<Self>,
        name: &VolumeName,
        target: Target,
        shown: ByteCount,
    ) -> Result<Merge> {
        let known = {
            let names = self.names.lock();
            names.table.known(&NodeName { volume: name.clone(), snapshot: None })?
        };
        let (id, size) = (DeviceId::new(known.id)?, ByteCount::new(known.size));
        // Without the origin: only what it holds itself is read.
        let volume = self.pool.open_volume(id, &format!("volume {name}"), size, true)?;
        let runs = self.runs(id, size)?;
        block_io::check_writable(&*target.device())?;
        let before = target.device().size();
        if before < size {
            target.resize(size).map_err(|error| {
                let problem = format!("its {before} cannot become the {size} of the volume");
                Error::new(error.kind(), target.device().name(), problem)
                    .because(error)
                    .advise("make it larger, or the volume smaller with 'firn volume resize'")
            })?;
        }
        let hidden = ByteOffset::new(before.min(size).get());
        let from = ByteOffset::new(shown.get()).min(hidden);
        let phase = Phase::Hide(ByteRange::between(from, hidden));
        Ok(Merge { pool: Arc::clone(self), name: name.clone(), volume, target, runs, phase })
    }

    /// What a device of `size` maps, neighbours joined.
    fn runs(&self, id: DeviceId, size: ByteCount) -> Result<Vec<ByteRange>> {
        let block = self.pool.status().block_size;
        let whole = ByteRange::new(ByteOffset::ZERO, size);
        let mut runs: Vec<ByteRange> = Vec::new();
        self.pool.mappings(id, &mut |at, _| {
            let start = ByteOffset::new(at.get() * block.get());
            let range = ByteRange::new(start, block).intersect(whole);
            match runs.last_mut() {
                _ if range.is_empty() => {}
                Some(last) if last.end() == range.start => {
                    *last = ByteRange::between(last.start, range.end());
                }
                _ => runs.push(range),
            }
            ControlFlow::Continue(())
        })?;
        Ok(runs)
    }
}

/// Opens an origin for writing, which nobody else may have open.
fn open_target(source: &OriginSource) -> Result<Target> {
    let options = source.options(false)?;
    if source.is_remote() {
        return open_image(&source.address, &options).map(Target::Device);
    }
    DiskImage::open(Path::new(&source.address), &options).map(Target::Image)
}

impl Merge {
    /// How much is to be copied.
    pub fn total(&self) -> ByteCount {
        ByteCount::new(self.runs.iter().map(|run| run.len.get()).sum())
    }

    /// Goes on for a while, and returns how much was copied; `None` once it is done. What a merge
    /// that is given up has written into the origin, the volume hides until it is begun again.
    ///
    /// # Errors
    /// Those of the pool and of the origin.
    pub fn step(&mut self) -> Result<Option<ByteCount>> {
        let mut copied = ByteCount::ZERO;
        self.phase = match self.phase {
            Phase::Hide(hidden) => self.hide(hidden)?,
            Phase::Copy { run, at } => match self.runs.get(run).copied() {
                Some(range) => {
                    let end = at.plus(STEP).min(range.end());
                    self.copy(ByteRange::between(at, end))?;
                    copied = end.since(at);
                    if end == range.end() {
                        self.copy_from(run + 1)
                    } else {
                        Phase::Copy { run, at: end }
                    }
                }
                None => self.settle()?,
            },
            Phase::Release(at) => self.release(at)?,
            Phase::Done => return Ok(None),
        };
        Ok(Some(copied))
    }

    /// The phase of copying `run` and those behind it.
    fn copy_from(&self, run: usize) -> Phase {
        let at = self.runs.get(run).map_or(ByteOffset::ZERO, |range| range.start);
        Phase::Copy { run, at }
    }

    /// Makes zeros of what the volume does not show of the origin.
    fn hide(&self, hidden: ByteRange) -> Result<Phase> {
        if hidden.is_empty() {
            return Ok(self.copy_from(0));
        }
        let end = hidden.start.plus(RELEASE).min(hidden.end());
        let piece = ByteRange::between(hidden.start, end);
        self.put(piece, None)?;
        Ok(Phase::Hide(ByteRange::between(end, hidden.end())))
    }

    fn copy(&self, piece: ByteRange) -> Result<()> {
        let mut bytes = AlignedBuf::zeroed(piece.len.as_usize());
        self.volume.read_at(&mut bytes, piece.start)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return self.put(piece, None);
        }
        self.put(piece, Some(&bytes))
    }

    /// Writes bytes, or zeros, into the origin, which may take less of them at once than whole
    /// units: what lies around them is written as it is.
    fn put(&self, piece: ByteRange, bytes: Option<&[u8]>) -> Result<()> {
        let device = self.target.device();
        let unit = device.limits().minimum;
        if piece.is_aligned(unit) {
            let mode = ZeroMode { may_unmap: true, only_if_fast: false };
            return match bytes {
                Some(bytes) => device.write_at(bytes, piece.start),
                None => device.zero(piece, mode),
            };
        }
        let end = piece.end().get().next_multiple_of(unit.get()).min(device.size().get());
        let outer = ByteRange::between(piece.start.align_down(unit), ByteOffset::new(end));
        let mut whole = AlignedBuf::zeroed(outer.len.as_usize());
        device.read_at(&mut whole, outer.start)?;
        let from = piece.start.since(outer.start).as_usize();
        let part = &mut whole[from..from + piece.len.as_usize()];
        match bytes {
            Some(bytes) => part.copy_from_slice(bytes),
            None => part.fill(0),
        }
        device.write_at(&whole, outer.start)
    }

    /// All is in the origin: makes that durable, and then lets the volume show it.
    fn settle(&self) -> Result<Phase> {
        self.target.device().flush()?;
        let mut state = self.pool.names.lock();
        let (volume, shown) = (self.name.clone(), self.volume.size().get());
        self.pool.record(&mut state, RecordedChange::Merge { volume, shown }, Vec::new())?;
        Ok(Phase::Release(ByteOffset::ZERO))
    }

    /// Gives up what the origin holds.
    fn release(&self, at: ByteOffset) -> Result<Phase> {
        let size = ByteOffset::new(self.volume.size().get());
        if at < size {
            let end = at.plus(RELEASE).min(size);
            self.pool.pool.uncover(&self.volume, ByteRange::between(at, end))?;
            return Ok(Phase::Release(end));
        }
        self.pool.pool.commit()?;
        self.target.close()?;
        Ok(Phase::Done)
    }
}
