//! Writing: in place where the place is this disk's alone, and to a new place where it is not.
//!
//! A first write reads head and tail of what the cluster, or subcluster, held around it and writes
//! all of it once; then it is published. Nothing is published before it is written.

use std::cell::RefCell;

use block_io::AlignedBuf;
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};

use super::alloc::Run;
use super::entry::{Cluster, Standard, external_host};
use super::geometry::{GuestCluster, HostCluster};
use super::image::Image;
use super::mapping::{Kind, run_in_cluster};

/// Clusters that are written by one request at once, at most.
const RUN_CLUSTERS: u64 = 32;

/// What a part of the disk is to hold.
#[derive(Clone, Copy)]
pub(super) enum Fill<'b> {
    /// These bytes.
    Bytes(&'b [u8]),
    /// Zeros.
    Zeros,
}

thread_local! {
    /// Where this thread puts clusters together.
    static SCRATCH: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

/// Clusters that were taken for guest clusters and not published yet: given back if that does not
/// come to pass.
struct Prepared<'i> {
    image: &'i Image,
    run: Run,
    published: bool,
}

impl Prepared<'_> {
    /// Makes the clusters from `guest` on data at the clusters taken, in place of `old`.
    fn publish(
        mut self,
        guest: GuestCluster,
        old: &[Cluster],
        new: &dyn Fn(HostCluster) -> Standard,
    ) {
        self.published = true;
        let Ok(state) = self.image.state() else { return };
        let mut state = state.lock();
        for (ahead, &old) in (0..).zip(old) {
            let new = Cluster::Standard(new(self.run.first.plus(ahead)));
            state.publish(&self.image.source.tree, GuestCluster(guest.0 + ahead), new);
            state.abandon(old);
        }
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Ok(state) = self.image.state()
            && let Err(error) = state.lock().alloc.give_back(self.run.first, self.run.count)
        {
            tracing::warn!(image = self.image.source.name, "clusters leak: {error}");
        }
    }
}

impl Image {
    /// Writes `range`: whole clusters in runs, the rest piece by piece.
    pub(super) fn write_range(&self, range: ByteRange, fill: Fill<'_>) -> Result<()> {
        let size = self.source.geometry.cluster();
        let mut at = range.start;
        while at < range.end() {
            let left = range.end().since(at).get();
            let (guest, inside) = self.source.geometry.locate(at);
            let whole = if inside.is_zero() { left / size.get() } else { 0 };
            let len = match whole {
                0 => left.min(size.get() - inside.get()),
                clusters => clusters.min(RUN_CLUSTERS) * size.get(),
            };
            let from = at.since(range.start).as_usize();
            let part = match fill {
                Fill::Bytes(bytes) => Fill::Bytes(&bytes[from..from + len as usize]),
                Fill::Zeros => Fill::Zeros,
            };
            match (part, whole) {
                (Fill::Bytes(bytes), 1..) => self.write_clusters(guest, bytes)?,
                (part, 1..) => {
                    for ahead in 0..len / size.get() {
                        self.write_piece(GuestCluster(guest.0 + ahead), 0, size.get(), part)?;
                    }
                }
                (part, 0) => self.write_piece(guest, inside.get(), len, part)?,
            }
            at = at.plus(ByteCount::new(len));
        }
        Ok(())
    }

    /// Writes whole clusters from `first` on; those that need a new place get one together.
    fn write_clusters(&self, first: GuestCluster, bytes: &[u8]) -> Result<()> {
        let count = self.source.geometry.clusters(ByteCount::of(bytes));
        let _alone = self.lock_clusters(first, count);
        self.write_locked_clusters(first, bytes)
    }

    /// The same, where the clusters are locked.
    pub(super) fn write_locked_clusters(&self, first: GuestCluster, bytes: &[u8]) -> Result<()> {
        let size = self.source.geometry.cluster().as_usize();
        let count = bytes.len() / size;
        let mut done = 0;
        while done < count {
            let guest = GuestCluster(first.0 + done as u64);
            let rest = &bytes[done * size..];
            let old = self.source.cluster(guest)?;
            if self.own_place(guest, old).is_some() {
                self.write_locked(guest, old, 0, size as u64, Fill::Bytes(&rest[..size]))?;
                done += 1;
                continue;
            }
            // The table is the unit of what is taken and published together.
            let (index, _) = self.source.geometry.slot(guest);
            let mut olds = vec![old];
            for ahead in 1..(count - done) as u64 {
                let next = GuestCluster(guest.0 + ahead);
                if self.source.geometry.slot(next).0 != index {
                    break;
                }
                let old = self.source.cluster(next)?;
                if self.own_place(next, old).is_some() {
                    break;
                }
                olds.push(old);
            }
            let prepared = self.prepare(guest, olds.len() as u64)?;
            let Run { first: host, count: taken, .. } = prepared.run;
            let taken = taken as usize;
            self.source.write_data(&rest[..taken * size], self.source.place(host, 0))?;
            let geometry = self.source.geometry;
            // DATA-FIRST: the data are written; what makes the mapping durable flushes them before.
            prepared.publish(guest, &olds[..taken], &|host| Standard::data(geometry, host));
            done += taken;
        }
        Ok(())
    }

    /// Writes `len` bytes that begin `inside` bytes into a cluster and end in it.
    pub(super) fn write_piece(
        &self,
        guest: GuestCluster,
        inside: u64,
        len: u64,
        fill: Fill<'_>,
    ) -> Result<()> {
        let _alone = self.lock_cluster(guest);
        let old = self.source.cluster(guest)?;
        self.write_locked(guest, old, inside, len, fill)
    }

    /// The place where a cluster may be written without anybody else seeing it.
    pub(super) fn own_place(&self, guest: GuestCluster, cluster: Cluster) -> Option<HostCluster> {
        match cluster {
            Cluster::Standard(_) if self.source.geometry.external => Some(external_host(guest)),
            Cluster::Standard(standard) => standard.own_host(),
            Cluster::Compressed(_) => None,
        }
    }

    pub(super) fn write_locked(
        &self,
        guest: GuestCluster,
        old: Cluster,
        inside: u64,
        len: u64,
        fill: Fill<'_>,
    ) -> Result<()> {
        let part = ByteRange::new(ByteOffset::new(inside), ByteCount::new(len));
        let touched = self.source.geometry.touched(part);
        match (old, self.own_place(guest, old)) {
            (Cluster::Standard(standard), Some(host)) => {
                if standard.host.is_some() && standard.allocated & touched == touched {
                    return self.write_host(self.source.place(host, inside), part.len, fill);
                }
                self.write_into(guest, standard, host, part, fill)
            }
            _ => self.write_new(guest, old, part, fill),
        }
    }

    fn write_host(&self, at: ByteOffset, len: ByteCount, fill: Fill<'_>) -> Result<()> {
        match fill {
            Fill::Bytes(bytes) => self.source.write_data(bytes, at),
            Fill::Zeros => self.source.zero_data(ByteRange::new(at, len)),
        }
    }

    /// Writes to subclusters that are not data yet, of a cluster whose place is known.
    fn write_into(
        &self,
        guest: GuestCluster,
        old: Standard,
        host: HostCluster,
        part: ByteRange,
        fill: Fill<'_>,
    ) -> Result<()> {
        let geometry = self.source.geometry;
        let (index, _) = geometry.slot(guest);
        self.state()?.lock().own_table(&self.source.tree, index)?;
        let unit = geometry.subcluster().get();
        let is_data = |at: u64| old.allocated >> (at / unit) & 1 == 1;
        let (mut start, mut end) = (part.start.get(), part.end().get());
        if !is_data(start) {
            start -= start % unit;
        }
        if !is_data(end - 1) {
            end = end.next_multiple_of(unit);
        }
        if geometry.external {
            // The data file may end inside the last cluster.
            let room = self.source.data().size().get() - geometry.host_start(host).get();
            end = end.min(room.max(part.end().get()));
        }
        let region = ByteRange::between(ByteOffset::new(start), ByteOffset::new(end));
        let needed = geometry.touched(part);
        self.write_merged(guest, Cluster::Standard(old), region, part, needed, host, fill)?;
        let new = Standard {
            host: Some(host),
            exclusive: true,
            allocated: old.allocated | needed,
            zero: old.zero & !needed,
        };
        let mut state = self.state()?.lock();
        state.publish(&self.source.tree, guest, Cluster::Standard(new));
        Ok(())
    }

    /// Writes to a cluster that has no place of its own.
    fn write_new(
        &self,
        guest: GuestCluster,
        old: Cluster,
        part: ByteRange,
        fill: Fill<'_>,
    ) -> Result<()> {
        let geometry = self.source.geometry;
        let prepared = self.prepare(guest, 1)?;
        let (kept, zero) = match old {
            Cluster::Standard(standard) => (standard.allocated, standard.zero),
            Cluster::Compressed(_) => (geometry.all_subclusters(), 0),
        };
        let data = kept | geometry.touched(part);
        let reads_zero = kept == 0 && (self.source.backing.is_none() || zero == 1);
        // What was never written is zeros as it lies there, which is noise when it is decrypted.
        let plain = !geometry.extended && self.source.crypt.is_none();
        let region = if prepared.run.blank && reads_zero && plain {
            // What lies around the part is zeros already.
            part
        } else {
            let unit = geometry.subcluster().get();
            let first = u64::from(data.trailing_zeros());
            let last = u64::from(31 - data.leading_zeros());
            ByteRange::between(ByteOffset::new(first * unit), ByteOffset::new((last + 1) * unit))
        };
        self.write_merged(guest, old, region, part, data, prepared.run.first, fill)?;
        prepared.publish(guest, &[old], &|host| Standard {
            host: Some(host),
            exclusive: true,
            allocated: data,
            zero: zero & !data,
        });
        Ok(())
    }

    /// Writes `region` of a cluster to `host`: `part` from `fill`, the rest of the subclusters in
    /// `needed` as `old` has it.
    #[expect(clippy::too_many_arguments, reason = "old and new of one cluster, side by side")]
    fn write_merged(
        &self,
        guest: GuestCluster,
        old: Cluster,
        region: ByteRange,
        part: ByteRange,
        needed: u32,
        host: HostCluster,
        fill: Fill<'_>,
    ) -> Result<()> {
        let at = self.source.place(host, region.start.get());
        if let (Fill::Bytes(bytes), true) = (fill, region == part) {
            return self.source.write_data(bytes, at);
        }
        with_scratch(region.len.as_usize(), |scratch| {
            let (head, rest) = scratch.split_at_mut(part.start.since(region.start).as_usize());
            let (body, tail) = rest.split_at_mut(part.len.as_usize());
            self.old_content(guest, old, region.start, needed, head)?;
            match fill {
                Fill::Bytes(bytes) => body.copy_from_slice(bytes),
                Fill::Zeros => body.fill(0),
            }
            self.old_content(guest, old, part.end(), needed, tail)?;
            self.source.write_data(scratch, at)
        })
    }

    /// Fills `buffer` with what `old` has from `inside` on, as far as that lies in `needed`.
    fn old_content(
        &self,
        guest: GuestCluster,
        old: Cluster,
        inside: ByteOffset,
        needed: u32,
        buffer: &mut [u8],
    ) -> Result<()> {
        let geometry = self.source.geometry;
        let start = geometry.guest_start(guest);
        let mut done = 0;
        while done < buffer.len() {
            let at = inside.get() + done as u64;
            let run = run_in_cluster(geometry, old, at);
            let subcluster = at / geometry.subcluster().get();
            let wanted = needed >> subcluster & 1 == 1;
            let mut len = run.len.min((buffer.len() - done) as u64);
            if run.kind == Kind::Absent {
                // One subcluster at a time: only some of them are wanted.
                len = len.min((subcluster + 1) * geometry.subcluster().get() - at);
            }
            let part = &mut buffer[done..done + len as usize];
            if wanted {
                self.source.read_run(run.kind, part, start.plus(ByteCount::new(at)))?;
            } else {
                part.fill(0);
            }
            done += len as usize;
        }
        Ok(())
    }

    /// Takes clusters for `count` guest clusters of one table, one at least.
    fn prepare(&self, guest: GuestCluster, count: u64) -> Result<Prepared<'_>> {
        let (index, _) = self.source.geometry.slot(guest);
        let take = || {
            let mut state = self.state()?.lock();
            state.own_table(&self.source.tree, index)?;
            state.alloc.allocate(count)
        };
        let run = match take() {
            Err(error) if error.kind() == ErrorKind::OutOfSpace && self.has_freed()? => {
                // What was freed can be had once that is durable.
                self.flush_all()?;
                take()?
            }
            other => other?,
        };
        Ok(Prepared { image: self, run, published: false })
    }

    fn has_freed(&self) -> Result<bool> {
        Ok(self.state()?.lock().has_freed())
    }
}

fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        if scratch.as_ref().is_none_or(|scratch| scratch.len() < len) {
            *scratch = Some(AlignedBuf::zeroed(len));
        }
        let scratch = scratch.as_mut().map(|scratch| &mut scratch[..len]);
        work(scratch.unwrap_or_default())
    })
}
