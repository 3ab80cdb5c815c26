//! What differs between two devices of a pool, in bytes of the second.

use std::ops::Range;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Result};
use dm_thin::delta::{self as blocks, Kind, Options, Side, delta};
use dm_thin::dump::View;
use dm_thin::{DeviceId, ls};

use crate::ChangedRange;

/// What is compared beside the mappings of two devices. Sizes are bytes.
pub(crate) struct Scope {
    /// The end of the second device.
    pub(crate) size: ByteCount,
    /// Where the two may differ also if both map nothing: they show other origins there.
    pub(crate) below: Range<u64>,
    /// Whether the second device shows an external origin where it maps nothing.
    pub(crate) over_origin: bool,
}

/// Calls `each` with the ranges where the device `to` holds something else than the device `from`
/// does, neighbours joined, as they are found: by the pool's `metadata`, which nobody changes
/// meanwhile.
///
/// # Errors
/// `NotFound` where one of them is missing; `Corrupt` for broken metadata; the failures of the
/// device and of `each`.
pub(crate) fn diff_metadata(
    metadata: Arc<dyn BlockDevice>,
    from: DeviceId,
    to: DeviceId,
    scope: Scope,
    each: &mut dyn FnMut(ChangedRange) -> Result<()>,
) -> Result<()> {
    let block = ls::list(Arc::clone(&metadata), View::Live, false)?.block_size.get();
    let (left, right) = (Side::Device(from), Side::Device(to));
    let mut changes = Changes { block, scope, below_added: false, each, last: None };
    let options = Options { left, right, view: View::Live, same: false };
    delta(metadata, &options, &mut |range| changes.add(&range))?;
    changes.end()
}

/// Turns ranges of blocks into ranges of bytes, neighbours of one kind joined, as they come.
struct Changes<'e> {
    block: u64,
    scope: Scope,
    below_added: bool,
    each: &'e mut dyn FnMut(ChangedRange) -> Result<()>,
    last: Option<ChangedRange>,
}

impl Changes<'_> {
    /// Adds the next range; one that is the same on both sides is passed over.
    fn add(&mut self, range: &blocks::Range) -> Result<()> {
        let kind = match range.kind {
            Kind::Same => return Ok(()),
            Kind::LeftOnly if !self.scope.over_origin => "discarded",
            Kind::LeftOnly | Kind::RightOnly | Kind::Different => "data",
        };
        let start = range.from.get().saturating_mul(self.block);
        let end = start.saturating_add(range.len.saturating_mul(self.block));
        let below = self.scope.below.clone();
        self.push(kind, start, end.min(below.start))?;
        if end > below.start {
            self.add_below()?;
        }
        self.push(kind, start.max(below.end), end)
    }

    /// Adds what differs whatever is mapped, once.
    fn add_below(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.below_added, true) {
            return Ok(());
        }
        let Range { start, end } = self.scope.below;
        self.push("data", start, end)
    }

    fn push(&mut self, kind: &str, start: u64, end: u64) -> Result<()> {
        let end = end.min(self.scope.size.get());
        if start >= end {
            return Ok(());
        }
        let length = end - start;
        if let Some(last) = &mut self.last {
            if last.kind == kind && last.start + last.length == start {
                last.length += length;
                return Ok(());
            }
            (self.each)(last.clone())?;
        }
        self.last = Some(ChangedRange { start, length, kind: kind.into() });
        Ok(())
    }

    /// Hands over the last range.
    fn end(mut self) -> Result<()> {
        self.add_below()?;
        self.last.map_or(Ok(()), self.each)
    }
}

#[cfg(test)]
mod tests {
    use super::{Changes, Scope};
    use block_types::ByteCount;
    use dm_thin::GuestBlock;
    use dm_thin::delta::{Kind, Range};

    #[test]
    fn neighbours_are_joined_and_the_end_is_cut() {
        let mut found = Vec::new();
        let mut each = |range: crate::ChangedRange| {
            found.push((range.start, range.length, range.kind));
            Ok(())
        };
        let size = ByteCount::new(95);
        let scope = Scope { size, below: 0..0, over_origin: false };
        let mut changes =
            Changes { block: 10, scope, below_added: false, each: &mut each, last: None };
        let parts = [
            (Kind::RightOnly, 0, 2),
            (Kind::Different, 2, 1),
            (Kind::Same, 3, 1),
            (Kind::Different, 4, 1),
            (Kind::LeftOnly, 5, 3),
            (Kind::Different, 9, 4),
            (Kind::LeftOnly, 20, 1),
        ];
        for (kind, from, len) in parts {
            let from = GuestBlock::new(from);
            changes.add(&Range { kind, from, len, left: None, right: None }).expect("taken");
        }
        changes.end().expect("taken");
        let expected = [(0, 30, "data"), (40, 10, "data"), (50, 30, "discarded"), (90, 5, "data")];
        let expected = expected.map(|(start, length, kind)| (start, length, kind.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_shows_another_origin_differs_once_and_in_its_place() {
        let mut found = Vec::new();
        let mut each = |range: crate::ChangedRange| {
            found.push((range.start, range.length, range.kind));
            Ok(())
        };
        let size = ByteCount::new(200);
        let scope = Scope { size, below: 50..80, over_origin: true };
        let mut changes =
            Changes { block: 10, scope, below_added: false, each: &mut each, last: None };
        let parts = [(1, 1), (4, 2), (6, 1), (7, 4), (15, 1)];
        for (from, len) in parts {
            let (kind, from) = (Kind::LeftOnly, GuestBlock::new(from));
            changes.add(&Range { kind, from, len, left: None, right: None }).expect("taken");
        }
        changes.end().expect("taken");
        let expected = [(10, 10), (40, 70), (150, 10)];
        assert_eq!(found, expected.map(|(start, length)| (start, length, "data".to_owned())));
    }
}
