//! What changes when the disk is written: clusters, tables, and what the next commit has to do.

use std::collections::{BTreeSet, HashSet};

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::alloc::{Allocator, Run};
use super::bytes::bytes_of;
use super::entry::{Cluster, L1Entry, encode};
use super::geometry::{Geometry, GuestCluster, HostCluster, L1Index};
use super::header::Header;
use super::stage::Stage;
use super::tree::Tree;

/// Clusters that lose a user once the commit that says so is durable (FREE-LATE).
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) first: HostCluster,
    pub(super) count: u64,
    /// They may hold other clusters' compressed data, and their space stays.
    pub(super) compressed: bool,
}

/// The clusters of a file, and the changes since the last commit.
///
/// Counts in memory are never less than the users that are durable or in memory: they go up before
/// a user is entered, and down only after the commit that removed it.
pub(super) struct State {
    pub(super) alloc: Allocator,
    geometry: Geometry,
    /// Clusters that have held tables since the image was opened, until tables are exchanged: no
    /// guest cluster may lie there.
    pub(super) tables: HashSet<HostCluster>,
    /// L2 tables that lie at a new place.
    new_tables: BTreeSet<L1Index>,
    /// Chunks of L2 tables that changed where they lie.
    table_chunks: BTreeSet<(L1Index, usize)>,
    l1_chunks: BTreeSet<usize>,
    freed: Vec<Freed>,
    /// The number of the commit to come.
    pub(super) generation: u64,
    /// The end of the compressed data that were written last, if its cluster has room.
    pub(super) compressed_end: Option<ByteOffset>,
}

/// What a commit writes, by step.
pub(super) struct Batch {
    pub(super) generation: u64,
    /// Counts and new tables, which nothing durable names yet.
    pub(super) ahead: Stage,
    /// What makes new refcount blocks count.
    pub(super) links: Stage,
    /// What makes the changes visible.
    pub(super) tables: Stage,
    pub(super) freed: Vec<Freed>,
}

impl State {
    /// No changes yet.
    pub(super) fn new(geometry: Geometry, alloc: Allocator, tables: HashSet<HostCluster>) -> Self {
        Self {
            alloc,
            geometry,
            tables,
            new_tables: BTreeSet::new(),
            table_chunks: BTreeSet::new(),
            l1_chunks: BTreeSet::new(),
            freed: Vec::new(),
            generation: 1,
            compressed_end: None,
        }
    }

    /// Whether a commit has something to write.
    pub(super) fn has_changes(&self) -> bool {
        !(self.new_tables.is_empty()
            && self.table_chunks.is_empty()
            && self.l1_chunks.is_empty()
            && self.freed.is_empty()
            && self.alloc.fresh.is_empty()
            && !self.alloc.table_moved
            && !self.alloc.counts.is_dirty())
    }

    /// Whether freed clusters wait for a commit.
    pub(super) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// Sees to it that the L2 table at `index`, which is loaded, lies at a place that no snapshot
    /// shares.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::OutOfSpace`], with nothing changed.
    pub(super) fn own_table(&mut self, tree: &Tree, index: L1Index) -> Result<()> {
        let old = tree.l1_entry(index);
        if old.is_some_and(|entry| entry.exclusive) {
            return Ok(());
        }
        let Run { first, .. } = self.alloc.allocate(1)?;
        tree.set_l1(index, Some(L1Entry { table: first, exclusive: true }));
        self.new_tables.insert(index);
        self.l1_chunks.insert(index.index() * 8 / self.geometry.chunk());
        if let Some(old) = old {
            self.free(old.table, 1, false);
        }
        Ok(())
    }

    /// Makes `guest`, whose table [`own_table`](Self::own_table) has seen, `new` from now on.
    pub(super) fn publish(&mut self, tree: &Tree, guest: GuestCluster, new: Cluster) {
        let (index, at) = self.geometry.slot(guest);
        tree.tables.set(index, at, encode(self.geometry, new));
        if !self.new_tables.contains(&index) {
            let chunk = at * self.geometry.entry_words() * 8 / self.geometry.chunk();
            self.table_chunks.insert((index, chunk));
        }
    }

    /// Notes that a guest cluster gives up what `old` says it had, once that is durable.
    pub(super) fn abandon(&mut self, old: Cluster) {
        if self.geometry.external {
            return;
        }
        if let Some((first, count)) = old.hosts(self.geometry) {
            self.free(first, count, matches!(old, Cluster::Compressed(_)));
        }
    }

    fn free(&mut self, first: HostCluster, count: u64, compressed: bool) {
        self.freed.push(Freed { first, count, compressed });
    }

    /// Takes everything that changed for a commit, as it is now; new changes gather for the next.
    pub(super) fn take(&mut self, tree: &Tree, header: &mut Header) -> Batch {
        let mut batch = Batch {
            generation: self.generation,
            ahead: Stage::default(),
            links: Stage::default(),
            tables: Stage::default(),
            freed: std::mem::take(&mut self.freed),
        };
        self.generation += 1;
        self.take_tables(tree, &mut batch);
        self.take_l1(tree, header, &mut batch);
        self.take_refcount_table(header, &mut batch);
        for chunk in self.alloc.counts.take_dirty() {
            batch.ahead.push(chunk.at, chunk.bytes);
        }
        for (first, count) in self.alloc.retired.drain(..) {
            batch.freed.push(Freed { first, count, compressed: false });
        }
        batch
    }

    fn take_tables(&mut self, tree: &Tree, batch: &mut Batch) {
        let words = self.geometry.table_words();
        for index in std::mem::take(&mut self.new_tables) {
            let Some(entry) = tree.l1_entry(index) else { continue };
            let copy = tree.tables.copy(index, 0, words).unwrap_or_else(|| vec![0; words]);
            batch.ahead.push(self.geometry.host_start(entry.table), bytes_of(&copy));
            // The whole table is written, now and not with the others.
            self.table_chunks.retain(|&(changed, _)| changed != index);
        }
        let chunk_words = self.geometry.chunk() / 8;
        for (index, chunk) in std::mem::take(&mut self.table_chunks) {
            let Some(entry) = tree.l1_entry(index) else { continue };
            let from = chunk * chunk_words;
            let copy = tree.tables.copy(index, from, chunk_words);
            let copy = copy.unwrap_or_else(|| vec![0; chunk_words]);
            let at = self.geometry.host_start(entry.table);
            batch.tables.push(at.plus(ByteCount::new(from as u64 * 8)), bytes_of(&copy));
        }
    }

    fn take_l1(&mut self, tree: &Tree, header: &Header, batch: &mut Batch) {
        let chunk_words = self.geometry.chunk() / 8;
        let l1 = tree.l1.read();
        for chunk in std::mem::take(&mut self.l1_chunks) {
            let from = chunk * chunk_words;
            let mut words = l1[from..l1.len().min(from + chunk_words)].to_vec();
            // The table has its clusters to itself.
            words.resize(chunk_words, 0);
            let at = header.l1.start.plus(ByteCount::new(from as u64 * 8));
            batch.tables.push(at, bytes_of(&words));
        }
    }

    fn take_refcount_table(&mut self, header: &mut Header, batch: &mut Batch) {
        let fresh = std::mem::take(&mut self.alloc.fresh);
        if self.alloc.table_moved {
            self.alloc.table_moved = false;
            let table = self.alloc.table;
            batch.ahead.push(table.start, self.refcount_table(table));
            header.refcount_table = table;
            batch.links.push(ByteOffset::ZERO, header.sector_zero());
            return;
        }
        let chunk = self.geometry.chunk();
        let chunks: BTreeSet<usize> = fresh.iter().map(|index| index * 8 / chunk).collect();
        let whole = self.refcount_table(self.alloc.table);
        for number in chunks {
            let from = number * chunk;
            let at = self.alloc.table.start.plus(ByteCount::new(from as u64));
            batch.links.push(at, whole[from..from + chunk].to_vec());
        }
    }

    /// The refcount table as it is to stand at `table`.
    pub(super) fn refcount_table(&self, table: ByteRange) -> Vec<u8> {
        let entry = |index: usize| {
            self.alloc.counts.home(index).map_or(0, |home| self.geometry.host_start(home).get())
        };
        bytes_of(&(0..(table.len.get() / 8) as usize).map(entry).collect::<Vec<_>>())
    }

    /// The clusters of `freed` that nobody else uses, whose space may be given back.
    pub(super) fn unused(&mut self, freed: &[Freed]) -> Result<Vec<ByteRange>> {
        let mut runs: Vec<ByteRange> = Vec::new();
        for run in freed.iter().filter(|run| !run.compressed) {
            for cluster in (0..run.count).map(|ahead| run.first.plus(ahead)) {
                if self.alloc.counts.get(cluster)? == 1 {
                    runs.push(self.geometry.host_range(cluster, 1));
                }
            }
        }
        runs.sort_by_key(|run| run.start);
        runs.dedup_by(|next, run| {
            let joins = run.end() == next.start;
            if joins {
                *run = ByteRange::between(run.start, next.end());
            }
            joins
        });
        Ok(runs)
    }

    /// Takes the counts of `freed` down, and returns what is to be written for it.
    pub(super) fn release(&mut self, freed: &[Freed]) -> Result<Stage> {
        for run in freed {
            self.alloc.give_back(run.first, run.count)?;
            self.tables.remove(&run.first);
            let end = self.geometry.host_start(run.first.plus(run.count));
            let start = self.geometry.host_start(run.first);
            if self.compressed_end.is_some_and(|at| start <= at && at < end) {
                // Somebody else may get the cluster.
                self.compressed_end = None;
            }
        }
        let mut stage = Stage::default();
        for chunk in self.alloc.counts.take_dirty() {
            stage.push(chunk.at, chunk.bytes);
        }
        Ok(stage)
    }

    /// Cuts the file behind the last cluster that is used.
    pub(super) fn trim(&mut self, file: &dyn BlockDevice) -> Result<()> {
        let used = self.alloc.counts.last_used()?.map_or(0, |last| last.0 + 1);
        let end = ByteCount::new(used << self.geometry.cluster_bits);
        if file.size() <= end {
            return Ok(());
        }
        match file.resize(end) {
            Err(error) if error.kind() == block_types::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }
}
