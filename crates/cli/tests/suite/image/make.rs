//! Making images, and what they say of themselves.

use serde_json::Value;

use super::{assert_same, assert_sound, qemu, qemu_io, qemu_json};
use crate::lab::Lab;

/// Fields of `qemu-img info` that stand in both, wherever they come from.
const FIELDS: [&str; 9] = [
    "filename",
    "format",
    "virtual-size",
    "actual-size",
    "cluster-size",
    "dirty-flag",
    "backing-filename",
    "full-backing-filename",
    "backing-filename-format",
];

/// Holds what Firn says of `name` against what QEMU says.
fn assert_info(lab: &Lab, name: &str) {
    let ours = lab.json(&format!("image info {name}"));
    let theirs = qemu_json(lab, &format!("info {name}"));
    for field in FIELDS {
        assert_eq!(ours[field], theirs[field], "{field} of {name}");
    }
    let empty = serde_json::Map::new();
    let specific = |info: &Value| info["format-specific"]["data"].as_object().cloned();
    for (field, value) in specific(&theirs).unwrap_or_default() {
        let found = specific(&ours).unwrap_or(empty.clone());
        assert_eq!(found.get(&field), Some(&value), "{field} of {name}");
    }
    let snapshots = |info: &Value| info["snapshots"].as_array().cloned().unwrap_or_default();
    let (ours, theirs) = (snapshots(&ours), snapshots(&theirs));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for field in ["id", "name", "vm-state-size", "date-sec", "date-nsec", "vm-clock-sec"] {
            assert_eq!(ours[field], theirs[field], "{field} of a snapshot of {name}");
        }
    }
}

#[test]
fn what_firn_makes_is_what_qemu_reads() {
    let lab = Lab::new();
    let options = [
        "",
        "-o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=2M,refcount_bits=64",
        "-o extended_l2=on,cluster_size=128K",
        "-o compression_type=zstd -o lazy_refcounts=on",
        "-o preallocation=metadata",
        "-o refcount_bits=1",
    ];
    for (number, options) in options.iter().enumerate() {
        let name = format!("{number}.qcow2");
        lab.ok(&format!("image create {name} 10M {options}"));
        assert_sound(&lab, &name);
        assert_info(&lab, &name);
        qemu_io(&lab, &name, "write -P 7 1M 100k");
        assert_sound(&lab, &name);
    }
    lab.ok("image create sparse.vhd 10M -f vhd");
    lab.ok("image create fixed.vhd 10M -f vhd -o subformat=fixed");
    lab.ok("image create disk.raw 10M -f raw");
    for name in ["sparse.vhd", "disk.raw"] {
        assert_info(&lab, name);
    }
    for (name, format) in [("sparse.vhd", "vpc"), ("fixed.vhd", "vpc"), ("disk.raw", "raw")] {
        let ours = lab.json(&format!("image info {name}"));
        let theirs = qemu_json(&lab, &format!("info -f {format} {name}"));
        for info in [ours, theirs] {
            assert_eq!(
                (&info["virtual-size"], &info["format"]),
                (&(10 << 20).into(), &format.into())
            );
        }
    }
    lab.ok("image create empty.qcow2 10M");
    assert_same(&lab, "disk.raw", "empty.qcow2");
}

#[test]
fn what_qemu_makes_is_what_firn_says() {
    let lab = Lab::new();
    qemu(&lab, "create -q -f qcow2 base.qcow2 10M").expect_code(0);
    qemu(&lab, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 20M").expect_code(0);
    qemu(&lab, "snapshot -c monday top.qcow2").expect_code(0);
    qemu_io(&lab, "top.qcow2", "write 0 1M");
    qemu(&lab, "snapshot -c tuesday top.qcow2").expect_code(0);
    qemu(&lab, "create -q -f qcow2 -o data_file=d.raw,data_file_raw=on x.qcow2 1M").expect_code(0);
    qemu(&lab, "create -q -f vpc disk.vhd 10M").expect_code(0);
    qemu(&lab, "create -q -f vpc -o subformat=fixed fixed.vhd 10M").expect_code(0);
    for name in ["base.qcow2", "top.qcow2", "x.qcow2", "disk.vhd"] {
        assert_info(&lab, name);
    }
    let text = lab.ok("image info top.qcow2");
    for word in ["top.qcow2", "20 MiB", "backing file:", "base.qcow2", "monday", "tuesday"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(lab.ok("image snapshot list top.qcow2").contains("tuesday"));
}

#[test]
fn sizes_come_from_the_backing_file_and_in_sectors() {
    let lab = Lab::new();
    lab.ok("image create base.raw 1000 -f raw");
    assert_eq!(lab.json("image info base.raw")["virtual-size"], 1024);
    lab.ok("image create top.qcow2 -b base.raw -F raw");
    assert_eq!(lab.json("image info top.qcow2")["virtual-size"], 1024);
    assert_same(&lab, "base.raw", "top.qcow2");
}

#[test]
fn nothing_is_replaced_or_left_behind() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 1M");
    assert!(lab.refused("image create disk.qcow2 1M", 1).contains("is there already"));
    for bad in [
        "image create x.qcow2",
        "image create x.qcow2 1M -b disk.qcow2",
        "image create x.qcow2 1M -o cluster_size=3K",
        "image create x.qcow2 1M -o subformat=fixed",
        "image create x.raw 1M -f raw -b disk.qcow2 -F qcow2",
        "image create x.vhd 1M -f vhd -b disk.qcow2 -F qcow2",
        "image create x.qcow2 1M -f vmdk",
        "image create x 1M",
        "image convert disk.qcow2 x",
    ] {
        lab.refused(bad, 64);
    }
    lab.refused("image create x.qcow2 -b none.qcow2 -F qcow2", 1);
}

#[test]
fn info_opens_nothing_else() {
    let lab = Lab::new();
    let hang = lab.path("pipe");
    std::process::Command::new("mkfifo").arg(&hang).status().expect("mkfifo of coreutils");
    lab.ok("image create x.qcow2 1M -b pipe -F raw");
    // Whoever opened the pipe would wait for ever.
    let info = lab.json("image info x.qcow2");
    assert_eq!(info["backing-filename"], "pipe");
    assert!(lab.refused("image map x.qcow2", 1).contains("is a pipe"));
}
