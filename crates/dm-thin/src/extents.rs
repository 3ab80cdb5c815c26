//! Telling what lies where: mapped blocks, what shows of the external origin, and holes.

use std::ops::ControlFlow;

use block_types::{ByteRange, Extent, ExtentState, Result};

use crate::volume::ThinVolume;

/// Joins neighbours in the same state on their way to `each`.
struct Joined<'e> {
    open: Option<Extent>,
    each: &'e mut dyn FnMut(Extent) -> ControlFlow<()>,
}

impl Joined<'_> {
    fn add(&mut self, next: Extent) -> ControlFlow<()> {
        match &mut self.open {
            Some(open) if open.state == next.state => {
                open.range = ByteRange::between(open.range.start, next.range.end());
                ControlFlow::Continue(())
            }
            open => match open.replace(next) {
                Some(done) => (self.each)(done),
                None => ControlFlow::Continue(()),
            },
        }
    }

    fn end(self) {
        if let Some(last) = self.open {
            // The walk is over whatever the answer is.
            let _ = (self.each)(last);
        }
    }
}

impl ThinVolume {
    /// Reports mapped blocks as data, and of all others what shows there.
    pub(crate) fn do_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut joined = Joined { open: None, each };
        let mut bare = ByteRange::new(range.start, Default::default());
        let size = self.shared.block_size;
        for piece in range.pieces(size.bytes()) {
            if self.lookup(size.locate(piece.start).0)?.is_none() {
                bare = ByteRange::between(bare.start, piece.end());
                continue;
            }
            let mut flow = self.unmapped_extents(bare, &mut joined)?;
            if flow.is_continue() {
                flow = joined.add(Extent { range: piece, state: ExtentState::Data });
            }
            if flow.is_break() {
                return Ok(());
            }
            bare = ByteRange::new(piece.end(), Default::default());
        }
        if self.unmapped_extents(bare, &mut joined)?.is_continue() {
            joined.end();
        }
        Ok(())
    }

    /// Reports what shows in `bare`, where nothing is mapped.
    fn unmapped_extents(
        &self,
        bare: ByteRange,
        joined: &mut Joined<'_>,
    ) -> Result<ControlFlow<()>> {
        match self.core.origin() {
            _ if bare.is_empty() => Ok(ControlFlow::Continue(())),
            Some(origin) => origin.extents(bare, &mut |extent| joined.add(extent)),
            None => Ok(joined.add(Extent { range: bare, state: ExtentState::Hole })),
        }
    }

    /// Whether something of the external origin shows in `range`, or would if nothing were mapped
    /// there, that is not known to be zeros.
    pub(crate) fn shows_origin(&self, range: ByteRange) -> Result<bool> {
        self.core.origin().map_or(Ok(false), |origin| Ok(!origin.reads_zero(range)?))
    }
}
