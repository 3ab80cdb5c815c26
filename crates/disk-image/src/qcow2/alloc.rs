//! Free clusters: found, counted, and the file and the refcount table grown for them.
//!
//! The first free cluster is taken. A file grows in steps, and what is added reads as zeros until
//! it is given out for the first time.

use std::collections::BTreeSet;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::counts::Counts;
use super::geometry::{Geometry, HostCluster};
use super::header::REFCOUNT_TABLE_LIMIT;

/// The steps in which a file grows.
const LEAST_STEP: u64 = 64 << 10;
const LARGEST_STEP: u64 = 64 << 20;

/// Clusters beside each other that were given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: HostCluster,
    pub(super) count: u64,
    /// They were never given out before and read as zeros.
    pub(super) blank: bool,
}

/// Who hands out the clusters of a file.
pub(super) struct Allocator {
    file: Arc<dyn BlockDevice>,
    geometry: Geometry,
    pub(super) counts: Counts,
    /// No cluster before this one is free.
    hint: HostCluster,
    /// Clusters from this one on were added to the file since it was opened, and never given out.
    blank_from: HostCluster,
    /// Where the refcount table is to lie.
    pub(super) table: ByteRange,
    /// It is not there yet.
    pub(super) table_moved: bool,
    /// Blocks that the table in the file does not name yet.
    pub(super) fresh: BTreeSet<usize>,
    /// Clusters of refcount tables that were moved away from.
    pub(super) retired: Vec<(HostCluster, u64)>,
    growing_table: bool,
    /// Whether the space of what is added to the file is taken at once.
    pub(super) provisions: bool,
}

impl Allocator {
    /// The allocator of `file`, whose refcount table lies at `table`.
    pub(super) fn new(
        file: Arc<dyn BlockDevice>,
        geometry: Geometry,
        counts: Counts,
        table: ByteRange,
    ) -> Self {
        let blank_from = HostCluster(geometry.clusters(file.size()));
        Self {
            file,
            geometry,
            counts,
            hint: HostCluster(0),
            blank_from,
            table,
            table_moved: false,
            fresh: BTreeSet::new(),
            retired: Vec::new(),
            growing_table: false,
            provisions: true,
        }
    }

    /// Takes the first free clusters, at most `most` and at least one.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`], with nothing taken.
    pub(super) fn allocate(&mut self, most: u64) -> Result<Run> {
        loop {
            let (first, count) = self.counts.find_free(self.hint, most)?;
            self.hint = first;
            if self.make_block(first)? {
                continue;
            }
            let run = self.claim(first, count)?;
            self.hint = first.plus(count);
            return Ok(run);
        }
    }

    /// Takes exactly `count` clusters beside each other.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`], with nothing taken.
    pub(super) fn allocate_whole(&mut self, count: u64) -> Result<Run> {
        let mut first = self.hint;
        let mut found = 0;
        while found < count {
            let behind = first.plus(found);
            let (free, len) = self.counts.find_free(behind, count - found)?;
            if self.make_block(free)? {
                // The block took the cluster, and those behind it must not cut the run again.
                self.make_blocks_behind(free, count)?;
                (first, found) = (free.plus(1), 0);
            } else if free == behind {
                found += len;
            } else {
                (first, found) = (free, len);
            }
        }
        let run = self.claim(first, count)?;
        if first == self.hint {
            self.hint = first.plus(count);
        }
        Ok(run)
    }

    /// Takes clusters whose blocks are there.
    fn claim(&mut self, first: HostCluster, count: u64) -> Result<Run> {
        self.reach(first.plus(count))?;
        self.counts.add(first, count)?;
        let blank = first >= self.blank_from;
        self.blank_from = self.blank_from.max(first.plus(count));
        Ok(Run { first, count, blank })
    }

    /// Gives clusters back that nothing durable names.
    pub(super) fn give_back(&mut self, first: HostCluster, count: u64) -> Result<()> {
        self.counts.take(first, count)?;
        self.lower_hint(first);
        Ok(())
    }

    /// Says that clusters from `first` on may be free.
    pub(super) fn lower_hint(&mut self, first: HostCluster) {
        self.hint = self.hint.min(first);
    }

    /// Sees to it that there is a refcount block for `cluster`, which is free; says whether the
    /// block took it.
    fn make_block(&mut self, cluster: HostCluster) -> Result<bool> {
        let (index, _) = self.counts.place(cluster);
        if self.counts.home(index).is_some() {
            return Ok(false);
        }
        if index >= self.table_entries() && !self.growing_table {
            self.grow_table(index + 1)?;
            // Growing may have made the block, and taken the cluster.
            return Ok(true);
        }
        self.put_block(index, cluster)?;
        Ok(true)
    }

    /// Sees to it that `count` clusters behind `from`, which has a block, have theirs, one behind
    /// the other.
    fn make_blocks_behind(&mut self, from: HostCluster, count: u64) -> Result<()> {
        let more = count / self.geometry.block_counts() + 2;
        let (here, last) =
            (self.counts.place(from).0, self.counts.place(from.plus(count + more)).0);
        for index in here + 1..=last {
            if index >= self.table_entries() && !self.growing_table {
                self.grow_table(last + 1)?;
            }
            let (place, _) = self.counts.find_free(from, 1)?;
            let counted = self.counts.home(self.counts.place(place).0).is_some();
            if counted && self.counts.home(index).is_none() {
                self.put_block(index, place)?;
            }
        }
        Ok(())
    }

    fn put_block(&mut self, index: usize, place: HostCluster) -> Result<()> {
        self.reach(place.plus(1))?;
        self.counts.add_block(index, place);
        self.counts.add(place, 1)?;
        self.blank_from = self.blank_from.max(place.plus(1));
        self.fresh.insert(index);
        Ok(())
    }

    /// How many blocks the refcount table can name.
    fn table_entries(&self) -> usize {
        (self.table.len.get() / 8) as usize
    }

    /// Takes clusters for a refcount table of at least `entries` entries.
    fn grow_table(&mut self, entries: usize) -> Result<()> {
        let blocks = self.counts.blocks();
        let grown = self.place_table(entries.max(self.table_entries() * 3 / 2));
        if grown.is_err() {
            self.counts.truncate(blocks);
            self.fresh.retain(|&index| index < blocks);
        }
        grown
    }

    /// Takes new clusters for a refcount table of `entries` entries or more; the old ones retire.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`]; blocks that were made for it may be there.
    pub(super) fn place_table(&mut self, entries: usize) -> Result<()> {
        self.growing_table = true;
        let placed = self.try_place_table(entries);
        self.growing_table = false;
        placed
    }

    fn try_place_table(&mut self, entries: usize) -> Result<()> {
        let cluster = self.geometry.cluster().get();
        let mut wanted = entries.max(self.table_entries());
        loop {
            let clusters = (wanted as u64 * 8).div_ceil(cluster);
            let len = clusters * cluster;
            if len > REFCOUNT_TABLE_LIMIT.max(cluster) {
                return Err(self.full("its refcount table is as large as it may be"));
            }
            let run = self.allocate_whole(clusters)?;
            if self.counts.blocks() as u64 * 8 > len {
                // Its own clusters needed more blocks than it can name.
                wanted = self.counts.blocks() * 3 / 2;
                self.give_back(run.first, run.count)?;
                continue;
            }
            let old = self.table;
            if !old.is_empty() {
                let first = self.geometry.host_cluster_of(old.start);
                self.retired.push((first, self.geometry.clusters(old.len)));
            }
            self.table = self.geometry.host_range(run.first, run.count);
            self.table_moved = true;
            return Ok(());
        }
    }

    /// Sees to it that the file reaches up to `end`.
    pub(super) fn reach(&mut self, end: HostCluster) -> Result<()> {
        let size = self.file.size().get();
        let needed = match end.0.checked_mul(self.geometry.cluster().get()) {
            Some(needed) if needed < 1 << 56 => needed,
            _ => return Err(self.full("a file of this format ends at 2^56 bytes")),
        };
        if needed <= size {
            return Ok(());
        }
        let step = (size / 4).clamp(LEAST_STEP, LARGEST_STEP);
        let target = (size + step).max(needed).next_multiple_of(self.geometry.cluster().get());
        match self.file.resize(ByteCount::new(target)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return Err(self.full("it has a fixed size").because(error));
            }
            other => other?,
        }
        if !self.provisions {
            return Ok(());
        }
        // Counts of somebody else may have led far behind the end: what lies between is a hole.
        let from = size.max(needed.saturating_sub(LARGEST_STEP));
        let added = ByteRange::between(ByteOffset::new(from), ByteOffset::new(target));
        let provisioned = self.file.provision(added);
        if provisioned.is_err() {
            // The space is not there; the old end may stay wrong without harm.
            let _ = self.file.resize(ByteCount::new(size));
        }
        provisioned
    }

    fn full(&self, problem: &str) -> Error {
        Error::new(ErrorKind::OutOfSpace, self.file.name(), format!("is full: {problem}"))
            .advise("discard what is not needed, or convert the image")
    }
}
