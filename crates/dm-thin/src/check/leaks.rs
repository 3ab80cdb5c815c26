//! What a check may put right by itself: counts that are too high, and the flag that asks for it.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Error, ErrorKind, Result};
use persistent_data::bulk::CountMismatch;
use persistent_data::{
    BLOCK_SIZE, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, Transaction, seal,
};
use zerocopy::{FromBytes, IntoBytes};

use super::examine::{Examined, examine};
use super::{CheckOptions, CheckReport, Verdict};
use crate::layout::{NEEDS_CHECK, SuperblockLayout};
use crate::superblock::{LOCATION, Roots, Superblock};

/// Clean blocks to keep while counts are written: each is needed once.
const CACHE_BLOCKS: usize = 1024;

/// What was put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakRepair {
    /// Data blocks whose count was too high.
    pub data: u64,
    /// Metadata blocks whose count was too high.
    pub metadata: u64,
}

/// Gives the space back that nothing refers to, in metadata that is sound but for leaks and that
/// nobody else has open. Counts are lowered in a transaction like any other: after a crash they are
/// all as before, or all right.
///
/// # Errors
/// `Corrupt` where the metadata is broken, `Unsupported` where it uses features that forbid
/// writing, and nothing is changed then; `OutOfSpace` where it has no room for the transaction.
pub fn repair_leaks(metadata: &Arc<dyn BlockDevice>) -> Result<LeakRepair> {
    let mut repaired = LeakRepair::default();
    let mut before = u64::MAX;
    loop {
        let examined = examine(Arc::clone(metadata), CheckOptions::default())?;
        check_writable(&**metadata, &examined.superblock)?;
        let left = examined.data.highs.saturating_add(examined.metadata.highs);
        match examined.report.verdict() {
            Verdict::Sound => return Ok(repaired),
            // A check keeps so many wrong counts and no more: it may take more than one round.
            Verdict::Leaks if left < before => {
                before = left;
                repaired.data += examined.data.high.len() as u64;
                repaired.metadata += examined.metadata.high.len() as u64;
                lower(metadata, examined)?;
            }
            Verdict::Leaks | Verdict::Corrupt => {
                return Err(refused(&**metadata, &examined.report));
            }
        }
    }
}

/// Takes the mark off metadata that it needs a check, if a check finds it sound, leaks aside.
/// Returns what the check found.
///
/// # Errors
/// `Corrupt` where it is broken, `Unsupported` where it uses features that forbid writing; the mark
/// stays then.
pub fn clear_needs_check(metadata: &Arc<dyn BlockDevice>) -> Result<CheckReport> {
    let Examined { report, superblock, .. } =
        examine(Arc::clone(metadata), CheckOptions::default())?;
    check_writable(&**metadata, &superblock)?;
    if report.verdict() == Verdict::Corrupt {
        return Err(refused(&**metadata, &report));
    }
    if report.needs_check {
        let mut bytes = [0; BLOCK_SIZE];
        metadata.read_at(&mut bytes, ByteOffset::ZERO)?;
        let (layout, _) = SuperblockLayout::mut_from_prefix(&mut bytes)
            .expect("a block is longer than a superblock");
        layout.flags = (layout.flags.get() & !NEEDS_CHECK).into();
        seal(bytes.as_mut_bytes(), BlockKind::Superblock, LOCATION);
        metadata.write_at(&bytes, ByteOffset::ZERO)?;
        metadata.flush()?;
    }
    Ok(report)
}

/// Lowers the counts that are too high, in one transaction.
fn lower(metadata: &Arc<dyn BlockDevice>, examined: Examined) -> Result<()> {
    let Examined { mut superblock, data, metadata: counts, .. } = examined;
    let roots = superblock.roots();
    let store = Arc::new(BlockStore::new(Arc::clone(metadata), CACHE_BLOCKS));
    let mut txn = Transaction::open(Arc::clone(&store), &roots.metadata_map)?;
    let mut map = DiskSpaceMap::open(&*store, &roots.data_map)?;
    for CountMismatch { block, said, counted } in data.high {
        (counted..said).for_each(|_| _ = map.dec(block));
    }
    for CountMismatch { block, said, counted } in counts.high {
        (counted..said).for_each(|_| _ = txn.dec(MetaBlock::new(block)));
    }
    let data_map = map.commit(&mut txn)?;
    let metadata_map = txn.seal()?;
    txn.write()?;
    metadata.flush()?;
    publish(&mut superblock, &**metadata, &Roots { data_map, metadata_map, ..roots })
}

/// Everything that the new roots name is durable: from here on they count.
fn publish(superblock: &mut Superblock, metadata: &dyn BlockDevice, roots: &Roots) -> Result<()> {
    superblock.write(metadata, roots)?;
    metadata.flush()
}

/// Features that are not known here may forbid writing (KNOW-OR-REFUSE).
fn check_writable(metadata: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let Some(bits) = superblock.forbids_writing() else { return Ok(()) };
    let problem = format!("uses features that forbid writing: bits {bits:#x}");
    Err(Error::new(ErrorKind::Unsupported, metadata.name(), problem)
        .advise("use the software that made it"))
}

fn refused(metadata: &dyn BlockDevice, report: &CheckReport) -> Error {
    let first = report.errors.iter().chain(&report.leaks).next().map_or("", String::as_str);
    let problem = format!("cannot be put right where it lies: {first}");
    Error::new(ErrorKind::Corrupt, metadata.name(), problem)
        .advise("repair it to another metadata device")
}
