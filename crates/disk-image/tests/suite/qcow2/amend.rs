//! Options of images that are there, and sizes of images that are not, as QEMU has them.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use super::common::{Folder, contents, same};
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{
    Amend, BackingName, CreateOptions, Header, Image, OpenOptions, Preallocation, amend, check,
    create, measure,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn to_version(version: u32) -> Amend {
    Amend { version: Some(version), ..Amend::default() }
}

fn options() -> OpenOptions {
    OpenOptions::default()
}

#[test]
fn versions_there_and_back() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o compat=0.10 a.qcow2 4M");
    folder.io("a.qcow2", &["write -q -P 65 0 1M".into()]);
    folder.img("snapshot -c S1 a.qcow2");
    folder.io("a.qcow2", &["write -q -P 66 512k 1M".into()]);
    let (disk, old) = (folder.content("a.qcow2", ""), folder.content("a.qcow2", "-l S1"));
    amend(&folder.host("a.qcow2", false), &options(), to_version(3)).expect("upgraded");
    folder.check("a.qcow2");
    same(&folder.content("a.qcow2", ""), &disk);
    same(&folder.content("a.qcow2", "-l S1"), &old);
    let image = folder.open("a.qcow2");
    assert_eq!(image.header().version(), 3);
    image.discard(block_types::ByteRange::new(ByteOffset::ZERO, ByteCount::new(65536))).unwrap();
    image.resize(ByteCount::new(5 * MIB)).expect("version 3 knows the sizes of snapshots");
    image.add_bitmap("daily", None, true).expect("added");
    image.close().expect("closed");
    drop(image);
    folder.check("a.qcow2");
    let error = amend(&folder.host("a.qcow2", false), &options(), to_version(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("bitmaps"), "not dropped in silence: {error}");
    let image = folder.open("a.qcow2");
    image.remove_bitmap("daily").expect("removed");
    image.close().expect("closed");
    drop(image);
    let error = amend(&folder.host("a.qcow2", false), &options(), to_version(2)).unwrap_err();
    assert!(error.to_string().contains("another size"), "{error}");
    let image = folder.open("a.qcow2");
    image.resize(ByteCount::new(4 * MIB)).expect("cut");
    let disk = contents(&*image);
    image.close().expect("closed");
    drop(image);
    amend(&folder.host("a.qcow2", false), &options(), to_version(2)).expect("downgraded");
    folder.check("a.qcow2");
    assert_eq!(Header::read(&*folder.host("a.qcow2", true)).unwrap().version(), 2);
    same(&folder.content("a.qcow2", ""), &disk);
    same(&folder.content("a.qcow2", "-l S1"), &old);
    folder.img("amend -f qcow2 -o compat=1.1 a.qcow2");
    folder.check("a.qcow2");
}

#[test]
fn zeros_over_a_backing_file_are_written_for_version_2() {
    let folder = Folder::new();
    fs::write(folder.file("base.raw"), vec![5; 1 << 20]).unwrap();
    folder.img("create -q -f qcow2 -b base.raw -F raw a.qcow2");
    folder.io("a.qcow2", &["write -q -z 128k 256k".into(), "write -q -P 1 700k 10k".into()]);
    let disk = folder.content("a.qcow2", "");
    let backing = Some(folder.host("base.raw", true));
    let options = OpenOptions { backing, ..OpenOptions::default() };
    amend(&folder.host("a.qcow2", false), &options, to_version(2)).expect("downgraded");
    folder.check("a.qcow2");
    same(&folder.content("a.qcow2", ""), &disk);
    let header = Header::read(&*folder.host("a.qcow2", true)).unwrap();
    assert_eq!(header.backing_file().unwrap(), "base.raw");
    assert_eq!(header.backing_format().unwrap(), "raw");
}

#[test]
fn counts_of_every_width() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o cluster_size=4k a.qcow2 16M");
    folder.io("a.qcow2", &["write -q -P 65 0 3M".into()]);
    for name in ["S1", "S2"] {
        folder.img(&format!("snapshot -c {name} a.qcow2"));
    }
    let disk = folder.content("a.qcow2", "");
    for bits in [64, 8, 2, 32, 4, 16] {
        let what = Amend { refcount_bits: Some(bits), ..Amend::default() };
        amend(&folder.host("a.qcow2", false), &options(), what).expect("counted anew");
        folder.check("a.qcow2");
        assert_eq!(Header::read(&*folder.host("a.qcow2", true)).unwrap().refcount_bits(), bits);
        same(&folder.content("a.qcow2", ""), &disk);
    }
    let what = Amend { refcount_bits: Some(1), ..Amend::default() };
    let error = amend(&folder.host("a.qcow2", false), &options(), what).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "three users do not fit into a bit");
    folder.check("a.qcow2");
    let what = Amend { lazy_refcounts: Some(true), ..Amend::default() };
    amend(&folder.host("a.qcow2", false), &options(), what).expect("set");
    assert!(folder.img("info a.qcow2").contains("lazy refcounts: true"));
    let both = Amend { version: Some(2), ..what };
    let error = amend(&folder.host("a.qcow2", false), &options(), both).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn another_backing_file_is_named() {
    let folder = Folder::new();
    for cluster in ["64k", "512"] {
        folder.img(&format!("create -q -f qcow2 -o cluster_size={cluster} a.qcow2 1M"));
        let long = "b/".repeat(60) + "long";
        for name in ["base.raw", &long, "x", "other.qcow2"] {
            let options = OpenOptions { without_backing: true, ..OpenOptions::default() };
            let image = folder.try_open("a.qcow2", options).expect("opened");
            image
                .set_backing(Some(&BackingName { file: name.into(), format: "qcow2".into() }))
                .expect("named");
            image.close().expect("closed");
            drop(image);
            let report = check(&folder.host("a.qcow2", true)).expect("checked");
            assert!(report.is_sound(), "{report:#?}");
            let info = folder.img("info -U --output=json a.qcow2");
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["backing-filename"], name, "{cluster}");
            assert_eq!(info["backing-filename-format"], "qcow2");
        }
        let options = OpenOptions { without_backing: true, ..OpenOptions::default() };
        let image = folder.try_open("a.qcow2", options).expect("opened");
        image.set_backing(None).expect("none");
        image.close().expect("closed");
        drop(image);
        folder.check("a.qcow2");
        assert!(!folder.img("info a.qcow2").contains("backing"));
    }
}

/// The header is one or the other, whenever the power fails.
#[test]
fn a_power_failure_while_the_header_is_laid_out_anew() {
    let memory = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
    let file: Arc<dyn BlockDevice> = memory.clone();
    let mut new = CreateOptions::new(ByteCount::new(256 << 10));
    new.backing = Some(("first".into(), "raw".into()));
    create(&file, None, &new).expect("created");
    let open = |file: Arc<dyn BlockDevice>| {
        Image::open(file, OpenOptions { without_backing: true, ..OpenOptions::default() })
    };
    let image = open(Arc::clone(&file)).expect("opened");
    image.write_at(&[3; 100_000], ByteOffset::ZERO).expect("written");
    image.create_snapshot("s", SystemTime::now()).expect("taken");
    image.close().expect("closed");
    drop(image);
    let mut seen = std::collections::BTreeSet::new();
    for at in 0..60 {
        let world = CrashWorld::new(at);
        let device = world.device("image", memory.to_bytes());
        world.crash_at(at);
        let image = open(device).expect("opened");
        let _ = image.set_backing(Some(&BackingName {
            file: "another, longer name".into(),
            format: "qcow2".into(),
        }));
        let _ = image.add_bitmap("daily", None, false);
        drop(image);
        for draw in 0..4 {
            let (_, bytes) = world.images(draw).remove(0);
            let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", bytes));
            let report = check(&file).expect("checked");
            assert_eq!(report.corruption_count, 0, "{at}, {draw}: {report:#?}");
            let header = Header::read(&*file).expect("read");
            let pair = (header.backing_file().unwrap(), header.backing_format().unwrap());
            let known = [("first", "raw"), ("another, longer name", "qcow2")];
            assert!(known.iter().any(|(name, format)| pair.0 == *name && pair.1 == *format));
            let image = open(file).expect("opened");
            assert_eq!(contents(&*image)[..100_000], [3; 100_000]);
            seen.insert((pair.0, image.bitmaps().expect("read").len()));
        }
    }
    assert_eq!(seen.len(), 3, "before, between and behind: {seen:?}");
}

#[test]
fn sizes_are_foretold_as_by_qemu() {
    let folder = Folder::new();
    for (size, line) in [
        (1 << 30, ""),
        (1 << 30, "cluster_size=512"),
        ((10 << 30) + 512, "cluster_size=2M"),
        (5 << 30, "extended_l2=on,cluster_size=16k"),
        (3 << 30, "refcount_bits=1"),
        (7 << 20, "refcount_bits=64,compat=1.1"),
        (1 << 40, "preallocation=falloc"),
        (0, ""),
    ] {
        let mut options = CreateOptions::new(ByteCount::new(size));
        for word in line.split(',').filter(|word| !word.is_empty()) {
            match word {
                "cluster_size=512" => options.cluster_size = ByteCount::new(512),
                "cluster_size=2M" => options.cluster_size = ByteCount::new(2 << 20),
                "cluster_size=16k" => options.cluster_size = ByteCount::new(16 << 10),
                "extended_l2=on" => options.extended_l2 = true,
                "refcount_bits=1" => options.refcount_bits = 1,
                "refcount_bits=64" => options.refcount_bits = 64,
                "preallocation=falloc" => options.preallocation = Preallocation::Falloc,
                _ => {}
            }
        }
        let ours = measure(&options, ByteCount::ZERO).expect("measured");
        let o = if line.is_empty() { String::new() } else { format!("-o {line}") };
        let theirs = folder.img(&format!("measure --output=json -O qcow2 {o} --size {size}"));
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        assert_eq!(theirs["required"], ours.required.get(), "{size} {line}");
        assert_eq!(theirs["fully-allocated"], ours.fully_allocated.get(), "{size} {line}");
    }
}
