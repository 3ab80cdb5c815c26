//! A committed state of an open pool's metadata, held for readers: a device that reads as the
//! metadata did then, while the pool is written on.
//!
//! Any number may be held at once. A hold lives in memory alone: it withholds the blocks that it
//! needs from later commits (`persistent_data::Hold`), and overlays the superblock as it was. So
//! every tool for closed metadata works on it, the space maps included, and a crash leaves nothing
//! of it. As with the metadata snapshot that the kernel knows, what the devices hold is not kept.
//!
//! FULL-IS-NOT-BROKEN: writers come first. Where metadata runs out and cannot grow, holds are
//! broken, and their readers told so.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_io::{BlockDevice, Limits, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use persistent_data::{BLOCK_SIZE, Hold};

use crate::Pool;
use crate::shared::Shared;

/// The metadata of a pool as one commit left it, for reading. Dropping it ends the hold.
pub struct HeldMetadata {
    shared: Arc<Shared>,
    name: String,
    device: Arc<dyn BlockDevice>,
    size: ByteCount,
    superblock: Box<[u8; BLOCK_SIZE]>,
    hold: Hold,
}

impl Pool {
    /// Holds the metadata as a commit of everything that was answered leaves it.
    ///
    /// # Errors
    /// What stops the commit; the metadata device's failures.
    pub fn hold_metadata(&self) -> Result<HeldMetadata> {
        self.commit_if_writable()?;
        HeldMetadata::take(&self.shared)
    }
}

impl HeldMetadata {
    /// Holds the metadata as the last commit left it.
    pub(crate) fn take(shared: &Arc<Shared>) -> Result<Self> {
        let device = Arc::clone(shared.store.device());
        let name = format!("{}, metadata", shared.name);
        let mut superblock = Box::new([0; BLOCK_SIZE]);
        // Under the lock nobody commits, so this is the superblock of the blocks that are held.
        let mut trees = shared.trees.lock();
        device.read_at(&mut superblock[..], ByteOffset::ZERO)?;
        let hold = trees.hold();
        drop(trees);
        let size = device.size();
        Ok(Self { shared: Arc::clone(shared), name, device, size, superblock, hold })
    }

    fn refuse(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, &*self.name, "is a state of the past, which never changes")
    }
}

impl Drop for HeldMetadata {
    fn drop(&mut self) {
        self.shared.trees.lock().let_go(&self.hold);
    }
}

impl BlockDevice for HeldMetadata {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, discards: false, ..self.device.limits() }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(buffer));
        check_range(self, range)?;
        self.device.read_at(buffer, at)?;
        if let Some(rest) = self.superblock.get(at.get().min(BLOCK_SIZE as u64) as usize..) {
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
        }
        // After the read: what was read before the hold was broken is right.
        if self.hold.broken().load(Ordering::SeqCst) {
            let problem = "could not hold the state that was being read any longer: its space was \
                           needed, or a commit failed";
            return Err(Error::new(ErrorKind::OutOfSpace, &*self.name, problem)
                .advise("see to it that the metadata has room, and try again"));
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> Result<()> {
        Err(self.refuse())
    }

    fn zero(&self, _: ByteRange, _: ZeroMode) -> Result<()> {
        Err(self.refuse())
    }

    fn discard(&self, _: ByteRange) -> Result<()> {
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
        check_range(self, range)?;
        self.device.extents(range, each)
    }
}
