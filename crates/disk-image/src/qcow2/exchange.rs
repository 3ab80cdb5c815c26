//! An exchange of tables: what has to change together is built beside what is there.
//!
//! New tables, new reference counts and a new refcount table go to clusters that are free before
//! and after; then the first sector of the header, one write, names them all. Before that write the
//! image is the old one, from it on the new one, and neither leaks anything. An exchange that is
//! dropped never was.

use std::collections::BTreeMap;

use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use parking_lot::MutexGuard;

use super::bytes::bytes_of;
use super::counts::Counts;
use super::entry::{Cluster, Descriptor};
use super::geometry::{Geometry, GuestCluster, HostCluster, L1Index};
use super::header::Header;
use super::image::Image;
use super::snapshot_table::SnapshotTable;
use super::stage::Stage;
use super::state::State;
use super::tree::{decode_of, entries, read_table};

/// Tables that wait in memory, at most; more are written early, where nothing names them.
const STAGED: usize = 8 << 20;

/// An exchange under way. Nobody changes the disk meanwhile, and nothing waits for a commit.
pub(super) struct Exchange<'i> {
    image: &'i Image,
    state: MutexGuard<'i, State>,
    geometry: Geometry,
    built: Stage,
    /// As it is to be.
    pub(super) header: Header,
    /// Refcount blocks before, and where those that moved were.
    blocks: usize,
    old_homes: BTreeMap<usize, HostCluster>,
    old_table: ByteRange,
    counts_moved: bool,
    done: bool,
}

impl<'i> Exchange<'i> {
    /// Begins.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::ReadOnly`].
    pub(super) fn begin(image: &'i Image) -> Result<Self> {
        let mut state = image.state()?.lock();
        state.alloc.counts.begin();
        state.compressed_end = None;
        let (blocks, old_table) = (state.alloc.counts.blocks(), state.alloc.table);
        Ok(Self {
            image,
            state,
            geometry: image.source.geometry,
            built: Stage::default(),
            header: image.header(),
            blocks,
            old_homes: BTreeMap::new(),
            old_table,
            counts_moved: false,
            done: false,
        })
    }

    /// The image whose tables are exchanged.
    pub(super) fn image(&self) -> &'i Image {
        self.image
    }

    /// The counts as they are to be.
    pub(super) fn counts(&mut self) -> &mut Counts {
        &mut self.state.alloc.counts
    }

    /// The words of the active L2 table at `index`, which lies at `table`.
    pub(super) fn active_table(&self, index: L1Index, table: HostCluster) -> Result<Vec<u64>> {
        let words = self.geometry.table_words();
        match self.image.source.tree.tables.copy(index, 0, words) {
            Some(copy) => Ok(copy),
            None => self.table(table),
        }
    }

    /// The words of the L2 table at `table` in the file.
    pub(super) fn table(&self, table: HostCluster) -> Result<Vec<u64>> {
        read_table(&*self.image.source.file, self.geometry, table)
    }

    /// Adds a user to everything that the L2 table at `index` names.
    pub(super) fn add_users(&mut self, index: L1Index, words: &[u64]) -> Result<()> {
        let runs = self.host_runs(index, words)?;
        runs.into_iter().try_for_each(|(first, count)| self.counts().add(first, count))
    }

    /// Takes a user from everything that the L2 table at `index` names.
    pub(super) fn take_users(&mut self, index: L1Index, words: &[u64]) -> Result<()> {
        let runs = self.host_runs(index, words)?;
        runs.into_iter().try_for_each(|(first, count)| self.counts().take(first, count))
    }

    /// The host clusters that a table names, neighbours joined.
    fn host_runs(&self, index: L1Index, words: &[u64]) -> Result<Vec<(HostCluster, u64)>> {
        let first = self.geometry.first_of(index);
        let step = self.geometry.cluster().get();
        let mut runs: Vec<(HostCluster, u64)> = Vec::new();
        let mut expected = None;
        for (at, entry) in (0..).zip(entries(self.geometry, words)) {
            if entry == [0, 0] {
                continue;
            }
            // As a rule a cluster lies behind its neighbour, and the words say so at a glance.
            if !self.geometry.extended
                && expected == Some(entry[0])
                && let Some((_, len)) = runs.last_mut()
            {
                *len += 1;
                expected = Some(entry[0].wrapping_add(step));
                continue;
            }
            expected = None;
            let guest = GuestCluster(first.0 + at);
            let cluster = decode_of(self.geometry, &self.image.source.name, guest, entry)?;
            let Some((host, count)) = cluster.hosts(self.geometry) else { continue };
            if matches!(cluster, Cluster::Standard(_)) {
                // A place past every end has other bits set, and is looked at.
                expected = Some(entry[0].wrapping_add(step));
            }
            match (runs.last_mut(), cluster) {
                (Some((start, len)), Cluster::Standard(_)) if start.plus(*len) == host => *len += 1,
                _ => runs.push((host, count)),
            }
        }
        Ok(runs)
    }

    /// Takes a cluster that is free before and after, and leaves it to the caller to count its
    /// users. Until then nobody gets it, since places are given out in order.
    pub(super) fn take_place(&mut self) -> Result<HostCluster> {
        let place = self.state.alloc.allocate(1)?.first;
        self.counts().take(place, 1)?;
        Ok(place)
    }

    /// A place for compressed data, likewise.
    pub(super) fn place_compressed(&mut self, len: ByteCount) -> Result<Option<Descriptor>> {
        if self.geometry.refcount_order < 4 {
            // A narrow count soon is too small for a cluster that many share.
            self.state.compressed_end = None;
        }
        let Some(place) = self.state.place_compressed(self.geometry, len)? else {
            return Ok(None);
        };
        let (first, count) = place.hosts(self.geometry);
        self.counts().take(first, count)?;
        Ok(Some(place))
    }

    /// Writes a new L2 table and says where.
    pub(super) fn write_table(&mut self, words: &[u64]) -> Result<HostCluster> {
        let place = self.state.alloc.allocate(1)?.first;
        self.stage(self.geometry.host_range(place, 1), bytes_of(words))?;
        Ok(place)
    }

    /// Writes a new active L1 table. The old one's clusters stay counted.
    pub(super) fn write_l1(&mut self, words: &[u64]) -> Result<()> {
        let len = ByteCount::new(words.len() as u64 * 8);
        self.header.l1 = ByteRange::new(self.write_run(bytes_of(words))?, len);
        Ok(())
    }

    /// Writes a new snapshot table in place of `old`.
    pub(super) fn write_snapshots(
        &mut self,
        old: &SnapshotTable,
        new: &SnapshotTable,
    ) -> Result<()> {
        if !old.entries.is_empty() {
            let range = ByteRange::new(self.header.snapshots_at, old.len());
            self.take_range(range)?;
        }
        self.header.snapshot_count = new.entries.len() as u32;
        self.header.snapshots_at = ByteOffset::ZERO;
        if !new.entries.is_empty() {
            self.header.snapshots_at = self.write_run(new.encode())?;
        }
        Ok(())
    }

    /// Writes what is to lie in clusters beside each other, and says where.
    pub(super) fn write_run(&mut self, bytes: Vec<u8>) -> Result<ByteOffset> {
        let run = self.state.alloc.allocate_whole(self.geometry.clusters(ByteCount::of(&bytes)))?;
        let whole = self.geometry.host_range(run.first, run.count);
        self.stage(whole, bytes)?;
        Ok(whole.start)
    }

    /// Takes a user from the clusters of a table that is not used any more.
    pub(super) fn take_range(&mut self, range: ByteRange) -> Result<()> {
        let first = self.geometry.host_cluster_of(range.start);
        let count = self.geometry.clusters(range.len);
        self.counts().take(first, count)
    }

    fn stage(&mut self, whole: ByteRange, mut bytes: Vec<u8>) -> Result<()> {
        bytes.resize(whole.len.as_usize(), 0);
        self.built.push(whole.start, bytes);
        if self.built.len() > STAGED {
            self.built.write(&*self.image.source.file)?;
        }
        Ok(())
    }

    /// Makes everything count, durably.
    ///
    /// # Errors
    /// With nothing changed, or, once the header was to be written, with the image stopped.
    pub(super) fn finish(mut self) -> Result<()> {
        if !self.counts_moved {
            self.move_counts()?;
        }
        let old = self.image.header();
        let change = self.header.change_from(&old, &self.image.source.name)?;
        self.image.flip(&mut self.built, change)?;
        self.done = true;
        self.state.alloc.counts.finish();
        self.state.alloc.table_moved = false;
        self.state.alloc.fresh.clear();
        self.state.alloc.lower_hint(HostCluster(0));
        self.state.tables.clear();
        // What was compressed may be gone, and its place used again.
        self.image.source.decompressed.clear();
        let mut header = self.image.header.write();
        *header = self.header.clone();
        Ok(())
    }

    /// Gives every refcount block that changed, and the refcount table, a new place. Each of these
    /// places is counted itself, in a block that then has to move, too; that ends, since a block
    /// moves once.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::OutOfSpace`].
    pub(super) fn move_counts(&mut self) -> Result<()> {
        self.counts_moved = true;
        let blocks = self.state.alloc.counts.blocks();
        if !self.state.alloc.table_moved {
            self.state.alloc.place_table(blocks)?;
        }
        let mut moved: BTreeMap<usize, HostCluster> = BTreeMap::new();
        loop {
            for (first, count) in std::mem::take(&mut self.state.alloc.retired) {
                self.counts().take(first, count)?;
            }
            let changed = self.state.alloc.counts.changed_blocks();
            let fresh = &self.state.alloc.fresh;
            let waiting: Vec<usize> = changed
                .into_iter()
                .filter(|index| !fresh.contains(index) && !moved.contains_key(index))
                .collect();
            if waiting.is_empty() && self.state.alloc.retired.is_empty() {
                break;
            }
            for index in waiting {
                let place = self.state.alloc.allocate(1)?.first;
                if let Some(old) = self.state.alloc.counts.home(index) {
                    self.old_homes.insert(index, old);
                    self.counts().take(old, 1)?;
                }
                moved.insert(index, place);
            }
        }
        for (&index, &place) in &moved {
            self.counts().move_home(index, place);
        }
        let whole: Vec<usize> =
            moved.keys().chain(self.state.alloc.fresh.iter()).copied().collect();
        for index in whole {
            let counts = &self.state.alloc.counts;
            if let (Some(home), Some(bytes)) = (counts.home(index), counts.bytes(index)) {
                self.built.push(self.geometry.host_start(home), bytes.to_vec());
            }
        }
        let table = self.state.alloc.table;
        self.built.push(table.start, self.state.refcount_table(table));
        self.header.refcount_table = table;
        Ok(())
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        for (&index, &home) in &self.old_homes {
            self.state.alloc.counts.move_home(index, home);
        }
        self.state.compressed_end = None;
        let alloc = &mut self.state.alloc;
        alloc.counts.roll_back(self.blocks);
        alloc.table = self.old_table;
        alloc.table_moved = false;
        alloc.fresh.clear();
        alloc.retired.clear();
        alloc.lower_hint(HostCluster(0));
    }
}
