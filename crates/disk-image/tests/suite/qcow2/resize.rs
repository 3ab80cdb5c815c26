//! Disks that grow and shrink.

use std::sync::Arc;

use super::common::{Folder, contents, same, text};
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{CreateOptions, Image, OpenOptions, check, create};

#[test]
fn what_is_added_is_zeros_and_what_is_cut_off_is_gone() {
    let folder = Folder::new();
    for bits in [9, 12, 16, 21] {
        let name = format!("{bits}.qcow2");
        let mut options = CreateOptions::new(ByteCount::new((1 << 20) + 1536));
        options.cluster_size = ByteCount::new(1 << bits);
        let image = folder.create(&name, &options);
        let mut disk = text((1 << 20) + 1536, bits);
        image.write_at(&disk, ByteOffset::ZERO).expect("written");
        for size in [(3 << 20) + 512, 100_352, 4 << 20, 0, 512, 1 << 20] {
            image.resize(ByteCount::new(size)).expect("resized");
            disk.resize(size as usize, 0);
            same(&contents(&*image), &disk);
            image.flush().expect("flushed");
            folder.check(&name);
            let tail = size.min(70_000);
            let bytes = text(tail as usize, size);
            image.write_at(&bytes, ByteOffset::new(size - tail)).expect("written");
            disk[(size - tail) as usize..].copy_from_slice(&bytes);
        }
        image.close().expect("closed");
        folder.check(&name);
        same(&folder.content(&name, ""), &disk);
    }
}

#[test]
fn a_longer_backing_file_does_not_show_through() {
    let folder = Folder::new();
    std::fs::write(folder.file("base.raw"), text(1 << 20, 2)).expect("done");
    let mut options = CreateOptions::new(ByteCount::new(200_192));
    options.backing = Some(("base.raw".into(), "raw".into()));
    create(&folder.new_file("top.qcow2"), None, &options).expect("created");
    let backing = Some(folder.host("base.raw", true));
    let image = folder
        .try_open("top.qcow2", OpenOptions { backing, ..OpenOptions::default() })
        .expect("opened");
    image.write_at(&[5; 100], ByteOffset::new(200_000)).expect("written");
    image.resize(ByteCount::new(2 << 20)).expect("grown");
    let mut disk = text(1 << 20, 2);
    disk[200_000..200_100].fill(5);
    disk[200_192..].fill(0);
    disk.resize(2 << 20, 0);
    same(&contents(&*image), &disk);
    image.close().expect("closed");
    folder.check("top.qcow2");
    same(&folder.content("top.qcow2", "-f qcow2"), &disk);
}

#[test]
fn sizes_that_cannot_be() {
    let folder = Folder::new();
    let mut options = CreateOptions::new(ByteCount::new(1 << 20));
    options.cluster_size = ByteCount::new(512);
    let image = folder.create("a.qcow2", &options);
    let error = image.resize(ByteCount::new(1 << 40)).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    options.version = 2;
    let old = folder.create("b.qcow2", &options);
    old.create_snapshot("s", std::time::SystemTime::now()).expect("taken");
    let error = old.resize(ByteCount::new(1 << 21)).expect_err("has snapshots");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// The power fails at every change that growing or shrinking makes: the disk has the old size or
/// the new one, and what is in both is there; of what is to be cut off, any part may be gone.
#[test]
fn a_power_failure_leaves_one_size_or_the_other() {
    let old = 40 * 512;
    let memory = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
    let file: Arc<dyn BlockDevice> = memory.clone();
    let mut options = CreateOptions::new(ByteCount::new(old));
    options.cluster_size = ByteCount::new(512);
    create(&file, None, &options).expect("created");
    let image = Image::open(file, OpenOptions::default()).expect("opened");
    let disk = text(old as usize, 3);
    image.write_at(&disk, ByteOffset::ZERO).expect("written");
    image.close().expect("closed");
    for new in [100 * 512, 64 * 512 * 100, 5 * 512, 512] {
        for op in 1.. {
            let world = CrashWorld::new(op);
            let device = world.device("image", memory.to_bytes());
            world.crash_at(op);
            let image = Image::open(device, OpenOptions::default()).expect("opened");
            let done = image.resize(ByteCount::new(new));
            if done.is_ok() && !world.crashed() {
                break;
            }
            for draw in 0..4 {
                let (_, bytes) = world.images(draw).remove(0);
                let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", bytes));
                let report = check(&file).expect("checked");
                assert_eq!(report.corruption_count, 0, "to {new}, op {op}: {report:#?}");
                let image = Image::open(file, OpenOptions::default()).expect("opened");
                let size = image.size().get();
                assert!(size == old || (size == new && new != old), "{size} bytes");
                let kept = old.min(new).min(size) as usize;
                let found = contents(&*image);
                same(&found[..kept], &disk[..kept]);
                assert!(found[old.min(size) as usize..].iter().all(|&byte| byte == 0));
            }
        }
    }
}
