//! Space maps, written in one go from counts in memory.

use block_types::Result;
use persistent_data::space_map::{COUNTS_PER_BITMAP, IndexEntry};
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock, RefCounts, SpaceMapRoot};
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
        let bitmap = Bitmap::of(counts, index);
        let at = output.append_owned(BlockKind::Bitmap, |block| {
            block[HEAD..].copy_from_slice(&bitmap.bytes);
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
        let bitmap = Bitmap::of(&output.counts, number);
        let at = output.append(BlockKind::Bitmap, |block| {
            block[HEAD..].copy_from_slice(&bitmap.bytes);
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

/// The two-bit counts of 16320 blocks. Of a count's bits the lower one is the high bit.
struct Bitmap {
    bytes: [u8; BLOCK_SIZE - HEAD],
    used: u32,
    none_free_before: u32,
}

impl Bitmap {
    fn of(counts: &RefCounts, index: u64) -> Self {
        let first = index * COUNTS_PER_BITMAP as u64;
        let len = (counts.len() - first).min(COUNTS_PER_BITMAP as u64);
        let mut bitmap = Self { bytes: [0; BLOCK_SIZE - HEAD], used: 0, none_free_before: 0 };
        for place in 0..len {
            let bits = match counts.get(first + place) {
                0 => continue,
                1 => 0b10,
                2 => 0b01,
                _ => 0b11,
            };
            bitmap.bytes[place as usize / 4] |= bits << (place % 4 * 2);
            bitmap.none_free_before += u32::from(u64::from(bitmap.used) == place);
            bitmap.used += 1;
        }
        bitmap
    }

    /// The index entry of the bitmap at `at`. What lies past the end of the map counts as free.
    fn entry(&self, at: MetaBlock) -> IndexEntry {
        IndexEntry {
            bitmap: at.get().into(),
            nr_free: (COUNTS_PER_BITMAP as u32 - self.used).into(),
            none_free_before: self.none_free_before.into(),
        }
    }
}
