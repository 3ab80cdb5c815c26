//! Reading, resolving and describing: a sector of the disk is the image's own, or its parent's, or
//! zeros.

use std::ops::ControlFlow;

use block_io::{BlockDevice, Intent, Lease, Place, Resolve, check_range};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result, SECTOR,
};

use super::address::GuestBlock;
use super::footer::Kind;
use super::image::{Sparse, VhdImage};
use super::mapping::{Bitmap, Held, Run};

impl VhdImage {
    /// Fills `buffer` from `at`.
    pub(super) fn do_read(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(buffer));
        let mut rest = buffer;
        self.each_run(range, |piece, own| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(piece.len.as_usize());
            rest = behind;
            match own {
                Some(place) => self.file.read_at(part, place)?,
                None => self.read_parent(part, piece.start)?,
            }
            Ok(())
        })
    }

    /// Calls `each` with all runs of `range` and where those lie that are this image's own.
    pub(super) fn each_run(
        &self,
        range: ByteRange,
        mut each: impl FnMut(ByteRange, Option<ByteOffset>) -> Result<()>,
    ) -> Result<()> {
        let all = self
            .walk_runs(range, |piece, own| each(piece, own).map(|()| ControlFlow::Continue(())));
        all.map(|_whole| ())
    }

    /// Calls `each` with the runs of `range` and where those lie that are this image's own, in
    /// order, until it breaks off, and says whether it did; reads the bitmaps that it takes.
    pub(super) fn walk_runs(
        &self,
        range: ByteRange,
        mut each: impl FnMut(ByteRange, Option<ByteOffset>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let mut at = range.start;
        while at < range.end() {
            let run = self.run(ByteRange::between(at, range.end()));
            let own = match run.held {
                Held::Own(place) => Some(place),
                Held::Absent => None,
                Held::Unknown(block) => {
                    self.load_bitmap(block)?;
                    continue;
                }
            };
            let piece = ByteRange::new(at, run.len);
            if each(piece, own)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = piece.end();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What lies at the start of `range`: a fixed disk has every byte in its place.
    pub(super) fn run(&self, range: ByteRange) -> Run {
        match &self.sparse {
            Some(sparse) => sparse.mapping.run(range),
            None => Run { len: range.len, held: Held::Own(range.start) },
        }
    }

    /// Reads the bitmap of `block`, which has a place.
    pub(super) fn load_bitmap(&self, block: GuestBlock) -> Result<()> {
        let Some(Sparse { mapping, .. }) = &self.sparse else { return Ok(()) };
        let Some(place) = mapping.place(block) else { return Ok(()) };
        if mapping.bitmap(block).is_some() || mapping.is_full(block) {
            return Ok(());
        }
        let mut bytes = vec![0; mapping.block_size().bitmap_bytes().as_usize()];
        self.file.read_at(&mut bytes, place.start())?;
        mapping.enter_bitmap(block, Bitmap::parse(mapping.block_size(), &bytes));
        Ok(())
    }

    /// Fills `buffer` with what lies below this image at `at`: zeros behind a shorter parent's end.
    pub(super) fn read_parent(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let Some(parent) = &self.parent else {
            if self.kind() == Kind::Differencing {
                let problem = format!("the bytes at {at} are its parent's, which is not open");
                return Err(Error::new(ErrorKind::NotFound, self.name(), problem)
                    .advise("open it with its parent, which 'image info' names"));
            }
            buffer.fill(0);
            return Ok(());
        };
        let inside = parent.size().get().saturating_sub(at.get());
        let (part, behind) =
            buffer.split_at_mut(ByteCount::new(inside).min(ByteCount::of(buffer)).as_usize());
        behind.fill(0);
        if part.is_empty() { Ok(()) } else { parent.read_at(part, at) }
    }

    /// Whether everything below this image at `range` is known to be zeros.
    pub(super) fn is_zero_below(&self, range: ByteRange) -> Result<bool> {
        let Some(parent) = &self.parent else {
            return Ok(self.kind() != Kind::Differencing);
        };
        let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, parent.size()));
        let mut zero = true;
        if !inside.is_empty() {
            parent.extents(inside, &mut |extent| {
                zero &= extent.state.reads_zero();
                if zero { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(zero)
    }

    /// Calls `each` with the extents of `range`: where the image has the sectors, what its file
    /// says of them, and where not, what its parent says.
    pub(super) fn do_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.walk_runs(range, |piece, own| match own {
            Some(place) => shifted(&*self.file, ByteRange::new(place, piece.len), piece, each),
            None => self.extents_below(piece, each),
        })
    }

    fn extents_below(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let Some(parent) = &self.parent else {
            // Without the parent that there should be, nothing is known of it.
            let zero = self.kind() != Kind::Differencing;
            let state = if zero { ExtentState::Hole } else { ExtentState::Data };
            return Ok(each(Extent { range, state }));
        };
        let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, parent.size()));
        if !inside.is_empty() && shifted(&**parent, inside, inside, each)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let behind = ByteRange::between(inside.end().max(range.start), range.end());
        if behind.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        Ok(each(Extent { range: behind, state: ExtentState::Hole }))
    }
}

/// Calls `each` with the extents of `below` at `range`, as if they lay at `piece`. Present sectors
/// over a hole of the file read as zeros: the hole is theirs.
fn shifted(
    below: &dyn BlockDevice,
    range: ByteRange,
    piece: ByteRange,
    each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let mut flow = ControlFlow::Continue(());
    below.extents(range, &mut |extent| {
        let start = piece.start.plus(extent.range.start.since(range.start));
        let range = ByteRange::new(start, extent.range.len);
        flow = each(Extent { range, ..extent });
        flow
    })?;
    Ok(flow)
}

impl Resolve for VhdImage {
    /// The lease is the one that the lowest device of the chain gives: it is taken first, for no
    /// bytes at all, so it covers whatever is resolved after it. Places in the image's own file do
    /// not move while it is open, and need none.
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let writes = intent == Intent::Write;
        if (writes && self.check_writable().is_err()) || check_range(self, range).is_err() {
            return None;
        }
        if !range.is_aligned(ByteCount::new(SECTOR)) {
            return None;
        }
        let nothing = ByteRange::new(ByteOffset::ZERO, ByteCount::ZERO);
        let lease = match &self.parent {
            Some(parent) => parent.resolver()?.resolve(Intent::Read, nothing, places)?,
            None => Lease::permanent(),
        };
        let before = places.len();
        let whole = self.resolve_runs(intent, range, places);
        if whole.is_none() {
            places.truncate(before);
        }
        whole.map(|()| lease)
    }
}

impl VhdImage {
    fn resolve_runs<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let file = self.file.resolver()?;
        let mut at = range.start;
        while at < range.end() {
            let run = self.run(ByteRange::between(at, range.end()));
            match run.held {
                Held::Own(place) => {
                    file.resolve(intent, ByteRange::new(place, run.len), places)?;
                }
                Held::Absent if intent == Intent::Read => {
                    self.resolve_below(ByteRange::new(at, run.len), places)?;
                }
                Held::Absent | Held::Unknown(_) => return None,
            }
            at = at.plus(run.len);
        }
        Some(())
    }

    fn resolve_below<'d>(&'d self, range: ByteRange, places: &mut Vec<Place<'d>>) -> Option<()> {
        let mut behind = range;
        if let Some(parent) = &self.parent {
            let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, parent.size()));
            if !inside.is_empty() {
                parent.resolver()?.resolve(Intent::Read, inside, places)?;
                behind = ByteRange::between(inside.end(), range.end());
            }
        } else if self.kind() == Kind::Differencing {
            return None;
        }
        if !behind.is_empty() {
            places.push(Place { file: None, at: ByteOffset::ZERO, len: behind.len });
        }
        Some(())
    }
}
