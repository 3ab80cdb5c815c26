//! Space maps, written in one go from counts in memory.

use block_types::Result;
use persistent_data::space_map::{COUNTS_PER_BITMAP, encode_bitmap};
use persistent_data::{BlockKind, RefCounts, SpaceMapRoot};
use zerocopy::IntoBytes;

use super::output::Output;
use super::tree::pack;

/// Bytes of a bitmap before its counts, and of an index before its entries.
const HEAD: usize = 16;
/// The least count that takes an entry among the large ones.
const LARGE: u32 = 3;

/// Writes the map of the data device.
pub(super) fn write_data_map(output: &mut Output, counts: &RefCounts) -> Result<SpaceMapRoot> {
    let mut entries = Vec::new();
    for index in 0..bitmaps(counts) {
        let bitmap = encode_bitmap(counts, index);
        let at = output.append_owned(BlockKind::Bitmap, |block| {
            block[HEAD..].copy_from_slice(&bitmap.block[HEAD..]);
        })?;
        entries.push((index, bitmap.entry(at)));
    }
    let bitmap_root = pack(output, entries.into_iter())?;
    let ref_count_root = pack(output, large(counts))?;
    output.adopt(bitmap_root);
    output.adopt(ref_count_root);
    Ok(SpaceMapRoot {
        nr_blocks: counts.len().into(),
        nr_allocated: counts.allocated().into(),
        bitmap_root: bitmap_root.get().into(),
        ref_count_root: ref_count_root.get().into(),
    })
}

/// Writes the map of the metadata device, which counts its own blocks: all of them are given out
/// and counted before the first bitmap is encoded.
pub(super) fn write_metadata_map(output: &mut Output) -> Result<SpaceMapRoot> {
    // None of these nodes has more than one parent, so the tree does not change what it lists.
    let listed: Vec<(u64, u32)> = large(&output.counts).collect();
    let ref_count_root = pack(output, listed.into_iter())?;
    output.adopt(ref_count_root);
    let count = bitmaps(&output.counts);
    let index = output.upcoming(count);
    if index.get() >= output.counts.len() {
        return Err(super::output::too_small(&**output.device()));
    }
    (0..=count).for_each(|ahead| output.adopt(output.upcoming(ahead)));
    let mut entries = Vec::new();
    for number in 0..count {
        let bitmap = encode_bitmap(&output.counts, number);
        let at = output.append(BlockKind::Bitmap, |block| {
            block[HEAD..].copy_from_slice(&bitmap.block[HEAD..]);
        })?;
        entries.push(bitmap.entry(at));
    }
    let at = output.append(BlockKind::Index, |block| {
        let bytes = entries.as_bytes();
        block[HEAD..HEAD + bytes.len()].copy_from_slice(bytes);
    })?;
    debug_assert_eq!(at, index, "blocks are given out in order");
    Ok(SpaceMapRoot {
        nr_blocks: output.counts.len().into(),
        nr_allocated: output.counts.allocated().into(),
        bitmap_root: at.get().into(),
        ref_count_root: ref_count_root.get().into(),
    })
}

fn bitmaps(counts: &RefCounts) -> u64 {
    counts.len().div_ceil(COUNTS_PER_BITMAP as u64)
}

fn large(counts: &RefCounts) -> impl Iterator<Item = (u64, u32)> + '_ {
    counts.used().filter(|&(_, count)| count >= LARGE)
}
