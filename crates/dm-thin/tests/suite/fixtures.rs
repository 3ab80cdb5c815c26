//! Metadata that Linux and the thin tools wrote: it opens, it is checked, and its mappings are what
//! `thin_dump` and the table in `tests/fixtures/thin/README.md` say.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use block_io::{CacheMode, FileOptions, HostFile, MemoryDevice};
use block_types::ByteCount;
use dm_thin::{CheckReport, DeviceId, OpenOptions, Pool};
use testkit::peer::peer;
use testkit::{fixture, thin_tools};

/// An image, its devices, the sha256 of its mappings, and how many errors and leaks it has.
struct Image {
    name: &'static str,
    devices: std::ops::Range<u32>,
    mappings: &'static str,
    leaks: usize,
    errors: &'static [&'static str],
}

const IMAGES: [Image; 8] = [
    Image {
        name: "k61-m0.fresh",
        devices: 0..0,
        mappings: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        leaks: 0,
        errors: &[],
    },
    Image {
        name: "k61-m1.thin",
        devices: 0..1,
        mappings: "10850f9a2ebe87739b7eb1dbc5fd8852c16f62cc5da8325b1ddb446f40026d34",
        leaks: 0,
        errors: &[],
    },
    Image {
        name: "k61-m2.snaps",
        devices: 0..5,
        mappings: "c585a8dc8db1c8dd977e8c1c6ddac77f3c7ccad056008fb001f81a5b8adfff23",
        leaks: 0,
        errors: &[],
    },
    Image {
        name: "k61-oom",
        devices: 0..19,
        mappings: "52f9d4757b10cdae916c654fb7cb527af4f93e53e118aa905dd95e43cfcc82cb",
        leaks: 1,
        errors: &[],
    },
    Image {
        name: "k61-grown",
        devices: 0..19,
        mappings: "f308288a9b5929e3c26079db35f31a5ce5486d4a1e7f8869df3877a216918f42",
        leaks: 1,
        errors: &[],
    },
    Image {
        name: "k61-ov",
        devices: 0..3,
        mappings: "47d899e7f4b3334fd512ab5536d5aa6ec222cb920b4c3f75e2e13f6dfc613f0f",
        leaks: 2,
        errors: &[
            "device 0: blocks 1000 and 1001 both lie in data block 11",
            "device 0: blocks 1002 and 1003 both lie in data block 13",
            "data block 11 has count 1, should have 2",
            "data block 13 has count 1, should have 2",
        ],
    },
    Image {
        name: "tpt09-restored",
        devices: 1..4,
        mappings: "17fb755620ecc9f38c55f252f00515a35c5a8c602745b88be4a7e865ae07ce4f",
        leaks: 0,
        errors: &[],
    },
    Image {
        name: "tpt133-restored",
        devices: 1..4,
        mappings: "17fb755620ecc9f38c55f252f00515a35c5a8c602745b88be4a7e865ae07ce4f",
        leaks: 0,
        errors: &[],
    },
];

fn open(metadata: &Path) -> Arc<Pool> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    let metadata = Arc::new(HostFile::open(metadata, options).expect("opened"));
    let data = Arc::new(MemoryDevice::new("data", ByteCount::new(40_000 * 65_536)));
    let options = OpenOptions { read_only: true, background: false, ..OpenOptions::default() };
    Pool::open("fixture", metadata, data, options).expect("opened")
}

fn mappings(pool: &Pool, device: u32) -> Vec<(u64, u64, u32)> {
    let mut found = Vec::new();
    let id = DeviceId::new(device).expect("24 bits");
    pool.mappings(id, &mut |block, to| {
        found.push((block.get(), to.block.get(), to.time.get()));
        ControlFlow::Continue(())
    })
    .expect("read");
    found
}

fn check(metadata: &Path) -> CheckReport {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    dm_thin::check(Arc::new(HostFile::open(metadata, options).expect("opened"))).expect("checked")
}

#[test]
fn every_image_opens_checks_and_reads_as_thin_dump_says() {
    let folder = tempfile::tempdir().expect("a folder");
    for image in &IMAGES {
        let file = fixture::copy(&format!("thin/{}.md.gz", image.name), folder.path());
        let pool = open(&file);
        let devices: Vec<u32> = pool.devices().iter().map(|(id, _)| id.get()).collect();
        assert_eq!(devices, image.devices.clone().collect::<Vec<_>>(), "{}", image.name);
        let mut lines = String::new();
        for &device in &devices {
            let found = mappings(&pool, device);
            assert_eq!(found, thin_tools::mappings(&file, device), "{}, {device}", image.name);
            for (from, to, time) in found {
                writeln!(lines, "{device} {from} {to} {time}").expect("written");
            }
        }
        let sum = peer("sha256sum").input(lines).ok();
        assert!(sum.starts_with(image.mappings), "{}: {sum}", image.name);
        let report = check(&file);
        assert_eq!(report.errors, image.errors, "{}", image.name);
        assert_eq!(report.leaks.len(), image.leaks, "{}: {:?}", image.name, report.leaks);
    }
}

#[test]
fn a_metadata_snapshot_of_the_kernel_survives_our_commits() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = fixture::copy("thin/k61-m2.snaps.md.gz", folder.path());
    let held_before = peer("thin_dump").arg("-m").arg(&file).ok();
    {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        let metadata = Arc::new(HostFile::open(&file, options).expect("opened"));
        let data = Arc::new(MemoryDevice::new("data", ByteCount::new(4096 * 65_536)));
        let options = OpenOptions { background: false, ..OpenOptions::default() };
        let pool = Pool::open("fixture", metadata, data, options).expect("opened");
        let origin = DeviceId::new(0).expect("24 bits");
        let size = ByteCount::new(300 * 65_536);
        let volume = pool.open_volume(origin, "thin 0", size, false).expect("opened");
        use block_io::BlockDevice;
        for block in [0u64, 1, 150, 299] {
            let at = block_types::ByteOffset::new(block * 65_536);
            volume.write_at(&[7; 4096], at).expect("written");
        }
        drop(volume);
        let delete = dm_thin::Change::Delete(DeviceId::new(3).expect("24 bits"));
        pool.change(&[delete]).expect("deleted");
        pool.close().expect("closed");
    }
    assert_eq!(peer("thin_dump").arg("-m").arg(&file).ok(), held_before);
    thin_tools::check(&file);
    let report = check(&file);
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:?}");
}
