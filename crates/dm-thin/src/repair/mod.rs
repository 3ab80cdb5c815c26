//! Repairing metadata: a new device from whatever survives on the damaged one.
//!
//! The damaged device is only read. Every block of it is looked at, whether something refers to it
//! or not:
//!
//! ```text
//!   all blocks --> catalogue (sound nodes, superblocks) --> roots --> devices --> new metadata
//!                      ^                                     |
//!                      +--- orphans, where nodes are lost <--+
//! ```
//!
//! - The superblock's roots are taken where they can be read. Where one cannot, older versions of
//!   the tree lie about: of all trees of devices and all trees of details, the pair that fits
//!   together and is the newest is taken.
//! - Of a broken node only what hangs on it is lost: of a leaf its mappings. Children of a broken
//!   internal node are found again where the metadata space map survives: they are the nodes that
//!   have more references by their count than by all nodes that can be read.
//! - Details that are lost are made up so that no sharing is overlooked: all blocks of the device
//!   count as shared.
//! - Two guest blocks in one data block stay there, counted twice: nobody knows whose it is.
//! - Space maps are counted anew. A metadata snapshot is not taken over.

mod adopt;
mod catalogue;
mod choose;
mod rebuild;
mod report;
mod scan;
mod sums;

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::bulk::BulkReader;
use persistent_data::{BlockStore, RefCounts, Transaction};

use crate::restore::Overrides;
use crate::superblock::Superblock;

pub use report::{LostRange, RepairReport, RepairedDevice, Roots};

/// Blocks to keep while the metadata space map is read: each is needed once.
const CACHE_BLOCKS: usize = 256;

/// Writes to `repaired` what survives of the pool on `damaged`. What `repaired` held is lost;
/// without success there is no pool on it. What the damaged metadata does not tell any more,
/// `overrides` tell.
///
/// # Errors
/// `Corrupt` where nothing was found that could be a pool; `Invalid` where the size of data blocks
/// is nowhere to be found and not in `overrides`; `Unsupported` for features that are not known
/// here; `OutOfSpace` if the new device is too small; the failures of the new device. A block of
/// the damaged one that cannot be read is like one that is broken.
pub fn repair(
    damaged: &Arc<dyn BlockDevice>,
    repaired: Arc<dyn BlockDevice>,
    overrides: &Overrides,
) -> Result<RepairReport> {
    let reader = BulkReader::new(Arc::clone(damaged));
    let (superblock, why) = match Superblock::read(&**damaged) {
        Ok(superblock) => (Some(superblock), None),
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
        Err(error) => (None, Some(error)),
    };
    let mut catalogue = scan::scan(&reader);
    let claims = superblock.as_ref().and_then(|superblock| claims(damaged, superblock));
    let mut chosen = choose::choose(&mut catalogue, superblock.as_ref(), claims.as_ref())
        .ok_or_else(|| nothing(&**damaged))?;
    chosen.notes.extend(why.map(|error| format!("the superblock is lost: {error}")));
    rebuild::rebuild(&reader, &catalogue, chosen, superblock.as_ref(), repaired, overrides)
}

/// The counts of the metadata space map, if it survives.
fn claims(damaged: &Arc<dyn BlockDevice>, superblock: &Superblock) -> Option<RefCounts> {
    let store = Arc::new(BlockStore::new(Arc::clone(damaged), CACHE_BLOCKS));
    let txn = Transaction::open(store, &superblock.roots().metadata_map).ok()?;
    Some(txn.counts().clone())
}

fn nothing(damaged: &dyn BlockDevice) -> Error {
    let problem = "holds no tree of devices that can be read, of now or of before";
    Error::new(ErrorKind::Corrupt, damaged.name(), problem)
        .advise("restore the metadata from a dump or a copy")
}
