//! `restore`: what is dumped comes back the same, sound, and with its sharing.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ErrorKind};
use dm_thin::dump::Options;
use dm_thin::restore::{Overrides, restore};
use dm_thin::{BlockSize, OpenOptions, Pool};
use testkit::{fixture, thin_tools};

use super::{IMAGES, Metadata, expanded, restored, same};

#[test]
fn every_image_comes_back_the_same() {
    for image in IMAGES {
        let metadata = Metadata::image(image);
        let all = metadata.dump(&expanded());
        for xml in [&all, &metadata.dump(&Options::default())] {
            let again = restored(xml, 4 << 20);
            sound(&again, image);
            // The one image that was restored by 0.9 from a document without a version says 1.
            let expected = all.replace("version=\"1\"", "version=\"2\"");
            same(&again.dump(&expanded()), &expected, image);
            same(&again.peer("thin_dump", &[]), &expected, image);
        }
    }
}

/// What was restored is sound, but for two blocks in one place that the document had so already.
fn sound(metadata: &Metadata, image: &str) {
    let report = dm_thin::check(metadata.device.clone()).expect("checked");
    assert!(report.leaks.is_empty(), "{report:?}");
    let aliases = if image == "k61-ov" { 2 } else { 0 };
    assert_eq!(report.errors.len(), aliases, "{report:?}");
}

#[test]
fn what_thin_restore_makes_dumps_the_same() {
    for name in ["a.xml", "ov.xml"] {
        let xml = String::from_utf8(fixture::bytes(&format!("thin/{name}"))).expect("text");
        let ours = restored(&xml, 4 << 20);
        let file = ours.folder.path().join("theirs");
        thin_tools::restore(&xml, &file, ByteCount::new(4 << 20));
        let theirs = Metadata::new(std::fs::read(&file).expect("read"));
        let mut expected = theirs.peer("thin_dump", &[]);
        expected = expected.replace("version=\"1\"", "version=\"2\"");
        same(&ours.dump(&expanded()), &expected, name);
        same(&theirs.dump(&expanded()), &theirs.peer("thin_dump", &[]), name);
    }
}

/// Restores a generated pool, and what that gives once more.
pub(super) fn compare(metadata: &Metadata, what: &str) {
    let all = metadata.dump(&expanded());
    let again = restored(&metadata.dump(&Options::default()), 2 << 20);
    same(&again.dump(&expanded()), &all, what);
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(2 << 20)));
    let xml = again.dump(&Options::default());
    restore(xml.as_bytes(), device.clone(), &Overrides::default()).expect("restored twice");
    let report = dm_thin::check(device.clone()).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{what}: {report:?}");
    let third = Metadata::new(device.to_bytes()).dump(&expanded());
    same(&third, &all, &format!("{what}, restored twice"));
}

/// A hundred snapshots of a device take a hundred roots' worth of room, not a hundred devices'.
#[test]
fn snapshots_stay_shared() {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"1\" transaction=\"0\" data_block_size=\"128\" \
         nr_data_blocks=\"200000\"><def name=\"all\">",
    );
    xml +=
        "<range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"100000\" time=\"0\"/></def>";
    for device in 0..100 {
        xml += &format!(
            "<device dev_id=\"{device}\" mapped_blocks=\"100000\" transaction=\"0\" \
             creation_time=\"0\" snap_time=\"1\"><ref name=\"all\"/></device>"
        );
    }
    xml += "</superblock>";
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(2 << 20)));
    let done = restore(xml.as_bytes(), device.clone(), &Overrides::default()).expect("restored");
    assert_eq!((done.devices, done.mapped), (100, 10_000_000));
    let metadata = Metadata::new(device.to_bytes());
    thin_tools::check(&metadata.file());
    let report = dm_thin::check(metadata.device.clone()).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:?}");
    // 397 leaves, 2 nodes above them and a root, the same for all.
    assert!(report.blocks < 440, "{} blocks", report.blocks);
}

#[test]
fn a_restored_pool_opens_and_takes_writes() {
    let metadata = Metadata::image("k61-m2.snaps");
    let again = restored(&metadata.dump(&Options::default()), 4 << 20);
    let data = Arc::new(MemoryDevice::new("data", ByteCount::new(4096 * 65_536)));
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("pool", again.device.clone(), data, options).expect("opened");
    let size = ByteCount::new(300 * 65_536);
    let volume = pool.open_volume(crate::common::id(2), "thin", size, false).expect("opened");
    for block in [0, 7, 299] {
        let at = block_types::ByteOffset::new(block * 65_536);
        volume.write_at(&[1; 4096], at).expect("written");
    }
    drop(volume);
    pool.close().expect("closed");
    let report = dm_thin::check(again.device).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:?}");
}

#[test]
fn overrides_take_the_place_of_what_the_document_says() {
    let metadata = Metadata::image("k61-m2.snaps");
    let view = dm_thin::dump::View::Snapshot;
    let xml = metadata.dump(&Options { view, ..Options::default() });
    assert!(xml.contains("nr_data_blocks=\"0\""));
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(4 << 20)));
    let error = restore(xml.as_bytes(), device.clone(), &Overrides::default()).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let overrides = Overrides {
        transaction: Some(77),
        block_size: Some(BlockSize::new(ByteCount::new(1 << 20)).expect("a block size")),
        data_blocks: Some(4096),
        renumber: false,
    };
    restore(xml.as_bytes(), device.clone(), &overrides).expect("restored");
    let again = Metadata::new(device.to_bytes());
    thin_tools::check(&again.file());
    let head = again.dump(&expanded());
    let head = head.lines().next().expect("a line");
    assert_eq!(
        head,
        "<superblock uuid=\"\" time=\"4\" transaction=\"77\" flags=\"0\" version=\"2\" \
         data_block_size=\"2048\" nr_data_blocks=\"4096\">"
    );
}

/// What stands between the superblock's tags, with the superblock in line 1.
fn refusal(body: &str) -> String {
    let xml = format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"0\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"1000\">\n{body}\n</superblock>\n"
    );
    refusal_of(&xml, 1 << 20)
}

fn refusal_of(xml: &str, size: u64) -> String {
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(size)));
    // An old pool must not shine through what was begun.
    let old = fixture::bytes("thin/k61-oom.md.gz");
    let len = old.len().min(size as usize);
    device.write_at(&old[..len], block_types::ByteOffset::ZERO).expect("written");
    let result = restore(xml.as_bytes(), device.clone(), &Overrides::default());
    let refusal = result.expect_err(xml).to_string();
    let begun = device.to_bytes()[..4096].iter().all(|&byte| byte == 0);
    let untouched = device.to_bytes()[..len] == old[..len];
    assert!(begun || untouched, "half a pool was left behind: {refusal}");
    refusal
}

#[test]
fn bad_documents_are_refused_by_line() {
    let device = "<device dev_id=\"1\" mapped_blocks=\"1\" transaction=\"0\" creation_time=\"0\" \
                  snap_time=\"0\">";
    let single = |from: &str, to: &str, time: &str| {
        format!(
            "{device}\n<single_mapping origin_block=\"{from}\" data_block=\"{to}\" \
             time=\"{time}\"/></device>"
        )
    };
    let range = |from: u64, to: u64, len: u64| {
        format!(
            "{device}\n<range_mapping origin_begin=\"{from}\" data_begin=\"{to}\" \
             length=\"{len}\" time=\"0\"/></device>"
        )
    };
    for (body, expected) in [
        (single("0", "1000", "0"), "line 3, data block 1000: lies past the end"),
        (single("0", "0", "16777216"), "line 3, guest block 0: has a time that does not fit"),
        (single("0", "0", "4294967296"), "line 3: has the time 4294967296"),
        (single("0", "x", "0"), "line 3: has data_block=\"x\""),
        (single("0", "99999999999999999999", "0"), "line 3: has data_block="),
        (range(0, 990, 11), "line 3, data block 1000: lies past the end"),
        (range(0, 0, 0), "line 3, guest block 0: begins a run of an impossible length"),
        (range(u64::MAX, 0, 2), "begins a run of an impossible length"),
        (range(0, u64::MAX, 2), "lies past the end"),
        (format!("{device}</device>\n{device}</device>"), "line 3, device 1: is there twice"),
        (
            single("5", "1", "0").replace("</device>", "") + &single("5", "2", "0")[device.len()..],
            "line 4, guest block 5: comes after block 5",
        ),
        (format!("{device}{device}"), "line 2: <device> stands inside another"),
        (format!("{device}\n</def>"), "line 3: </def> cannot stand here"),
        (format!("{device}\n</superblock>"), "line 3: </superblock> cannot stand here"),
        ("<ref name=\"1\"/>".into(), "line 2: has a <ref> outside of a device"),
        (format!("{device}<ref name=\"1\"/></device>"), "refers to \"1\", which is not defined"),
        (format!("{device}<ref/></device>"), "<ref> lacks the attribute \"name\""),
        (
            "<def name=\"1\"></def>\n<def name=\"1\"></def>".into(),
            "line 3: defines the same name as another <def>",
        ),
        ("<single_mapping/>".into(), "line 2: <single_mapping> lacks the attribute"),
        (single("1", "1", "1").replace(device, ""), "line 3: has a mapping outside of a device"),
        ("<unknown/>".into(), "line 2: <unknown> cannot stand here"),
        ("words".into(), "line 2: has text outside of tags"),
        (
            device.replace("dev_id=\"1\"", "dev_id=\"16777216\""),
            "line 2, device 16777216: is larger than the largest identifier",
        ),
        (
            device.replace("dev_id=\"1\"", "dev_id=\"4294967296\""),
            "line 2: has the device 4294967296, which needs over 24 bits",
        ),
        (
            device.replace("snap_time=\"0\"", "snap_time=\"4294967296\""),
            "line 2: has snap_time=4294967296, which needs over 32 bits",
        ),
    ] {
        let refusal = refusal(&body);
        assert!(refusal.contains(expected), "{body}\n  {refusal}\n  {expected}");
    }
}

#[test]
fn documents_that_are_none_are_refused() {
    let head = "<superblock uuid=\"\" time=\"1\" transaction=\"0\" version=\"2\" \
                data_block_size=\"128\" nr_data_blocks=\"1000\">";
    for (xml, expected) in [
        (String::new(), "line 1: ends before the superblock does"),
        ("not XML".into(), "line 1: has text outside of tags"),
        (head.into(), "line 1: ends before the superblock does"),
        ("<device dev_id=\"1\">".into(), "line 1: <device> stands before the superblock"),
        (format!("{head}</superblock>\n<x/>"), "line 2: <x> stands behind the superblock"),
        (head.replace("128", "127"), "is not a multiple of 64 KiB"),
        (head.replace("128", "18446744073709551615"), "has an impossible data block size"),
        (head.replace("time=\"1\" ", ""), "line 1: <superblock> lacks the attribute \"time\""),
        (head.replace("version=\"2\"", "version=\"x\""), "has version=\"x\", which is no number"),
        (head.replace("uuid", "guid"), "<superblock> has no attribute \"guid\""),
        (head.replace("\"1000\"", "\"18446744073709551615\""), "is too small for this metadata"),
    ] {
        let refusal = refusal_of(&xml, 1 << 20);
        assert!(refusal.contains(expected), "{xml}\n  {refusal}\n  {expected}");
    }
}

#[test]
fn a_device_that_is_too_small_is_refused_at_every_size() {
    let xml = Metadata::image("k61-oom").dump(&Options::default());
    let mut sizes = 0;
    for blocks in 0.. {
        let device = Arc::new(MemoryDevice::new("small", ByteCount::new(blocks * 4096)));
        match restore(xml.as_bytes(), device.clone(), &Overrides::default()) {
            Ok(_) => {
                let metadata = Metadata::new(device.to_bytes());
                thin_tools::check(&metadata.file());
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}"),
        }
        sizes += 1;
    }
    // As much as the kernel's metadata with the same devices takes.
    assert!((150..=231).contains(&sizes), "{sizes} blocks were too few");
}

#[test]
fn a_number_of_mapped_blocks_that_is_wrong_is_put_right() {
    let xml = Metadata::image("k61-m1.thin").dump(&Options::default());
    let wrong = xml.replace("mapped_blocks=\"300\"", "mapped_blocks=\"7\"");
    let device = Arc::new(MemoryDevice::new("restored", ByteCount::new(1 << 20)));
    let done = restore(wrong.as_bytes(), device.clone(), &Overrides::default()).expect("restored");
    assert_eq!((done.mapped, done.recounted), (300, vec![crate::common::id(0)]));
    let again = Metadata::new(device.to_bytes());
    same(&again.dump(&Options::default()), &xml, "recounted");
}
