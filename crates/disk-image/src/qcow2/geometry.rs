//! The addresses of an image and how one follows from another.

use std::fmt;

use block_types::{ByteCount, ByteOffset, ByteRange};

/// The smallest and the largest cluster that QEMU and so Firn take: 512 bytes and 2 MiB.
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Subclusters of a cluster in an image with extended L2 entries.
const SUBCLUSTERS: u32 = 32;

/// The unit in which tables are written in place, unless a cluster is smaller.
const CHUNK: u64 = 4096;

/// A cluster of the disk that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GuestCluster(pub(crate) u64);

/// A cluster of the file that holds the image, or of its external data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostCluster(pub(crate) u64);

/// The place of an L2 table in the L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct L1Index(pub(crate) u32);

/// What the header fixes for the life of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Clusters have `1 << cluster_bits` bytes.
    pub(crate) cluster_bits: u32,
    /// Reference counts have `1 << refcount_order` bits.
    pub(crate) refcount_order: u32,
    /// L2 entries have two words, and clusters 32 subclusters.
    pub(crate) extended: bool,
    /// Guest data lies in another file, at the offset that the guest sees.
    pub(crate) external: bool,
    /// Version 3: clusters may read as zeros without being there.
    pub(crate) zero_clusters: bool,
}

impl HostCluster {
    /// The cluster `count` further on.
    pub(crate) const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl L1Index {
    /// As an index of the L1 table in memory.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Geometry {
    /// Bytes of a cluster.
    pub(crate) const fn cluster(self) -> ByteCount {
        ByteCount::new(1 << self.cluster_bits)
    }

    /// Bytes of a subcluster; a cluster is one unless L2 entries are extended.
    pub(crate) const fn subcluster(self) -> ByteCount {
        ByteCount::new((1 << self.cluster_bits) / self.subclusters() as u64)
    }

    /// Subclusters of a cluster.
    pub(crate) const fn subclusters(self) -> u32 {
        if self.extended { SUBCLUSTERS } else { 1 }
    }

    /// The bits of all subclusters.
    pub(crate) const fn all_subclusters(self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    /// Words of an L2 entry.
    pub(crate) const fn entry_words(self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// Words of an L2 table: it fills one cluster.
    pub(crate) const fn table_words(self) -> usize {
        1 << (self.cluster_bits - 3)
    }

    /// Entries of an L2 table.
    pub(crate) const fn table_entries(self) -> u64 {
        (self.table_words() / self.entry_words()) as u64
    }

    /// The unit in which tables are written in place. A multiple of 512, which a disk writes whole
    /// or not at all.
    pub(crate) const fn chunk(self) -> usize {
        let cluster = 1 << self.cluster_bits;
        (if cluster < CHUNK { cluster } else { CHUNK }) as usize
    }

    /// Counts of a refcount block.
    pub(crate) const fn block_counts(self) -> u64 {
        (8 << self.cluster_bits) >> self.refcount_order
    }

    /// The largest count that fits its width.
    pub(crate) const fn count_limit(self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    /// How many clusters hold `bytes`.
    pub(crate) const fn clusters(self, bytes: ByteCount) -> u64 {
        bytes.div_ceil(self.cluster())
    }

    /// How many L1 entries a disk of `size` needs.
    pub(crate) const fn l1_entries(self, size: ByteCount) -> u64 {
        self.clusters(size).div_ceil(self.table_entries())
    }

    /// Which guest cluster holds `at`, and how far into it `at` lies.
    pub(crate) const fn locate(self, at: ByteOffset) -> (GuestCluster, ByteCount) {
        let mask = (1 << self.cluster_bits) - 1;
        (GuestCluster(at.get() >> self.cluster_bits), ByteCount::new(at.get() & mask))
    }

    /// The L2 table that maps `cluster`, and the entry's place in it.
    pub(crate) const fn slot(self, cluster: GuestCluster) -> (L1Index, usize) {
        let entries = self.table_entries();
        (L1Index((cluster.0 / entries) as u32), (cluster.0 % entries) as usize)
    }

    /// The first guest cluster that the table at `index` maps.
    pub(crate) const fn first_of(self, index: L1Index) -> GuestCluster {
        GuestCluster(index.0 as u64 * self.table_entries())
    }

    /// Where a guest cluster begins on the disk.
    pub(crate) const fn guest_start(self, cluster: GuestCluster) -> ByteOffset {
        ByteOffset::new(cluster.0 << self.cluster_bits)
    }

    /// Where a host cluster begins in its file.
    pub(crate) const fn host_start(self, cluster: HostCluster) -> ByteOffset {
        ByteOffset::new(cluster.0 << self.cluster_bits)
    }

    /// The bytes of `count` host clusters.
    pub(crate) const fn host_range(self, first: HostCluster, count: u64) -> ByteRange {
        ByteRange::new(self.host_start(first), ByteCount::new(count << self.cluster_bits))
    }

    /// The host cluster that begins at `at`, or `None` where none does.
    pub(crate) const fn host_cluster(self, at: ByteOffset) -> Option<HostCluster> {
        if at.is_aligned(self.cluster()) { Some(self.host_cluster_of(at)) } else { None }
    }

    /// The host cluster that holds `at`.
    pub(crate) const fn host_cluster_of(self, at: ByteOffset) -> HostCluster {
        HostCluster(at.get() >> self.cluster_bits)
    }

    /// The subclusters that `part`, bytes within one cluster, touches.
    pub(crate) fn touched(self, part: ByteRange) -> u32 {
        if part.is_empty() {
            return 0;
        }
        let unit = self.subcluster().get();
        let (first, last) = (part.start.get() / unit, (part.end().get() - 1) / unit);
        mask(first as u32, (last - first + 1) as u32)
    }

    /// The subclusters that `part`, bytes within one cluster, covers whole.
    pub(crate) fn covered(self, part: ByteRange) -> u32 {
        let unit = self.subcluster().get();
        let (first, end) = (part.start.get().div_ceil(unit), part.end().get() / unit);
        if first >= end { 0 } else { mask(first as u32, (end - first) as u32) }
    }
}

/// `count` bits from bit `first` on.
pub(crate) const fn mask(first: u32, count: u32) -> u32 {
    if count == 0 { 0 } else { (u32::MAX >> (32 - count)) << first }
}

impl fmt::Display for GuestCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest cluster {}", self.0)
    }
}

impl fmt::Display for HostCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host cluster {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, mask};
    use block_types::{ByteCount, ByteOffset, ByteRange};

    fn geometry(extended: bool) -> Geometry {
        Geometry {
            cluster_bits: 16,
            refcount_order: 4,
            extended,
            external: false,
            zero_clusters: true,
        }
    }

    #[test]
    fn subclusters_touched_and_covered() {
        let unit = 2048;
        let range = |start, len| ByteRange::new(ByteOffset::new(start), ByteCount::new(len));
        let extended = geometry(true);
        assert_eq!(extended.touched(range(unit - 1, 2)), 0b11);
        assert_eq!(extended.covered(range(unit - 1, 2)), 0);
        assert_eq!(extended.covered(range(unit - 1, unit + 1)), 0b10);
        assert_eq!(extended.covered(range(0, 65536)), u32::MAX);
        let plain = geometry(false);
        assert_eq!((plain.touched(range(5, 1)), plain.covered(range(5, 1))), (1, 0));
        assert_eq!(plain.covered(range(0, 65536)), 1);
        assert_eq!((mask(0, 32), mask(31, 1), mask(3, 0)), (u32::MAX, 1 << 31, 0));
    }

    #[test]
    fn figures_of_the_default_image() {
        let default = geometry(false);
        assert_eq!((default.table_entries(), default.block_counts()), (8192, 32768));
        assert_eq!(default.count_limit(), 65535);
        assert_eq!(Geometry { refcount_order: 6, ..default }.count_limit(), u64::MAX);
        assert_eq!(Geometry { refcount_order: 0, ..default }.count_limit(), 1);
        assert_eq!(geometry(true).table_entries(), 4096);
    }
}
