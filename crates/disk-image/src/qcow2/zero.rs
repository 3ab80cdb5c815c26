//! Making ranges zero, and giving up what nobody needs any more.

use block_io::ZeroMode;
use block_types::{ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::entry::{Cluster, Standard};
use super::geometry::GuestCluster;
use super::image::Image;
use super::write::Fill;

impl Image {
    /// Makes `range` read as zeros.
    pub(super) fn zero_range(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        let slow = !self.source.geometry.zero_clusters
            && (!mode.may_unmap || self.source.backing.is_some());
        if mode.only_if_fast && slow {
            let problem = "version 2 of the format cannot make zeros without writing them";
            return Err(Error::new(ErrorKind::Unsupported, &*self.source.name, problem));
        }
        for piece in range.pieces(self.source.geometry.cluster()) {
            self.zero_piece(piece, mode.may_unmap)?;
        }
        Ok(())
    }

    /// Gives up the whole clusters and subclusters of `range`; what is left stays as it is.
    pub(super) fn discard_range(&self, range: ByteRange) -> Result<()> {
        let geometry = self.source.geometry;
        for piece in range.pieces(geometry.cluster()) {
            let (guest, part) = self.part(piece);
            let covered = self.covered(guest, part);
            if covered == 0 || (!geometry.zero_clusters && self.source.backing.is_some()) {
                continue;
            }
            if let Some(data) = &self.source.data {
                data.discard(piece.intersect(ByteRange::new(ByteOffset::ZERO, data.size())))?;
                if self.raw_data() {
                    // The mapping of a raw data file stays: the file alone is the disk.
                    continue;
                }
            }
            // What is compressed goes as a whole or not at all.
            let _ = self.unmap(guest, covered)?;
        }
        Ok(())
    }

    /// Makes a piece of one cluster zero.
    fn zero_piece(&self, piece: ByteRange, may_unmap: bool) -> Result<()> {
        let geometry = self.source.geometry;
        let (guest, part) = self.part(piece);
        let covered = self.covered(guest, part);
        if self.raw_data() || covered == 0 {
            return self.zero_bytes(guest, part);
        }
        let edges = [
            ByteRange::between(part.start, self.first_covered(covered).max(part.start)),
            ByteRange::between(self.end_covered(covered).min(part.end()), part.end()),
        ];
        for edge in edges {
            if !edge.is_empty() {
                self.zero_bytes(guest, edge)?;
            }
        }
        let absent_is_zero = self.source.backing.is_none();
        let done = match (geometry.zero_clusters, may_unmap) {
            (true, true) => self.unmap(guest, covered)?,
            (true, false) => self.zero_in_place(guest, covered)?,
            (false, true) if absent_is_zero => self.unmap(guest, covered)?,
            (false, _) => false,
        };
        if done { Ok(()) } else { self.zero_bytes(guest, part) }
    }

    /// Writes zeros, unless the bytes are zeros already.
    fn zero_bytes(&self, guest: GuestCluster, part: ByteRange) -> Result<()> {
        let geometry = self.source.geometry;
        let touched = geometry.touched(part);
        if let Cluster::Standard(standard) = self.source.cluster(guest)?
            && !self.raw_data()
        {
            let others = touched & !standard.zero;
            let reads_zero = others & standard.allocated == 0 && self.source.backing.is_none();
            if others == 0 || reads_zero {
                return Ok(());
            }
        }
        self.write_piece(guest, part.start.get(), part.len.get(), Fill::Zeros)
    }

    /// Makes subclusters zeros that take no space; says whether that could be done.
    fn unmap(&self, guest: GuestCluster, covered: u32) -> Result<bool> {
        let geometry = self.source.geometry;
        let _alone = self.lock_cluster(guest);
        let old = self.source.cluster(guest)?;
        let all = covered == geometry.all_subclusters();
        let nothing_below = self.source.backing.is_none();
        let new = match old {
            _ if all && nothing_below => Standard::ABSENT,
            _ if all => Standard::zeros(geometry),
            Cluster::Compressed(_) => return Ok(false),
            Cluster::Standard(old) => {
                let allocated = old.allocated & !covered;
                let host = old.host.filter(|_| allocated != 0);
                let exclusive = old.exclusive && host.is_some();
                Standard { host, exclusive, allocated, zero: old.zero | covered }
            }
        };
        self.replace(guest, old, new)?;
        Ok(true)
    }

    /// Makes subclusters zeros whose space is kept for data; says whether that could be done.
    fn zero_in_place(&self, guest: GuestCluster, covered: u32) -> Result<bool> {
        let geometry = self.source.geometry;
        let _alone = self.lock_cluster(guest);
        let old = self.source.cluster(guest)?;
        let all = covered == geometry.all_subclusters();
        let new = match (old, self.own_place(guest, old)) {
            (Cluster::Standard(standard), Some(host)) => Standard {
                host: Some(host),
                exclusive: true,
                allocated: standard.allocated & !covered,
                zero: standard.zero | covered,
            },
            (_, _) if all => {
                let host = self.take_cluster(guest)?;
                let zero = geometry.all_subclusters();
                Standard { host: Some(host), exclusive: true, allocated: 0, zero }
            }
            _ => return Ok(false),
        };
        self.replace(guest, old, new)?;
        Ok(true)
    }

    fn take_cluster(&self, guest: GuestCluster) -> Result<super::geometry::HostCluster> {
        let (index, _) = self.source.geometry.slot(guest);
        let mut state = self.state()?.lock();
        state.own_table(&self.source.tree, index)?;
        Ok(state.alloc.allocate(1)?.first)
    }

    /// Makes a cluster, whose lock is held, `new`.
    fn replace(&self, guest: GuestCluster, old: Cluster, new: Standard) -> Result<()> {
        if old == Cluster::Standard(new) {
            return Ok(());
        }
        let (index, _) = self.source.geometry.slot(guest);
        let mut state = self.state()?.lock();
        state.own_table(&self.source.tree, index)?;
        state.publish(&self.source.tree, guest, Cluster::Standard(new));
        let kept = match old {
            Cluster::Standard(old) => old.host == new.host,
            Cluster::Compressed(_) => false,
        };
        if !kept {
            state.abandon(old);
        }
        Ok(())
    }

    /// The cluster of a piece of the disk, and the piece within it.
    fn part(&self, piece: ByteRange) -> (GuestCluster, ByteRange) {
        let (guest, inside) = self.source.geometry.locate(piece.start);
        (guest, ByteRange::new(ByteOffset::new(inside.get()), piece.len))
    }

    /// The subclusters that a part of a cluster covers; one that ends with the disk covers its
    /// last, too.
    fn covered(&self, guest: GuestCluster, part: ByteRange) -> u32 {
        let geometry = self.source.geometry;
        let start = geometry.guest_start(guest).get();
        let at_end =
            start + part.end().get() >= self.size.load(std::sync::atomic::Ordering::SeqCst);
        let end = if at_end { ByteOffset::new(geometry.cluster().get()) } else { part.end() };
        geometry.covered(ByteRange::between(part.start, end))
    }

    fn first_covered(&self, covered: u32) -> ByteOffset {
        let unit = self.source.geometry.subcluster().get();
        ByteOffset::new(u64::from(covered.trailing_zeros()) * unit)
    }

    fn end_covered(&self, covered: u32) -> ByteOffset {
        let unit = self.source.geometry.subcluster().get();
        ByteOffset::new(u64::from(32 - covered.leading_zeros()) * unit)
    }

    /// Whether the data file alone is the disk.
    fn raw_data(&self) -> bool {
        self.source.data.is_some() && self.header.read().data_file_raw()
    }

    /// Makes every cluster from `first` to the one before `end` absent.
    pub(super) fn drop_clusters(&self, first: GuestCluster, end: GuestCluster) -> Result<()> {
        let geometry = self.source.geometry;
        let mut at = first;
        while at < end {
            let (index, _) = geometry.slot(at);
            if self.source.tree.l1_entry(index).is_none() {
                at = geometry.first_of(super::geometry::L1Index(index.0 + 1));
                continue;
            }
            let old = self.source.cluster(at)?;
            self.replace(at, old, Standard::ABSENT)?;
            at = GuestCluster(at.0 + 1);
        }
        Ok(())
    }
}
