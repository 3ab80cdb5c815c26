//! The pool's time: it ends after 2^24 - 1 snapshots, is refused past its end, found in pools that
//! another program let run past it, and begun anew without a change of what counts as shared.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::dump::{Options, dump};
use dm_thin::restore::{Overrides, restore};
use dm_thin::{Change, OpenOptions, Pool};
use testkit::fixture;

use crate::common::{BLOCK, id};
use crate::promise::Hollow;

/// Data blocks of the pools here; more than the fixture has.
const DATA: u64 = 1 << 16;

fn text(metadata: Arc<dyn BlockDevice>) -> String {
    let mut text = Vec::new();
    dump(metadata, &Options::default(), &mut text).expect("dumped");
    String::from_utf8(text).expect("text")
}

fn restored(xml: &str, renumber: bool) -> Arc<MemoryDevice> {
    let metadata = Arc::new(MemoryDevice::new("restored", ByteCount::new(4 << 20)));
    let overrides = Overrides { renumber, ..Overrides::default() };
    restore(xml.as_bytes(), metadata.clone(), &overrides).expect("restored");
    metadata
}

fn open(metadata: Arc<dyn BlockDevice>) -> Arc<Pool> {
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    Pool::open("pool", metadata, Arc::new(Hollow(DATA)), options).expect("opened")
}

fn write(pool: &Pool, device: u32, blocks: impl Iterator<Item = u64>) {
    let size = ByteCount::new(4096 * BLOCK);
    let volume = pool.open_volume(id(device), "thin", size, false).expect("opened");
    for block in blocks {
        volume.write_at(&[7; 512], ByteOffset::new(block * BLOCK)).expect("written");
    }
    pool.commit().expect("committed");
}

/// Devices of a pool near the end of its time: 1 is a snapshot of 0, both have written since.
fn old_pool() -> String {
    let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(4 << 20)));
    let size = dm_thin::BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let device: Arc<dyn BlockDevice> = metadata.clone();
    Pool::format(&device, &Hollow(DATA), size).expect("formatted");
    let pool = open(metadata.clone());
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    write(&pool, 0, 0..600);
    pool.change(&[Change::CreateSnapshot { id: id(1), origin: id(0) }]).expect("taken");
    write(&pool, 0, 10..20);
    write(&pool, 1, 300..310);
    pool.close().expect("closed");
    // As if it had taken all but two of its snapshots before.
    let late = |time: u64| 0xff_fffd + time;
    let mut xml = text(metadata);
    for time in [1, 0] {
        for name in ["time", "snap_time", "creation_time"] {
            xml =
                xml.replace(&format!(" {name}=\"{time}\""), &format!(" {name}=\"{}\"", late(time)));
        }
    }
    xml
}

/// How many data blocks a pool takes for writes to these blocks: a block that counts as shared
/// takes a new one.
fn copies(pool: &Pool, device: u32, blocks: std::ops::Range<u64>) -> u64 {
    let count = |pool: &Pool| {
        let mut places = Vec::new();
        pool.mappings(id(device), &mut |at, mapping| {
            places.push((at, mapping.block));
            std::ops::ControlFlow::Continue(())
        })
        .expect("read");
        places
    };
    let before = count(pool);
    write(pool, device, blocks);
    let after = count(pool);
    before.iter().zip(&after).filter(|(one, other)| one != other).count() as u64
}

#[test]
fn time_ends_with_advice_and_begins_anew() {
    let xml = old_pool();
    assert!(xml.contains("time=\"16777214\""), "{}", &xml[..200]);
    let metadata = restored(&xml, false);
    let pool = open(metadata.clone());
    let snapshot = |pool: &Pool, number| {
        pool.change(&[Change::CreateSnapshot { id: id(number), origin: id(0) }])
    };
    snapshot(&pool, 2).expect("the last one");
    let error = snapshot(&pool, 3).expect_err("there is no later time");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("restore --renumber"), "{error}");
    pool.change(&[Change::Delete(id(2))]).expect("the rest goes on");
    pool.close().expect("closed");

    let pool = open(restored(&text(metadata), true));
    assert_eq!(pool.status().time, 1);
    snapshot(&pool, 3).expect("time has begun anew");
    pool.close().expect("closed");
}

#[test]
fn what_counts_as_shared_goes_on_to() {
    let xml = old_pool();
    for (device, blocks) in [(0, 0..600), (1, 0..600), (0, 5..15), (1, 295..305)] {
        let (kept, anew) = (open(restored(&xml, false)), open(restored(&xml, true)));
        let expected = copies(&kept, device, blocks.clone());
        assert!(expected > 0 && expected < blocks.end - blocks.start, "{expected} of {blocks:?}");
        assert_eq!(copies(&anew, device, blocks), expected);
        for pool in [kept, anew] {
            let report = pool.check().expect("checked");
            assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
        }
    }
}

/// Linux let this pool's time run over: two guest blocks have one data block, twice. It is found,
/// not written to, and mended by beginning its time anew and writing the blocks again.
#[test]
fn a_pool_whose_time_has_run_over_is_found_and_mended() {
    let image = fixture::bytes("thin/k61-ov.md.gz");
    let metadata = Arc::new(MemoryDevice::from_bytes("k61-ov", image.clone()));
    let pool = open(metadata.clone());
    let reason = pool.status().read_only.expect("it takes no writes");
    assert!(reason.contains("24 bits") && reason.contains("--renumber"), "{reason}");
    let error = pool.change(&[Change::CreateThin(id(9))]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    pool.close().expect("closed");
    assert!(metadata.to_bytes() == image, "it was written to");

    let found = dm_thin::check(metadata.clone()).expect("checked");
    assert!(found.warnings.iter().any(|warning| warning.contains("time")), "{found:#?}");
    let metadata = restored(&text(metadata), true);
    let pool = open(metadata.clone());
    assert_eq!((pool.status().time, pool.status().read_only), (1, None));
    for (device, _) in pool.devices() {
        write(&pool, device.get(), 1000..1004);
        let mut places = Vec::new();
        pool.mappings(device, &mut |_, mapping| {
            places.push(mapping.block);
            std::ops::ControlFlow::Continue(())
        })
        .expect("read");
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count, "device {device} has a block for each");
    }
    pool.change(&[Change::CreateSnapshot { id: id(77), origin: id(0) }]).expect("taken");
    pool.close().expect("closed");
    let report = dm_thin::check(metadata).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}
