//! Reference counts in memory: the refcount blocks as they stand in the file, loaded once.
//!
//! A block is read when a count of it is first wanted and stays. While an exchange of tables is
//! under way ([`Counts::begin`]) the counts of before are kept beside: a cluster is free only if it
//! is so in both, and all changes can be taken back.
//!
//! Section "Refcount tables" of the specification.

use std::collections::BTreeSet;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Error, ErrorKind, Result};

use super::bytes::read_clipped;
use super::geometry::{Geometry, HostCluster};
use super::header::corrupt;

/// The reference count of every cluster of a file.
pub(super) struct Counts {
    file: Arc<dyn BlockDevice>,
    geometry: Geometry,
    /// As the refcount table has them.
    blocks: Vec<Block>,
    /// Chunks of blocks that differ from the file.
    dirty: BTreeSet<(usize, usize)>,
    /// Whether the counts of before are kept.
    keeping: bool,
}

#[derive(Default)]
struct Block {
    /// Where it lies; all counts of a block that lies nowhere are 0.
    home: Option<HostCluster>,
    bytes: Option<Box<[u8]>>,
    before: Option<Box<[u8]>>,
}

/// A piece of a refcount block that is to be written.
pub(super) struct CountChunk {
    pub(super) at: ByteOffset,
    pub(super) bytes: Vec<u8>,
}

impl Counts {
    /// The counts whose blocks the refcount table `words` names.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a block outside the file or named twice.
    pub(super) fn open(
        file: Arc<dyn BlockDevice>,
        geometry: Geometry,
        words: &[u64],
    ) -> Result<Self> {
        let mut blocks = Vec::with_capacity(words.len());
        for &word in words {
            let at = ByteOffset::new(word);
            let home = geometry.host_cluster(at).filter(|_| word < file.size().get());
            let home = home.ok_or_else(|| {
                corrupt(file.name(), format!("has a refcount block at {at}, where none can be"))
            })?;
            let home = (word != 0).then_some(home);
            blocks.push(Block { home, ..Block::default() });
        }
        let mut homes: Vec<_> = blocks.iter().filter_map(|block| block.home).collect();
        homes.sort_unstable();
        if let Some(twice) = homes.windows(2).find(|pair| pair[0] == pair[1]) {
            let problem = format!("has two refcount blocks at {}", twice[0]);
            return Err(corrupt(file.name(), problem));
        }
        while blocks.last().is_some_and(|block| block.home.is_none()) {
            blocks.pop();
        }
        Ok(Self { file, geometry, blocks, dirty: BTreeSet::new(), keeping: false })
    }

    /// Counts that are all 0, of a file that is to get new refcount blocks.
    pub(super) fn none(file: Arc<dyn BlockDevice>, geometry: Geometry) -> Self {
        let (blocks, dirty) = (Vec::new(), BTreeSet::new());
        Self { file, geometry, blocks, dirty, keeping: false }
    }

    /// How many entries the refcount table needs.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Where block `index` lies.
    pub(super) fn home(&self, index: usize) -> Option<HostCluster> {
        self.blocks.get(index).and_then(|block| block.home)
    }

    /// Says where block `index` lies from now on.
    pub(super) fn move_home(&mut self, index: usize, home: HostCluster) {
        self.blocks[index].home = Some(home);
    }

    /// The block that holds the count of `cluster`, and the count's place in it.
    pub(super) fn place(&self, cluster: HostCluster) -> (usize, u64) {
        let bits = self.geometry.block_counts().trailing_zeros();
        ((cluster.0 >> bits) as usize, cluster.0 & ((1 << bits) - 1))
    }

    /// The first cluster behind those that the blocks can count.
    pub(super) fn end(&self) -> HostCluster {
        HostCluster(self.blocks.len() as u64 * self.geometry.block_counts())
    }

    /// Whether there is a block for any of `count` clusters.
    pub(super) fn has_block(&self, first: HostCluster, count: u64) -> bool {
        let (start, end) = (self.place(first).0, self.place(first.plus(count - 1)).0);
        (start..=end).any(|index| self.home(index).is_some())
    }

    /// Adds a block of zeros at `home`.
    pub(super) fn add_block(&mut self, index: usize, home: HostCluster) {
        if index >= self.blocks.len() {
            self.blocks.resize_with(index + 1, Block::default);
        }
        let blank = vec![0; self.geometry.cluster().as_usize()].into_boxed_slice();
        let before = self.keeping.then(|| blank.clone());
        self.blocks[index] = Block { home: Some(home), bytes: Some(blank), before };
        let chunks = self.geometry.cluster().as_usize() / self.geometry.chunk();
        self.dirty.extend((0..chunks).map(|chunk| (index, chunk)));
    }

    /// Forgets the blocks from `len` on, which nothing durable names.
    pub(super) fn truncate(&mut self, len: usize) {
        self.blocks.truncate(len);
        self.dirty.retain(|&(index, _)| index < len);
    }

    /// Reads every block, unless they take more than `limit` bytes together.
    pub(super) fn preload(&mut self, limit: u64) -> Result<()> {
        let present = self.blocks.iter().filter(|block| block.home.is_some()).count() as u64;
        if present * self.geometry.cluster().get() <= limit {
            for index in 0..self.blocks.len() {
                self.load(index)?;
            }
        }
        Ok(())
    }

    fn load(&mut self, index: usize) -> Result<()> {
        let Some(block) = self.blocks.get_mut(index) else {
            return Ok(());
        };
        if let (Some(home), None) = (block.home, &block.bytes) {
            let mut bytes = vec![0; self.geometry.cluster().as_usize()].into_boxed_slice();
            read_clipped(&*self.file, &mut bytes, self.geometry.host_start(home))?;
            block.bytes = Some(bytes);
        }
        Ok(())
    }

    /// The count of `cluster`.
    pub(super) fn get(&mut self, cluster: HostCluster) -> Result<u64> {
        let (index, inside) = self.place(cluster);
        self.load(index)?;
        let block = self.blocks.get(index).and_then(|block| block.bytes.as_deref());
        Ok(block.map_or(0, |bytes| read(bytes, self.geometry.refcount_order, inside)))
    }

    /// The first place of block `index` from `from` on whose count is free, or is not; `end` if
    /// there is none before. Free is what was so before, too.
    fn first(&self, index: usize, from: u64, end: u64, free: bool) -> u64 {
        let order = self.geometry.refcount_order;
        let block = self.blocks.get(index);
        let Some(bytes) = block.and_then(|block| block.bytes.as_deref()) else {
            return if free { from } else { end };
        };
        let mut places = from..end;
        let found = match block.and_then(|block| block.before.as_deref()) {
            None => places.find(|&at| (read(bytes, order, at) == 0) == free),
            Some(before) => places
                .find(|&at| (read(bytes, order, at) == 0 && read(before, order, at) == 0) == free),
        };
        found.unwrap_or(end)
    }

    /// The first free clusters at or behind `from`, at most `most`, and all of one block.
    pub(super) fn find_free(&mut self, from: HostCluster, most: u64) -> Result<(HostCluster, u64)> {
        let counts = self.geometry.block_counts();
        let mut first = from;
        loop {
            let (index, inside) = self.place(first);
            self.load(index)?;
            let free = self.first(index, inside, counts, true);
            first = first.plus(free - inside);
            if free < counts {
                let end = counts.min(free.saturating_add(most));
                return Ok((first, self.first(index, free + 1, end, false) - free));
            }
        }
    }

    /// Adds one to the counts of `len` clusters.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a count is as large as its width allows;
    /// [`ErrorKind::Corrupt`] where there is no block for it. Clusters before that one have got
    /// theirs.
    pub(super) fn add(&mut self, first: HostCluster, len: u64) -> Result<()> {
        let limit = self.geometry.count_limit();
        self.change(first, len, |count| if count < limit { Some(count + 1) } else { None }).map_err(
            |cluster| match cluster {
                Trouble::Io(error) => error,
                Trouble::At(cluster) => {
                    let bits = 1 << self.geometry.refcount_order;
                    Error::new(
                        ErrorKind::Unsupported,
                        self.file.name(),
                        format!("{cluster} cannot be shared more: its count has {bits} bits"),
                    )
                    .advise("convert the image to one with wider reference counts")
                }
                Trouble::Absent(cluster) => self.uncounted(cluster),
            },
        )
    }

    /// Takes one from the counts of `len` clusters.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where there is nothing to take.
    pub(super) fn take(&mut self, first: HostCluster, len: u64) -> Result<()> {
        self.change(first, len, |count| count.checked_sub(1)).map_err(|cluster| match cluster {
            Trouble::Io(error) => error,
            Trouble::At(cluster) | Trouble::Absent(cluster) => self.uncounted(cluster),
        })
    }

    /// Sets the count of `cluster`, whose block is there.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a count that does not fit.
    pub(super) fn set(&mut self, cluster: HostCluster, count: u64) -> Result<()> {
        let fits = count <= self.geometry.count_limit();
        self.change(cluster, 1, |_| fits.then_some(count)).map_err(|trouble| match trouble {
            Trouble::Io(error) => error,
            Trouble::At(cluster) => {
                let problem = format!("{cluster} has {count} users, which its count cannot hold");
                Error::new(ErrorKind::Unsupported, self.file.name(), problem)
            }
            Trouble::Absent(cluster) => self.uncounted(cluster),
        })
    }

    fn uncounted(&self, cluster: HostCluster) -> Error {
        corrupt(self.file.name(), format!("uses {cluster} without having counted it"))
    }

    fn change(
        &mut self,
        first: HostCluster,
        len: u64,
        next: impl Fn(u64) -> Option<u64>,
    ) -> std::result::Result<(), Trouble> {
        let order = self.geometry.refcount_order;
        let counts = self.geometry.block_counts();
        let mut done = 0;
        while done < len {
            let at = first.plus(done);
            let (index, inside) = self.place(at);
            self.load(index).map_err(Trouble::Io)?;
            let here = (len - done).min(counts - inside);
            let block = self.blocks.get_mut(index).ok_or(Trouble::Absent(at))?;
            let bytes = block.bytes.as_deref_mut().ok_or(Trouble::Absent(at))?;
            if self.keeping && block.before.is_none() {
                block.before = Some(bytes.into());
            }
            let chunk_of = |inside: u64| (inside << order) as usize / 8 / self.geometry.chunk();
            self.dirty
                .extend((chunk_of(inside)..=chunk_of(inside + here - 1)).map(|at| (index, at)));
            let changed = change_all(bytes, order, inside..inside + here, &next);
            changed.map_err(|failed| Trouble::At(at.plus(failed - inside)))?;
            done += here;
        }
        Ok(())
    }

    /// The last cluster whose count is not 0.
    pub(super) fn last_used(&mut self) -> Result<Option<HostCluster>> {
        let counts = self.geometry.block_counts();
        for index in (0..self.blocks.len()).rev() {
            self.load(index)?;
            let Some(bytes) = self.blocks[index].bytes.as_deref() else { continue };
            let order = self.geometry.refcount_order;
            if let Some(inside) = (0..counts).rev().find(|&at| read(bytes, order, at) != 0) {
                return Ok(Some(HostCluster(index as u64 * counts + inside)));
            }
        }
        Ok(None)
    }

    /// The first cluster behind those that are used.
    pub(super) fn used_end(&mut self) -> Result<HostCluster> {
        Ok(HostCluster(self.last_used()?.map_or(0, |last| last.0 + 1)))
    }

    /// Has every block that lies from `zone` on count as changed, so that it gets a new place.
    pub(super) fn touch_from(&mut self, zone: HostCluster) -> Result<()> {
        for index in 0..self.blocks.len() {
            if self.blocks[index].home.is_some_and(|home| home >= zone) {
                self.load(index)?;
                let block = &mut self.blocks[index];
                block.before = block.before.take().or_else(|| block.bytes.clone());
            }
        }
        Ok(())
    }

    /// The chunks that differ from the file, which they do not any more.
    pub(super) fn take_dirty(&mut self) -> Vec<CountChunk> {
        let size = self.geometry.chunk();
        let dirty = std::mem::take(&mut self.dirty);
        let chunk = |(index, chunk): (usize, usize)| {
            let block: &Block = &self.blocks[index];
            let (home, bytes) = (block.home?, block.bytes.as_deref()?);
            let from = chunk * size;
            let at = ByteOffset::new(self.geometry.host_start(home).get() + from as u64);
            Some(CountChunk { at, bytes: bytes[from..from + size].to_vec() })
        };
        dirty.into_iter().filter_map(chunk).collect()
    }

    /// Whether a count differs from the file.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Begins to keep the counts of before.
    pub(super) fn begin(&mut self) {
        debug_assert!(self.dirty.is_empty(), "an exchange begins with what is in the file");
        self.keeping = true;
    }

    /// The blocks that were changed since [`begin`](Self::begin), whole.
    pub(super) fn changed_blocks(&self) -> Vec<usize> {
        (0..self.blocks.len()).filter(|&index| self.blocks[index].before.is_some()).collect()
    }

    /// The content of block `index`.
    pub(super) fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.blocks[index].bytes.as_deref()
    }

    /// The exchange is durable: forgets the counts of before.
    pub(super) fn finish(&mut self) {
        self.keeping = false;
        self.dirty.clear();
        self.blocks.iter_mut().for_each(|block| block.before = None);
    }

    /// Takes all changes since [`begin`](Self::begin) back; there were `blocks` blocks then.
    pub(super) fn roll_back(&mut self, blocks: usize) {
        self.keeping = false;
        self.dirty.clear();
        self.blocks.truncate(blocks);
        for block in &mut self.blocks {
            if let Some(before) = block.before.take() {
                block.bytes = Some(before);
            }
        }
    }
}

enum Trouble {
    Io(Error),
    At(HostCluster),
    Absent(HostCluster),
}

/// Puts `next` of each count of `places` in its place, up to the first that has none, which is the
/// error. This is where a snapshot's time goes, so the usual width has a loop of its own.
fn change_all(
    bytes: &mut [u8],
    order: u32,
    places: std::ops::Range<u64>,
    next: &impl Fn(u64) -> Option<u64>,
) -> std::result::Result<(), u64> {
    if order != 4 {
        for at in places {
            let count = next(read(bytes, order, at)).ok_or(at)?;
            write(bytes, order, at, count);
        }
        return Ok(());
    }
    let (start, end) = (places.start as usize, places.end as usize);
    let (counts, _) = bytes[2 * start..2 * end].as_chunks_mut::<2>();
    for (at, count) in places.zip(counts) {
        let changed = next(u64::from(u16::from_be_bytes(*count))).ok_or(at)?;
        *count = (changed as u16).to_be_bytes();
    }
    Ok(())
}

/// Count number `at` of a block; of widths under a byte the first is in the lowest bits.
fn read(bytes: &[u8], order: u32, at: u64) -> u64 {
    let at = at as usize;
    match order {
        0..3 => {
            let (bits, per_byte) = (1 << order, 8 >> order);
            u64::from(bytes[at / per_byte] >> (at % per_byte * bits)) & ((1 << bits) - 1)
        }
        3 => u64::from(bytes[at]),
        4 => u64::from(u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]])),
        5 => u64::from(u32::from_be_bytes(bytes[4 * at..4 * at + 4].try_into().expect("four"))),
        _ => u64::from_be_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight")),
    }
}

fn write(bytes: &mut [u8], order: u32, at: u64, count: u64) {
    let at = at as usize;
    match order {
        0..3 => {
            let (bits, per_byte) = (1 << order, 8 >> order);
            let shift = at % per_byte * bits;
            let mask = ((1u16 << bits) - 1) as u8;
            let byte = &mut bytes[at / per_byte];
            *byte = *byte & !(mask << shift) | (count as u8) << shift;
        }
        3 => bytes[at] = count as u8,
        4 => bytes[2 * at..2 * at + 2].copy_from_slice(&(count as u16).to_be_bytes()),
        5 => bytes[4 * at..4 * at + 4].copy_from_slice(&(count as u32).to_be_bytes()),
        _ => bytes[8 * at..8 * at + 8].copy_from_slice(&count.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, read, write};
    use crate::qcow2::geometry::{Geometry, HostCluster};
    use block_io::MemoryDevice;
    use block_types::{ByteCount, ErrorKind};
    use std::sync::Arc;

    fn counts(refcount_order: u32) -> Counts {
        let file = Arc::new(MemoryDevice::new("memory", ByteCount::new(1 << 16)));
        let geometry = Geometry {
            cluster_bits: 9,
            refcount_order,
            extended: false,
            external: false,
            zero_clusters: true,
        };
        let mut counts = Counts::none(file, geometry);
        counts.add_block(0, HostCluster(1));
        counts
    }

    #[test]
    fn every_width_holds_its_largest_count() {
        for order in 0..=6 {
            let largest = u64::MAX >> (64 - (1u32 << order));
            let mut bytes = [0; 64];
            for at in [0, 1, 3, 7] {
                write(&mut bytes, order, at, largest);
                assert_eq!(read(&bytes, order, at), largest, "2^{order} bits");
            }
            assert_eq!((read(&bytes, order, 2), read(&bytes, order, 4)), (0, 0));
            write(&mut bytes, order, 1, 0);
            assert_eq!((read(&bytes, order, 0), read(&bytes, order, 1)), (largest, 0));
        }
        let mut bytes = [0; 1];
        write(&mut bytes, 1, 1, 2);
        assert_eq!(bytes, [0b1000], "the first count is in the lowest bits");
    }

    #[test]
    fn counts_have_ends() {
        let mut counts = counts(0);
        counts.add(HostCluster(5), 2).unwrap();
        assert_eq!(counts.add(HostCluster(5), 1).unwrap_err().kind(), ErrorKind::Unsupported);
        counts.take(HostCluster(5), 1).unwrap();
        assert_eq!(counts.take(HostCluster(5), 1).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(counts.add(HostCluster(1 << 20), 1).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(counts.last_used().unwrap(), Some(HostCluster(6)));
    }

    #[test]
    fn what_was_in_use_before_an_exchange_is_not_given_out() {
        let mut counts = counts(4);
        counts.add(HostCluster(0), 4).unwrap();
        drop(counts.take_dirty());
        counts.begin();
        counts.take(HostCluster(2), 1).unwrap();
        assert_eq!(counts.find_free(HostCluster(0), 8).unwrap(), (HostCluster(4), 8));
        assert_eq!(counts.changed_blocks(), [0]);
        counts.roll_back(1);
        assert_eq!(counts.get(HostCluster(2)).unwrap(), 1);
        counts.begin();
        counts.take(HostCluster(2), 1).unwrap();
        counts.finish();
        assert_eq!(counts.find_free(HostCluster(0), 8).unwrap(), (HostCluster(2), 1));
    }
}
