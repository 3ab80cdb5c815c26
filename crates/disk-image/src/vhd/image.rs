//! An open VHD: what is known of it, and how it answers as a block device.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use block_io::{BlockDevice, Limits, Resolve, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result, SECTOR};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::address::GuestBlock;
use super::alloc::Space;
use super::batmap::Batmap;
use super::commit::{Pending, Progress};
use super::footer::{Footer, Kind};
use super::header::Header;
use super::identity::DiskId;
use super::mapping::Mapping;
use super::write::Fill;

/// Locks of blocks; blocks whose numbers agree modulo this share one.
const BLOCK_LOCKS: usize = 64;

/// A VHD that is open: a block device over the file, and for a differencing disk its parent.
///
/// Any number of threads may use it; one process has it open for writing.
///
/// Locks are taken in this order: a block's, `space`, `heads`, `pending`.
pub struct VhdImage {
    pub(super) file: Arc<dyn BlockDevice>,
    pub(super) parent: Option<Arc<dyn BlockDevice>>,
    pub(super) opened_as: Kind,
    /// It was a differencing disk, and has no parent any more.
    pub(super) detached: AtomicBool,
    pub(super) size: AtomicU64,
    pub(super) read_only: bool,
    /// Why nothing is written any more.
    stopped: OnceLock<String>,
    pub(super) heads: Mutex<Heads>,
    /// What only sparse disks have.
    pub(super) sparse: Option<Sparse>,
}

/// Footer, header and batmap, as the file has them.
pub(super) struct Heads {
    pub(super) footer: Footer,
    /// Where the footer at the end lies.
    pub(super) footer_at: ByteOffset,
    pub(super) header: Option<Header>,
    /// The batmap, if there is one that is trusted.
    pub(super) batmap: Option<Batmap>,
    /// Why it is not trusted.
    pub(super) distrust: Option<String>,
}

/// Where the bytes of a dynamic or differencing disk lie.
pub(super) struct Sparse {
    pub(super) mapping: Mapping,
    /// The free space of the file; `None` if it is not written.
    pub(super) space: Option<Mutex<Space>>,
    /// By how much the file is made longer at once.
    pub(super) step: ByteCount,
    pub(super) pending: Mutex<Pending>,
    /// The commit that makes the last change of the mapping durable.
    pub(super) dirty: AtomicU64,
    pub(super) progress: Mutex<Progress>,
    pub(super) progressed: Condvar,
    /// Requests that may change a block's mapping hold its lock.
    locks: [Mutex<()>; BLOCK_LOCKS],
}

/// The parent of a differencing disk, which the caller has opened.
#[derive(Clone)]
pub struct Parent {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Its UUID; `None` for a raw one.
    pub id: Option<DiskId>,
}

/// How to open an image.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// By how much the file is made longer at once, as long as the disk could use it; what is left
    /// of it when the image is closed is given back.
    pub step: ByteCount,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, step: ByteCount::new(64 << 20) }
    }
}

impl Sparse {
    pub(super) fn new(mapping: Mapping, space: Option<Space>, step: ByteCount) -> Self {
        Self {
            mapping,
            space: space.map(Mutex::new),
            step,
            pending: Mutex::new(Pending::new()),
            dirty: AtomicU64::new(0),
            progress: Mutex::new(Progress::new()),
            progressed: Condvar::new(),
            locks: [const { Mutex::new(()) }; BLOCK_LOCKS],
        }
    }

    pub(super) fn lock_block(&self, block: GuestBlock) -> MutexGuard<'_, ()> {
        self.locks[block.index() % BLOCK_LOCKS].lock()
    }
}

impl VhdImage {
    pub(super) fn new(
        file: Arc<dyn BlockDevice>,
        parent: Option<Arc<dyn BlockDevice>>,
        heads: Heads,
        sparse: Option<Sparse>,
        read_only: bool,
    ) -> Self {
        Self {
            file,
            parent,
            opened_as: heads.footer.kind(),
            detached: AtomicBool::new(false),
            size: AtomicU64::new(heads.footer.size().get()),
            read_only,
            stopped: OnceLock::new(),
            heads: Mutex::new(heads),
            sparse,
        }
    }

    /// Checks that writes are taken.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, self.name(), "is open read-only"));
        }
        match self.stopped.get() {
            None => Ok(()),
            Some(why) => {
                let problem = format!("takes no writes: {why}");
                Err(Error::new(ErrorKind::Stopped, self.name(), problem))
            }
        }
    }

    /// FAIL-STOP: takes no more writes, since `error` leaves open what is durable. The first reason
    /// stays.
    pub(super) fn stop(&self, error: &Error) {
        let why = format!("{error}; what was flushed before is kept");
        if self.stopped.set(why).is_ok() {
            tracing::error!(image = self.name(), "stopped: {error}");
        }
    }

    /// The image is closed.
    pub(super) fn stop_as_closed(&self) {
        // An earlier reason stays.
        let _ = self.stopped.set("it is closed".to_owned());
    }

    pub(super) fn check_write(&self, range: ByteRange) -> Result<()> {
        self.check_writable()?;
        self.check_request(range)
    }

    /// Checks that `range` lies in the disk and is whole sectors, of which bitmaps are made.
    fn check_request(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)?;
        if range.is_aligned(ByteCount::new(SECTOR)) {
            return Ok(());
        }
        let problem = format!("{range} are not whole sectors of 512 bytes");
        Err(Error::new(ErrorKind::Invalid, self.name(), problem))
    }
}

impl BlockDevice for VhdImage {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::SeqCst))
    }

    fn limits(&self) -> Limits {
        let below = self.file.limits();
        Limits {
            minimum: ByteCount::new(SECTOR),
            preferred: below.preferred,
            read_only: self.read_only || self.stopped.get().is_some(),
            discards: below.discards,
            zeroes_fast: below.zeroes_fast,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.check_request(request(self, buffer.len(), at)?)?;
        self.do_read(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = request(self, bytes.len(), at)?;
        self.check_write(range)?;
        self.do_write(range, Fill::Bytes(bytes))
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.check_write(range)?;
        self.do_zero(range, mode)
    }

    /// Gives back space of the file under sectors that are present; they stay so, since their
    /// absence would show the parent's.
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.check_write(range)?;
        self.do_discard(range)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.check_writable()?;
        self.commit()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.check_request(range)?;
        self.do_extents(range, each).map(|_| ())
    }

    /// Makes the disk larger; see [`grow`](Self::grow). Making it smaller is refused.
    fn resize(&self, size: ByteCount) -> Result<()> {
        self.check_writable()?;
        self.grow(size)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

/// The range of a request for `len` bytes at `at`.
fn request(image: &VhdImage, len: usize, at: ByteOffset) -> Result<ByteRange> {
    ByteRange::checked(at, ByteCount::new(len as u64)).ok_or_else(|| {
        let problem = format!("{len} bytes at {at} lie past every end");
        Error::new(ErrorKind::OutOfRange, image.name(), problem)
    })
}
