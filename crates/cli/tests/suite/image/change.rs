//! Checking, repairing, resizing, snapshots.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use super::{MIB, assert_same, assert_sound, qemu, qemu_io, qemu_json};
use crate::lab::Lab;

/// Sets the reference count of a cluster of a qcow2 image with one refcount block.
fn set_count(lab: &Lab, name: &str, cluster: u64, count: u16) {
    let file = OpenOptions::new().read(true).write(true).open(lab.path(name)).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // The header's refcount table, and its first block.
    let block = word(word(48));
    file.write_all_at(&count.to_be_bytes(), block + cluster * 2).unwrap();
}

#[test]
fn check_has_the_exit_codes_of_qemu_img() {
    let lab = Lab::new();
    let both = |name: &str, code: i32| {
        assert_eq!(qemu(&lab, &format!("check -q {name}")).code(), Some(code), "qemu-img, {name}");
        let ran = lab.run(&format!("image check {name}"));
        assert_eq!(ran.code, code, "{name}: {ran:?}");
    };
    lab.ok("image create disk.qcow2 10M");
    qemu_io(&lab, "disk.qcow2", "write 0 100k");
    both("disk.qcow2", 0);
    fs::copy(lab.path("disk.qcow2"), lab.path("leaks.qcow2")).unwrap();
    let leaks = OpenOptions::new().write(true).open(lab.path("leaks.qcow2")).unwrap();
    leaks.set_len(41 << 16).unwrap();
    set_count(&lab, "leaks.qcow2", 40, 1);
    both("leaks.qcow2", 3);
    set_count(&lab, "disk.qcow2", 5, 0);
    both("disk.qcow2", 2);
    lab.ok("image create disk.raw 1M -f raw");
    both("disk.raw", 63);
    both("none", 1);

    let ran = lab.json("image check leaks.qcow2 -r leaks");
    assert_eq!((&ran["leaks"], &ran["leaks-fixed"]), (&0.into(), &1.into()));
    assert_sound(&lab, "leaks.qcow2");
    assert!(lab.ok("image check disk.qcow2 -r all").contains("repaired: "));
    assert_sound(&lab, "disk.qcow2");
    assert_same(&lab, "disk.qcow2", "leaks.qcow2");
}

#[test]
fn check_has_the_fields_of_qemu_img() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 10M");
    qemu_io(&lab, "disk.qcow2", "write 0 1M");
    let ours = lab.json("image check disk.qcow2");
    for (field, value) in qemu_json(&lab, "check disk.qcow2").as_object().unwrap() {
        assert_eq!(ours.get(field), Some(value), "{field}");
    }
    lab.ok("image create disk.vhd 10M -f vhd");
    assert!(lab.ok("image check disk.vhd").contains("sound"));
}

#[test]
fn disks_grow_and_shrink() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 10M");
    qemu_io(&lab, "disk.qcow2", "write -P 3 9M 1M");
    lab.ok("image resize disk.qcow2 +5M");
    assert_eq!(lab.json("image info disk.qcow2")["virtual-size"], 15 * MIB);
    assert_sound(&lab, "disk.qcow2");
    assert!(lab.refused("image resize disk.qcow2 9M", 64).contains("--shrink"));
    lab.ok("image resize disk.qcow2 9M --shrink");
    lab.ok("image resize disk.qcow2 10M");
    assert_sound(&lab, "disk.qcow2");
    lab.ok("image create empty.raw 10M -f raw");
    assert_same(&lab, "disk.qcow2", "empty.raw");
    lab.ok("image resize empty.raw 12M");
    assert_eq!(fs::metadata(lab.path("empty.raw")).unwrap().len(), 12 * MIB);
}

#[test]
fn snapshots_are_seen_by_qemu_and_the_other_way_round() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 10M");
    qemu_io(&lab, "disk.qcow2", "write -P 1 0 1M");
    lab.ok("image convert disk.qcow2 one.qcow2");
    lab.ok("image snapshot create disk.qcow2 one");
    qemu_io(&lab, "disk.qcow2", "write -P 2 512k 1M");
    lab.ok("image convert disk.qcow2 two.qcow2");
    qemu(&lab, "snapshot -c two disk.qcow2").expect_code(0);
    qemu_io(&lab, "disk.qcow2", "write -P 3 0 2M");
    let listed = qemu(&lab, "snapshot -l disk.qcow2").expect_code(0);
    assert!(listed.contains("one") && listed.contains("two"), "{listed}");
    let names = lab.json("image snapshot list disk.qcow2");
    assert_eq!((&names[0]["name"], &names[1]["name"]), (&"one".into(), &"two".into()));

    lab.ok("image convert disk.qcow2 exported.qcow2 -l one");
    assert_same(&lab, "exported.qcow2", "one.qcow2");
    lab.ok("image snapshot revert disk.qcow2 two");
    assert_same(&lab, "disk.qcow2", "two.qcow2");
    qemu(&lab, "snapshot -a one disk.qcow2").expect_code(0);
    assert_same(&lab, "disk.qcow2", "one.qcow2");
    assert_sound(&lab, "disk.qcow2");
    lab.ok("image snapshot delete disk.qcow2 two");
    assert!(lab.refused("image snapshot delete disk.qcow2 two", 1).contains("two"));
    lab.ok("image snapshot delete disk.qcow2 1");
    assert_sound(&lab, "disk.qcow2");
    assert_same(&lab, "disk.qcow2", "one.qcow2");
    lab.ok("image create disk.vhd 1M -f vhd");
    assert!(lab.refused("image snapshot create disk.vhd x", 1).contains("internal snapshots"));
}
