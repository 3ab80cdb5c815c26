use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use block_io::{BlockDevice, Limits, ZeroMode};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};

use super::{Action, Piece, Plan};

/// A device that has extents and nothing else.
struct Extents {
    size: u64,
    /// Extents that were asked for.
    asked: AtomicU64,
    /// Starts, with the state up to the next.
    starts: Vec<(u64, ExtentState)>,
}

impl Extents {
    fn new(size: u64, starts: impl IntoIterator<Item = (u64, ExtentState)>) -> Self {
        Self { size, asked: AtomicU64::new(0), starts: starts.into_iter().collect() }
    }

    fn state_and_end(&self, at: u64) -> (ExtentState, u64) {
        let next = self.starts.partition_point(|(start, _)| *start <= at);
        let end = self.starts.get(next).map_or(self.size, |(start, _)| *start);
        (self.starts[next - 1].1, end)
    }
}

fn refused() -> Result<()> {
    Err(Error::new(ErrorKind::Unsupported, "extents", "has no content"))
}

impl BlockDevice for Extents {
    fn name(&self) -> &str {
        "extents"
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.size)
    }

    fn limits(&self) -> Limits {
        let one = ByteCount::new(1);
        Limits {
            minimum: one,
            preferred: one,
            read_only: true,
            discards: false,
            zeroes_fast: false,
        }
    }

    fn read_at(&self, _buffer: &mut [u8], _at: ByteOffset) -> Result<()> {
        refused()
    }

    fn write_at(&self, _bytes: &[u8], _at: ByteOffset) -> Result<()> {
        refused()
    }

    fn zero(&self, _range: ByteRange, _mode: ZeroMode) -> Result<()> {
        refused()
    }

    fn discard(&self, _range: ByteRange) -> Result<()> {
        refused()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = range.start.get();
        while at < range.end().get() {
            let (state, end) = self.state_and_end(at);
            let end = end.min(range.end().get());
            let range = ByteRange::between(ByteOffset::new(at), ByteOffset::new(end));
            self.asked.fetch_add(1, Ordering::Relaxed);
            if each(Extent { range, state }).is_break() {
                break;
            }
            at = end;
        }
        Ok(())
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(ByteOffset::new(start), ByteOffset::new(end))
}

fn pieces(device: &Extents, of: ByteRange, unit: u64, piece: u64) -> Vec<Piece> {
    let mut plan = Plan::new(of, ByteCount::new(unit), ByteCount::new(piece));
    std::iter::from_fn(|| plan.next(device).unwrap()).collect()
}

const COPY: Action = Action::Copy;
const CLEAR: Action = Action::Clear;

#[test]
fn data_is_widened_to_the_unit_and_zeros_are_narrowed() {
    let device = Extents::new(
        1000,
        [
            (0, ExtentState::Hole),
            (130, ExtentState::Data),
            (140, ExtentState::Zero),
            (190, ExtentState::Hole),
            (250, ExtentState::Zero),
            (700, ExtentState::Data),
            (701, ExtentState::Hole),
        ],
    );
    let found = pieces(&device, range(0, 1000), 64, 256);
    let expected = [
        (range(0, 128), CLEAR),
        (range(128, 192), COPY),
        (range(192, 640), CLEAR),
        (range(640, 704), COPY),
        (range(704, 1000), CLEAR),
    ];
    assert_eq!(found, expected.map(|(range, action)| Piece { range, action }));
}

#[test]
fn nothing_outside_the_range_is_touched() {
    let device = Extents::new(
        1000,
        [(0, ExtentState::Data), (120, ExtentState::Hole), (500, ExtentState::Data)],
    );
    let found = pieces(&device, range(100, 510), 64, 64);
    let expected = [(range(100, 128), COPY), (range(128, 448), CLEAR), (range(448, 512 - 2), COPY)];
    assert_eq!(found, expected.map(|(range, action)| Piece { range, action }));
    assert!(pieces(&device, range(7, 7), 64, 64).is_empty());
}

/// Extents beyond a batch and sizes beyond a window: still no gap, and no data left out.
#[test]
fn long_plans_cover_everything_once() {
    const EXTENT: u64 = 24 << 10;
    let size: u64 = (3 << 30) + 12345;
    let starts = (0..size.div_ceil(EXTENT)).map(|number| {
        let state = if number % 3 == 0 { ExtentState::Data } else { ExtentState::Hole };
        (number * EXTENT, state)
    });
    let device = Extents::new(size, starts);
    let mut at = 0;
    for piece in pieces(&device, range(0, size), 4096, 1 << 20) {
        assert_eq!(piece.range.start.get(), at);
        at = piece.range.end().get();
        let (state, end) = device.state_and_end(piece.range.start.get());
        let data = state == ExtentState::Data;
        assert_eq!(data, piece.action == Action::Copy, "{piece:?}");
        if data {
            assert!(end >= at, "{piece:?} reaches past the data");
        }
    }
    assert_eq!(at, size);
}

/// A device full of data, told in small extents, is not looked through before the first byte moves.
#[test]
fn the_first_piece_does_not_wait_for_the_whole_plan() {
    let starts = (0..1 << 16).map(|number| (number << 16, ExtentState::Data));
    let device = Extents::new(4 << 30, starts);
    let mut plan = Plan::new(range(0, 4 << 30), ByteCount::new(4096), ByteCount::new(1 << 20));
    let first = plan.next(&device).unwrap();
    assert_eq!(first, Some(Piece { range: range(0, 1 << 20), action: COPY }));
    assert!(device.asked.load(Ordering::Relaxed) <= 1024);
}
