//! A disk of another size.

use std::sync::atomic::Ordering;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::bitmap::Bitmaps;
use super::exchange::Exchange;
use super::geometry::GuestCluster;
use super::header::L1_LIMIT;
use super::image::{Gate, Image};

impl Image {
    /// Changes the size of the disk. What is cut off is gone, what is added reads as zeros.
    pub(super) fn resize_disk(&self, size: ByteCount) -> Result<()> {
        self.state()?;
        self.check_running()?;
        self.check_unrecorded("resized")?;
        self.prepare_tables()?;
        self.check_resize(size)?;
        self.alone(Gate::Closed, || {
            let old = self.size();
            match size.cmp(&old) {
                std::cmp::Ordering::Less => self.shrink(old, size),
                std::cmp::Ordering::Equal => Ok(()),
                std::cmp::Ordering::Greater => self.grow(old, size),
            }
        })
    }

    fn check_resize(&self, size: ByteCount) -> Result<()> {
        let geometry = self.source.geometry;
        if geometry.l1_entries(size) * 8 > L1_LIMIT {
            let problem = format!("cannot hold a disk of {size} with clusters of this size");
            return Err(Error::new(ErrorKind::Invalid, &*self.source.name, problem));
        }
        let header = self.header.read();
        if header.version() < 3 && header.snapshots() > 0 {
            let problem = "is of version 2, whose snapshots have the size of the disk";
            return Err(Error::new(ErrorKind::Unsupported, &*self.source.name, problem)
                .advise("delete the snapshots, or convert the image to version 3"));
        }
        Ok(())
    }

    /// What lies behind the end is made zero while it is still out of sight.
    fn grow(&self, old: ByteCount, size: ByteCount) -> Result<()> {
        let geometry = self.source.geometry;
        if let Some(data) = &self.source.data
            && data.size() < size
        {
            data.resize(size)?;
        }
        self.grow_l1(size)?;
        let (start, end) = (ByteOffset::new(old.get()), ByteOffset::new(size.get()));
        let boundary = start.get().next_multiple_of(geometry.cluster().get());
        let boundary = ByteOffset::new(boundary).min(end);
        self.zero_hidden(ByteRange::between(start, boundary))?;
        // A machine's state may lie there, or what somebody else has cut off.
        let end_cluster = GuestCluster(geometry.clusters(size));
        self.drop_clusters(GuestCluster(geometry.clusters(old)), end_cluster)?;
        if let Some(backing) = &self.source.backing {
            let below = ByteOffset::new(backing.size().get()).min(end).max(boundary);
            self.zero_hidden(ByteRange::between(boundary, below))?;
        }
        self.set_size(size)
    }

    /// Makes bytes behind the disk's end zeros.
    fn zero_hidden(&self, range: ByteRange) -> Result<()> {
        self.zero_range(range, ZeroMode { may_unmap: true, only_if_fast: false })
    }

    fn grow_l1(&self, size: ByteCount) -> Result<()> {
        let needed = self.source.geometry.l1_entries(size) as usize;
        let mut l1 = self.source.tree.l1.read().clone();
        if needed <= l1.len() {
            return Ok(());
        }
        l1.resize(needed, 0);
        let mut exchange = Exchange::begin(self)?;
        let old = exchange.header.l1;
        exchange.write_l1(&l1)?;
        if !old.is_empty() {
            exchange.take_range(old)?;
        }
        exchange.finish()?;
        *self.source.tree.l1.write() = l1;
        Ok(())
    }

    fn shrink(&self, old: ByteCount, size: ByteCount) -> Result<()> {
        let geometry = self.source.geometry;
        let start = ByteOffset::new(size.get());
        // What is cut off is gone before the size says so, and no bitmap may miss that.
        let cut = ByteRange::between(start, ByteOffset::new(old.get()));
        if self.has_bitmaps()? {
            self.exchange_header(|exchange| exchange.fit_bitmaps(old, &[cut]))?;
        }
        let boundary = start.get().next_multiple_of(geometry.cluster().get());
        let boundary = ByteOffset::new(boundary).min(ByteOffset::new(old.get()));
        self.zero_hidden(ByteRange::between(start, boundary))?;
        let first = GuestCluster(geometry.clusters(size));
        self.drop_clusters(first, GuestCluster(geometry.clusters(old)))?;
        self.set_size(size)?;
        match &self.source.data {
            Some(data) => data.resize(size),
            None => Ok(()),
        }
    }

    fn set_size(&self, size: ByteCount) -> Result<()> {
        self.settle()?;
        if self.has_bitmaps()? {
            self.exchange_header(|exchange| {
                exchange.fit_bitmaps(size, &[])?;
                exchange.header.size = size;
                Ok(())
            })?;
        } else {
            let mut header = self.header.write();
            header.size = size;
            self.write_header(&header).inspect_err(|error| self.stop(error))?;
        }
        self.size.store(size.get(), Ordering::SeqCst);
        Ok(())
    }

    fn has_bitmaps(&self) -> Result<bool> {
        Bitmaps::read(&*self.source.file, &self.header.read()).map(|bitmaps| bitmaps.is_some())
    }

    fn exchange_header(&self, change: impl FnOnce(&mut Exchange<'_>) -> Result<()>) -> Result<()> {
        let mut exchange = Exchange::begin(self)?;
        change(&mut exchange)?;
        exchange.finish()
    }
}
