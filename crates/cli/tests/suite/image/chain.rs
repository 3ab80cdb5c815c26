//! Images that stand on others, of all formats.

use super::{MIB, assert_same, assert_sound, qemu, qemu_io};
use crate::lab::Lab;

#[test]
fn qcow2_stands_on_every_format() {
    let lab = Lab::new();
    lab.image("base.raw", 8 * MIB, MIB, 500_000);
    lab.ok("image convert base.raw base.qcow2");
    lab.ok("image convert base.raw base.vhd -O vhd");
    for (base, format) in [("base.raw", "raw"), ("base.qcow2", "qcow2"), ("base.vhd", "vpc")] {
        let top = format!("on-{format}.qcow2");
        lab.ok(&format!("image create {top} -b {base} -F {format}"));
        assert_same(&lab, "base.raw", &top);
        qemu_io(&lab, &top, "write -P 9 1000k 200k");
        assert_sound(&lab, &top);
        lab.ok(&format!("image convert {top} flat.raw -O raw --force"));
        assert_same(&lab, "flat.raw", &top);
    }
}

#[test]
fn a_vhd_stands_on_a_vhd_or_a_raw_image() {
    let lab = Lab::new();
    lab.image("base.raw", 8 * MIB, MIB, 500_000);
    lab.ok("image convert base.raw base.vhd -O vhd");
    for (base, format) in [("base.vhd", "vhd"), ("base.raw", "raw")] {
        let top = format!("on-{format}.vhd");
        lab.ok(&format!("image create {top} -b {base} -F {format} -f vhd"));
        lab.ok(&format!("image compare base.raw {top}"));
        let info = lab.json(&format!("image info {top}"));
        assert_eq!(info["full-backing-filename"], base);
        assert_eq!(info["format-specific"]["data"]["subformat"], "differencing");
    }
}

#[test]
fn loops_and_endless_chains_are_refused() {
    let lab = Lab::new();
    lab.ok("image create a.qcow2 1M");
    lab.ok("image create b.qcow2 1M -b a.qcow2 -F qcow2");
    qemu(&lab, "rebase -u -b b.qcow2 -F qcow2 a.qcow2").expect_code(0);
    assert!(lab.refused("image map b.qcow2", 1).contains("stands on"), "a loop");
    qemu(&lab, "rebase -u -b a.qcow2 -F qcow2 a.qcow2").expect_code(0);
    assert!(lab.refused("image convert a.qcow2 x.raw -O raw", 1).contains("stands on"));
}

/// The deepest chain that is read, and one that is too deep.
#[test]
fn chains_of_256_are_read() {
    let lab = Lab::new();
    lab.image("disk.raw", MIB, 0, 70_000);
    lab.ok("image convert disk.raw 0.qcow2 -o cluster_size=512");
    for depth in 1..=257 {
        let base = depth - 1;
        let options = "-F qcow2 -o cluster_size=512";
        lab.ok(&format!("image create {depth}.qcow2 1M -b {base}.qcow2 {options}"));
    }
    lab.ok("image compare disk.raw 256.qcow2");
    lab.ok("image convert 256.qcow2 flat.raw -O raw");
    lab.ok("image compare disk.raw flat.raw");
    assert!(lab.json("image map 256.qcow2")[0]["depth"] == 256);
    assert!(lab.refused("image map 257.qcow2", 1).contains("more than 256"));
}
