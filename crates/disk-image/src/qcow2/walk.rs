//! Everything that uses a cluster, counted: what the reference counts ought to be.

use std::collections::BTreeMap;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use zerocopy::FromBytes;

use super::bitmap::Bitmaps;
use super::bytes::{read_clipped, words_of};
use super::entry::{Cluster, decode, decode_l1};
use super::geometry::{Geometry, GuestCluster, HostCluster, L1Index};
use super::header::Header;
use super::layout::{EncryptionField, extension};
use super::snapshot_table::SnapshotTable;
use super::tree::{entries, read_table};

/// Clusters of a page of figures.
pub(super) const PAGE: u64 = 4096;
/// More of the encryption header than this is not looked at.
const ENCRYPTION_LIMIT: u64 = 64 << 20;
/// Problems that are told in words; more are only counted.
const TOLD: usize = 200;

/// How many users each cluster has: pages of 16 KiB for what is used, so at most 4 bytes for each
/// cluster of the file.
#[derive(Default)]
pub(super) struct Users {
    pages: BTreeMap<u64, Box<[u32]>>,
}

/// What the tables of an image say.
pub(super) struct Walk {
    file_end: u64,
    geometry: Geometry,
    pub(super) users: Users,
    pub(super) problems: Vec<String>,
    /// Problems beyond those that are told.
    pub(super) untold: u64,
    /// Guest clusters of the disk that have a place, those compressed, and those that do not lie
    /// behind their neighbour.
    pub(super) allocated: u64,
    pub(super) compressed: u64,
    pub(super) fragmented: u64,
}

/// An entry of the active tables that says whether its cluster is shared.
pub(super) struct Mark {
    /// Where the word stands in the file.
    pub(super) word_at: ByteOffset,
    pub(super) host: HostCluster,
    pub(super) own: bool,
}

impl Users {
    /// Users of `cluster`.
    pub(super) fn get(&self, cluster: HostCluster) -> u64 {
        let page = self.pages.get(&(cluster.0 / PAGE));
        page.map_or(0, |page| u64::from(page[(cluster.0 % PAGE) as usize]))
    }

    /// Adds a user to `cluster`.
    pub(super) fn add(&mut self, cluster: HostCluster) {
        self.add_run(cluster, 1);
    }

    /// Adds a user to `count` clusters.
    fn add_run(&mut self, first: HostCluster, count: u64) {
        let mut at = first.0;
        let end = first.0 + count;
        while at < end {
            let blank = || vec![0; PAGE as usize].into_boxed_slice();
            let page = self.pages.entry(at / PAGE).or_insert_with(blank);
            let here = (end - at).min(PAGE - at % PAGE);
            let from = (at % PAGE) as usize;
            for users in &mut page[from..from + here as usize] {
                *users = users.saturating_add(1);
            }
            at += here;
        }
    }

    /// The first cluster behind the last page.
    pub(super) fn end(&self) -> HostCluster {
        HostCluster(self.pages.last_key_value().map_or(0, |(page, _)| (page + 1) * PAGE))
    }

    /// The users of a page of clusters that begins with `first`; none if nothing there is used.
    pub(super) fn page(&self, first: HostCluster) -> Option<&[u32]> {
        self.pages.get(&(first.0 / PAGE)).map(|page| &**page)
    }

    /// Every cluster from `from` on that has users, in order.
    pub(super) fn iter_from(&self, from: HostCluster) -> impl Iterator<Item = (HostCluster, u64)> {
        let pages = self.pages.range(from.0 / PAGE..);
        let all = pages.flat_map(|(page, users)| {
            let first = page * PAGE;
            let used = users.iter().enumerate().filter(|(_, users)| **users > 0);
            used.map(move |(at, &users)| (HostCluster(first + at as u64), u64::from(users)))
        });
        all.filter(move |(cluster, _)| *cluster >= from)
    }
}

impl Walk {
    /// Walks everything but the refcount structures.
    pub(super) fn run(file: &dyn BlockDevice, header: &Header) -> Result<Self> {
        let mut walk = Self {
            file_end: file.size().get(),
            geometry: header.geometry,
            users: Users::default(),
            problems: Vec::new(),
            untold: 0,
            allocated: 0,
            compressed: 0,
            fragmented: 0,
        };
        walk.users.add(HostCluster(0));
        walk.tree(file, header.l1, "the disk", true)?;
        walk.snapshots(file, header)?;
        walk.bitmaps(file, header)?;
        if let Some(field) = header.extensions.get(extension::ENCRYPTION)
            && let Ok((field, _)) = EncryptionField::read_from_prefix(field)
        {
            let at = ByteOffset::new(field.offset.get());
            walk.range("the encryption header", at, field.length.get().min(ENCRYPTION_LIMIT));
        }
        Ok(walk)
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, problem: String) {
        if self.problems.len() < TOLD {
            self.problems.push(problem);
        } else {
            self.untold += 1;
        }
    }

    /// Adds a user to the clusters of a range that lies in the file.
    fn range(&mut self, what: &str, at: ByteOffset, len: u64) {
        let range = ByteRange::checked(at, ByteCount::new(len));
        let inside = |range: &ByteRange| range.start.get() < self.file_end || range.is_empty();
        let end = self.file_end.next_multiple_of(self.geometry.cluster().get());
        let Some(range) = range.filter(inside).filter(|range| range.end().get() <= end) else {
            self.problem(format!("{what} lies past the end of the file, at {at}"));
            return;
        };
        for piece in range.pieces(self.geometry.cluster()) {
            self.users.add(self.geometry.host_cluster_of(piece.start));
        }
    }

    fn tree(
        &mut self,
        file: &dyn BlockDevice,
        l1: ByteRange,
        whose: &str,
        active: bool,
    ) -> Result<()> {
        self.range(&format!("the L1 table of {whose}"), l1.start, l1.len.get());
        let mut bytes = vec![0; l1.len.as_usize()];
        read_clipped(file, &mut bytes, l1.start)?;
        let mut expected = None;
        for (index, word) in (0..).zip(words_of(&bytes)) {
            let entry = match decode_l1(self.geometry, word) {
                Ok(None) => continue,
                Ok(Some(entry)) => entry,
                Err(problem) => {
                    self.problem(format!("L1 entry {index} of {whose} {problem}"));
                    continue;
                }
            };
            let start = self.geometry.host_start(entry.table);
            if start.get() >= self.file_end {
                self.problem(format!("L1 entry {index} of {whose} names {}", entry.table));
                continue;
            }
            self.users.add(entry.table);
            let words = read_table(file, self.geometry, entry.table)?;
            self.table(L1Index(index), &words, whose, active.then_some(&mut expected));
        }
        Ok(())
    }

    /// Counts what a table names; `expected` is where the disk's next cluster would lie.
    fn table(
        &mut self,
        index: L1Index,
        words: &[u64],
        whose: &str,
        mut expected: Option<&mut Option<u64>>,
    ) {
        let geometry = self.geometry;
        // Neighbours are counted together.
        let mut run = (HostCluster(0), 0);
        for (at, entry) in (0..).zip(entries(geometry, words)) {
            if entry == [0, 0] {
                continue;
            }
            let guest = GuestCluster(geometry.first_of(index).0 + at);
            let cluster = match decode(geometry, entry) {
                Ok(cluster) => cluster,
                Err(problem) => {
                    self.problem(format!("the L2 entry of {guest} of {whose} {problem}"));
                    continue;
                }
            };
            let Some((first, count)) = cluster.hosts(geometry) else { continue };
            if let Some(expected) = expected.as_deref_mut() {
                self.figure(cluster, first, expected);
            }
            if geometry.external {
                continue;
            }
            if geometry.host_start(first.plus(count - 1)).get() >= self.file_end {
                self.problem(format!("{guest} of {whose} lies at {first}, past the file's end"));
                continue;
            }
            if run.0.plus(run.1) == first && matches!(cluster, Cluster::Standard(_)) {
                run.1 += count;
                continue;
            }
            self.users.add_run(run.0, run.1);
            run = (first, count);
        }
        self.users.add_run(run.0, run.1);
    }

    /// Figures of the disk: qemu-img counts the same.
    fn figure(&mut self, cluster: Cluster, first: HostCluster, expected: &mut Option<u64>) {
        self.allocated += 1;
        let at = match cluster {
            Cluster::Compressed(_) => {
                self.compressed += 1;
                self.fragmented += 1;
                return;
            }
            Cluster::Standard(_) => first.0,
        };
        if expected.is_some_and(|expected| expected != at) {
            self.fragmented += 1;
        }
        *expected = Some(at + 1);
    }

    fn snapshots(&mut self, file: &dyn BlockDevice, header: &Header) -> Result<()> {
        let table = match SnapshotTable::read(file, header) {
            Ok(table) => table,
            Err(error) => {
                self.problem(error.problem().to_owned());
                return Ok(());
            }
        };
        if !table.entries.is_empty() {
            self.range("the snapshot table", header.snapshots_at, table.len().get());
        }
        for entry in &table.entries {
            let whose = format!("snapshot {}", String::from_utf8_lossy(&entry.name));
            self.tree(file, entry.l1(), &whose, false)?;
        }
        Ok(())
    }

    fn bitmaps(&mut self, file: &dyn BlockDevice, header: &Header) -> Result<()> {
        let bitmaps = match Bitmaps::read(file, header) {
            Ok(None) => return Ok(()),
            Ok(Some(bitmaps)) => bitmaps,
            Err(error) => {
                self.problem(error.problem().to_owned());
                return Ok(());
            }
        };
        let directory = bitmaps.directory;
        self.range("the directory of bitmaps", directory.start, directory.len.get());
        for bitmap in &bitmaps.entries {
            let what = format!("bitmap {}", bitmap.name);
            self.range(&what, bitmap.table.start, bitmap.table.len.get());
            for at in bitmap.clusters(file)? {
                self.range(&what, at, self.geometry.cluster().get());
            }
        }
        Ok(())
    }
}

/// Calls `each` with every entry of the active tables that says whether its cluster is shared, as
/// far as the entries make sense.
pub(super) fn marks(
    file: &dyn BlockDevice,
    header: &Header,
    each: &mut dyn FnMut(Mark) -> Result<()>,
) -> Result<()> {
    let geometry = header.geometry;
    let mut bytes = vec![0; header.l1.len.as_usize()];
    read_clipped(file, &mut bytes, header.l1.start)?;
    for (index, word) in (0..).zip(words_of(&bytes)) {
        let Ok(Some(entry)) = decode_l1(geometry, word) else { continue };
        let start = geometry.host_start(entry.table);
        if start.get() >= file.size().get() {
            continue;
        }
        let word_at = header.l1.start.plus(ByteCount::new(index * 8));
        each(Mark { word_at, host: entry.table, own: entry.exclusive })?;
        if geometry.external {
            continue;
        }
        let words = read_table(file, geometry, entry.table)?;
        let step = geometry.entry_words() as u64 * 8;
        for (at, entry) in (0..).zip(entries(geometry, &words)) {
            if let Ok(Cluster::Standard(standard)) = decode(geometry, entry)
                && let Some(host) = standard.host
            {
                let word_at = start.plus(ByteCount::new(at * step));
                each(Mark { word_at, host, own: standard.exclusive })?;
            }
        }
    }
    Ok(())
}
