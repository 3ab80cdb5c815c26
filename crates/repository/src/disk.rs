//! A disk that is in use: one view after the other of the same content.
//!
//! Reads take the view of the moment. Writes go to its top, under the gate that a switch shuts; a
//! switch waits for the writes on their way, exchanges the view, and opens the gate. How long the
//! gate was shut at most is noted: that is all that a guest sees of a snapshot or a merge, beside
//! the steps of a merge.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_io::{
    BlockDevice, Intent, Lease, LeaseSet, Limits, Place, Resolve, ZeroMode, check_range,
};
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result, SECTOR,
};
use parking_lot::RwLock;

use crate::chain::Chain;
use crate::files::Files;
use crate::layer::Layer;
use crate::view::View;

/// A disk of a repository: a block device whose nodes may be exchanged while it is used.
pub struct Disk {
    name: String,
    size: ByteCount,
    read_only: bool,
    files: Files,
    view: RwLock<Arc<View>>,
    /// Writes share it; a switch has it alone.
    gate: RwLock<()>,
    /// Whether writes must come through the gate: a switch is on its way, or they are mirrored.
    gated: AtomicBool,
    leases: LeaseSet,
    /// The longest time that the gate was shut, in nanoseconds.
    longest: AtomicU64,
}

/// A view that was replaced: to be waited for before anything that it reads is removed.
pub(crate) struct Retired {
    disk: Arc<Disk>,
    view: Arc<View>,
}

impl Disk {
    pub(crate) fn new(
        name: String,
        top: Arc<Layer>,
        below: Arc<Chain>,
        read_only: bool,
    ) -> Result<Self> {
        let files = Files::new();
        let size = top.size();
        let view = View::new(&files, top, below)?;
        Ok(Self {
            name,
            size,
            read_only,
            files,
            view: RwLock::new(Arc::new(view)),
            gate: RwLock::new(()),
            gated: AtomicBool::new(false),
            leases: LeaseSet::new(),
            longest: AtomicU64::new(0),
        })
    }

    /// What the disk is made of now.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The longest time that writes had to wait for a change of the disk's nodes.
    pub fn longest_pause(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }

    /// Notes that a guest may have waited for so long.
    pub(crate) fn note_pause(&self, nanos: u64) {
        self.longest.fetch_max(nanos, Ordering::Relaxed);
    }

    /// A view of `top` over `below`, for [`switch`](Self::switch).
    pub(crate) fn prepare(&self, top: Arc<Layer>, below: Arc<Chain>) -> Result<View> {
        View::new(&self.files, top, below)
    }

    /// Holds up writes, waits for those on their way, and does `work`, which says the view to be
    /// taken from then on; without one, or with an error, the disk stays as it is.
    pub(crate) fn switch(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<View>) -> Result<View>,
    ) -> Result<Retired> {
        let begun = Instant::now();
        self.gated.store(true, Ordering::SeqCst);
        // Requests that were resolved are on their way past the gate.
        self.leases.drain();
        let gate = self.gate.write();
        let old = self.view();
        let next = work(&old);
        if let Ok(next) = next {
            let gated = next.mirror.is_some();
            *self.view.write() = Arc::new(next);
            self.gated.store(gated, Ordering::SeqCst);
            drop(gate);
            self.note_pause(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
            return Ok(Retired { disk: Arc::clone(self), view: old });
        }
        self.gated.store(old.mirror.is_some(), Ordering::SeqCst);
        next.map(|_| unreachable!("a view was handled above"))
    }

    /// Exchanges the view for one that reads the same and has the same top: nobody waits.
    pub(crate) fn exchange(self: &Arc<Self>, next: View) -> Retired {
        let view = std::mem::replace(&mut *self.view.write(), Arc::new(next));
        Retired { disk: Arc::clone(self), view }
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)?;
        if range.is_aligned(ByteCount::new(SECTOR)) {
            return Ok(());
        }
        let problem = format!("{range} are not whole sectors of 512 bytes");
        Err(Error::new(ErrorKind::Invalid, &self.name, problem))
    }

    fn check_write(&self, range: ByteRange) -> Result<()> {
        if self.read_only {
            let problem = "has children, or is served read-only";
            return Err(Error::new(ErrorKind::ReadOnly, &self.name, problem));
        }
        self.check(range)
    }

    /// Has `write` change `range` on the top of the view, and below where that mirrors it.
    fn change(
        &self,
        range: ByteRange,
        mut write: impl FnMut(&View, ByteRange, &Layer) -> Result<()>,
    ) -> Result<()> {
        self.check_write(range)?;
        let _gate = self.gate.read();
        let view = self.view();
        match &view.mirror {
            None => write(&view, range, &view.top),
            Some(mirror) => mirror.write(range, |piece, target| {
                write(&view, piece, &view.top)?;
                target.map_or(Ok(()), |target| write(&view, piece, target))
            }),
        }
    }

    /// Makes `range` zero on `layer`; where nobody holds anything there is nothing to do.
    fn zero_on(&self, view: &View, range: ByteRange, layer: &Layer, mode: ZeroMode) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let held = view.run(ByteRange::between(at, range.end()))?;
            let piece = ByteRange::new(at, held.len);
            // A target below may hold what the top hides with zeros.
            if held.by.is_some() || !mode.may_unmap || view.mirror.is_some() {
                layer.zero(piece, mode)?;
            }
            at = piece.end();
        }
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        self.size
    }

    fn limits(&self) -> Limits {
        let below = self.view().top.image.limits();
        Limits { read_only: self.read_only || below.read_only, ..below }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.check(ByteRange::new(at, ByteCount::of(buffer)))?;
        let view = self.view();
        let (mut rest, mut at) = (buffer, at);
        while !rest.is_empty() {
            let held = view.run(ByteRange::new(at, ByteCount::of(rest)))?;
            let (part, behind) = rest.split_at_mut(held.len.as_usize());
            match held.by {
                Some((layer, _)) => layer.image.read_at(part, at)?,
                None => part.fill(0),
            }
            rest = behind;
            at = at.plus(held.len);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.change(ByteRange::new(at, ByteCount::of(bytes)), |_, piece, layer| {
            let from = piece.start.since(at).as_usize();
            layer.image.write_at(&bytes[from..from + piece.len.as_usize()], piece.start)
        })
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.change(range, |view, piece, layer| self.zero_on(view, piece, layer, mode))
    }

    /// Gives back the space of the top's own sectors; while they are mirrored they stay, lest the
    /// two differ.
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.change(range, |view, piece, layer| match view.mirror {
            None => layer.image.discard(piece),
            Some(_) => Ok(()),
        })
    }

    /// Makes the top durable. What a mirror has written below is not needed until the switch, which
    /// flushes it.
    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let _gate = self.gate.read();
        self.view().top.image.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check(range)?;
        let view = self.view();
        let mut at = range.start;
        while at < range.end() {
            let held = view.run(ByteRange::between(at, range.end()))?;
            let piece = ByteRange::new(at, held.len);
            let mut flow = ControlFlow::Continue(());
            match held.by {
                Some((layer, _)) => layer.image.extents(piece, &mut |extent| {
                    flow = each(extent);
                    flow
                })?,
                None => flow = each(Extent { range: piece, state: ExtentState::Hole }),
            }
            if flow.is_break() {
                return Ok(());
            }
            at = piece.end();
        }
        Ok(())
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

impl Resolve for Disk {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        self.check(range).ok()?;
        let lease = self.leases.acquire();
        let writes = intent == Intent::Write;
        // After the lease was taken: a switch that is not seen here waits for it.
        if writes && (self.read_only || self.gated.load(Ordering::SeqCst)) {
            return None;
        }
        let view = self.view.read();
        if writes && view.top.image.limits().read_only {
            return None;
        }
        let before = places.len();
        if self.resolve_runs(&view, intent, range, places).is_none() {
            places.truncate(before);
            return None;
        }
        Some(lease)
    }
}

impl Disk {
    fn resolve_runs<'d>(
        &'d self,
        view: &View,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let mut at = range.start;
        while at < range.end() {
            let (len, place) = view.place(ByteRange::between(at, range.end()))?;
            match place {
                Some((file, _)) if intent == Intent::Write && file != view.top_file => return None,
                Some((file, start)) => {
                    let inside = ByteRange::new(start, len);
                    // The places of a file do not move; its lease is a permanent one.
                    self.files.get(file).resolver()?.resolve(intent, inside, places)?;
                }
                None if intent == Intent::Write => return None,
                None => places.push(Place { file: None, at: ByteOffset::ZERO, len }),
            }
            at = at.plus(len);
        }
        Some(())
    }
}

impl Retired {
    /// Waits until nobody reads by the view any more.
    pub(crate) fn wait(self) {
        while Arc::strong_count(&self.view) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.disk.leases.drain();
    }
}
