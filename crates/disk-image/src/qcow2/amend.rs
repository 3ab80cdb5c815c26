//! Options of an image that is there: the version of the format, postponed reference counts, the
//! width of counts.
//!
//! Each is one write of the header's first sector, everything else is written before where nothing
//! is; so a crash leaves the image as it was or as it is to be, and sound between two steps.

use std::sync::Arc;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::bitmap::Bitmaps;
use super::bytes::write_any;
use super::check::examine;
use super::entry::Cluster;
use super::exchange::Exchange;
use super::geometry::{GuestCluster, L1Index};
use super::header::Header;
use super::image::{Gate, Image};
use super::layout::{extension, feature};
use super::open::OpenOptions;
use super::repair::recount;
use super::snapshot_table::{SnapshotTable, long_extra};
use super::tree::{decode_of, entries, read_l1, read_table};

/// Clusters that are looked at before what has changed is made durable.
const BATCH: u64 = 4096;

/// What is to be changed; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amend {
    /// Version of the format: 2 or 3.
    pub version: Option<u32>,
    /// A power of two from 1 to 64.
    pub refcount_bits: Option<u32>,
    /// Whether others may postpone reference counts.
    pub lazy_refcounts: Option<bool>,
}

/// Changes options of the image in `file`, which nobody uses meanwhile. `options` says how it is
/// opened: version 2 has no clusters that are zeros, so those that hide a backing file are written.
///
/// # Errors
/// [`ErrorKind::Invalid`] for options that do not go together; [`ErrorKind::Unsupported`] where the
/// image has what version 2 does not know, or counts that do not fit;
/// [`ErrorKind::Corrupt`]; [`ErrorKind::OutOfSpace`].
pub fn amend(file: &Arc<dyn BlockDevice>, options: &OpenOptions, what: Amend) -> Result<()> {
    let header = Header::read(&**file)?;
    let version = what.version.unwrap_or(header.version());
    let bits = what.refcount_bits.unwrap_or(header.refcount_bits());
    let lazy = what.lazy_refcounts.unwrap_or(version > 2 && header.lazy_refcounts());
    let invalid =
        |problem: &str| Err(Error::new(ErrorKind::Invalid, file.name(), problem.to_owned()));
    if !matches!(version, 2 | 3) {
        return invalid("there are versions 2 and 3 of the format");
    }
    if !bits.is_power_of_two() || bits > 64 {
        return invalid("reference counts have a power of two from 1 to 64 bits");
    }
    if version == 2 && (bits != 16 || lazy) {
        return invalid("version 2 of the format counts by 16 bits, and at once");
    }
    if header.version() == 2 && version == 3 {
        let image = Image::open(Arc::clone(file), options.clone())?;
        image.alone(Gate::Closed, || image.upgrade())?;
    }
    set_width(file, bits)?;
    if version > 2 {
        set_lazy(file, lazy)?;
    }
    if header.version() > 2 && version == 2 {
        check_downgrade(file)?;
        let image = Image::open(Arc::clone(file), options.clone())?;
        image.write_zero_clusters()?;
        image.alone(Gate::Closed, || image.downgrade())?;
    }
    Ok(())
}

/// Gives the reference counts `bits` bits.
fn set_width(file: &Arc<dyn BlockDevice>, bits: u32) -> Result<()> {
    let mut header = Header::read(&**file)?;
    if header.refcount_bits() == bits {
        return Ok(());
    }
    let findings = examine(file, &header)?;
    if findings.report.corruption_count > 0 || header.is_dirty() {
        return Err(super::header::corrupt(file.name(), "is damaged, and cannot be counted anew"));
    }
    header.geometry.refcount_order = bits.trailing_zeros();
    recount(file, &header, &findings)
}

fn set_lazy(file: &Arc<dyn BlockDevice>, lazy: bool) -> Result<()> {
    let mut header = Header::read(&**file)?;
    if header.lazy_refcounts() == lazy {
        return Ok(());
    }
    header.compatible ^= feature::LAZY_REFCOUNTS;
    write_any(&**file, &header.sector_zero(), ByteOffset::ZERO)?;
    file.flush()
}

/// Refuses what version 2 cannot hold.
fn check_downgrade(file: &Arc<dyn BlockDevice>) -> Result<()> {
    let header = Header::read(&**file)?;
    let refused = |problem: &str, advice: &str| {
        Err(Error::new(ErrorKind::Unsupported, file.name(), problem).advise(advice))
    };
    if header.incompatible & !feature::DIRTY != 0 || header.encryption().is_some() {
        return refused(
            "has features that version 2 of the format does not know",
            "convert it to a new image with '-o compat=0.10'",
        );
    }
    if Bitmaps::read(&**file, &header)?.is_some() {
        return refused(
            "has dirty bitmaps, which version 2 of the format does not know",
            "remove them first, with 'firn image bitmap remove'",
        );
    }
    for entry in &SnapshotTable::read(&**file, &header)?.entries {
        if entry.disk_size().is_some_and(|size| size != header.size()) {
            return refused(
                "has a snapshot of a disk of another size, which version 2 does not know",
                "resize the disk, or delete that snapshot",
            );
        }
        let l1 = read_l1(&**file, header.geometry, entry.l1())?;
        for (index, word) in (0..).zip(l1) {
            let table = super::entry::decode_l1(header.geometry, word)
                .map_err(|problem| super::header::corrupt(file.name(), problem))?;
            let Some(table) = table else { continue };
            let words = read_table(&**file, header.geometry, table.table)?;
            let first = header.geometry.first_of(L1Index(index));
            for (at, entry) in (0..).zip(entries(header.geometry, &words)) {
                let guest = GuestCluster(first.0 + at);
                if is_zero(decode_of(header.geometry, file.name(), guest, entry)?) {
                    return refused(
                        "has a snapshot with clusters of zeros, which version 2 does not know",
                        "delete its snapshots first, or convert it to a new image",
                    );
                }
            }
        }
    }
    Ok(())
}

fn is_zero(cluster: Cluster) -> bool {
    matches!(cluster, Cluster::Standard(standard) if standard.zero != 0)
}

impl Image {
    /// Makes the image version 3. Snapshots are told how large the disk was: it was always this.
    fn upgrade(&self) -> Result<()> {
        let old = self.snapshots.read().clone();
        let mut exchange = Exchange::begin(self)?;
        exchange.header.version = 3;
        exchange.header.geometry.zero_clusters = true;
        if !old.entries.is_empty() {
            let mut new = old.clone();
            let size = exchange.header.size();
            for entry in &mut new.entries {
                entry.set_extra(long_extra(entry, size));
            }
            exchange.write_snapshots(&old, &new)?;
        }
        exchange.finish()
    }

    /// Makes the image, which has nothing but what version 2 knows, version 2.
    fn downgrade(&self) -> Result<()> {
        let mut exchange = Exchange::begin(self)?;
        let header = &mut exchange.header;
        header.version = 2;
        header.geometry.zero_clusters = false;
        header.extensions = header.extensions.without(extension::FEATURE_NAMES);
        header.extensions = header.extensions.without(extension::BITMAPS);
        (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
        exchange.finish()
    }

    /// Makes every cluster that is marked as zeros absent or, over a backing file, data.
    fn write_zero_clusters(&self) -> Result<()> {
        let geometry = self.source.geometry;
        self.prepare_writes()?;
        let size = geometry.cluster();
        let whole = ByteRange::new(ByteOffset::ZERO, self.size());
        for batch in whole.pieces(ByteCount::new(BATCH * size.get())) {
            for piece in batch.pieces(size) {
                let (guest, _) = geometry.locate(piece.start);
                if !is_zero(self.source.cluster(guest)?) {
                    continue;
                }
                if self.source.backing.is_none() {
                    self.zero(piece, ZeroMode { may_unmap: true, only_if_fast: false })?;
                } else {
                    let zeros = super::write::Fill::Zeros;
                    self.write_piece(guest, 0, size.get(), zeros)?;
                }
            }
            self.flush()?;
        }
        Ok(())
    }
}
