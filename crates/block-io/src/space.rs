//! The space under a host file: provisioning, zeroing, discarding, extents and size.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ftruncate, seek};
use rustix::io::Errno;

use crate::{AlignedBuf, HostFile, ZeroMode};

/// Zeros are written in pieces of this size, where the system cannot do it.
const ZEROS: u64 = 1 << 20;

/// Runs of provisioned space that are remembered; with more, all are forgotten and asked for again.
const REMEMBERED_RUNS: usize = 4096;

impl HostFile {
    /// What `provision` does to a range that was checked. A block device has its space, and a
    /// file system that cannot reserve it is taken at its word.
    pub(crate) fn provision_space(&self, range: ByteRange) -> Result<()> {
        if !self.regular {
            return Ok(());
        }
        // Held over the system call, so that no hole is punched between it and what is noted here.
        let mut provisioned = self.provisioned.lock();
        if provisioned.contains(range) {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::KEEP_SIZE, range) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(self.failed(format!("cannot provision {range}"), error)),
        }
        if provisioned.runs() >= REMEMBERED_RUNS {
            provisioned.clear();
        }
        provisioned.insert(range);
        Ok(())
    }

    /// What `zero` does to a range that was checked.
    pub(crate) fn zero_space(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        if range.is_empty() || self.zero_by_system(range, mode.may_unmap)? {
            return Ok(());
        }
        if mode.only_if_fast {
            let problem = format!("cannot zero {range} without writing zeros");
            return Err(Error::new(ErrorKind::Unsupported, &self.name, problem));
        }
        let zeros = AlignedBuf::zeroed(ByteCount::new(ZEROS).min(range.len).as_usize());
        for piece in range.pieces(ByteCount::new(ZEROS)) {
            self.write_whole(&zeros[..piece.len.as_usize()], piece.start)?;
        }
        Ok(())
    }

    /// Has the system zero `range`, and says whether it could.
    fn zero_by_system(&self, range: ByteRange, may_unmap: bool) -> Result<bool> {
        if !range.is_aligned(self.space_unit) {
            return Ok(false);
        }
        if may_unmap && self.punch(range)? {
            return Ok(true);
        }
        match self.fallocate(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, range) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(self.failed(format!("cannot zero {range}"), error)),
        }
    }

    /// What `discard` does to a range that was checked: what of it is whole blocks is punched,
    /// which on a block device is a discard that leaves zeros. Advice: a system that cannot do it
    /// leaves the range as it was.
    pub(crate) fn discard_space(&self, range: ByteRange) -> Result<()> {
        let unit = self.space_unit;
        let start = range.start.get().next_multiple_of(unit.get());
        let end = range.end().align_down(unit);
        if start < end.get() {
            self.punch(ByteRange::between(ByteOffset::new(start), end))?;
        }
        Ok(())
    }

    /// Gives back the space of `range`, which reads as zeros afterwards; says whether it could.
    fn punch(&self, range: ByteRange) -> Result<bool> {
        let mut provisioned = self.provisioned.lock();
        provisioned.remove(range);
        match self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(self.failed(format!("cannot give back {range}"), error)),
        }
    }

    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> rustix::io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        rustix::io::retry_on_intr(|| {
            fallocate(&*self.fd, flags, range.start.get(), range.len.get())
        })
    }

    /// What `extents` does to a range that was checked. Space that is provisioned and was
    /// never written is reported as a hole: seeking does not tell it from one.
    pub(crate) fn space_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let extent = self.extent_at(ByteRange::between(at, range.end()))?;
            if each(extent).is_break() {
                return Ok(());
            }
            at = extent.range.end();
        }
        Ok(())
    }

    /// The extent at the start of `range`, which is not empty, cut at its end.
    fn extent_at(&self, range: ByteRange) -> Result<Extent> {
        let failed = |error| self.failed(format!("cannot find the extents of {range}"), error);
        let upto = |end: u64, state| {
            let end = ByteOffset::new(end.min(range.end().get()));
            Ok(Extent { range: ByteRange::between(range.start, end), state })
        };
        let start = range.start.get();
        match seek(&*self.fd, SeekFrom::Data(start)) {
            Ok(data) if data > start => return upto(data, ExtentState::Hole),
            Ok(_) => {}
            // No data from here to the end.
            Err(Errno::NXIO) => return upto(u64::MAX, ExtentState::Hole),
            // A block device, or a file system that does not know: it may be data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return upto(u64::MAX, ExtentState::Data),
            Err(error) => return Err(failed(error)),
        }
        match seek(&*self.fd, SeekFrom::Hole(start)) {
            // Punched in between, by somebody who writes at the same time.
            Ok(hole) if hole <= start => upto(start + 1, ExtentState::Data),
            Ok(hole) => upto(hole, ExtentState::Data),
            Err(error) => Err(failed(error)),
        }
    }

    /// What `resize` does: regular files only.
    pub(crate) fn resize_space(&self, size: ByteCount) -> Result<()> {
        if !self.regular {
            return Err(Error::new(
                ErrorKind::Unsupported,
                &self.name,
                "is a block device, which has the size it has",
            ));
        }
        self.check_aligned(ByteRange::new(ByteOffset::ZERO, size))?;
        let mut provisioned = self.provisioned.lock();
        rustix::io::retry_on_intr(|| ftruncate(&*self.fd, size.get())).map_err(|error| {
            self.failed(format!("cannot be resized to {} bytes", size.get()), error)
        })?;
        provisioned.truncate(ByteOffset::new(size.get()));
        self.size.store(size.get(), Ordering::Relaxed);
        Ok(())
    }
}
