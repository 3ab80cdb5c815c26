//! The plan of a copy: what is to be done to which range, found piece by piece as the job goes on.
//!
//! The extents of the source are asked for a window at a time, so a plan takes little memory
//! however many extents there are. Neighbours with the same action are joined, and their borders
//! moved to multiples of the unit, at the cost of copying a few zeros: what is partly data is data.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};

/// Bytes of the source whose extents are asked for at once.
const WINDOW: ByteCount = ByteCount::new(1 << 30);

/// Extents that are taken at once.
const BATCH: usize = 1024;

/// Bytes made zero by one request. Large, for it moves no data; bounded, for cancelling.
const ZERO_PIECE: ByteCount = ByteCount::new(64 << 20);

/// What is to be done to a range of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Copy it from the source.
    Copy,
    /// Make it read as zeros, as it does in the source.
    Clear,
}

/// A range that one worker deals with in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where, in source and target alike.
    pub(crate) range: ByteRange,
    /// What.
    pub(crate) action: Action,
}

/// What remains to be done.
pub(crate) struct Plan {
    /// Where the extents asked for so far end.
    asked: ByteOffset,
    /// Where the joined ranges end; behind `asked` while it is open what the bytes between become.
    planned: ByteOffset,
    end: ByteOffset,
    /// Borders between actions are multiples of this; a power of two.
    unit: ByteCount,
    /// The largest range to be copied at once; a multiple of the unit.
    piece: ByteCount,
    /// Joined ranges, not yet cut.
    ranges: VecDeque<Piece>,
}

impl Plan {
    /// The plan of everything in `range`, cut into pieces of `piece` bytes at most, with borders at
    /// multiples of `unit`. Both are powers of two, and the piece is not the smaller one.
    pub(crate) fn new(range: ByteRange, unit: ByteCount, piece: ByteCount) -> Self {
        Self {
            asked: range.start,
            planned: range.start,
            end: range.end(),
            unit,
            piece,
            ranges: VecDeque::new(),
        }
    }

    /// The next piece, or `None` at the end. Pieces come in order, without gaps.
    ///
    /// # Errors
    /// What `source` says when it is asked for its extents.
    pub(crate) fn next(&mut self, source: &dyn BlockDevice) -> Result<Option<Piece>> {
        // The last range may still grow, so what is left of it below a full piece waits.
        let mut range = self.first_piece();
        while self.asked < self.end && !range.is_some_and(|range| self.is_complete(range)) {
            self.look_ahead(source)?;
            range = self.first_piece();
        }
        let (Some(range), Some(first)) = (range, self.ranges.front_mut()) else {
            return Ok(None);
        };
        let piece = Piece { range, action: first.action };
        first.range = ByteRange::between(range.end(), first.range.end());
        if first.range.is_empty() {
            self.ranges.pop_front();
        }
        Ok(Some(piece))
    }

    /// The largest piece at the start of the first range.
    fn first_piece(&self) -> Option<ByteRange> {
        let first = self.ranges.front()?;
        first.range.pieces(self.piece_of(first.action)).next()
    }

    /// Whether the first piece cannot become longer by what is yet to be asked for.
    fn is_complete(&self, piece: ByteRange) -> bool {
        let full = self.ranges.front().is_some_and(|first| {
            piece.end() < first.range.end() || piece.end().is_aligned(self.piece_of(first.action))
        });
        full || self.ranges.len() > 1
    }

    /// The largest range to be dealt with at once.
    fn piece_of(&self, action: Action) -> ByteCount {
        match action {
            Action::Copy => self.piece,
            Action::Clear => ZERO_PIECE,
        }
    }

    /// Asks for the extents of the next window.
    fn look_ahead(&mut self, source: &dyn BlockDevice) -> Result<()> {
        let left = self.end.since(self.asked);
        let window = ByteRange::new(self.asked, left.min(WINDOW));
        let mut taken = 0;
        source.extents(window, &mut |extent| {
            self.add(extent);
            taken += 1;
            if taken < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    /// Plans what lies up to the end of `extent`, the one that follows those asked for.
    fn add(&mut self, extent: Extent) {
        let end = extent.range.end();
        self.asked = end;
        let (action, end) = if extent.state.reads_zero() {
            // What is left over of the last unit is zeros too, but data may follow in the unit.
            let whole = if end == self.end { end } else { end.align_down(self.unit) };
            (Action::Clear, whole)
        } else {
            let above = end.get().checked_next_multiple_of(self.unit.get()).unwrap_or(u64::MAX);
            (Action::Copy, ByteOffset::new(above.min(self.end.get())))
        };
        if end <= self.planned {
            return;
        }
        let range = ByteRange::between(self.planned, end);
        self.planned = end;
        match self.ranges.back_mut() {
            Some(last) if last.action == action => {
                last.range = ByteRange::between(last.range.start, end);
            }
            _ => self.ranges.push_back(Piece { range, action }),
        }
    }
}

#[cfg(test)]
mod tests;
