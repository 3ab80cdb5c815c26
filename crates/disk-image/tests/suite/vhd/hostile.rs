//! Images that somebody made to do harm, or that are damaged at random: they are refused, or read
//! without harm; never a panic, never memory or time beyond what the file is worth.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::vhd::common::{content, memory, open, options};
use crate::vhd::fixtures;
use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use disk_image::vhd::{Content, OpenOptions, VhdImage, check, probe, probe_parent, repair};
use testkit::rng::Rng;

const BLOCK: u64 = 16 << 10;

/// An image with two blocks.
fn image() -> Vec<u8> {
    let file = memory("disk", &options(Content::Dynamic, 1, 8 * BLOCK, BLOCK));
    let image = open(file.clone(), None);
    for block in [1, 4] {
        image.write_at(&[7; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
    image.close().expect("closed");
    file.to_bytes()
}

/// Gives the structure of `len` bytes at `at`, whose sum lies `sum` bytes in, its right sum.
fn seal(bytes: &mut [u8], at: usize, len: usize, sum: usize) {
    bytes[at + sum..at + sum + 4].fill(0);
    let total: u32 = bytes[at..at + len].iter().map(|&byte| u32::from(byte)).sum();
    bytes[at + sum..at + sum + 4].copy_from_slice(&(!total).to_be_bytes());
}

fn seal_all(bytes: &mut [u8]) {
    if bytes.len() < 4096 {
        return;
    }
    let end = bytes.len() - 512;
    seal(bytes, 0, 512, 64);
    seal(bytes, end, 512, 64);
    seal(bytes, 512, 1024, 36);
}

/// Does with `bytes` what can be done with a VHD.
fn use_all(bytes: Vec<u8>) {
    let file = Arc::new(MemoryDevice::from_bytes("hostile", bytes));
    let limit = ByteCount::new(256 << 10);
    let _ = (probe(&*file), probe_parent(&*file), check(&*file, None));
    for read_only in [true, false] {
        let options = OpenOptions { read_only, step: ByteCount::new(BLOCK) };
        let Ok(image) = VhdImage::open(file.clone(), None, options) else { continue };
        let _ = image.info();
        let range = ByteRange::new(ByteOffset::ZERO, limit.min(image.size()));
        let mut buffer = vec![0; range.len.as_usize()];
        let _ = image.read_at(&mut buffer, ByteOffset::ZERO);
        let _ = image.extents(range, &mut |_| ControlFlow::Continue(()));
        let _ = image.own_extents(range, &mut |_| ControlFlow::Continue(()));
        let tail = image.size().get().saturating_sub(512);
        // A block is zeroed as it is made: large ones take their time.
        let small = image.block_size().is_some_and(|size| size.bytes() <= limit);
        for at in [0, BLOCK, tail].into_iter().filter(|_| small) {
            let _ = image.write_at(&[1; 512], ByteOffset::new(at));
        }
        let _ = image.flush();
        let _ = image.set_hidden(true);
        let _ = image.close();
    }
    let file: Arc<dyn BlockDevice> = file;
    let _ = repair(&file);
}

#[test]
fn damage_at_random_does_no_harm() {
    let sound = [image(), fixtures::bytes("mid.vhd")[..8192 + 512].to_vec()];
    let mut rng = Rng::new(1);
    for round in 0..3000 {
        let mut bytes = rng.pick(&sound).clone();
        for _ in 0..rng.within(1..6) {
            // Mostly in the structures, in whole words, by values at the edges.
            let area = if rng.chance(9, 10) { 4096 } else { bytes.len() };
            let at = rng.index(area / 4) * 4;
            let value =
                *rng.pick(&[0, 1, 2, 3, 4, 7, 512, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX]);
            let value = if rng.chance(1, 3) { rng.bits() as u32 } else { value };
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        if rng.chance(1, 8) {
            let len = rng.index(bytes.len());
            bytes.truncate(len);
        }
        if round % 8 != 0 {
            seal_all(&mut bytes);
        }
        use_all(bytes);
    }
}

/// Changes bytes of a sound image, with right sums, and opens it for writing.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> block_types::Error {
    let mut bytes = image();
    change(&mut bytes);
    seal_all(&mut bytes);
    let file = Arc::new(MemoryDevice::from_bytes("disk", bytes));
    VhdImage::open(file, None, OpenOptions::default()).err().expect("refused")
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[test]
fn limits_are_checked_before_anything_is_taken() {
    // A table at the end of the address space, over the header, and behind the file.
    for at in [u64::MAX - 511, 512, 1 << 40, 1537] {
        let error = refused(|bytes| put(bytes, 512 + 16, at));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    // Both sizes: a disk of 2 TiB with a table of eight entries, and one of broken sectors.
    for size in [2 << 40, 8 * BLOCK + 1, u64::MAX, (2 << 40) + 512] {
        let error = refused(|bytes| {
            let end = bytes.len() - 512;
            put(bytes, 48, size);
            put(bytes, end + 48, size);
        });
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    // A header that is the footer's copy, or lies outside.
    for at in [0, u64::MAX, 1 << 50] {
        let error = refused(|bytes| {
            let end = bytes.len() - 512;
            put(bytes, 16, at);
            put(bytes, end + 16, at);
        });
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    // Blocks of sizes that are none.
    for size in [0u32, 512, 3 << 20, 1 << 31] {
        let error = refused(|bytes| bytes[512 + 32..512 + 36].copy_from_slice(&size.to_be_bytes()));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn blocks_over_each_other_or_over_structures_are_not_written_to() {
    let entry = |bytes: &mut [u8], block: usize, sector: u32| {
        bytes[1536 + 4 * block..][..4].copy_from_slice(&sector.to_be_bytes());
    };
    let place = |bytes: &[u8], block: usize| {
        let at = 1536 + 4 * block;
        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"))
    };
    let twice = refused(|bytes| {
        let same = place(bytes, 1);
        entry(bytes, 2, same);
    });
    assert!(twice.to_string().contains("block 2 over block 1"), "{twice}");
    let over = refused(|bytes| entry(bytes, 2, 1));
    assert!(over.to_string().contains("header"), "{over}");
    let past = refused(|bytes| entry(bytes, 2, u32::MAX - 1));
    assert!(past.to_string().contains("the end of the file"), "{past}");
    // They are still read, as far as there is something to read.
    let mut bytes = image();
    entry(&mut bytes, 2, u32::MAX - 1);
    let file = Arc::new(MemoryDevice::from_bytes("disk", bytes));
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = VhdImage::open(file.clone(), None, read_only).expect("opened");
    let mut read = [0; 512];
    image.read_at(&mut read, ByteOffset::new(4 * BLOCK)).expect("read");
    assert_eq!(read, [7; 512]);
    assert!(image.read_at(&mut read, ByteOffset::new(2 * BLOCK)).is_err());
    let report = check(&*file, None).expect("checked");
    assert!(report.errors[0].contains("block 2 reaches past the end"), "{report:#?}");
}

#[test]
fn a_disk_that_is_its_own_parent_is_refused() {
    let bytes = fixtures::bytes("mid.vhd");
    let mut changed = bytes.clone();
    let own: [u8; 16] = bytes[68..84].try_into().expect("sixteen");
    changed[512 + 40..512 + 56].copy_from_slice(&own);
    seal(&mut changed, 512, 1024, 36);
    let file = Arc::new(MemoryDevice::from_bytes("loop", changed));
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let error = VhdImage::open(file, None, read_only).err().expect("refused");
    assert!(error.to_string().contains("itself"), "{error}");
}

#[test]
fn a_poisoned_image_is_refused_by_that_word() {
    let mut bytes = image();
    let end = bytes.len() - 512;
    for at in [0, end] {
        bytes[at..at + 8].copy_from_slice(b"v_poison");
    }
    seal_all(&mut bytes);
    let file = Arc::new(MemoryDevice::from_bytes("disk", bytes));
    let error = VhdImage::open(file, None, OpenOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("v_poison"), "{error}");
}

#[test]
fn content_survives_what_a_crash_does_to_one_footer() {
    let sound = image();
    let end = sound.len() - 512;
    let open_rw = |bytes: Vec<u8>| {
        let file = Arc::new(MemoryDevice::from_bytes("disk", bytes));
        let image = open(file.clone(), None);
        (file, image)
    };
    let expected = content(&*open_rw(sound.clone()).1);
    // XenServer's sign of use, nothing at all, a lost copy, a file cut short.
    let mut used = sound.clone();
    used[end..].fill(0xc7);
    let mut lost = sound.clone();
    lost[..512].fill(0);
    for bytes in [used, lost, sound[..end].to_vec(), sound[..end + 100].to_vec()] {
        let (file, image) = open_rw(bytes);
        assert_eq!(content(&*image), expected);
        image.write_at(&[9; 512], ByteOffset::new(6 * BLOCK)).expect("written");
        image.close().expect("closed");
        let report = check(&*file, None).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    }
}
