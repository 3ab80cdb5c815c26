//! Stores that the kernel wrote, read to the byte, and a merge that ends as the kernel's would.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_snapshot::{Origin, SnapshotOptions, SnapshotState, Store, check};
use testkit::peer::peer;

use crate::common::options;

const ORIGIN: u64 = 16 << 20;
const BLOCK: u64 = 4096;

/// Sums that the fixtures' README gives.
const STORE_SUM: &str = "c8567b070d92876d67af32ab081cca3ce2bbc705bfcd790e28e1b48938ce22dd";
const ORIGIN_SUM: &str = "71b764f96442a0010aba1146484edb35726a412d0113013d5d1c3bf0db3645bb";
const SNAPSHOT_SUM: &str = "32d5fb66c13e29a4fe72716d639c4e77ca2918d472bae271f83a5ed0678cc7b8";

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let outcome = peer("gzip").arg("-dc").arg(folder.join(format!("{name}.gz"))).run();
    assert!(outcome.code() == Some(0), "{outcome}");
    outcome.stdout
}

fn sum(bytes: Vec<u8>) -> String {
    let line = peer("sha256sum").input(bytes).ok();
    line.split(' ').next().expect("a sum").to_owned()
}

/// The origin of the fixtures before anything was written.
fn pattern() -> Vec<u8> {
    (0..ORIGIN / BLOCK).flat_map(|block| block.to_le_bytes().repeat(BLOCK as usize / 8)).collect()
}

/// Writes what `made-by.guest.sh` writes to the origin.
fn write_origin(origin: &dyn BlockDevice) {
    for chunk in [5u64, 6, 7, 100, 50, 51, 3] {
        let mut bytes = vec![0; BLOCK as usize];
        bytes[..12].copy_from_slice(format!("ORIGINNEW{chunk:03}").as_bytes());
        origin.write_at(&bytes, ByteOffset::new(chunk * BLOCK)).expect("written");
    }
}

/// The origin after the script.
fn origin() -> Arc<MemoryDevice> {
    let origin = MemoryDevice::from_bytes("origin", pattern());
    write_origin(&origin);
    origin
        .write_at(&vec![0; 300 * BLOCK as usize], ByteOffset::new(1000 * BLOCK))
        .expect("written");
    assert_eq!(sum(origin.to_bytes()), ORIGIN_SUM);
    Arc::new(origin)
}

fn bytes(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

#[test]
fn the_kernels_store_is_read_and_left_as_it_is() {
    let device = Arc::new(MemoryDevice::from_bytes("store", fixture("P-chunk8-309exceptions.cow")));
    assert_eq!(sum(device.to_bytes()), STORE_SUM);
    let report = check(&(device.clone() as Arc<dyn BlockDevice>), Some(ByteCount::new(ORIGIN)))
        .expect("checked");
    assert_eq!((report.exceptions, report.chunk.sectors()), (309, 8));
    assert!(report.errors.is_empty() && report.hints.is_empty(), "{report:?}");
    let origin = Origin::open(origin(), options()).expect("opened");
    let store = Store::open(device.clone()).expect("opened");
    let snapshot = origin.attach("snap", store, SnapshotOptions::default()).expect("attached");
    assert_eq!(snapshot.status().to_string(), "2496/4096 24");
    assert_eq!(sum(bytes(&snapshot)), SNAPSHOT_SUM);
    origin.close().expect("closed");
    assert_eq!(sum(device.to_bytes()), STORE_SUM, "using it changed it");
}

#[test]
fn the_same_writes_make_the_same_store() {
    let device = Arc::new(MemoryDevice::new("store", ByteCount::new(2 << 20)));
    let base = Arc::new(MemoryDevice::from_bytes("origin", pattern()));
    let origin = Origin::open(base.clone(), options()).expect("opened");
    let store = Store::create(device.clone(), crate::common::chunk(BLOCK)).expect("made");
    let snapshot = origin.attach("snap", store, SnapshotOptions::default()).expect("attached");
    write_origin(&origin);
    let mut bytes = vec![0; BLOCK as usize];
    bytes[..12].copy_from_slice(b"SNAPWRITE200");
    snapshot.write_at(&bytes, ByteOffset::new(200 * BLOCK)).expect("written");
    let mut sector = [0; 512];
    sector[..11].copy_from_slice(b"SNAPPART201");
    snapshot.write_at(&sector, ByteOffset::new(201 * BLOCK + 512)).expect("written");
    for block in 1000..1300 {
        origin.write_at(&[0; BLOCK as usize], ByteOffset::new(block * BLOCK)).expect("written");
    }
    origin.close().expect("closed");
    assert_eq!(sum(device.to_bytes()), STORE_SUM, "the store is not the kernel's to the byte");
    assert_eq!(sum(base.to_bytes()), ORIGIN_SUM);
}

#[test]
fn the_kernels_store_is_merged() {
    let device = Arc::new(MemoryDevice::from_bytes("store", fixture("P-chunk8-309exceptions.cow")));
    let base = origin();
    let origin = Origin::open(base.clone(), options()).expect("opened");
    let store = Store::open(device.clone()).expect("opened");
    let snapshot = origin.attach("snap", store, SnapshotOptions::default()).expect("attached");
    let merge = origin.merge(&snapshot).expect("begun");
    assert_eq!(merge.step().expect("merged").left, 256, "the second area");
    assert_eq!(merge.status().to_string(), "2072/4096 24");
    assert_eq!(sum(bytes(&origin)), SNAPSHOT_SUM);
    merge.run().expect("merged");
    assert_eq!(merge.status().to_string(), "16/4096 16");
    assert_eq!(sum(base.to_bytes()), SNAPSHOT_SUM);
    assert_eq!(Store::open(device).expect("opened").exceptions(), 0);
}

#[test]
fn an_invalid_store_serves_nothing_and_stays_invalid() {
    let before = fixture("PO-invalid-14exceptions.cow");
    let device = Arc::new(MemoryDevice::from_bytes("store", before.clone()));
    let origin = Origin::open(origin(), options()).expect("opened");
    let store = Store::open(device.clone()).expect("opened");
    assert!(!store.is_valid());
    let snapshot = origin.attach("snap", store, SnapshotOptions::default()).expect("attached");
    assert_eq!(snapshot.status().state, SnapshotState::Invalid);
    assert_eq!(snapshot.status().to_string(), "Invalid");
    let error = snapshot.read_at(&mut [0; 512], ByteOffset::ZERO).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.to_string().contains("invalid"), "{error}");
    assert!(snapshot.write_at(&[1; 512], ByteOffset::ZERO).is_err());
    origin.write_at(&[1; 512], ByteOffset::ZERO).expect("the origin goes on");
    assert!(origin.merge(&snapshot).is_err());
    origin.close().expect("closed");
    assert!(device.to_bytes() == before, "it was written to");
}

/// The overflow of the second fixture, done again: its bytes come out.
#[test]
fn an_overflow_ends_as_the_kernels_does() {
    let device = Arc::new(MemoryDevice::new("store", ByteCount::new(16 * BLOCK)));
    let origin = Origin::open(Arc::new(MemoryDevice::from_bytes("origin", pattern())), options())
        .expect("opened");
    let store = Store::create(device.clone(), crate::common::chunk(BLOCK)).expect("made");
    let snapshot = origin.attach("snap", store, SnapshotOptions::default()).expect("attached");
    let write = |block: u64| {
        let mut bytes = vec![0; BLOCK as usize];
        let text = format!("S{block}");
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        snapshot.write_at(&bytes, ByteOffset::new(block * BLOCK))
    };
    (0..14).for_each(|block| write(block).expect("there is room"));
    for block in (14..20).chain(0..2) {
        assert_eq!(write(block).expect_err("full").kind(), ErrorKind::OutOfSpace, "{block}");
    }
    assert_eq!(snapshot.status().to_string(), "Overflow");
    let mut sector = [0; 512];
    snapshot.read_at(&mut sector, ByteOffset::new(13 * BLOCK)).expect("read on");
    assert!(sector.starts_with(b"S13"));
    snapshot.flush().expect("flushed");
    origin.write_at(&[1; BLOCK as usize], ByteOffset::new(900 * BLOCK)).expect("written");
    assert_eq!(snapshot.status().to_string(), "Invalid");
    assert!(device.to_bytes() == fixture("PO-invalid-14exceptions.cow"));
}
