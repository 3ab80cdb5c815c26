//! Entries of the L1 and L2 tables: words of the file, and what they mean.
//!
//! Sections "Cluster mapping", "L1 table entry" and "L2 table entry" of the specification.

use block_types::{ByteCount, ByteOffset, ByteRange, SECTOR};

use super::geometry::{Geometry, GuestCluster, HostCluster};

/// The cluster's count is exactly one, so it may be written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever its host cluster holds.
const ZERO: u64 = 1;
/// Bits 9 to 55: where the cluster lies.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// An L2 entry as it stands in the file; the second word is 0 unless entries are extended.
pub(crate) type Words = [u64; 2];

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct L1Entry {
    /// The L2 table, which fills one cluster.
    pub(crate) table: HostCluster,
    /// Whether no snapshot shares the table. Accurate in the active L1 table only.
    pub(crate) exclusive: bool,
}

/// What a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Absent, zeros or data, each subcluster by itself.
    Standard(Standard),
    /// Compressed data.
    Compressed(Descriptor),
}

/// A cluster that is not compressed. In an image without extended entries it has one subcluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standard {
    /// Its place in the file.
    pub(crate) host: Option<HostCluster>,
    /// Whether no snapshot shares the place. Accurate in active tables only.
    pub(crate) exclusive: bool,
    /// The subclusters whose data lie there.
    pub(crate) allocated: u32,
    /// The subclusters that read as zeros. Those that are neither are the backing file's.
    pub(crate) zero: u32,
}

/// Where the data of a compressed cluster lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Descriptor {
    /// The first byte, at any place.
    pub(crate) at: ByteOffset,
    /// Sectors of 512 bytes touched; the last may hold the next cluster's data, too.
    pub(crate) sectors: u64,
}

/// The meaning of an L1 entry: `None` where there is no table.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn decode_l1(geometry: Geometry, word: u64) -> Result<Option<L1Entry>, &'static str> {
    if word & L1_RESERVED != 0 {
        return Err("has reserved bits set");
    }
    let offset = ByteOffset::new(word & OFFSET);
    if offset == ByteOffset::ZERO {
        return Ok(None);
    }
    match geometry.host_cluster(offset) {
        Some(table) => Ok(Some(L1Entry { table, exclusive: word & COPIED != 0 })),
        None => Err("names a table that begins inside a cluster"),
    }
}

/// The word of an L1 entry.
pub(crate) fn encode_l1(geometry: Geometry, entry: Option<L1Entry>) -> u64 {
    entry.map_or(0, |entry| {
        let copied = if entry.exclusive { COPIED } else { 0 };
        geometry.host_start(entry.table).get() | copied
    })
}

/// The meaning of an L2 entry.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn decode(geometry: Geometry, words: Words) -> Result<Cluster, &'static str> {
    let [word, bitmap] = words;
    if word & COMPRESSED != 0 {
        return decode_compressed(geometry, word).map(Cluster::Compressed);
    }
    if word & L2_RESERVED != 0 {
        return Err("has reserved bits set");
    }
    let at = ByteOffset::new(word & OFFSET);
    let copied = word & COPIED != 0;
    // In an external data file offset 0 is a place like any other.
    let present = at != ByteOffset::ZERO || (geometry.external && copied);
    let host = match geometry.host_cluster(at) {
        Some(host) => present.then_some(host),
        None => return Err("names a cluster that begins inside another"),
    };
    let flag = word & ZERO != 0;
    let (allocated, zero) = if geometry.extended {
        if flag {
            return Err("has the zero flag of entries that are not extended");
        }
        (bitmap as u32, (bitmap >> 32) as u32)
    } else {
        (u32::from(host.is_some() && !flag), u32::from(flag))
    };
    if allocated & zero != 0 {
        return Err("has subclusters that are both data and zeros");
    }
    if host.is_none() && allocated != 0 {
        return Err("has data without a place");
    }
    if zero != 0 && !geometry.zero_clusters {
        return Err("has the zero flag, which version 2 does not know");
    }
    Ok(Cluster::Standard(Standard { host, exclusive: copied, allocated, zero }))
}

fn decode_compressed(geometry: Geometry, word: u64) -> Result<Descriptor, &'static str> {
    if word & COPIED != 0 {
        return Err("is compressed and may not be written in place, yet says so");
    }
    if geometry.external {
        return Err("is compressed, which an external data file cannot hold");
    }
    let offset_bits = 62 - (geometry.cluster_bits - 8);
    let offset = word & ((1 << offset_bits) - 1);
    if offset >> 56 != 0 {
        return Err("lies past the 2^56 bytes that a file may have");
    }
    let more = (word & !COMPRESSED) >> offset_bits;
    Ok(Descriptor { at: ByteOffset::new(offset), sectors: more + 1 })
}

/// The words of an L2 entry.
pub(crate) fn encode(geometry: Geometry, cluster: Cluster) -> Words {
    match cluster {
        Cluster::Compressed(descriptor) => {
            let offset_bits = 62 - (geometry.cluster_bits - 8);
            let more = (descriptor.sectors - 1) << offset_bits;
            [COMPRESSED | more | descriptor.at.get(), 0]
        }
        Cluster::Standard(standard) => {
            let place = standard.host.map_or(0, |host| {
                let copied = if standard.exclusive { COPIED } else { 0 };
                geometry.host_start(host).get() | copied
            });
            if geometry.extended {
                [place, u64::from(standard.zero) << 32 | u64::from(standard.allocated)]
            } else {
                [place | if standard.zero == 0 { 0 } else { ZERO }, 0]
            }
        }
    }
}

impl Cluster {
    /// The host clusters that hold it, as a first one and a number.
    pub(crate) fn hosts(self, geometry: Geometry) -> Option<(HostCluster, u64)> {
        match self {
            Self::Standard(standard) => standard.host.map(|host| (host, 1)),
            Self::Compressed(descriptor) => Some(descriptor.hosts(geometry)),
        }
    }

    /// The same, marked as shared or not. What is nowhere, or is compressed, has no such mark.
    #[must_use]
    pub(crate) fn marked(self, exclusive: bool) -> Self {
        match self {
            Self::Standard(standard) if standard.host.is_some() => {
                Self::Standard(Standard { exclusive, ..standard })
            }
            other => other,
        }
    }
}

impl Standard {
    /// A cluster that is the backing file's.
    pub(crate) const ABSENT: Self = Self { host: None, exclusive: false, allocated: 0, zero: 0 };

    /// A cluster of data at `host`, nobody else's.
    pub(crate) const fn data(geometry: Geometry, host: HostCluster) -> Self {
        let allocated = geometry.all_subclusters();
        Self { host: Some(host), exclusive: true, allocated, zero: 0 }
    }

    /// A cluster that reads as zeros and lies nowhere.
    pub(crate) const fn zeros(geometry: Geometry) -> Self {
        let zero = geometry.all_subclusters();
        Self { host: None, exclusive: false, allocated: 0, zero }
    }

    /// Its place, if it may be written there.
    pub(crate) fn own_host(self) -> Option<HostCluster> {
        self.host.filter(|_| self.exclusive)
    }
}

impl Descriptor {
    /// The bytes that hold the compressed data, and perhaps others behind them.
    pub(crate) const fn range(self) -> ByteRange {
        let sector = self.at.get() / SECTOR;
        let end = ByteOffset::new((sector + self.sectors) * SECTOR);
        ByteRange::between(self.at, end)
    }

    /// The host clusters touched, each of which counts this cluster.
    pub(crate) const fn hosts(self, geometry: Geometry) -> (HostCluster, u64) {
        let first = geometry.host_cluster_of(self.at);
        let last = geometry.host_cluster_of(ByteOffset::new(self.range().end().get() - 1));
        (first, last.0 - first.0 + 1)
    }
}

/// Marks every cluster of a table as shared; says whether one was not.
pub(crate) fn mark_shared(geometry: Geometry, words: &mut [u64]) -> bool {
    let mut changed = false;
    for word in words.iter_mut().step_by(geometry.entry_words()) {
        // Only what is not compressed has the mark.
        changed |= *word != shared(*word);
        *word = shared(*word);
    }
    changed
}

/// The first word of an entry, marked as shared.
pub(crate) const fn shared(word: u64) -> u64 {
    word & !COPIED
}

/// The first word of an entry of a cluster with a place, marked as it is to be.
pub(crate) const fn marked(word: u64, exclusive: bool) -> u64 {
    if exclusive { word | COPIED } else { shared(word) }
}

/// A guest cluster in an external data file: at the place that the guest sees.
pub(crate) const fn external_host(cluster: GuestCluster) -> HostCluster {
    HostCluster(cluster.0)
}

/// How many sectors `len` bytes at `at` touch.
pub(crate) const fn sectors_touched(at: ByteOffset, len: ByteCount) -> u64 {
    (at.get() + len.get()).div_ceil(SECTOR) - at.get() / SECTOR
}

#[cfg(test)]
mod tests {
    use super::{Cluster, Descriptor, Standard, decode, decode_l1, encode, encode_l1};
    use crate::qcow2::geometry::{Geometry, HostCluster};
    use block_types::ByteOffset;

    fn geometry(cluster_bits: u32) -> Geometry {
        Geometry {
            cluster_bits,
            refcount_order: 4,
            extended: false,
            external: false,
            zero_clusters: true,
        }
    }

    fn standard(geometry: Geometry, words: [u64; 2]) -> Standard {
        match decode(geometry, words).unwrap() {
            Cluster::Standard(standard) => standard,
            Cluster::Compressed(_) => panic!("compressed"),
        }
    }

    #[test]
    fn standard_entries() {
        let plain = geometry(16);
        assert_eq!(standard(plain, [0, 0]), Standard::ABSENT);
        assert_eq!(standard(plain, [1, 0]), Standard::zeros(plain));
        let data = standard(plain, [1 << 63 | 5 << 16, 0]);
        assert_eq!(data, Standard::data(plain, HostCluster(5)));
        let zero = standard(plain, [1 << 63 | 5 << 16 | 1, 0]);
        assert_eq!((zero.own_host(), zero.allocated, zero.zero), (Some(HostCluster(5)), 0, 1));
        for words in [[1 << 63 | 5 << 16, 0], [5 << 16 | 1, 0], [1, 0], [0, 0]] {
            assert_eq!(encode(plain, decode(plain, words).unwrap()), words);
        }
        for word in [2, 1 << 56, 5 << 15] {
            assert!(decode(plain, [word, 0]).is_err(), "{word:#x}");
        }
        let old = Geometry { zero_clusters: false, ..plain };
        assert!(decode(old, [1, 0]).unwrap_err().contains("version 2"));
    }

    #[test]
    fn extended_entries() {
        let extended = Geometry { extended: true, ..geometry(16) };
        let words = [1 << 63 | 7 << 16, 0xff00_0000_0000_00f0];
        let cluster = standard(extended, words);
        assert_eq!((cluster.allocated, cluster.zero), (0xf0, 0xff00_0000));
        assert_eq!(encode(extended, Cluster::Standard(cluster)), words);
        for bad in [[1, 0], [7 << 16, 1 << 32 | 1], [0, 1]] {
            assert!(decode(extended, bad).is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn compressed_entries() {
        for (bits, offset_bits) in [(9, 61), (16, 54), (21, 49)] {
            let geometry = geometry(bits);
            let words = [1 << 62 | 1 << offset_bits | 0x12345, 0];
            let cluster = decode(geometry, words).unwrap();
            let expected = Descriptor { at: ByteOffset::new(0x12345), sectors: 2 };
            assert_eq!(cluster, Cluster::Compressed(expected));
            assert_eq!(encode(geometry, cluster), words);
        }
        let range = Descriptor { at: ByteOffset::new(0x1ff01), sectors: 2 }.range();
        assert_eq!((range.start.get(), range.end().get()), (0x1ff01, 0x20200));
        let (first, count) =
            Descriptor { at: ByteOffset::new(0x1ff01), sectors: 2 }.hosts(geometry(16));
        assert_eq!((first, count), (HostCluster(1), 2));
        assert!(decode(geometry(9), [1 << 62 | 1 << 56, 0]).is_err());
    }

    #[test]
    fn an_external_file_has_a_place_at_offset_zero() {
        let external = Geometry { external: true, ..geometry(16) };
        assert_eq!(standard(external, [1 << 63, 0]).host, Some(HostCluster(0)));
        assert_eq!(standard(external, [0, 0]).host, None);
        assert!(decode(external, [1 << 62, 0]).is_err());
    }

    #[test]
    fn l1_entries() {
        let plain = geometry(16);
        for word in [0, 3 << 16, 1 << 63 | 3 << 16] {
            assert_eq!(encode_l1(plain, decode_l1(plain, word).unwrap()), word);
        }
        assert!(decode_l1(plain, 1).is_err() && decode_l1(plain, 3 << 15).is_err());
    }
}
