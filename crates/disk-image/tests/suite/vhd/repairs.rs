//! What a check says of damaged images, and what a repair makes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::vhd::common::{content, memory, open, open_read_only, options, sha256};
use crate::vhd::fixtures;
use block_io::{BlockDevice, CacheMode, HostFile, MemoryDevice};
use block_types::{ByteCount, ByteOffset};
use disk_image::vhd::{
    BatmapState, Content, CreateOptions, DiskId, Timestamp, Verdict, check, create, repair,
};

/// Repairs a fixture; what the check said before, and what was done.
fn repaired(name: &str) -> (Vec<String>, Vec<String>, Arc<MemoryDevice>) {
    let memory = Arc::new(MemoryDevice::from_bytes(name, fixtures::bytes(name)));
    let before = check(&*memory, None).expect("checked");
    assert_eq!(before.verdict(), Verdict::Corrupt, "{before:#?}");
    assert_eq!(before.verdict().code(), 2);
    let content_before = content(&*open_read_only(memory.clone(), None));
    let file: Arc<dyn BlockDevice> = memory.clone();
    let report = repair(&file).expect("repaired");
    assert_eq!(report.left.verdict(), Verdict::Sound, "{report:#?}");
    assert!(report.left.notes.is_empty(), "{report:#?}");
    let image = open_read_only(memory.clone(), None);
    let sparse = image.info().expect("read").sparse.expect("is dynamic");
    assert_eq!(sparse.batmap, BatmapState::Trusted);
    assert_eq!(sha256(content(&*image)), sha256(content_before));
    (before.errors, report.done, memory)
}

#[test]
fn a_lost_footer_is_written_back() {
    let (errors, done, memory) = repaired("noendfooter.vhd");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(done[0].contains("footer at the end"), "{done:?}");
    let bytes = memory.to_bytes();
    assert_eq!(bytes.len(), 6_304_256);
    assert!(bytes == fixtures::bytes("base.vhd"), "not byte for byte what it was");
}

#[test]
fn a_broken_batmap_is_worked_out_anew() {
    let (errors, _, memory) = repaired("marker-broken.vhd");
    assert!(errors[0].contains("0xffffff3f"), "{errors:?}");
    assert_eq!(memory.to_bytes()[2560..2564], [0xc0, 0, 0, 0]);
}

#[test]
fn an_image_without_room_for_its_batmap_is_given_it() {
    let (errors, done, memory) = repaired("leaf-flattened-by-vhdlib.vhd");
    for expected in ["batmap", "parent", "block 0 lies over"] {
        assert!(errors.iter().any(|error| error.contains(expected)), "{expected}: {errors:#?}");
    }
    assert_eq!(done.len(), 3, "{done:?}");
    // The entries beyond the end of the disk.
    assert!(memory.to_bytes()[1536 + 4 * 32..1536 + 4 * 64].iter().all(|&byte| byte == 0xff));
}

#[test]
fn sound_fixtures_are_sound() {
    for name in ["base.vhd", "mid.vhd", "leaf.vhd"] {
        let file = MemoryDevice::from_bytes(name, fixtures::bytes(name));
        let now = Timestamp::new(848_503_208);
        let report = check(&file, Some(now)).expect("checked");
        assert_eq!(report.verdict(), Verdict::Sound, "{name}: {report:#?}");
        assert!(report.notes.is_empty(), "{name}: {report:#?}");
        let early = check(&file, Some(Timestamp::new(now.get() - 1801))).expect("checked");
        assert!(early.notes[0].contains("1801 seconds"), "{early:#?}");
    }
}

#[test]
fn a_bitmap_that_the_batmap_contradicts_is_found() {
    let mut bytes = fixtures::bytes("base.vhd");
    // The bitmap of block 0.
    bytes[3584] = 0x7f;
    let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("base.vhd", bytes));
    let report = check(&*file, None).expect("checked");
    assert!(report.errors[0].contains("block 0 is full"), "{report:#?}");
    let report = repair(&file).expect("repaired");
    assert_eq!(report.left.verdict(), Verdict::Sound, "{report:#?}");
}

#[test]
fn a_block_that_nobody_names_is_a_leak_which_the_next_writer_uses() {
    const BLOCK: u64 = 64 << 10;
    let file = memory("disk", &options(Content::Dynamic, 1, 8 * BLOCK, BLOCK));
    let image = open(file.clone(), None);
    for block in [0, 1, 2] {
        image.write_at(&[1; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
    image.close().expect("closed");
    // Block 1 loses its place, and the batmap its trust: a crash leaves no such thing, but a leak.
    file.write_at(&[0xff; 4], ByteOffset::new(1536 + 4)).expect("written");
    let report = check(&*file, None).expect("checked");
    assert_eq!((report.leaks.len(), report.errors.len()), (1, 1), "{report:#?}");
    let device: Arc<dyn BlockDevice> = file.clone();
    let report = repair(&device).expect("repaired");
    assert_eq!(report.left.verdict().code(), 3, "{report:#?}");
    let len = file.size();
    let image = open(file.clone(), None);
    image.write_at(&[1; 512], ByteOffset::new(5 * BLOCK)).expect("written");
    image.close().expect("closed");
    assert_eq!(file.size(), len);
    assert_eq!(check(&*file, None).expect("checked").verdict(), Verdict::Sound);
    let held = content(&*image);
    let at = |block: u64| held[(block * BLOCK) as usize..][..BLOCK as usize].to_vec();
    assert!(at(1).iter().all(|&byte| byte == 0));
    assert!(at(5)[512..].iter().all(|&byte| byte == 0), "what lay there shows");
}

/// A check of a full image of 2040 GiB sorts a million blocks and reads a million bitmaps; pairs of
/// them would be half a million million.
#[test]
fn the_largest_image_is_checked_in_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.vhd");
    let file = HostFile::create(&path, ByteCount::ZERO, CacheMode::Cached).expect("created");
    let size = ByteCount::new(2040 << 30);
    let options = CreateOptions::new(size, DiskId::new([1; 16]), Timestamp::new(0));
    create(&file, &options).expect("made");
    let blocks = 2040 << 9;
    // Places of all blocks, in an order that no sort finds done; the bitmaps are holes of the file.
    let first = file.size().get().next_multiple_of(4096) / 512 + 7;
    let place = |block: u64| (block * 7919) % blocks;
    let sector = |block: u64| u32::try_from(first + place(block) * 4104).expect("below 2 TiB");
    let table: Vec<u8> = (0..blocks).flat_map(|block| sector(block).to_be_bytes()).collect();
    let end = ByteOffset::new((first + blocks * 4104) * 512);
    let mut footer = [0; 512];
    file.read_at(&mut footer, ByteOffset::ZERO).expect("read");
    file.resize(ByteCount::new(end.get() + 512)).expect("resized");
    file.write_at(&footer, end).expect("written");
    file.write_at(&table, ByteOffset::new(1536)).expect("written");
    let begun = Instant::now();
    let report = check(&file, None).expect("checked");
    assert_eq!((report.verdict(), report.blocks), (Verdict::Sound, blocks), "{report:#?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
    eprintln!("checked {blocks} blocks in {:?}", begun.elapsed());
    // One of them over another.
    file.write_at(&sector(5).to_be_bytes(), ByteOffset::new(1536 + 4 * 1_000_000)).expect("ok");
    let report = check(&file, None).expect("checked");
    assert!(report.errors.iter().any(|error| error.contains("lies over")), "{report:#?}");
}
