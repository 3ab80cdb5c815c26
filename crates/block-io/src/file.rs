//! A regular file or a block device of the host: reading, writing, flushing and resolving.
//!
//! How it is opened is in `open`, how its space is managed in `space`.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use crate::flush::Flushes;
use crate::ranges::RangeSet;
use crate::request::request_range;
use crate::{
    AlignedBuf, BlockDevice, Intent, Lease, Limits, Place, Resolve, ZeroMode, check_range,
    check_writable, open,
};

/// The size of the buffer through which memory goes that is not aligned as O_DIRECT wants it.
const BOUNCE: usize = 1 << 20;

/// The request size that suits the page cache and most disks.
const PREFERRED: ByteCount = ByteCount::new(4096);

/// Whether a file's data goes through the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// O_DIRECT: straight between memory and disk; requests are aligned.
    #[default]
    Direct,
    /// Through the page cache; any alignment.
    Cached,
}

/// How to open a file.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Through the page cache or past it.
    pub cache: CacheMode,
    /// Refuse writes; the file itself is opened read-only.
    pub read_only: bool,
}

/// A regular file or a block device of the host.
///
/// Its size is the one it had when it was opened, changed by [`BlockDevice::resize`] only.
#[derive(Debug)]
pub struct HostFile {
    /// Shared with the queues, so that it stays open until their I/O is complete.
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) name: String,
    pub(crate) size: AtomicU64,
    pub(crate) cache: CacheMode,
    /// What requests are multiples of.
    pub(crate) alignment: ByteCount,
    pub(crate) read_only: bool,
    /// A regular file, as opposed to a block device.
    pub(crate) regular: bool,
    /// What zeroing and discarding by the system are multiples of.
    pub(crate) space_unit: ByteCount,
    /// Ranges whose space is known to be there.
    pub(crate) provisioned: Mutex<RangeSet>,
    pub(crate) flushes: Flushes,
}

impl HostFile {
    /// Creates a sparse file of `size` bytes that read as zeros. It must not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], or what the system says.
    pub fn create(path: &Path, size: ByteCount, cache: CacheMode) -> Result<Self> {
        open::create(path, size, cache)
    }

    /// Opens a regular file or a block device.
    ///
    /// O_DIRECT falls back to the page cache, with a line in the log, where the file system refuses
    /// it or the size is not a multiple of its alignment; [`cache_mode`](Self::cache_mode) tells.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Denied`]; [`ErrorKind::ReadOnly`];
    /// [`ErrorKind::Unsupported`] for a directory, a pipe and the like.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self> {
        open::open(path, options)
    }

    /// How it was opened in the end.
    pub fn cache_mode(&self) -> CacheMode {
        self.cache
    }

    /// Whether it is a regular file, which can grow, as opposed to a block device.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    /// What offset, length and, for queues, memory address of requests are multiples of: 1 when
    /// cached, the logical block size when direct.
    pub fn alignment(&self) -> ByteCount {
        self.alignment
    }

    /// Reads what the page cache holds of the bytes at `at`, without ever waiting for the disk:
    /// how many bytes it was, at least one and perhaps fewer than asked for. `None` when the first
    /// of them is not there, or the file does not go through the cache.
    pub fn read_if_cached(&self, buffer: &mut [u8], at: ByteOffset) -> Option<usize> {
        if self.cache == CacheMode::Direct {
            return None;
        }
        let mut buffers = [std::io::IoSliceMut::new(buffer)];
        let read =
            rustix::io::preadv2(&*self.fd, &mut buffers, at.get(), ReadWriteFlags::NOWAIT).ok()?;
        (read > 0).then_some(read)
    }

    /// The error of a failed system call on the file.
    pub(crate) fn failed(&self, doing: impl Into<String>, error: Errno) -> Error {
        Error::io(&self.name, doing, error.into())
    }

    /// Checks the alignment of a request.
    pub(crate) fn check_aligned(&self, range: ByteRange) -> Result<()> {
        if range.is_aligned(self.alignment) {
            return Ok(());
        }
        let unit = self.alignment.get();
        Err(Error::new(
            ErrorKind::Invalid,
            &self.name,
            format!("{range} are not aligned to the {unit} bytes that O_DIRECT demands"),
        )
        .advise("open the file through the page cache, or send aligned requests"))
    }

    /// Whether the memory at `buffer` may go to the disk as it is.
    fn is_aligned_memory(&self, buffer: &[u8]) -> bool {
        buffer.as_ptr().addr().is_multiple_of(self.alignment.as_usize())
    }

    /// Fills `buffer` from `at` by as many reads as it takes.
    pub(crate) fn read_whole(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let from = at.get() + done as u64;
            match rustix::io::pread(&*self.fd, &mut buffer[done..], from) {
                Ok(0) => {
                    let problem = format!("ends at {from}, before its size: it was truncated");
                    return Err(Error::new(ErrorKind::Io, &self.name, problem));
                }
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let count = buffer.len() - done;
                    return Err(self.failed(format!("cannot read {count} bytes at {from}"), error));
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `at` by as many writes as it takes.
    pub(crate) fn write_whole(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let to = at.get() + done as u64;
            match rustix::io::pwrite(&*self.fd, &bytes[done..], to) {
                Ok(0) => {
                    let problem = format!("takes no more bytes at {to}");
                    return Err(Error::new(ErrorKind::Io, &self.name, problem));
                }
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let count = bytes.len() - done;
                    return Err(self.failed(format!("cannot write {count} bytes at {to}"), error));
                }
            }
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<()> {
        loop {
            match rustix::fs::fdatasync(&*self.fd) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("cannot be flushed", error)),
            }
        }
    }
}

impl BlockDevice for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::Relaxed))
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: self.alignment,
            preferred: self.alignment.max(PREFERRED),
            read_only: self.read_only,
            discards: !self.read_only,
            zeroes_fast: !self.read_only,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.check_aligned(request_range(self, buffer.len(), at)?)?;
        if self.is_aligned_memory(buffer) {
            return self.read_whole(buffer, at);
        }
        let mut bounce = AlignedBuf::zeroed(buffer.len().min(BOUNCE));
        let mut at = at;
        for part in buffer.chunks_mut(BOUNCE) {
            self.read_whole(&mut bounce[..part.len()], at)?;
            part.copy_from_slice(&bounce[..part.len()]);
            at = at.plus(ByteCount::of(part));
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        check_writable(self)?;
        self.check_aligned(request_range(self, bytes.len(), at)?)?;
        if self.is_aligned_memory(bytes) {
            return self.write_whole(bytes, at);
        }
        let mut bounce = AlignedBuf::zeroed(bytes.len().min(BOUNCE));
        let mut at = at;
        for part in bytes.chunks(BOUNCE) {
            bounce[..part.len()].copy_from_slice(part);
            self.write_whole(&bounce[..part.len()], at)?;
            at = at.plus(ByteCount::of(part));
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        check_writable(self)?;
        check_range(self, range)?;
        self.check_aligned(range)?;
        self.zero_space(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        check_writable(self)?;
        check_range(self, range)?;
        self.discard_space(range)
    }

    fn flush(&self) -> Result<()> {
        self.flushes.flush(&self.name, || self.sync())
    }

    /// Costs a look into memory where it was done before, so it may be asked for every write.
    fn provision(&self, range: ByteRange) -> Result<()> {
        check_writable(self)?;
        check_range(self, range)?;
        self.provision_space(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        self.space_extents(range, each)
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        check_writable(self)?;
        self.resize_space(size)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

impl Resolve for HostFile {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let fits = range.end().get() <= self.size.load(Ordering::Relaxed);
        let refused = intent == Intent::Write && self.read_only;
        if !fits || refused || !range.is_aligned(self.alignment) {
            return None;
        }
        if !range.is_empty() {
            places.push(Place { file: Some(self), at: range.start, len: range.len });
        }
        Some(Lease::permanent())
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
