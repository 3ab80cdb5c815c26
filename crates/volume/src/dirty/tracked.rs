//! A disk whose writes are recorded.

use std::ops::ControlFlow;
use std::sync::Arc;

use arc_swap::ArcSwap;
use block_io::{
    BlockDevice, Intent, Lease, LeaseSet, Limits, Place, Resolve, ZeroMode, check_range,
};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::Mutex;

use super::recorder::Recorder;

/// A device that notes in its bitmaps what is written to it.
pub struct Tracked {
    below: Arc<dyn BlockDevice>,
    recorders: ArcSwap<Vec<Arc<Recorder>>>,
    /// Held by whoever changes the list.
    changing: Mutex<()>,
    /// Of writes that are noted and not done yet.
    leases: LeaseSet,
}

impl Tracked {
    /// `below`, with nothing that records yet.
    pub fn new(below: Arc<dyn BlockDevice>) -> Self {
        Self {
            below,
            recorders: ArcSwap::default(),
            changing: Mutex::default(),
            leases: LeaseSet::new(),
        }
    }

    /// The device itself: what is written to it is not noted.
    pub fn below(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.below)
    }

    /// Those that record, in the order in which they began.
    pub fn recorders(&self) -> Vec<Arc<Recorder>> {
        self.recorders.load().to_vec()
    }

    /// Has all of `recorders` begin. When this returns, every write that is not noted is done.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for a name that records already.
    pub fn begin(&self, recorders: &[Arc<Recorder>]) -> Result<()> {
        let _alone = self.changing.lock();
        let mut list = self.recorders.load().to_vec();
        for recorder in recorders {
            if list.iter().any(|known| known.name() == recorder.name()) {
                let object = format!("bitmap {}", recorder.name());
                return Err(Error::new(ErrorKind::Exists, object, "records already"));
            }
            list.push(Arc::clone(recorder));
        }
        self.recorders.store(Arc::new(list));
        self.leases.drain();
        Ok(())
    }

    /// Has the recorder called `name` end, if it is there. When this returns nothing more is noted.
    pub fn end(&self, name: &str) -> Option<Arc<Recorder>> {
        let _alone = self.changing.lock();
        let mut list = self.recorders.load().to_vec();
        let place = list.iter().position(|known| known.name() == name)?;
        let ended = list.remove(place);
        self.recorders.store(Arc::new(list));
        self.leases.drain();
        Some(ended)
    }

    /// Waits for every write that was noted before the call: what it wrote can be read after it.
    pub fn drain(&self) {
        self.leases.drain();
    }

    /// Puts exact bits where regions are kept as wholly changed; for lulls, and before closing.
    ///
    /// # Errors
    /// Those of the stores.
    pub fn refine(&self) -> Result<()> {
        let recorders = self.recorders();
        recorders.iter().try_for_each(|recorder| recorder.refine(|| self.leases.drain()))
    }

    /// Notes a write to `range` in every bitmap that records. The lease is dropped when the write
    /// is done.
    fn note(&self, range: ByteRange) -> Result<Lease<'_>> {
        check_range(self, range)?;
        loop {
            let lease = self.leases.acquire();
            if self.note_now(range) {
                return Ok(lease);
            }
            // Without the lease: whoever refines waits for all of them.
            drop(lease);
            for recorder in self.recorders.load().iter() {
                recorder.cover(range)?;
            }
        }
    }

    /// Notes a write where that is certain already. A note in some and not in all is one that says
    /// too much, for a moment as a rule.
    fn note_now(&self, range: ByteRange) -> bool {
        self.recorders.load().iter().all(|recorder| recorder.note(range))
    }
}

impl BlockDevice for Tracked {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn size(&self) -> ByteCount {
        self.below.size()
    }

    fn limits(&self) -> Limits {
        self.below.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.below.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let _noted = self.note(ByteRange::new(at, ByteCount::of(bytes)))?;
        self.below.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        let _noted = self.note(range)?;
        self.below.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        let _noted = self.note(range)?;
        self.below.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.below.flush()
    }

    fn provision(&self, range: ByteRange) -> Result<()> {
        self.below.provision(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.below.extents(range, each)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        self.below.resolver().map(|_| self as &dyn Resolve)
    }
}

impl Resolve for Tracked {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let below = self.below.resolver()?;
        if intent == Intent::Read {
            return below.resolve(intent, range, places);
        }
        let noted = self.leases.acquire();
        if !self.note_now(range) {
            return None;
        }
        let before = places.len();
        let joined = below.resolve(intent, range, places)?.and(noted);
        if joined.is_none() {
            places.truncate(before);
        }
        joined
    }
}
