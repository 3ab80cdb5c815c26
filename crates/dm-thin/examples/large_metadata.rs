//! Makes the metadata of a large pool that was much used, and times what is done with it.
//!
//! ```text
//! cargo run --release --example large_metadata -- make FILE MAPPINGS SNAPSHOTS
//! cargo run --release --example large_metadata -- check FILE
//! cargo run --release --example large_metadata -- repair FILE NEW_FILE
//! ```
//!
//! The pool has one device of so many mappings, in runs of eight blocks that are shuffled over the
//! data device, as a used file system leaves them; between two snapshots one run in 200 is
//! overwritten.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};
use persistent_data::btree::{NoRefs, Record, ValueRefs, apply, empty};
use persistent_data::{
    BLOCK_SIZE, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, SpaceMapRoot, Transaction, seal,
};
use testkit::rng::Rng;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks that lie next to each other.
const RUN: u64 = 8;
/// One run in so many is overwritten between two snapshots.
const OVERWRITTEN: u64 = 200;
/// Changes that are applied to a tree at once.
const BATCH: u64 = 1 << 18;

/// The details of a device.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Details {
    mapped: U64,
    transaction: U64,
    created: U32,
    snapshotted: U32,
}

impl Record for Details {}

/// Mappings count data blocks.
struct MappingRefs<'d>(&'d mut DiskSpaceMap);

impl ValueRefs<u64> for MappingRefs<'_> {
    fn inc(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        self.0.inc(value >> 24);
        Ok(())
    }

    fn dec(&mut self, _: &mut Transaction, value: u64) -> Result<()> {
        self.0.dec(value >> 24);
        Ok(())
    }
}

/// A pool while it is made.
struct Maker {
    device: Arc<dyn BlockDevice>,
    txn: Transaction,
    data: DiskSpaceMap,
    /// The roots of the devices' mappings.
    roots: BTreeMap<u64, u64>,
    mappings: u64,
    time: u32,
    /// The next data block that was never used.
    next: u64,
}

impl Maker {
    fn new(device: Arc<dyn BlockDevice>, mappings: u64, data_blocks: u64) -> Result<Self> {
        let store = Arc::new(BlockStore::new(Arc::clone(&device), 1 << 16));
        let mut txn = Transaction::format(Arc::clone(&store), store.device_blocks())?;
        let data = DiskSpaceMap::format(&mut txn, data_blocks)?;
        let root = empty::<u64>(&mut txn)?;
        let roots = BTreeMap::from([(0, root.get())]);
        Ok(Self { device, txn, data, roots, mappings, time: 0, next: mappings })
    }

    /// Maps the whole device, its runs in an order that is spread over the data device.
    fn fill(&mut self) -> Result<()> {
        let runs = self.mappings / RUN;
        // A step that has no divisor in common with the number of runs visits each once.
        let step = (runs / 2 + 1..).find(|step| gcd(*step, runs) == 1).unwrap_or(1);
        let data = |guest: u64| (guest / RUN * step % runs) * RUN + guest % RUN;
        for first in (0..runs * RUN).step_by(BATCH as usize) {
            let guests = first..(first + BATCH).min(runs * RUN);
            let changes: Vec<_> = guests.map(|guest| (guest, Some(data(guest) << 24))).collect();
            self.map(&changes)?;
        }
        Ok(())
    }

    /// Takes a snapshot of device 0, and overwrites parts of the device.
    fn snapshot(&mut self, id: u64, rng: &mut Rng) -> Result<()> {
        self.time += 1;
        self.txn.inc(MetaBlock::new(self.roots[&0]));
        self.roots.insert(id, self.roots[&0]);
        let runs = self.mappings / RUN;
        let mut chosen: Vec<u64> = (0..runs / OVERWRITTEN).map(|_| rng.within(0..runs)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let mut changes = Vec::new();
        for guest in chosen.into_iter().flat_map(|run| run * RUN..(run + 1) * RUN) {
            changes.push((guest, Some(self.next << 24 | u64::from(self.time))));
            self.next += 1;
        }
        self.map(&changes)
    }

    fn map(&mut self, changes: &[(u64, Option<u64>)]) -> Result<()> {
        let root = MetaBlock::new(self.roots[&0]);
        let applied = apply(&mut self.txn, root, changes, &mut MappingRefs(&mut self.data))?;
        self.roots.insert(0, applied.root.get());
        self.commit(None)
    }

    /// Writes what was made so far. Nobody looks before the superblock is there.
    fn commit(&mut self, trees: Option<(MetaBlock, MetaBlock)>) -> Result<()> {
        let data = self.data.commit(&mut self.txn)?;
        let metadata = self.txn.seal()?;
        self.txn.write()?;
        if let Some(trees) = trees {
            self.superblock(trees, data, metadata)?;
        }
        self.txn.finish();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let (txn, time) = (&mut self.txn, self.time);
        let roots: Vec<_> = self.roots.iter().map(|(id, root)| (*id, Some(*root))).collect();
        let top = empty::<u64>(txn)?;
        let top = apply(txn, top, &roots, &mut NoRefs)?.root;
        let details = |id: u64| Details {
            mapped: (self.mappings / RUN * RUN).into(),
            transaction: 0.into(),
            created: (id as u32).into(),
            snapshotted: (if id == 0 { time } else { id as u32 }).into(),
        };
        let states: Vec<_> = roots.iter().map(|(id, _)| (*id, Some(details(*id)))).collect();
        let details = empty::<Details>(txn)?;
        let details = apply(txn, details, &states, &mut NoRefs)?.root;
        self.commit(Some((top, details)))?;
        self.device.flush()
    }

    fn superblock(
        &self,
        (mappings, details): (MetaBlock, MetaBlock),
        data: SpaceMapRoot,
        metadata: SpaceMapRoot,
    ) -> Result<()> {
        let mut block = [0; BLOCK_SIZE];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x20, &27_022_010_u64.to_le_bytes());
        put(0x28, &2_u32.to_le_bytes());
        put(0x2c, &self.time.to_le_bytes());
        put(0x40, data.as_bytes());
        put(0xc0, metadata.as_bytes());
        put(0x140, &mappings.get().to_le_bytes());
        put(0x148, &details.get().to_le_bytes());
        put(0x150, &128_u32.to_le_bytes());
        put(0x154, &8_u32.to_le_bytes());
        put(0x158, &self.txn.nr_blocks().to_le_bytes());
        seal(&mut block, BlockKind::Superblock, MetaBlock::new(0));
        self.device.write_at(&block, ByteOffset::ZERO)
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

fn make(file: &Path, mappings: u64, snapshots: u64) -> Result<()> {
    // A leaf is half full at worst, and each run that is overwritten may copy one.
    let overwritten = mappings / OVERWRITTEN * snapshots;
    let blocks = mappings / 100 + overwritten / RUN + overwritten / 50 + 4096;
    let size = ByteCount::new(blocks * BLOCK_SIZE as u64);
    let device = Arc::new(HostFile::create(file, size, CacheMode::Cached)?);
    let mut maker = Maker::new(device, mappings, mappings + overwritten + 16320)?;
    maker.fill()?;
    let mut rng = Rng::new(1);
    (1..=snapshots).try_for_each(|id| maker.snapshot(id, &mut rng))?;
    maker.finish()
}

fn open(file: &Path) -> Result<Arc<dyn BlockDevice>> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    Ok(Arc::new(HostFile::open(file, options)?))
}

fn check(file: &Path) -> Result<()> {
    let begun = Instant::now();
    let report = dm_thin::check(open(file)?)?;
    println!("checked in {:.3} s: {:?}", begun.elapsed().as_secs_f64(), report.verdict());
    println!("{} mappings, {} blocks", report.mappings, report.blocks);
    let findings = [report.errors, report.leaks, report.warnings];
    findings.iter().flatten().for_each(|finding| println!("{finding}"));
    Ok(())
}

fn repair(damaged: &Path, fresh: &Path) -> Result<()> {
    let damaged = open(damaged)?;
    let fresh = Arc::new(HostFile::create(fresh, damaged.size(), CacheMode::Cached)?);
    let begun = Instant::now();
    let report = dm_thin::repair::repair(&damaged, fresh, &Default::default())?;
    println!("repaired in {:.3} s", begun.elapsed().as_secs_f64());
    report.findings().iter().for_each(|finding| println!("{finding}"));
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| {
        text.parse()
            .map_err(|error| Error::new(ErrorKind::Invalid, text, "is no number").because(error))
    };
    match arguments[..] {
        ["make", file, mappings, snapshots] => {
            make(Path::new(file), number(mappings)?, number(snapshots)?)
        }
        ["check", file] => check(Path::new(file)),
        ["repair", damaged, fresh] => repair(Path::new(damaged), Path::new(fresh)),
        _ => Err(Error::new(ErrorKind::Invalid, "arguments", "are not understood")
            .advise("make FILE MAPPINGS SNAPSHOTS, check FILE, or repair FILE NEW_FILE")),
    }
}
