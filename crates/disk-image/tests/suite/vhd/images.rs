//! Making images, their limits, growing them, raw parents, places, and many threads.

use std::sync::Arc;

use crate::vhd::common::{content, id, link, memory, open, open_read_only, options};
use crate::vhd::fixtures;
use block_io::{BlockDevice, CacheMode, HostFile, Intent, MemoryDevice, Place};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, ExtentState};
use disk_image::vhd::{
    BatmapState, Content, CreateOptions, Creator, OpenOptions, Parent, ParentLink, Timestamp,
    Verdict, VhdImage, check, create,
};

const BLOCK: u64 = 64 << 10;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

/// Where vhd-util puts things in a differencing disk of 64 MiB, and what it says there.
#[test]
fn a_child_is_laid_out_as_vhd_util_does() {
    let theirs = fixtures::bytes("mid.vhd");
    let parent = fixtures::bytes("base.vhd");
    let id_of =
        |bytes: &[u8]| disk_image::vhd::DiskId::new(bytes[68..84].try_into().expect("sixteen"));
    let modified = Timestamp::new(848_503_208);
    let link = ParentLink { id: Some(id_of(&parent)), modified, path: "base.vhd".into() };
    let plain = CreateOptions::new(ByteCount::new(64 << 20), id_of(&theirs), modified);
    let largest = ByteCount::new(128 << 20);
    let content = Content::Differencing(link);
    let file = memory("mid.vhd", &CreateOptions { content, largest, ..plain });
    let image = open(file.clone(), None);
    image.write_at(&[0x21; 16 * 512], ByteOffset::new(2 << 20)).expect("written");
    image.set_hidden(true).expect("hidden");
    image.close().expect("closed");
    let ours = file.to_bytes();
    assert_eq!(ours.len(), theirs.len());
    // Byte for byte the same, but between the locators and the first block, where vhd-util left
    // what was in its memory.
    let unused = 4608..7680;
    let differs = (0..ours.len()).find(|at| ours[*at] != theirs[*at] && !unused.contains(at));
    assert_eq!(differs, None);
}

#[test]
fn sizes_have_limits_that_are_told() {
    let make = |size: u64| {
        let file = MemoryDevice::new("disk.vhd", ByteCount::ZERO);
        create(&file, &options(Content::Dynamic, 1, size, 2 << 20)).map(|()| file)
    };
    make(2040 << 30).expect("the largest");
    for (size, told) in [((2040 << 30) + 512, "2040 GiB"), (0, "whole sectors"), (513, "sectors")] {
        let error = make(size).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn files_that_hold_something_are_not_overwritten() {
    let file = MemoryDevice::new("disk.vhd", ByteCount::new(1));
    let error = create(&file, &options(Content::Dynamic, 1, BLOCK, BLOCK)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Exists);
}

#[test]
fn fixed_disks_grow_and_stay_what_they_are() {
    let file = memory("fixed", &options(Content::Fixed, 1, BLOCK, BLOCK));
    let image = open(file.clone(), None);
    image.write_at(&[7; BLOCK as usize], ByteOffset::ZERO).expect("written");
    image.resize(ByteCount::new(3 * BLOCK)).expect("grown");
    assert_eq!(image.resize(ByteCount::new(BLOCK)).expect_err("no").kind(), ErrorKind::Unsupported);
    let held = content(&*image);
    assert!(held[..BLOCK as usize].iter().all(|&byte| byte == 7));
    assert!(held[BLOCK as usize..].iter().all(|&byte| byte == 0), "the old footer shows");
    image.close().expect("closed");
    let again = open_read_only(file.clone(), None);
    assert_eq!((again.size(), content(&*again)), (ByteCount::new(3 * BLOCK), held));
    assert_eq!(check(&*file, None).expect("checked").verdict(), Verdict::Sound);
}

#[test]
fn sparse_disks_grow_as_far_as_their_table() {
    let plain = options(Content::Dynamic, 1, BLOCK + 512, BLOCK);
    let largest = ByteCount::new(200 * BLOCK);
    let file = memory("disk", &CreateOptions { largest, ..plain });
    let image = open(file.clone(), None);
    image.resize(largest).expect("grown");
    image.write_at(&[7; 512], ByteOffset::new(199 * BLOCK)).expect("written");
    let error = image.resize(ByteCount::new(200 * BLOCK + 512)).expect_err("no");
    assert!(error.to_string().contains("table"), "{error}");
    image.close().expect("closed");
    assert_eq!(content(&*open_read_only(file, None))[199 * BLOCK as usize], 7);
}

/// Some writers leave zeros in the entries that a disk does not need; they count when it has grown.
#[test]
fn entries_beyond_the_end_mean_nothing_when_a_disk_grows() {
    let plain = options(Content::Dynamic, 1, 3 * BLOCK, BLOCK);
    let largest = ByteCount::new(300 * BLOCK);
    let file = memory("disk", &CreateOptions { largest, ..plain });
    file.write_at(&[0; 4 * 297], ByteOffset::new(1536 + 4 * 3)).expect("written");
    let image = open(file.clone(), None);
    image.write_at(&[7; 512], ByteOffset::new(2 * BLOCK)).expect("written");
    image.resize(largest).expect("grown");
    image.close().expect("closed");
    assert_eq!(check(&*file, None).expect("checked").verdict(), Verdict::Sound);
    let held = content(&*open(file, None));
    assert_eq!(held.iter().filter(|&&byte| byte == 7).count(), 512);
    assert_eq!(held.iter().filter(|&&byte| byte != 0).count(), 512);
}

#[test]
fn a_raw_parent_has_no_uuid() {
    let raw = Arc::new(MemoryDevice::from_bytes("raw", vec![5; 3 * BLOCK as usize]));
    let to_raw = ParentLink { id: None, ..link(9, "raw") };
    let file = memory("child", &options(Content::Differencing(to_raw), 1, 4 * BLOCK, BLOCK));
    let wrong = Parent { device: raw.clone(), id: Some(id(9)) };
    assert!(VhdImage::open(file.clone(), Some(wrong), OpenOptions::default()).is_err());
    let image = open(file.clone(), Some(Parent::raw(raw)));
    image.write_at(&[6; 512], ByteOffset::new(512)).expect("written");
    let held = content(&*image);
    assert_eq!((held[0], held[512], held[1024], held[3 * BLOCK as usize]), (5, 6, 5, 0));
    assert_eq!(image.parent_info().expect("read").expect("has one").id, None);
    image.close().expect("closed");
    assert_eq!(check(&*file, None).expect("checked").verdict(), Verdict::Sound);
}

/// The sizes at which the batmap of XenServer's library stops a sector short.
#[test]
fn batmaps_of_all_sizes_are_kept() {
    for mib in [2, 8190, 8192, 8194, 8206, 8208] {
        let size = mib << 20;
        let file = memory("disk", &options(Content::Dynamic, 1, size, 2 << 20));
        let image = open(file.clone(), None);
        image.write_at(&[7; 512], ByteOffset::new(size - 512)).expect("written");
        image.close().expect("closed");
        let report = check(&*file, None).expect("checked");
        assert_eq!(report.verdict(), Verdict::Sound, "{mib} MiB: {report:#?}");
        let image = open_read_only(file, None);
        let sparse = image.info().expect("read").sparse.expect("is dynamic");
        assert_eq!(sparse.batmap, BatmapState::Trusted, "{mib} MiB");
    }
}

/// The bytes at the places that a request resolves to.
fn resolved(image: &VhdImage, at: ByteRange) -> Option<Vec<u8>> {
    let mut places: Vec<Place<'_>> = Vec::new();
    let _lease = image.resolver()?.resolve(Intent::Read, at, &mut places)?;
    let mut bytes = Vec::new();
    for place in places {
        let mut part = vec![0; place.len.as_usize()];
        if let Some(file) = place.file {
            file.read_at(&mut part, place.at).expect("read");
        }
        bytes.extend(part);
    }
    Some(bytes)
}

#[test]
fn requests_resolve_through_a_chain() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = |name: &str, options: &CreateOptions| {
        let path = folder.path().join(name);
        let file = HostFile::create(&path, ByteCount::ZERO, CacheMode::Cached).expect("created");
        create(&file, options).expect("made");
        Arc::new(file)
    };
    let base = open(make("base", &options(Content::Dynamic, 1, 3 * BLOCK, BLOCK)), None);
    base.write_at(&[1; BLOCK as usize], ByteOffset::ZERO).expect("written");
    let to_base = Content::Differencing(link(1, "base"));
    let child_file = make("child", &options(to_base, 2, 4 * BLOCK, BLOCK));
    let child = open(child_file.clone(), Some(Parent::vhd(&base)));
    child.write_at(&[2; 1024], ByteOffset::new(512)).expect("written");
    let whole = range(0, 4 * BLOCK);
    assert_eq!(resolved(&child, whole), Some(content(&*child)));
    let mut places = Vec::new();
    let resolver = child.resolver().expect("has one");
    let mut writes = |start, len| {
        let lease = resolver.resolve(Intent::Write, range(start, len), &mut places);
        (lease.is_some(), places.drain(..).count())
    };
    assert_eq!(writes(512, 1024), (true, 1));
    assert_eq!(writes(512, 1536), (false, 0), "a sector that is the parent's");
    assert_eq!(writes(2 * BLOCK, 512), (false, 0), "a block without a place");
    assert_eq!(writes(4 * BLOCK, 512), (false, 0), "past the end");
    child.close().expect("closed");
    // A bitmap is read when it is first wanted: that is I/O, which resolving never does.
    let child = open_read_only(child_file, Some(Parent::vhd(&base)));
    assert_eq!(resolved(&child, whole), None);
    let held = content(&*child);
    assert_eq!(resolved(&child, whole), Some(held));
    assert_eq!(resolved(&child, range(3 * BLOCK, BLOCK)), Some(vec![0; BLOCK as usize]));
}

#[test]
fn extents_tell_what_is_below() {
    let base = open(memory("base", &options(Content::Dynamic, 1, 3 * BLOCK, BLOCK)), None);
    base.write_at(&[1; BLOCK as usize], ByteOffset::ZERO).expect("written");
    let to_base = Content::Differencing(link(1, "base"));
    let child = memory("child", &options(to_base, 2, 4 * BLOCK, BLOCK));
    let child = open(child, Some(Parent::vhd(&base)));
    child.write_at(&[2; 4096], ByteOffset::new(BLOCK)).expect("written");
    let mut data = 0;
    let mut end = 0;
    let each = &mut |extent: block_types::Extent| {
        assert_eq!(extent.range.start.get(), end, "without gaps");
        end = extent.range.end().get();
        data += if extent.state == ExtentState::Data { extent.range.len.get() } else { 0 };
        std::ops::ControlFlow::Continue(())
    };
    child.extents(range(0, 4 * BLOCK), each).expect("told");
    assert_eq!((end, data), (4 * BLOCK, BLOCK + 4096));
}

/// Writers of neighbouring sectors, who meet in blocks and in the table, beside others who flush.
#[test]
fn threads_do_not_disturb_each_other() {
    const THREADS: u64 = 4;
    for creator in [Creator::XENSERVER, Creator::WINDOWS] {
        let size = 32 * BLOCK;
        let base = open(memory("base", &options(Content::Dynamic, 1, size, BLOCK)), None);
        let to_base = options(Content::Differencing(link(1, "base")), 2, size, BLOCK);
        let file = memory("child", &CreateOptions { creator, ..to_base });
        let child = open(file.clone(), Some(Parent::vhd(&base)));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let child = &child;
                scope.spawn(move || {
                    for sector in (thread..size / 512).step_by(THREADS as usize) {
                        let value = 1 + (sector % 251) as u8;
                        let at = ByteOffset::new(sector * 512);
                        child.write_at(&[value; 512], at).expect("written");
                        if sector % 97 == thread {
                            child.flush().expect("flushed");
                        }
                    }
                });
            }
        });
        child.close().expect("closed");
        assert_eq!(check(&*file, None).expect("checked").verdict(), Verdict::Sound);
        let held = content(&*open_read_only(file, Some(Parent::vhd(&base))));
        for (sector, bytes) in held.chunks(512).enumerate() {
            assert!(bytes.iter().all(|&byte| byte == 1 + (sector % 251) as u8), "{sector}");
        }
    }
}

#[test]
fn a_closed_image_takes_no_writes() {
    let image = open(memory("disk", &options(Content::Dynamic, 1, BLOCK, BLOCK)), None);
    image.close().expect("closed");
    let error = image.write_at(&[1; 512], ByteOffset::ZERO).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    let mut read = [1; 512];
    image.read_at(&mut read, ByteOffset::ZERO).expect("reads go on");
    assert_eq!(
        image.write_at(&[1; 100], ByteOffset::ZERO).expect_err("no").kind(),
        ErrorKind::Stopped
    );
}
