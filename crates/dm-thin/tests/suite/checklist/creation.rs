//! Pools, volumes and snapshots come into being, or are refused.

use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, HostFile, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::{BlockSize, OpenOptions, Pool};

use super::{METADATA, Rig, get, put};
use crate::common::id;

#[test]
fn create_lots_of_empty_thins() {
    let mut rig = Rig::new(16);
    for device in 0..1000 {
        rig.message(&format!("create_thin {device}"));
    }
    rig.reopen();
    assert_eq!(rig.pool.devices().len(), 1000);
    assert_eq!(rig.pool.status().data_used, 0);
    rig.check();
}

#[test]
fn create_lots_of_snaps() {
    let mut rig = Rig::with_volume(16);
    put(&rig.volume(0, 16), 3, 33).expect("written");
    for device in 1..1000 {
        rig.message(&format!("create_snap {device} 0"));
    }
    rig.reopen();
    assert_eq!(rig.pool.status().data_used, 1);
    assert!((0..1000).step_by(111).all(|device| get(&rig.volume(device, 16), 3) == 33));
    rig.check();
}

#[test]
fn create_lots_of_recursive_snaps() {
    let mut rig = Rig::with_volume(1100);
    // Each snapshot is of the one before, and has a block more.
    for device in 1..1000 {
        let origin = device - 1;
        put(&rig.volume(origin, 1100), u64::from(origin), u64::from(device)).expect("written");
        rig.message(&format!("create_snap {device} {origin}"));
    }
    rig.reopen();
    for device in [0, 1, 500, 999] {
        let volume = rig.volume(device, 1100);
        let last = u64::from(device).min(998);
        assert_eq!(get(&volume, last), last + 1);
        assert_eq!(get(&volume, last + 1), 0, "what came after snapshot {device} is in it");
    }
    assert_eq!(rig.pool.status().data_used, 999);
    rig.check();
}

#[test]
fn largest_dev_t_succeeds() {
    let mut rig = Rig::new(16);
    rig.message("create_thin 16777215");
    put(&rig.volume(16_777_215, 16), 5, 55).expect("written");
    rig.reopen();
    assert_eq!(get(&rig.volume(16_777_215, 16), 5), 55);
    rig.check();
}

#[test]
fn too_large_a_dev_t_fails() {
    let rig = Rig::with_volume(16);
    for message in ["create_thin 16777216", "create_snap 16777216 0", "create_thin 4294967296"] {
        assert_eq!(rig.refusal(message), "EINVAL", "{message}");
    }
    assert_eq!(rig.pool.devices().len(), 1);
    rig.check();
}

#[test]
fn creating_what_exists_fails() {
    let rig = Rig::with_volume(16);
    assert_eq!(rig.refusal("create_thin 0"), "EEXIST");
    assert_eq!(rig.refusal("create_snap 0 0"), "EEXIST");
    assert_eq!(rig.refusal("create_snap 1 7"), "ENODATA");
    rig.check();
}

/// A pool of such blocks, in a sparse file: one is written and read.
fn block_size_succeeds(bytes: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let size = ByteCount::new(3 * bytes);
    let file = HostFile::create(&folder.path().join("data"), size, CacheMode::Cached);
    let data: Arc<dyn BlockDevice> = Arc::new(file.expect("made"));
    let memory = Arc::new(MemoryDevice::new("metadata", ByteCount::new(METADATA)));
    let metadata: Arc<dyn BlockDevice> = memory.clone();
    let block_size = BlockSize::new(ByteCount::new(bytes)).expect("a block size");
    Pool::format(&metadata, &*data, block_size).expect("formatted");
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("pool", metadata, data, options).expect("opened");
    super::send(&pool, "create_thin 0").expect("made");
    let volume = pool.open_volume(id(0), "thin", size, false).expect("opened");
    let at = ByteOffset::new(2 * bytes - 4096);
    volume.write_at(&[7; 8192], at).expect("written");
    let mut read = [0; 16384];
    volume.read_at(&mut read, ByteOffset::new(at.get() - 4096)).expect("read");
    assert!(read[4096..12288].iter().all(|&byte| byte == 7), "{bytes}");
    assert!(read[..4096].iter().chain(&read[12288..]).all(|&byte| byte == 0), "{bytes}");
    assert_eq!(pool.status().data_used, 2);
    drop(volume);
    pool.close().expect("closed");
    super::check(&memory);
}

#[test]
fn smallest_data_block_size_succeeds() {
    block_size_succeeds(64 << 10);
}

#[test]
fn largest_data_block_size_succeeds() {
    block_size_succeeds(1 << 30);
}

#[test]
fn non_power_of_2_data_block_size_succeeds() {
    block_size_succeeds(192 << 10);
}

#[test]
fn data_block_sizes_that_the_kernel_has_not_fail() {
    // Too small, too large, and no multiple of 64 KiB.
    for bytes in [0, 32 << 10, (1 << 30) + (64 << 10), 100 << 10] {
        let error = BlockSize::new(ByteCount::new(bytes)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bytes}");
    }
}

#[test]
fn too_small_a_metadata_dev_fails() {
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::new("metadata", ByteCount::new(32 << 10)));
    let data = MemoryDevice::new("data", ByteCount::new(1 << 20));
    let size = BlockSize::new(ByteCount::new(64 << 10)).expect("a block size");
    let error = Pool::format(&metadata, &data, size).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}
