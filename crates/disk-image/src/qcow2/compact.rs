//! Compaction: what lies at the end of the file is moved into gaps before it, and the file is cut.
//!
//! It goes in steps. Each is one exchange of tables: data, tables, bitmaps and counts that lie
//! behind a place are written anew into clusters that are free before and after, which are the
//! lowest; then the header, one write, names them all. So a crash leaves the image of before or of
//! behind the step, and nothing leaks. What the step frees is room for the next one. Counts do not
//! change: what a cluster was used by, its copy is.

use std::collections::HashMap;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::bitmap::Bitmaps;
use super::bytes::{read_clipped, write_any};
use super::compressed::decompress;
use super::counts::Counts;
use super::entry::{Cluster, Descriptor, L1Entry, Standard, encode, encode_l1};
use super::exchange::Exchange;
use super::geometry::{GuestCluster, HostCluster, L1Index};
use super::image::{Gate, Image};
use super::tree::{decode_of, entries, read_l1};

/// How far a compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Bytes that this step has moved.
    pub moved: ByteCount,
    /// Where the last cluster that is used ends.
    pub end: ByteOffset,
    /// Whether nothing is left to do.
    pub done: bool,
}

/// What of a step is where now.
struct Moves<'x, 'i> {
    exchange: &'x mut Exchange<'i>,
    /// What lies from here on moves.
    zone: HostCluster,
    hosts: HashMap<HostCluster, HostCluster>,
    compressed: HashMap<Descriptor, Descriptor>,
    /// Tables by their old places; those that did not have to move are their own.
    tables: HashMap<HostCluster, HostCluster>,
    moved: u64,
}

impl Image {
    /// Moves about `most` bytes, and at least one cluster, from the end of the file into gaps
    /// before it; nobody uses the disk meanwhile. To be called until it is done; the file is cut
    /// then.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while snapshots are open; those of the file, with the image as it was
    /// before the step.
    ///
    /// A LUKS header stays where it is, which is the beginning of the file.
    pub fn compact_step(&self, most: ByteCount) -> Result<Compaction> {
        self.state()?;
        self.check_running()?;
        self.prepare_tables()?;
        // Bits that are put in place meanwhile would be put where a bitmap was.
        let _nobody_puts_bits = self.putting.lock();
        self.alone(Gate::Closed, || {
            let mut views = self.views.lock();
            views.retain(|(_, token)| std::sync::Weak::strong_count(token) > 0);
            if !views.is_empty() {
                let problem = "has snapshots that are open, which cannot be moved";
                return Err(Error::new(ErrorKind::Busy, &*self.source.name, problem));
            }
            self.move_down(most)
        })
    }

    fn move_down(&self, most: ByteCount) -> Result<Compaction> {
        let geometry = self.source.geometry;
        let clusters = (most.get() >> geometry.cluster_bits).max(1);
        let (before, zone) = {
            let mut state = self.state()?.lock();
            let before = state.alloc.counts.used_end()?;
            (before, zone(&mut state.alloc.counts, before, clusters)?)
        };
        let Some(zone) = zone else {
            return self.finish_compaction(before);
        };
        // What is left in the end are gaps that tables leave where they change places.
        let Some(moved) = self.move_zone(zone, before)? else {
            return self.finish_compaction(before);
        };
        let end = self.state()?.lock().alloc.counts.used_end()?;
        let moved = ByteCount::new(moved << geometry.cluster_bits);
        Ok(Compaction { moved, end: geometry.host_start(end), done: false })
    }

    fn finish_compaction(&self, end: HostCluster) -> Result<Compaction> {
        self.state()?.lock().trim(&*self.source.file)?;
        self.settle()?;
        let end = self.source.geometry.host_start(end);
        Ok(Compaction { moved: ByteCount::ZERO, end, done: true })
    }

    /// Moves what lies from `zone` on, and says how many clusters it was; `None`, with nothing
    /// moved, if the file, which ends at `end`, would not end earlier.
    fn move_zone(&self, zone: HostCluster, end: HostCluster) -> Result<Option<u64>> {
        let geometry = self.source.geometry;
        let active = self.source.tree.l1.read().clone();
        let old = self.snapshots.read().clone();
        let mut exchange = Exchange::begin(self)?;
        let l1_at = exchange.header.l1;
        let mut moves = Moves {
            exchange: &mut exchange,
            zone,
            hosts: HashMap::new(),
            compressed: HashMap::new(),
            tables: HashMap::new(),
            moved: 0,
        };
        let l1 = moves.tree(&active)?;
        let mut new = old.clone();
        let mut changed =
            moves.lies_behind(ByteRange::new(moves.exchange.header.snapshots_at, old.len()));
        for entry in &mut new.entries {
            let range = entry.l1();
            let words = read_l1(&*self.source.file, geometry, range)?;
            let moved = moves.tree(&words)?;
            if !range.is_empty() && (moved != words || moves.lies_behind(range)) {
                let bytes = super::bytes::bytes_of(&moved);
                let place = moves.exchange.write_run(bytes)?;
                moves.exchange.take_range(range)?;
                entry.head.l1_table_offset = place.get().into();
                changed = true;
            }
        }
        moves.bitmaps()?;
        let (moved, l1_moves) = (moves.moved, l1 != active || moves.lies_behind(l1_at));
        if l1_moves {
            exchange.write_l1(&l1)?;
            if !l1_at.is_empty() {
                exchange.take_range(l1_at)?;
            }
        }
        if changed && !old.entries.is_empty() {
            exchange.write_snapshots(&old, &new)?;
        }
        exchange.counts().touch_from(zone)?;
        exchange.move_counts()?;
        if exchange.counts().used_end()? >= end {
            return Ok(None);
        }
        exchange.finish()?;
        *self.source.tree.l1.write() = l1;
        self.source.tree.tables.reset();
        *self.snapshots.write() = new;
        Ok(Some(moved))
    }
}

/// A place such that what is used from there to `end`, at most `most` clusters, finds room before
/// it; the lowest such place. `None` if there is none.
fn zone(counts: &mut Counts, end: HostCluster, most: u64) -> Result<Option<HostCluster>> {
    let mut below = 0;
    for cluster in (0..end.0).map(HostCluster) {
        below += u64::from(counts.get(cluster)? != 0);
    }
    let (mut zone, mut above) = (None, 0);
    for cluster in (1..end.0).rev().map(HostCluster) {
        let used = u64::from(counts.get(cluster)? != 0);
        (above, below) = (above + used, below - used);
        if above > most || cluster.0 - below < above {
            break;
        }
        if used != 0 {
            zone = Some(cluster);
        }
    }
    Ok(zone)
}

impl Moves<'_, '_> {
    fn lies_behind(&self, range: ByteRange) -> bool {
        let geometry = self.exchange.image().source.geometry;
        !range.is_empty() && range.end() > geometry.host_start(self.zone)
    }

    /// Moves what an L1 table names, and returns the table that names the copies.
    fn tree(&mut self, l1: &[u64]) -> Result<Vec<u64>> {
        let image = self.exchange.image();
        let geometry = image.source.geometry;
        let mut moved = l1.to_vec();
        for (index, entry) in image.tables(l1)? {
            let words = self.exchange.table(entry.table)?;
            let place = match self.tables.get(&entry.table) {
                Some(place) if *place == entry.table => continue,
                Some(place) => Some((*place, self.words(index, &words)?)),
                None => self.table(index, entry.table, &words)?,
            };
            let Some((place, new)) = place else { continue };
            // As many users as before, of what is elsewhere now.
            self.exchange.take_users(index, &words)?;
            self.exchange.counts().take(entry.table, 1)?;
            self.exchange.add_users(index, &new)?;
            self.exchange.counts().add(place, 1)?;
            let entry = L1Entry { table: place, exclusive: entry.exclusive };
            moved[index.index()] = encode_l1(geometry, Some(entry));
        }
        Ok(moved)
    }

    /// Writes the table at `old` anew, if it or something that it names moves.
    fn table(
        &mut self,
        index: L1Index,
        old: HostCluster,
        words: &[u64],
    ) -> Result<Option<(HostCluster, Vec<u64>)>> {
        let new = self.words(index, words)?;
        if new == words && old < self.zone {
            self.tables.insert(old, old);
            return Ok(None);
        }
        let place = self.exchange.write_table(&new)?;
        // Counted tree by tree; until then nobody gets it, since places are given out in order.
        self.exchange.counts().take(place, 1)?;
        self.tables.insert(old, place);
        self.moved += u64::from(old >= self.zone);
        Ok(Some((place, new)))
    }

    /// The words of a table that name the copies of what moves.
    fn words(&mut self, index: L1Index, words: &[u64]) -> Result<Vec<u64>> {
        let image = self.exchange.image();
        let geometry = image.source.geometry;
        let step = geometry.entry_words();
        let mut moved = words.to_vec();
        for (at, entry) in entries(geometry, words).enumerate() {
            if entry == [0, 0] || geometry.external {
                continue;
            }
            let guest = GuestCluster(geometry.first_of(index).0 + at as u64);
            let cluster = decode_of(geometry, &image.source.name, guest, entry)?;
            let Some((first, count)) = cluster.hosts(geometry) else { continue };
            if first.plus(count) <= self.zone {
                continue;
            }
            let cluster = match cluster {
                Cluster::Standard(standard) => {
                    let host = Some(self.host(first)?);
                    Cluster::Standard(Standard { host, ..standard })
                }
                Cluster::Compressed(descriptor) => {
                    Cluster::Compressed(self.descriptor(descriptor)?)
                }
            };
            let entry = encode(geometry, cluster);
            moved[at * step..(at + 1) * step].copy_from_slice(&entry[..step]);
        }
        Ok(moved)
    }

    /// The copy of a cluster of the guest's data.
    fn host(&mut self, old: HostCluster) -> Result<HostCluster> {
        if let Some(new) = self.hosts.get(&old) {
            return Ok(*new);
        }
        let source = &self.exchange.image().source;
        let geometry = source.geometry;
        let new = self.exchange.take_place()?;
        let mut bytes = vec![0; geometry.cluster().as_usize()];
        // What is encrypted depends on its place.
        source.read_data(&mut bytes, geometry.host_start(old))?;
        source.write_data(&bytes, geometry.host_start(new))?;
        self.hosts.insert(old, new);
        self.moved += 1;
        Ok(new)
    }

    /// The copy of compressed data, which are packed as they were.
    fn descriptor(&mut self, old: Descriptor) -> Result<Descriptor> {
        if let Some(new) = self.compressed.get(&old) {
            return Ok(*new);
        }
        let source = &self.exchange.image().source;
        let (file, cluster) = (&*source.file, source.geometry.cluster());
        let range = old.range();
        // The sectors that are named may hold more than the data, which are less than a cluster.
        let len = range.len.min(cluster);
        let mut bytes = vec![0; len.as_usize()];
        read_clipped(file, &mut bytes, range.start)?;
        let mut whole = vec![0; cluster.as_usize()];
        if len < range.len && decompress(source.compression, &bytes, &mut whole).is_err() {
            return Ok(old);
        }
        let Some(new) = self.exchange.place_compressed(len)? else { return Ok(old) };
        write_any(file, &bytes, new.at)?;
        self.compressed.insert(old, new);
        self.moved += 1;
        Ok(new)
    }

    /// Writes the bitmaps anew if something of them moves.
    fn bitmaps(&mut self) -> Result<()> {
        let image = self.exchange.image();
        let file = &*image.source.file;
        let cluster = image.source.geometry.cluster();
        let Some(bitmaps) = Bitmaps::read(file, &self.exchange.header)? else { return Ok(()) };
        let mut moves = self.lies_behind(bitmaps.directory);
        for bitmap in &bitmaps.entries {
            moves |= self.lies_behind(bitmap.table);
            for at in bitmap.clusters(file)? {
                moves |= self.lies_behind(ByteRange::new(at, cluster));
            }
        }
        if moves { self.exchange.rewrite_bitmaps() } else { Ok(()) }
    }
}
