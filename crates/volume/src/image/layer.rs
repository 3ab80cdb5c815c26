//! What one image of a chain has by itself.

use std::ops::ControlFlow;

use block_io::{BlockDevice, Limits, ZeroMode};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use disk_image::vhd::VhdImage;
use parking_lot::Mutex;

use super::map::Layer;
use super::open::Opened;

/// More than any disk has.
const ENDLESS: ByteCount = ByteCount::new(1 << 62);

/// A run of an image, and what it has there; `None` where it leaves that to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnRun {
    pub(super) range: ByteRange,
    pub(super) own: Option<ExtentState>,
}

/// Stands in for a backing file, and notes which extents it is asked for.
#[derive(Default)]
pub(super) struct Absent {
    asked: Mutex<Vec<ByteRange>>,
}

impl Absent {
    /// What was asked for since the last time.
    fn take(&self) -> Vec<ByteRange> {
        std::mem::take(&mut *self.asked.lock())
    }

    fn refuse(&self) -> Error {
        Error::new(ErrorKind::Unsupported, self.name(), "holds nothing; it only notes questions")
    }
}

impl BlockDevice for Absent {
    fn name(&self) -> &str {
        "stand-in for a backing file"
    }

    fn size(&self) -> ByteCount {
        ENDLESS
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(1),
            preferred: ByteCount::new(4096),
            read_only: true,
            discards: false,
            zeroes_fast: false,
        }
    }

    fn read_at(&self, _buffer: &mut [u8], _at: ByteOffset) -> Result<()> {
        Err(self.refuse())
    }

    fn write_at(&self, _bytes: &[u8], _at: ByteOffset) -> Result<()> {
        Err(self.refuse())
    }

    fn zero(&self, _range: ByteRange, _mode: ZeroMode) -> Result<()> {
        Err(self.refuse())
    }

    fn discard(&self, _range: ByteRange) -> Result<()> {
        Err(self.refuse())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.asked.lock().push(range);
        // Whether it goes on is the caller's business: everything was said.
        let _ = each(Extent { range, state: ExtentState::Data });
        Ok(())
    }
}

/// What `layer` has of `range`, in order and without gaps.
pub(super) fn own_runs(layer: &Layer, range: ByteRange) -> Result<Vec<OwnRun>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    match &layer.device {
        Opened::Vhd(image) => vhd_runs(image, range),
        Opened::Qcow2(image) => {
            let extents = extents(&**image, range)?;
            Ok(match &layer.absent {
                Some(absent) => without(&extents, &absent.take()),
                // There is nothing below, so it makes no difference why a hole is one.
                None => extents.into_iter().map(lowest).collect(),
            })
        }
        Opened::Raw(file) => Ok(extents(&**file, range)?.into_iter().map(whole).collect()),
    }
}

fn extents(device: &dyn BlockDevice, range: ByteRange) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    device.extents(range, &mut |extent| {
        found.push(extent);
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn whole(extent: Extent) -> OwnRun {
    OwnRun { range: extent.range, own: Some(extent.state) }
}

fn lowest(extent: Extent) -> OwnRun {
    let own = Some(extent.state).filter(|state| *state != ExtentState::Hole);
    OwnRun { range: extent.range, own }
}

/// `extents`, of which `absent` are not the image's own; both in order.
fn without(extents: &[Extent], absent: &[ByteRange]) -> Vec<OwnRun> {
    let mut runs = Vec::new();
    let mut absent = absent.iter().copied().peekable();
    for extent in extents {
        let mut at = extent.range.start;
        while at < extent.range.end() {
            while absent.next_if(|gap| gap.end() <= at).is_some() {}
            let (end, own) = match absent.peek() {
                Some(gap) if gap.start <= at => (gap.end(), None),
                Some(gap) => (gap.start, Some(extent.state)),
                None => (extent.range.end(), Some(extent.state)),
            };
            let range = ByteRange::between(at, end.min(extent.range.end()));
            runs.push(OwnRun { range, own });
            at = range.end();
        }
    }
    runs
}

/// What a VHD has. One without a parent has its holes, too.
fn vhd_runs(image: &VhdImage, range: ByteRange) -> Result<Vec<OwnRun>> {
    let others = match image.kind() {
        disk_image::vhd::Kind::Differencing => None,
        disk_image::vhd::Kind::Fixed | disk_image::vhd::Kind::Dynamic => Some(ExtentState::Hole),
    };
    let mut runs = Vec::new();
    let mut at = range.start;
    image.own_extents(range, &mut |own| {
        if at < own.start {
            runs.push(OwnRun { range: ByteRange::between(at, own.start), own: others });
        }
        runs.push(OwnRun { range: own, own: Some(ExtentState::Data) });
        at = own.end();
        ControlFlow::Continue(())
    })?;
    if at < range.end() {
        runs.push(OwnRun { range: ByteRange::between(at, range.end()), own: others });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::{OwnRun, without};
    use block_types::{ByteOffset, ByteRange, Extent, ExtentState};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(ByteOffset::new(start), ByteOffset::new(end))
    }

    #[test]
    fn gaps_are_cut_out_of_extents() {
        let data = Extent { range: range(10, 50), state: ExtentState::Data };
        let zero = Extent { range: range(50, 60), state: ExtentState::Zero };
        let runs = without(&[data, zero], &[range(0, 5), range(10, 20), range(30, 52)]);
        let run = |start, end, own| OwnRun { range: range(start, end), own };
        assert_eq!(
            runs,
            [
                run(10, 20, None),
                run(20, 30, Some(ExtentState::Data)),
                run(30, 50, None),
                run(50, 52, None),
                run(52, 60, Some(ExtentState::Zero)),
            ]
        );
        assert_eq!(without(&[data], &[]), [run(10, 50, Some(ExtentState::Data))]);
    }
}
