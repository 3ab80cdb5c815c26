//! An image as a block device.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use block_io::{BlockDevice, Limits, Resolve, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::commit::Progress;
use super::geometry::GuestCluster;
use super::header::Header;
use super::snapshot_table::SnapshotTable;
use super::source::Source;
use super::state::State;
use super::write::Fill;

/// Locks of clusters; clusters whose numbers agree modulo this share one.
pub(super) const CLUSTER_LOCKS: u64 = 64;

/// An image that is open.
///
/// Reading takes no lock. What a crash can take away is what was not flushed; whatever happens, the
/// file is an image that every reader of the format understands, with leaks at worst.
/// [`close`](Self::close) gives back what the file has grown beyond its need.
pub struct Image {
    pub(super) source: Source,
    pub(super) header: RwLock<Header>,
    pub(super) snapshots: RwLock<SnapshotTable>,
    pub(super) progress: Mutex<Progress>,
    pub(super) progressed: Condvar,
    /// What resolves: see [`Gate`].
    pub(super) gate: AtomicU8,
    /// Held for reading by requests that change the disk, for writing by what must see none of them
    /// in flight.
    pub(super) changing: RwLock<()>,
    /// The same for requests that read.
    pub(super) reading: RwLock<()>,
    /// Requests that may change what a cluster is hold its lock.
    pub(super) clusters: [Mutex<()>; CLUSTER_LOCKS as usize],
    pub(super) size: AtomicU64,
    pub(super) stopped: OnceLock<String>,
    /// Whether the first write of a guest has been prepared for.
    pub(super) prepared: AtomicBool,
    /// Whether the first change of tables has been.
    pub(super) preparing: Mutex<bool>,
    /// The bitmaps that somebody records in.
    pub(super) recorded: Mutex<HashSet<String>>,
    /// Held while bits are put there.
    pub(super) putting: Mutex<()>,
    /// Whether the space of freed clusters is given back to the file.
    pub(super) discards: bool,
    /// Held while compressed data are placed and written.
    pub(super) packing: Mutex<()>,
    /// The snapshots that are open, by their L1 tables.
    pub(super) views: Mutex<Vec<(ByteOffset, Weak<()>)>>,
}

/// What resolves at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Gate {
    /// Everything.
    Open = 0,
    /// Reads.
    Reads = 1,
    /// Nothing.
    Closed = 2,
}

impl Image {
    /// The header as it is now.
    pub fn header(&self) -> Header {
        self.header.read().clone()
    }

    /// Makes everything durable and cuts the file behind the last cluster that is used.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`].
    pub fn close(&self) -> Result<()> {
        if self.source.state.is_none() {
            return Ok(());
        }
        let _nobody_changes = self.changing.write();
        self.settle()?;
        self.state()?.lock().trim(&*self.source.file)?;
        self.settle()
    }

    /// The clusters of the file.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] for an image that is open read-only.
    pub(super) fn state(&self) -> Result<&Mutex<State>> {
        self.source
            .state
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::ReadOnly, &*self.source.name, "is open read-only"))
    }

    /// Locks the clusters from `first` on, in the order of the locks.
    pub(super) fn lock_clusters(&self, first: GuestCluster, count: u64) -> Vec<MutexGuard<'_, ()>> {
        let mut wanted: Vec<u64> =
            (0..count.min(CLUSTER_LOCKS)).map(|ahead| (first.0 + ahead) % CLUSTER_LOCKS).collect();
        wanted.sort_unstable();
        wanted.into_iter().map(|lock| self.clusters[lock as usize].lock()).collect()
    }

    /// Locks one cluster.
    pub(super) fn lock_cluster(&self, cluster: GuestCluster) -> MutexGuard<'_, ()> {
        self.clusters[(cluster.0 % CLUSTER_LOCKS) as usize].lock()
    }

    /// Checks that a request may change `range`, and prepares for the first one.
    pub(super) fn check_write(&self, range: ByteRange) -> Result<()> {
        self.state()?;
        self.check_running()?;
        check_range(self, range)?;
        self.prepare_writes()
    }

    /// Runs `work` while nothing changes the disk, and with [`Gate::Closed`] nothing reads it.
    pub(super) fn alone<T>(&self, gate: Gate, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // While others go on: what is left to be made durable when they wait is little.
        self.flush_all()?;
        let _nobody_changes = self.changing.write();
        self.gate.store(gate as u8, Ordering::SeqCst);
        let _nobody_reads = (gate == Gate::Closed).then(|| self.reading.write());
        // Requests that were resolved before the gate was shut.
        self.source.leases.drain();
        let done = self.commit_all().and_then(|()| work());
        self.gate.store(Gate::Open as u8, Ordering::SeqCst);
        done
    }
}

impl BlockDevice for Image {
    fn name(&self) -> &str {
        &self.source.name
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::SeqCst))
    }

    fn limits(&self) -> Limits {
        let data = self.source.data().limits();
        let minimum = data.minimum.max(self.source.file.limits().minimum);
        Limits {
            minimum,
            preferred: self.source.geometry.cluster().min(ByteCount::new(1 << 20)).max(minimum),
            read_only: self.source.state.is_none() || self.stopped.get().is_some(),
            discards: true,
            zeroes_fast: self.source.geometry.zero_clusters,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let _reads = self.reading.read();
        let range = checked(self, buffer.len(), at)?;
        self.source.read(buffer, range.start)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let _changes = self.changing.read();
        let range = checked(self, bytes.len(), at)?;
        self.check_write(range)?;
        self.write_range(range, Fill::Bytes(bytes))
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        let _changes = self.changing.read();
        self.check_write(range)?;
        self.zero_range(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        let _changes = self.changing.read();
        self.check_write(range)?;
        self.discard_range(range)
    }

    fn flush(&self) -> Result<()> {
        if self.source.state.is_none() {
            return Ok(());
        }
        self.flush_all()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        // Collected first, so that `each` may use the device.
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            {
                let _reads = self.reading.read();
                let rest = ByteRange::between(at, range.end());
                check_range(self, rest)?;
                self.source.extents(rest, &mut |extent| {
                    found.push(extent);
                    if found.len() < 256 {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
            }
            for extent in found.drain(..) {
                at = extent.range.end();
                if each(extent).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.resize_disk(size)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

/// The range of a request for `len` bytes at `at`, which lies inside `device`.
pub(super) fn checked(device: &dyn BlockDevice, len: usize, at: ByteOffset) -> Result<ByteRange> {
    let Some(range) = ByteRange::checked(at, ByteCount::new(len as u64)) else {
        let problem = format!("{len} bytes at {at} lie past every end");
        return Err(Error::new(ErrorKind::OutOfRange, device.name(), problem));
    };
    check_range(device, range)?;
    Ok(range)
}

/// Keeps a view of a snapshot in the list of those that are open while it lives.
pub(super) fn new_token() -> Arc<()> {
    Arc::new(())
}
