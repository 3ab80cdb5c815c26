//! An L1 table with its L2 tables: how one state of the disk maps guest clusters.

use block_io::BlockDevice;
use block_types::{ByteOffset, ByteRange, Result};
use parking_lot::{Mutex, RwLock};

use super::bytes::{read_clipped, words_of};
use super::entry::{Cluster, L1Entry, Words, decode, decode_l1, encode_l1};
use super::geometry::{Geometry, GuestCluster, HostCluster, L1Index};
use super::header::corrupt;
use super::table::{L2Tables, Lookup};

/// The tables of the active disk or of a snapshot.
pub(super) struct Tree {
    pub(super) geometry: Geometry,
    /// Words as in the file.
    pub(super) l1: RwLock<Vec<u64>>,
    pub(super) tables: L2Tables,
    /// One table is loaded at a time.
    loading: Mutex<()>,
}

impl Tree {
    /// A tree with the L1 table at `l1`, at most 32 MiB, of which no L2 table is loaded.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for an entry that breaks the rules.
    pub(super) fn read(file: &dyn BlockDevice, geometry: Geometry, l1: ByteRange) -> Result<Self> {
        let words = read_l1(file, geometry, l1)?;
        let tables = L2Tables::new(geometry);
        Ok(Self { geometry, l1: RwLock::new(words), tables, loading: Mutex::new(()) })
    }

    /// The L1 entry at `index`; none past the end.
    pub(super) fn l1_entry(&self, index: L1Index) -> Option<L1Entry> {
        let word = self.l1.read().get(index.index()).copied().unwrap_or(0);
        // Entries were checked when they were read.
        decode_l1(self.geometry, word).ok().flatten()
    }

    /// Changes the L1 entry at `index`.
    pub(super) fn set_l1(&self, index: L1Index, entry: Option<L1Entry>) {
        self.l1.write()[index.index()] = encode_l1(self.geometry, entry);
    }

    /// What is known of `cluster`: `None` if its table has to be loaded.
    pub(super) fn known(&self, name: &str, cluster: GuestCluster) -> Result<Option<Cluster>> {
        let (index, at) = self.geometry.slot(cluster);
        match self.tables.get(index, at) {
            Lookup::Unloaded => Ok(None),
            Lookup::Entry(words) => decode_of(self.geometry, name, cluster, words).map(Some),
        }
    }

    /// What is known of `cluster` without waiting for anybody.
    pub(super) fn known_now(&self, cluster: GuestCluster) -> Option<Cluster> {
        let (index, at) = self.geometry.slot(cluster);
        match self.tables.try_get(index, at)? {
            Lookup::Unloaded => None,
            Lookup::Entry(words) => decode(self.geometry, words).ok(),
        }
    }

    /// Loads the table at `index`; `adjust` may change its words before anybody sees them.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for a table outside the file, and as `read_at`.
    pub(super) fn load(
        &self,
        file: &dyn BlockDevice,
        index: L1Index,
        adjust: impl FnOnce(L1Entry, &mut [u64]) -> Result<()>,
    ) -> Result<()> {
        let _one_at_a_time = self.loading.lock();
        if !self.tables.is_unloaded(index) {
            return Ok(());
        }
        let Some(entry) = self.l1_entry(index) else {
            self.tables.fill(index, None);
            return Ok(());
        };
        let mut words = read_table(file, self.geometry, entry.table)?;
        adjust(entry, &mut words)?;
        self.tables.fill(index, Some(&words));
        Ok(())
    }
}

/// Reads an L1 table and checks its entries.
pub(super) fn read_l1(
    file: &dyn BlockDevice,
    geometry: Geometry,
    l1: ByteRange,
) -> Result<Vec<u64>> {
    let mut bytes = vec![0; l1.len.as_usize()];
    read_clipped(file, &mut bytes, l1.start)?;
    let words = words_of(&bytes);
    for (index, &word) in words.iter().enumerate() {
        let entry = decode_l1(geometry, word)
            .map_err(|problem| corrupt(file.name(), format!("L1 entry {index} {problem}")))?;
        let end = ByteOffset::new(file.size().get());
        let outside = |entry: L1Entry| geometry.host_start(entry.table) >= end;
        if entry.is_some_and(outside) {
            let problem = format!("L1 entry {index} names a table past the end of the file");
            return Err(corrupt(file.name(), problem));
        }
    }
    Ok(words)
}

/// Reads the L2 table at `table`.
pub(super) fn read_table(
    file: &dyn BlockDevice,
    geometry: Geometry,
    table: HostCluster,
) -> Result<Vec<u64>> {
    let mut bytes = vec![0; geometry.cluster().as_usize()];
    read_clipped(file, &mut bytes, geometry.host_start(table))?;
    Ok(words_of(&bytes))
}

/// The entries of a table in memory, in order.
pub(super) fn entries(geometry: Geometry, words: &[u64]) -> impl Iterator<Item = Words> {
    let step = geometry.entry_words();
    words.chunks_exact(step).map(|entry| [entry[0], entry.get(1).copied().unwrap_or(0)])
}

/// The meaning of an entry of the table, or an error that names the guest cluster.
pub(super) fn decode_of(
    geometry: Geometry,
    name: &str,
    cluster: GuestCluster,
    words: Words,
) -> Result<Cluster> {
    decode(geometry, words)
        .map_err(|problem| corrupt(name, format!("the L2 entry of {cluster} {problem}")))
}
