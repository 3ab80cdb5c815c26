//! An external origin: what a volume shows where it maps nothing.
//!
//! The kernel has the same: reads of unmapped blocks come from another device as far as that
//! reaches, and a first write copies what it does not cover. Three things are stricter here.
//!
//! - How much of the origin shows is told by who opens the volume, and only ever gets less: a
//!   volume that shrinks and grows again shows zeros there, and so does one whose origin has grown.
//! - What was discarded never reads as what the origin holds. The kernel unmaps a discarded block,
//!   and older data comes back; here the block stays mapped, and gives its space back below.
//! - The rest of a block behind the origin's end is always zeros. The kernel leaves there what the
//!   data device held if the pool does not zero blocks.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block_io::{AlignedBuf, BlockDevice, Intent, Lease, Place};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};

/// A device that a volume begins as, and how much of it shows.
#[derive(Clone)]
pub struct ExternalOrigin {
    device: Arc<dyn BlockDevice>,
    shown: ByteCount,
}

impl ExternalOrigin {
    /// The first `shown` bytes of `device`, which nobody changes while a volume needs it.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] where the device is shorter.
    pub fn new(device: Arc<dyn BlockDevice>, shown: ByteCount) -> Result<Self> {
        if device.size() < shown {
            let problem = format!(
                "has {} bytes, but the volumes that stand on it show {} of them",
                device.size().get(),
                shown.get()
            );
            return Err(Error::new(ErrorKind::OutOfRange, device.name(), problem)
                .advise("give it back its full length; the volumes were not changed"));
        }
        Ok(Self { device, shown })
    }
}

/// The external origin of an open volume.
pub(crate) struct Origin {
    device: Arc<dyn BlockDevice>,
    /// How much of it shows; zeros behind.
    shown: AtomicU64,
    /// Set once the volume holds itself what it showed.
    freed: AtomicBool,
}

impl Origin {
    pub(crate) fn new(origin: ExternalOrigin) -> Self {
        let ExternalOrigin { device, shown } = origin;
        Self { device, shown: AtomicU64::new(shown.get()), freed: AtomicBool::new(false) }
    }

    /// Whether the volume has done with it.
    pub(crate) fn is_freed(&self) -> bool {
        self.freed.load(Ordering::SeqCst)
    }

    /// The volume shows nothing of it any more.
    pub(crate) fn free(&self) {
        self.freed.store(true, Ordering::SeqCst);
    }

    /// Shows nothing from `size` on.
    pub(crate) fn cut(&self, size: ByteCount) {
        self.shown.fetch_min(size.get(), Ordering::SeqCst);
    }

    /// The part of `range` in which it shows.
    pub(crate) fn shown(&self, range: ByteRange) -> ByteRange {
        let shown = ByteCount::new(self.shown.load(Ordering::SeqCst));
        range.intersect(ByteRange::new(ByteOffset::ZERO, shown))
    }

    /// Fills `buffer` with what shows from `at` on, zeros behind it.
    pub(crate) fn read(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let shown = self.shown(ByteRange::new(at, ByteCount::of(buffer)));
        let (held, behind) = buffer.split_at_mut(shown.len.as_usize());
        behind.fill(0);
        let outer = self.aligned(shown);
        if outer == shown {
            return match held {
                [] => Ok(()),
                held => self.device.read_at(held, at),
            };
        }
        let mut bounce = AlignedBuf::zeroed(outer.len.as_usize());
        self.device.read_at(&mut bounce, outer.start)?;
        let from = shown.start.since(outer.start).as_usize();
        held.copy_from_slice(&bounce[from..from + held.len()]);
        Ok(())
    }

    /// Calls `each` with what shows in `range`.
    pub(crate) fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let shown = self.shown(range);
        let mut flow = ControlFlow::Continue(());
        if !shown.is_empty() {
            self.device.extents(self.aligned(shown), &mut |extent| {
                let range = extent.range.intersect(shown);
                if !range.is_empty() {
                    flow = each(Extent { range, ..extent });
                }
                flow
            })?;
        }
        let behind =
            if shown.is_empty() { range } else { ByteRange::between(shown.end(), range.end()) };
        if flow.is_continue() && !behind.is_empty() {
            flow = each(Extent { range: behind, state: ExtentState::Hole });
        }
        Ok(flow)
    }

    /// Whether it is known that nothing but zeros show in `range`.
    pub(crate) fn reads_zero(&self, range: ByteRange) -> Result<bool> {
        let flow = self.extents(range, &mut |extent| match extent.state.reads_zero() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })?;
        Ok(flow.is_continue())
    }

    /// A lease on all that is resolved while it lives.
    pub(crate) fn lease<'d>(&'d self, places: &mut Vec<Place<'d>>) -> Option<Lease<'d>> {
        self.device.resolver()?.resolve(Intent::Read, ByteRange::default(), places)
    }

    /// Appends where the bytes that show in `range` lie. The caller has a lease.
    pub(crate) fn resolve<'d>(
        &'d self,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let shown = self.shown(range);
        if !shown.is_empty() {
            // The lease that was taken first covers it.
            let _covered = self.device.resolver()?.resolve(Intent::Read, shown, places)?;
        }
        let behind = ByteCount::new(range.len.get() - shown.len.get());
        if !behind.is_zero() {
            places.push(Place { file: None, at: ByteOffset::ZERO, len: behind });
        }
        Some(())
    }

    /// `range`, widened to what the device can be asked for.
    fn aligned(&self, range: ByteRange) -> ByteRange {
        if range.is_empty() {
            return range;
        }
        let unit = self.device.limits().minimum;
        let end = range.end().get().next_multiple_of(unit.get()).min(self.device.size().get());
        ByteRange::between(range.start.align_down(unit), ByteOffset::new(end))
    }
}
