//! Converting, comparing, mapping.

use std::fs;

use serde_json::Value;

use super::{MIB, assert_same, assert_sound, qemu, qemu_io, qemu_json};
use crate::lab::Lab;

#[test]
fn every_format_becomes_every_other() {
    let lab = Lab::new();
    let content = lab.image("disk.raw", 12 * MIB, 3 * MIB - 100, 2_000_000);
    let targets = [
        ("a.qcow2", "-O qcow2"),
        ("b.qcow2", "-O qcow2 -o cluster_size=512"),
        ("c.qcow2", "-O qcow2 -c"),
        ("d.qcow2", "-O qcow2 -c -o compression_type=zstd,cluster_size=2M"),
        ("e.vhd", "-O vhd"),
        ("f.vhd", "-O vhd -o subformat=fixed"),
        ("g.raw", "-O raw"),
    ];
    let mut source = "disk.raw";
    for (target, options) in targets {
        lab.ok(&format!("image convert {source} {target} {options}"));
        if target.ends_with("qcow2") {
            assert_sound(&lab, target);
        }
        // QEMU does not find out that a fixed VHD is one.
        let format = if target.ends_with("vhd") { "-f raw -F vpc" } else { "" };
        qemu(&lab, &format!("compare {format} disk.raw {target}")).expect_code(0);
        lab.ok(&format!("image compare disk.raw {target}"));
        source = target;
    }
    assert!(fs::read(lab.path("g.raw")).unwrap() == content);
    let allocated = lab.json("image info g.raw")["actual-size"].as_u64().unwrap();
    assert!(allocated < 3 * MIB, "{allocated} bytes: zeros take space");
    assert!(lab.refused("image convert disk.raw g.raw", 1).contains("--force"));
    lab.ok("image convert disk.raw g.raw -O raw --force");
}

#[test]
fn compressed_images_are_smaller() {
    let lab = Lab::new();
    fs::write(lab.path("disk.raw"), "the same again; ".repeat(1 << 18)).unwrap();
    for kind in ["zlib", "zstd"] {
        lab.ok(&format!("image convert disk.raw {kind}.qcow2 -c -o compression_type={kind}"));
        assert_sound(&lab, &format!("{kind}.qcow2"));
        assert_same(&lab, "disk.raw", &format!("{kind}.qcow2"));
        let used = lab.json(&format!("image info {kind}.qcow2"))["actual-size"].as_u64().unwrap();
        assert!(used < MIB, "{used} bytes");
        let check = lab.json(&format!("image check {kind}.qcow2"));
        assert_eq!(check["compressed-clusters"], 64);
    }
}

#[test]
fn what_qemu_writes_is_read() {
    let lab = Lab::new();
    lab.image("disk.raw", 12 * MIB, 5 * MIB - 100, 1_000_000);
    for (name, options) in [
        ("a.qcow2", "-O qcow2"),
        ("b.qcow2", "-O qcow2 -c -o compression_type=zstd"),
        ("c.vhd", "-O vpc -o force_size=on"),
        ("d.vhd", "-O vpc -o subformat=fixed,force_size=on"),
    ] {
        qemu(&lab, &format!("convert -q -f raw disk.raw {options} {name}")).expect_code(0);
        lab.ok(&format!("image compare disk.raw {name}"));
        lab.ok(&format!("image convert {name} back.raw -O raw --force"));
        assert_same(&lab, "disk.raw", "back.raw");
    }
}

#[test]
fn compare_has_the_exit_codes_of_qemu_img() {
    let lab = Lab::new();
    lab.image("a.raw", 2 * MIB, 0, 1000);
    lab.image("b.raw", MIB, 0, 1000);
    lab.image("c.raw", MIB, 100, 1000);
    lab.ok("image create d.qcow2 1M");
    for (words, code) in [
        ("a.raw b.raw", 0),
        ("a.raw b.raw -s", 1),
        ("a.raw c.raw", 1),
        ("a.raw d.qcow2", 1),
        ("a.raw none", 2),
    ] {
        assert_eq!(lab.run(&format!("image compare {words}")).code, code, "{words}");
        assert_eq!(qemu(&lab, &format!("compare {words}")).code(), Some(code), "{words}");
    }
    assert_eq!(lab.run("image compare a.raw").code, 64);
    let ran = lab.run("image compare a.raw c.raw --json");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["identical"], false);
    assert_eq!(report["offset"], 0);
}

#[test]
fn maps_are_those_of_qemu_img() {
    let lab = Lab::new();
    qemu(&lab, "create -q -f qcow2 base.qcow2 8M").expect_code(0);
    qemu_io(&lab, "base.qcow2", "write 0 1M");
    qemu_io(&lab, "base.qcow2", "write -c 2M 64k");
    qemu(&lab, "create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 10M").expect_code(0);
    qemu_io(&lab, "mid.qcow2", "write 512k 1M");
    qemu_io(&lab, "mid.qcow2", "write -z 0 64k");
    qemu(&lab, "create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 12M").expect_code(0);
    qemu_io(&lab, "top.qcow2", "write 768k 64k");
    lab.image("disk.raw", 8 * MIB, 0, 1000);
    for name in ["base.qcow2", "mid.qcow2", "top.qcow2"] {
        let ours = lab.json(&format!("image map {name}"));
        assert_eq!(ours, qemu_json(&lab, &format!("map {name}")), "{name}");
    }
    assert_eq!(lab.json("image map disk.raw"), qemu_json(&lab, "map -f raw disk.raw"));
    let text = lab.ok("image map top.qcow2");
    assert!(text.starts_with(" ") && text.contains("STATE") && text.contains("compressed"));
}
