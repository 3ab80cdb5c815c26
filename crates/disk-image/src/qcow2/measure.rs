//! How large the file of a new image will be.

use block_types::{ByteCount, DirtyBitmap, Result};

use super::create::{CreateOptions, Preallocation};
use super::geometry::Geometry;
use super::layout::BitmapHead;
use crate::luks;

/// Bytes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// With the data that are to be copied, at most.
    pub required: ByteCount,
    /// With data everywhere.
    pub fully_allocated: ByteCount,
}

/// How large the file of a new image will be: `data` bytes of its disk, in whole clusters, are to
/// hold data.
///
/// # Errors
/// [`block_types::ErrorKind::Invalid`] for options that do not go together.
pub fn measure(options: &CreateOptions, data: ByteCount) -> Result<Measure> {
    options.check("a new image")?;
    let geometry = options.geometry();
    let disk = geometry.clusters(options.size) << geometry.cluster_bits;
    let header = if options.encryption.is_some() { luks::AREA } else { 0 };
    let header = header.next_multiple_of(geometry.cluster().get());
    let whole = header + disk + metadata(geometry, disk);
    let reserved = matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full);
    let data = if reserved { disk } else { data.get().min(disk) };
    let (required, fully_allocated) = (ByteCount::new(whole - disk + data), ByteCount::new(whole));
    Ok(Measure { required, fully_allocated })
}

/// The most that bitmaps will take in such an image; names and contents are given.
pub fn measure_bitmaps<'b>(
    options: &CreateOptions,
    bitmaps: impl Iterator<Item = (&'b str, &'b DirtyBitmap)>,
) -> ByteCount {
    let cluster = options.geometry().cluster().get();
    let (mut bytes, mut directory) = (0, 0);
    for (name, bits) in bitmaps {
        let clusters = bits.byte_len().div_ceil(cluster);
        bytes += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        directory += (size_of::<BitmapHead>() + name.len()).next_multiple_of(8) as u64;
    }
    ByteCount::new(bytes + directory.next_multiple_of(cluster))
}

/// Header, tables and counts of a disk of `disk` bytes that are all there.
fn metadata(geometry: Geometry, disk: u64) -> u64 {
    let cluster = geometry.cluster().get();
    let tables = (disk / cluster).div_ceil(geometry.table_entries());
    let l1 = tables.div_ceil(cluster / 8);
    let clusters = 1 + tables + l1;
    // The counts count themselves.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let all = clusters + disk / cluster + blocks + table;
        let wanted = all.div_ceil(geometry.block_counts());
        if (wanted, wanted.div_ceil(cluster / 8)) == (blocks, table) {
            return (clusters + blocks + table) * cluster;
        }
        (blocks, table) = (wanted, wanted.div_ceil(cluster / 8));
    }
}
