//! Internal snapshots: taken, deleted, gone back to, listed.
//!
//! Each is one exchange of tables. A new snapshot keeps the L1 table and the L2 tables that were
//! the disk's; the disk gets a new L1 table, and a copy of those L2 tables that say "may be written
//! in place", which is true no more. So the first writes afterwards need not copy a table.
//!
//! Nobody writes meanwhile, so it has to be short. The format does not let it be postponed: a
//! cluster that a snapshot shares is to be counted twice, and without its mark in active tables,
//! from the moment on at which the header names the snapshot; a reader who met the one without the
//! other would write to the snapshot, or call the image corrupt. To count ahead, while writers go
//! on, would be allowed, since a count that is too high is a leak at worst. But then each cluster
//! that is given up meanwhile has to be found again, and what there is to save is small: of 64 GiB
//! mapped, counting takes 10 ms. The rest of a wait was the flush of what had gathered, and that is
//! done before writers are stopped; the copies of tables are written one behind the other. A disk
//! with 64 GiB mapped waits 20 to 40 ms, an eighth of what QEMU's does.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use block_io::BlockDevice;
use block_types::{ByteCount, ByteRange, Error, ErrorKind, Result};

use super::entry::{self, Cluster, L1Entry, Standard, decode_l1, encode_l1, mark_shared, shared};
use super::exchange::Exchange;
use super::geometry::{GuestCluster, L1Index};
use super::header::{L1_LIMIT, SNAPSHOT_LIMIT};
use super::image::{Gate, Image};
use super::layout::SnapshotHead;
use super::snapshot_table::{Entry, SnapshotTable, TABLE_LIMIT, new_extra};
use super::tree::{decode_of, entries, read_l1};

/// The longest name, as in QEMU.
const NAME_LIMIT: usize = 255;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Unique: a decimal number as a rule.
    pub id: String,
    /// What the user called it.
    pub name: String,
    /// When it was taken.
    pub taken: SystemTime,
    /// Bytes of the disk then.
    pub disk_size: ByteCount,
    /// Bytes of the virtual machine's state.
    pub vm_state_size: ByteCount,
    /// How long the machine had been running.
    pub vm_clock: Duration,
    /// Instructions of a machine that is replayed.
    pub instructions: Option<u64>,
}

impl Image {
    /// The internal snapshots, in the order of the table.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let size = self.header.read().size();
        self.snapshots.read().entries.iter().map(|entry| info(entry, size)).collect()
    }

    /// Takes a snapshot of the disk as it is, called `name`, at the time `now`.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]; [`ErrorKind::Invalid`] for a name of no or more than 255 bytes;
    /// [`ErrorKind::Unsupported`] with an external data file, or where the reference counts are too
    /// narrow; [`ErrorKind::OutOfSpace`].
    pub fn create_snapshot(&self, name: &str, now: SystemTime) -> Result<SnapshotInfo> {
        self.check_snapshots()?;
        if name.is_empty() || name.len() > NAME_LIMIT {
            return Err(self.invalid("a snapshot's name has 1 to 255 bytes"));
        }
        let like = SnapshotInfo {
            id: String::new(),
            name: name.to_owned(),
            taken: now,
            disk_size: ByteCount::ZERO,
            vm_state_size: ByteCount::ZERO,
            vm_clock: Duration::ZERO,
            instructions: None,
        };
        self.alone(Gate::Reads, || self.take_snapshot(&like))
    }

    /// Takes a snapshot of the disk as it is, with the id, the name and the times of `like`, which
    /// is one of another image: for a copy with its snapshots.
    ///
    /// # Errors
    /// Likewise.
    pub fn create_snapshot_like(&self, like: &SnapshotInfo) -> Result<SnapshotInfo> {
        self.check_snapshots()?;
        self.alone(Gate::Reads, || self.take_snapshot(like))
    }

    fn take_snapshot(&self, like: &SnapshotInfo) -> Result<SnapshotInfo> {
        let old = self.snapshots.read().clone();
        let known = [&like.id, &like.name].map(|name| !name.is_empty() && old.find(name).is_some());
        if known.contains(&true) {
            return Err(Error::new(ErrorKind::Exists, self.object(&like.name), "exists already"));
        }
        let mut exchange = Exchange::begin(self)?;
        let entry = new_entry(&exchange.header, old.next_id(), like);
        let mut new = old.clone();
        new.entries.push(entry.clone());
        if new.len().get() > TABLE_LIMIT || new.entries.len() > SNAPSHOT_LIMIT as usize {
            return Err(self.invalid("the table of snapshots is full"));
        }
        let (l1, copied) = self.share_active(&mut exchange)?;
        exchange.write_l1(&l1)?;
        exchange.write_snapshots(&old, &new)?;
        let size = exchange.header.size();
        exchange.finish()?;
        *self.source.tree.l1.write() = l1;
        for index in copied {
            self.source.tree.tables.remark_all(index, shared);
        }
        *self.snapshots.write() = new;
        Ok(info(&entry, size))
    }

    /// Adds a user to everything that the disk uses, and returns the L1 table that goes on with it,
    /// and which of its tables are copies. A machine's state behind the disk goes with the
    /// snapshot.
    fn share_active(&self, exchange: &mut Exchange<'_>) -> Result<(Vec<u64>, Vec<L1Index>)> {
        let geometry = self.source.geometry;
        let disk = geometry.l1_entries(exchange.header.size()) as usize;
        let old = self.source.tree.l1.read().clone();
        let mut l1 = vec![0; old.len()];
        let mut copied = Vec::new();
        for (index, entry) in self.tables(&old)?.filter(|(index, _)| index.index() < disk) {
            let mut words = exchange.active_table(index, entry.table)?;
            exchange.add_users(index, &words)?;
            let table = if mark_shared(geometry, &mut words) {
                copied.push(index);
                L1Entry { table: exchange.write_table(&words)?, exclusive: true }
            } else {
                exchange.counts().add(entry.table, 1)?;
                L1Entry { table: entry.table, exclusive: false }
            };
            l1[index.index()] = encode_l1(geometry, Some(table));
        }
        Ok((l1, copied))
    }

    /// Deletes the snapshot with the id or the name `name`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] while it is open; [`ErrorKind::OutOfSpace`].
    pub fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.check_snapshots()?;
        self.alone(Gate::Reads, || self.drop_snapshot(name))
    }

    fn drop_snapshot(&self, name: &str) -> Result<()> {
        let geometry = self.source.geometry;
        let mut views = self.views.lock();
        let old = self.snapshots.read().clone();
        let place = old.find(name).ok_or_else(|| self.not_found(name))?;
        let range = old.entries[place].l1();
        views.retain(|(_, token)| Weak::strong_count(token) > 0);
        if views.iter().any(|(at, _)| *at == range.start) {
            return Err(Error::new(ErrorKind::Busy, self.object(name), "is open"));
        }
        let mut exchange = Exchange::begin(self)?;
        let snapshot = read_l1(&*self.source.file, geometry, range)?;
        for (index, entry) in self.tables(&snapshot)? {
            let words = exchange.table(entry.table)?;
            exchange.take_users(index, &words)?;
            exchange.counts().take(entry.table, 1)?;
        }
        if !range.is_empty() {
            exchange.take_range(range)?;
        }
        let before = self.source.tree.l1.read().clone();
        let (l1, remarked) = self.remark_active(&mut exchange, &before, &snapshot)?;
        if l1 != before {
            let active = exchange.header.l1;
            exchange.write_l1(&l1)?;
            exchange.take_range(active)?;
        }
        let mut new = old.clone();
        new.entries.remove(place);
        exchange.write_snapshots(&old, &new)?;
        exchange.finish()?;
        *self.source.tree.l1.write() = l1;
        for (index, words) in remarked {
            self.source.tree.tables.remark(index, &words);
        }
        *self.snapshots.write() = new;
        Ok(())
    }

    /// Marks what the disk does not share any more, where a snapshot with the L1 table `snapshot`
    /// is gone: the L1 table that says so, and the tables whose marks changed.
    #[expect(clippy::type_complexity, reason = "two halves of one answer")]
    fn remark_active(
        &self,
        exchange: &mut Exchange<'_>,
        before: &[u64],
        snapshot: &[u64],
    ) -> Result<(Vec<u64>, Vec<(L1Index, Vec<u64>)>)> {
        let geometry = self.source.geometry;
        let mut l1 = before.to_vec();
        let mut remarked = Vec::new();
        for (index, entry) in self.tables(before)? {
            if snapshot.get(index.index()).is_none_or(|&word| word == 0) {
                continue;
            }
            let words = exchange.active_table(index, entry.table)?;
            let own = exchange.counts().get(entry.table)? == 1;
            let marked = self.marked(exchange, index, &words, own)?;
            let mut table = L1Entry { table: entry.table, exclusive: own };
            if marked != words {
                exchange.counts().take(entry.table, 1)?;
                table = L1Entry { table: exchange.write_table(&marked)?, exclusive: true };
                remarked.push((index, marked));
            }
            l1[index.index()] = encode_l1(geometry, Some(table));
        }
        Ok((l1, remarked))
    }

    /// The words of a table with the marks that the counts ask for.
    fn marked(
        &self,
        exchange: &mut Exchange<'_>,
        index: L1Index,
        words: &[u64],
        own: bool,
    ) -> Result<Vec<u64>> {
        let geometry = self.source.geometry;
        let first = geometry.first_of(index);
        let mut marked = words.to_vec();
        let step = geometry.entry_words();
        for (at, entry) in entries(geometry, words).enumerate() {
            if entry == [0, 0] {
                continue;
            }
            let guest = GuestCluster(first.0 + at as u64);
            let cluster = decode_of(geometry, &self.source.name, guest, entry)?;
            let Cluster::Standard(Standard { host: Some(host), .. }) = cluster else { continue };
            let exclusive = own && exchange.counts().get(host)? == 1;
            marked[at * step] = entry::marked(entry[0], exclusive);
        }
        Ok(marked)
    }

    /// Gives the disk the content, and the size, of the snapshot with the id or the name `name`,
    /// which stays. Bitmaps that record hold what differs from then on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::OutOfSpace`].
    pub fn revert_to_snapshot(&self, name: &str) -> Result<()> {
        self.check_snapshots()?;
        self.check_unrecorded("reverted")?;
        self.alone(Gate::Closed, || self.go_back(name))
    }

    fn go_back(&self, name: &str) -> Result<()> {
        let geometry = self.source.geometry;
        let table = self.snapshots.read();
        let place = table.find(name).ok_or_else(|| self.not_found(name))?;
        let entry = &table.entries[place];
        let size = entry.disk_size().unwrap_or_else(|| self.header.read().size());
        let mut exchange = Exchange::begin(self)?;
        // First down, then up: a count of what both share need not be wider than it ends.
        let active = self.source.tree.l1.read().clone();
        for (index, entry) in self.tables(&active)? {
            let words = exchange.active_table(index, entry.table)?;
            exchange.take_users(index, &words)?;
            exchange.counts().take(entry.table, 1)?;
        }
        let old = exchange.header.l1;
        if !old.is_empty() {
            exchange.take_range(old)?;
        }
        let snapshot = read_l1(&*self.source.file, geometry, entry.l1())?;
        let needed = geometry.l1_entries(size).max(1) as usize;
        if needed > snapshot.len() && needed as u64 * 8 > L1_LIMIT {
            let problem = "has a disk that no L1 table can hold";
            return Err(Error::new(ErrorKind::Corrupt, self.object(name), problem));
        }
        exchange.fit_bitmaps(size, &self.difference(&exchange, &active, &snapshot)?)?;
        let mut l1 = vec![0; snapshot.len().max(needed)];
        for (index, entry) in self.tables(&snapshot)? {
            let mut words = exchange.table(entry.table)?;
            exchange.add_users(index, &words)?;
            let table = if mark_shared(geometry, &mut words) {
                L1Entry { table: exchange.write_table(&words)?, exclusive: true }
            } else {
                exchange.counts().add(entry.table, 1)?;
                L1Entry { table: entry.table, exclusive: false }
            };
            l1[index.index()] = encode_l1(geometry, Some(table));
        }
        exchange.write_l1(&l1)?;
        exchange.header.size = size;
        exchange.finish()?;
        *self.source.tree.l1.write() = l1;
        self.source.tree.tables.reset();
        self.size.store(size.get(), Ordering::SeqCst);
        Ok(())
    }

    /// Where the disk differs from what the L1 table `snapshot` maps: as far as tables and entries
    /// are not the same, whatever lies there.
    fn difference(
        &self,
        exchange: &Exchange<'_>,
        active: &[u64],
        snapshot: &[u64],
    ) -> Result<Vec<ByteRange>> {
        let geometry = self.source.geometry;
        let step = geometry.entry_words();
        let mut ranges: Vec<ByteRange> = Vec::new();
        for index in (0..active.len().max(snapshot.len()) as u32).map(L1Index) {
            let table = |l1: &[u64]| {
                let word = l1.get(index.index()).copied().unwrap_or(0);
                decode_l1(geometry, word)
                    .map(|entry| entry.map(|entry| entry.table))
                    .map_err(|problem| super::header::corrupt(&self.source.name, problem))
            };
            let (now, then) = (table(active)?, table(snapshot)?);
            if now == then {
                continue;
            }
            let blank = || Ok(vec![0; geometry.table_words()]);
            let now = now.map_or_else(blank, |table| exchange.active_table(index, table))?;
            let then = then.map_or_else(blank, |table| exchange.table(table))?;
            let pairs = now.chunks_exact(step).zip(then.chunks_exact(step));
            for (at, (now, then)) in (0..).zip(pairs) {
                if shared(now[0]) == shared(then[0]) && now[1..] == then[1..] {
                    continue;
                }
                let start = geometry.guest_start(GuestCluster(geometry.first_of(index).0 + at));
                match ranges.last_mut() {
                    Some(last) if last.end() == start => {
                        *last = ByteRange::between(last.start, start.plus(geometry.cluster()));
                    }
                    _ => ranges.push(ByteRange::new(start, geometry.cluster())),
                }
            }
        }
        Ok(ranges)
    }

    /// The L2 tables that an L1 table names.
    pub(super) fn tables(
        &self,
        l1: &[u64],
    ) -> Result<impl Iterator<Item = (L1Index, L1Entry)> + use<>> {
        let mut found = Vec::new();
        for (index, &word) in (0..).zip(l1) {
            let entry = decode_l1(self.source.geometry, word)
                .map_err(|problem| super::header::corrupt(&self.source.name, problem))?;
            found.extend(entry.map(|entry| (L1Index(index), entry)));
        }
        Ok(found.into_iter())
    }

    fn check_snapshots(&self) -> Result<()> {
        self.state()?;
        self.check_running()?;
        if self.source.geometry.external {
            return Err(Error::new(
                ErrorKind::Unsupported,
                &*self.source.name,
                "keeps its data in another file, which cannot hold snapshots",
            )
            .advise("put an overlay on it instead"));
        }
        self.prepare_tables()
    }

    fn invalid(&self, problem: &str) -> Error {
        Error::new(ErrorKind::Invalid, &*self.source.name, problem)
    }

    pub(super) fn object(&self, name: &str) -> String {
        format!("{}, snapshot {name}", self.source.name)
    }

    pub(super) fn not_found(&self, name: &str) -> Error {
        Error::new(ErrorKind::NotFound, self.object(name), "does not exist")
    }
}

/// The internal snapshots of the image in `file`, in the order of the table; nothing else of it is
/// read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a header or a table outside its limits.
pub fn snapshots(file: &dyn BlockDevice) -> Result<Vec<SnapshotInfo>> {
    let header = super::header::Header::read(file)?;
    let table = SnapshotTable::read(file, &header)?;
    Ok(table.entries.iter().map(|entry| info(entry, header.size())).collect())
}

fn info(entry: &Entry, disk_size: ByteCount) -> SnapshotInfo {
    let since = Duration::new(
        entry.head.seconds.get().into(),
        entry.head.nanoseconds.get() % 1_000_000_000,
    );
    SnapshotInfo {
        id: String::from_utf8_lossy(&entry.id).into_owned(),
        name: String::from_utf8_lossy(&entry.name).into_owned(),
        taken: SystemTime::UNIX_EPOCH + since,
        disk_size: entry.disk_size().unwrap_or(disk_size),
        vm_state_size: entry.vm_state_size(),
        vm_clock: Duration::from_nanos(entry.head.vm_clock.get()),
        instructions: entry.instructions(),
    }
}

/// The entry of a snapshot of the disk of `header`, which takes its L1 table over. Without an id it
/// gets the id `next`.
fn new_entry(header: &super::header::Header, next: u64, like: &SnapshotInfo) -> Entry {
    let since = like.taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let id = if like.id.is_empty() { next.to_string() } else { like.id.clone() };
    let (id, name) = (id.into_bytes(), like.name.as_bytes().to_vec());
    let mut extra = new_extra(header.size());
    if let Some(instructions) = like.instructions {
        extra[16..24].copy_from_slice(&instructions.to_be_bytes());
    }
    let head = SnapshotHead {
        l1_table_offset: header.l1.start.get().into(),
        l1_size: ((header.l1.len.get() / 8) as u32).into(),
        id_size: (id.len() as u16).into(),
        name_size: (name.len() as u16).into(),
        seconds: (since.as_secs() as u32).into(),
        nanoseconds: since.subsec_nanos().into(),
        vm_clock: (like.vm_clock.as_nanos() as u64).into(),
        vm_state_size: 0.into(),
        extra_size: (extra.len() as u32).into(),
    };
    Entry { head, extra, id, name }
}

impl SnapshotTable {
    /// The entry of the snapshot with the id or the name `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.find(name).map(|place| &self.entries[place])
    }
}
