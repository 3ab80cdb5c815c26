//! Making a disk larger.

use std::sync::atomic::Ordering;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use super::footer::{FOOTER, Kind, MOST};
use super::image::{Sparse, VhdImage};
use super::write::Fill;

impl VhdImage {
    /// Makes the disk larger; what is added reads as zeros. Durable when it returns; after a crash
    /// the disk has the old size or the new one.
    ///
    /// A sparse disk grows as far as its block allocation table reaches
    /// ([`CreateOptions::largest`](super::CreateOptions::largest)).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a smaller size, and for one beyond the table;
    /// [`ErrorKind::Invalid`] for one that no VHD has.
    pub fn grow(&self, size: ByteCount) -> Result<()> {
        self.check_writable()?;
        let old = self.size();
        if size == old {
            return Ok(());
        }
        if size < old {
            let problem =
                format!("cannot be made smaller, from {} to {} bytes", old.get(), size.get());
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem)
                .advise("convert it to a new image of that size"));
        }
        check_size(self.name(), size)?;
        match &self.sparse {
            Some(sparse) => self.grow_sparse(sparse, size),
            None => self.grow_fixed(size),
        }
    }

    fn grow_sparse(&self, sparse: &Sparse, size: ByteCount) -> Result<()> {
        let blocks = sparse.mapping.block_size().count(size);
        let most = sparse.mapping.capacity();
        if blocks > most as u64 {
            let largest = ByteCount::new(most as u64 * sparse.mapping.block_size().bytes().get());
            let problem = format!("has a table for {largest} at most, less than {size}");
            return Err(Error::new(ErrorKind::Unsupported, self.name(), problem)
                .advise("convert it to a new image with room to grow"));
        }
        let old = self.size();
        self.hide_longer_parent(sparse, old, size)?;
        self.commit()?;
        // Entries beyond the old size may hold anything; from now on they count.
        self.clear_unneeded_entries(sparse)?;
        let mut heads = self.heads.lock();
        let footer = heads.footer.with_size(size);
        self.write_footers(&mut heads, footer)?;
        self.size.store(size.get(), Ordering::SeqCst);
        Ok(())
    }

    /// Where the parent is longer than this disk was, what is added has to hide it.
    fn hide_longer_parent(&self, sparse: &Sparse, old: ByteCount, new: ByteCount) -> Result<()> {
        if self.kind() != Kind::Differencing {
            return Ok(());
        }
        let Some(parent) = &self.parent else {
            let problem = "cannot grow while its parent is not open, which may be longer";
            return Err(Error::new(ErrorKind::NotFound, self.name(), problem)
                .advise("open it with its parent"));
        };
        let end = parent.size().min(new);
        if end <= old {
            return Ok(());
        }
        let (from, to) = (ByteOffset::new(old.get()), ByteOffset::new(end.get()));
        let added = ByteRange::between(from, to);
        for piece in added.pieces(sparse.mapping.block_size().bytes()) {
            if !self.is_zero_below(piece)? {
                self.do_write(piece, Fill::Zeros(ZeroMode::default()))?;
            }
        }
        Ok(())
    }

    /// Makes every entry of the table unused that the disk does not need. Durable when it returns.
    pub(super) fn clear_unneeded_entries(&self, sparse: &Sparse) -> Result<()> {
        let needed = 4 * sparse.mapping.block_size().count(self.size());
        let last = (4 * sparse.mapping.capacity() as u64).div_ceil(SECTOR);
        // The first of these sectors may hold entries that are needed; they stay as they are.
        let first = u32::try_from(needed / SECTOR).unwrap_or(0);
        let sectors = first..u32::try_from(last).unwrap_or(0);
        self.between_commits(sparse, || {
            self.write_table_sectors(sparse, sectors)?;
            self.barrier()
        })
    }

    /// A fixed disk's footer lies where the added bytes will be. The new one is written behind
    /// them, still with the old size; the old one is made zeros; then the size is changed.
    fn grow_fixed(&self, size: ByteCount) -> Result<()> {
        let mut heads = self.heads.lock();
        let old_at = heads.footer_at;
        let new_at = ByteOffset::new(size.get());
        if new_at > old_at {
            self.file.resize(ByteCount::new(new_at.plus(FOOTER).get()))?;
            self.file.write_at(&heads.footer.bytes(), new_at)?;
            self.barrier()?;
            heads.footer_at = new_at;
        }
        let old_end = ByteOffset::new(self.size().get());
        let added = ByteRange::between(old_end, new_at.min(heads.footer_at));
        self.file.zero(added, ZeroMode { may_unmap: true, only_if_fast: false })?;
        self.barrier()?;
        let footer = heads.footer.with_size(size);
        self.write_footers(&mut heads, footer)?;
        self.size.store(size.get(), Ordering::SeqCst);
        Ok(())
    }
}

/// Checks the size of a disk.
///
/// # Errors
/// [`ErrorKind::Invalid`] for none, for broken sectors, and past the limit of the format.
pub(super) fn check_size(object: &str, size: ByteCount) -> Result<()> {
    let invalid = |problem: String| Error::new(ErrorKind::Invalid, object, problem);
    if size.is_zero() || !size.is_aligned(ByteCount::new(SECTOR)) {
        let problem = format!("cannot have {} bytes: a disk is whole sectors of 512", size.get());
        return Err(invalid(problem));
    }
    if size > MOST {
        return Err(invalid(format!("cannot be {size} large: a VHD ends at 2040 GiB"))
            .advise("use qcow2, or a thin pool, for larger disks"));
    }
    Ok(())
}
