//! Bitmaps, secrets, options of images that are there, sizes foretold, compaction.

use std::fs;

use super::{MIB, assert_same, assert_sound, qemu, qemu_io, qemu_json};
use crate::lab::Lab;

#[test]
fn bitmaps_are_edited_as_by_qemu_img() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 16M");
    lab.ok("image bitmap add disk.qcow2 daily");
    lab.ok("image bitmap add disk.qcow2 weekly -g 4K --disabled");
    qemu_io(&lab, "disk.qcow2", "write 1M 2M");
    let ours = lab.json("image info disk.qcow2");
    let theirs = qemu_json(&lab, "info disk.qcow2");
    let bitmaps = "/format-specific/data/bitmaps";
    assert_eq!(ours.pointer(bitmaps), theirs.pointer(bitmaps));
    assert_eq!(lab.json("image bitmap list disk.qcow2"), *ours.pointer(bitmaps).unwrap());
    lab.ok("image bitmap merge disk.qcow2 weekly daily");
    lab.ok("image bitmap disable disk.qcow2 daily");
    lab.ok("image bitmap enable disk.qcow2 weekly");
    lab.ok("image bitmap clear disk.qcow2 daily");
    assert_sound(&lab, "disk.qcow2");
    // They go with a copy, if that is wanted.
    lab.ok("image convert disk.qcow2 copy.qcow2 --bitmaps");
    assert_eq!(
        qemu_json(&lab, "info copy.qcow2").pointer(bitmaps),
        qemu_json(&lab, "info disk.qcow2").pointer(bitmaps)
    );
    assert_sound(&lab, "copy.qcow2");
    lab.ok("image bitmap merge disk.qcow2 daily weekly -b copy.qcow2");
    lab.ok("image bitmap remove disk.qcow2 weekly");
    assert!(lab.refused("image bitmap remove disk.qcow2 weekly", 1).contains("does not exist"));
    lab.ok("image create disk.vhd 1M");
    assert!(lab.refused("image bitmap add disk.vhd daily", 1).contains("no bitmaps"));
}

#[test]
fn a_revert_keeps_bitmaps_true() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 16M");
    lab.ok("image snapshot create disk.qcow2 then");
    qemu_io(&lab, "disk.qcow2", "write 8M 64k");
    lab.ok("image bitmap add disk.qcow2 daily");
    assert_eq!(qemu(&lab, "snapshot -a then disk.qcow2").code(), Some(1), "QEMU does not");
    lab.ok("image snapshot revert disk.qcow2 then");
    lab.ok("image resize disk.qcow2 +1M");
    let map = ["[", "qemu-nbd", "-r", "-f", "qcow2", "-B", "daily", "disk.qcow2", "]"];
    let asked = testkit::peer::peer("nbdinfo").args(["--map=qemu:dirty-bitmap:daily", "--"]);
    let said = asked.args(map).in_folder(lab.path("")).ok();
    let dirty: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<&str>| words[2] == "1")
        .collect();
    let places: Vec<_> = dirty.iter().map(|words| (words[0], words[1])).collect();
    assert_eq!(places, [("8388608", "65536"), ("16777216", "1048576")]);
}

#[test]
fn an_encrypted_image_needs_its_secret() {
    let lab = Lab::new();
    fs::write(lab.path("key"), "firn").unwrap();
    fs::write(lab.path("other"), "firn\n").unwrap();
    let content = lab.image("disk.raw", 8 * MIB, MIB, 500_000);
    let luks = "-o encrypt.format=luks,encrypt.iter-time=10";
    lab.ok(&format!("image convert disk.raw safe.qcow2 {luks} --target-secret-file key"));
    let info = lab.json("image info safe.qcow2");
    assert_eq!(info["encrypted"], true);
    assert_eq!(info.pointer("/format-specific/data/encrypt/format").unwrap(), "luks");
    assert!(lab.refused("image map safe.qcow2", 1).contains("--secret-file"));
    assert!(lab.refused("image map safe.qcow2 --secret-file other", 1).contains("every byte"));
    assert!(lab.refused("image create no.qcow2 1M -o encrypt.format=luks", 64).contains("secret"));
    lab.ok("image check safe.qcow2");
    lab.ok("image snapshot create safe.qcow2 then --secret-file key");
    lab.ok("image convert safe.qcow2 plain.raw -O raw --secret-file key");
    assert!(fs::read(lab.path("plain.raw")).unwrap() == content);
    let node = "driver=qcow2,encrypt.key-secret=k,file.filename=safe.qcow2";
    let words = format!("compare --object secret,id=k,file=key --image-opts {node}");
    qemu(&lab, &format!("{words} driver=raw,file.filename=disk.raw")).expect_code(0);
    let server = lab.serve("safe.qcow2 --secret-file key --read-only --socket s");
    qemu(&lab, "convert -O raw nbd+unix:///?socket=s copy.raw").expect_code(0);
    assert!(fs::read(lab.path("copy.raw")).unwrap() == content);
    assert!(server.stop().success());
}

#[test]
fn options_are_amended() {
    let lab = Lab::new();
    lab.image("base.raw", 4 * MIB, MIB, 500_000);
    lab.ok("image create disk.qcow2 -b base.raw -F raw -o compat=0.10");
    lab.ok("image convert disk.qcow2 expected.raw -O raw");
    lab.ok("image amend disk.qcow2 -o compat=1.1,lazy_refcounts=on,refcount_bits=64");
    assert_sound(&lab, "disk.qcow2");
    let data = qemu_json(&lab, "info disk.qcow2")["format-specific"]["data"].clone();
    assert_eq!((&data["compat"], &data["refcount-bits"]), (&"1.1".into(), &64.into()));
    assert_eq!(data["lazy-refcounts"], true);
    qemu_io(&lab, "disk.qcow2", "write -z 0 1M");
    qemu_io(&lab, "expected.raw", "write -z 0 1M");
    lab.ok("image amend disk.qcow2 -o lazy_refcounts=off,refcount_bits=16");
    lab.ok("image amend disk.qcow2 -o compat=0.10");
    assert_sound(&lab, "disk.qcow2");
    assert_same(&lab, "disk.qcow2", "expected.raw");
    lab.refused("image amend disk.qcow2 -o cluster_size=4k", 64);
    lab.refused("image amend base.raw -o compat=1.1", 1);
}

#[test]
fn sizes_are_foretold_as_by_qemu_img() {
    let lab = Lab::new();
    lab.image("disk.raw", 64 * MIB, 9 * MIB, 500_000);
    lab.ok("image convert disk.raw disk.qcow2");
    lab.ok("image bitmap add disk.qcow2 daily");
    for words in [
        "disk.qcow2 -O qcow2",
        "disk.qcow2 -O raw",
        "disk.qcow2 -O qcow2 -o cluster_size=4k",
        "disk.qcow2 -O qcow2 -o compat=0.10",
        "--size 10G -O qcow2",
    ] {
        let ours = lab.json(&format!("image measure {words}"));
        assert_eq!(ours, qemu_json(&lab, &format!("measure {words}")), "{words}");
    }
    let foretold = lab.json("image measure disk.raw -O qcow2")["required"].as_u64().unwrap();
    let found = fs::metadata(lab.path("disk.qcow2")).unwrap().len();
    assert!(found <= foretold, "{found} bytes, {foretold} were foretold");
}

#[test]
fn a_file_is_compacted_and_a_snapshot_cloned() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 64M");
    qemu_io(&lab, "disk.qcow2", "write -P 5 0 32M");
    lab.ok("image snapshot create disk.qcow2 then");
    qemu_io(&lab, "disk.qcow2", "write -P 6 16M 32M");
    qemu_io(&lab, "disk.qcow2", "discard 0 16M");
    lab.ok("image convert disk.qcow2 now.raw -O raw");
    lab.ok("image snapshot clone disk.qcow2 then clone.qcow2");
    qemu_io(&lab, "clone.qcow2", "write -P 7 1M 1M");
    qemu_io(&lab, "clone.qcow2", "read -P 5 2M 30M");
    assert_sound(&lab, "clone.qcow2");
    qemu(&lab, "snapshot -d then disk.qcow2").expect_code(0);
    let before = fs::metadata(lab.path("disk.qcow2")).unwrap().len();
    let report = lab.json("image compact disk.qcow2");
    let after = fs::metadata(lab.path("disk.qcow2")).unwrap().len();
    assert_eq!((&report["before"], &report["after"]), (&before.into(), &after.into()));
    assert!(after < 34 * MIB && before > 64 * MIB, "{before} to {after} bytes");
    assert_sound(&lab, "disk.qcow2");
    assert_same(&lab, "disk.qcow2", "now.raw");
    lab.refused("image compact now.raw", 1);
}

#[test]
fn a_copy_carries_its_snapshots_along() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 32M");
    for (round, size) in [(1, "33M"), (2, "36M"), (3, "34M")] {
        qemu_io(&lab, "disk.qcow2", &format!("write -P {round} {round}M 8M"));
        qemu_io(&lab, "disk.qcow2", "write -z 5M 1M");
        qemu(&lab, &format!("snapshot -c s{round} disk.qcow2")).expect_code(0);
        lab.ok(&format!("image resize disk.qcow2 {size} --shrink"));
    }
    qemu_io(&lab, "disk.qcow2", "write -P 9 30M 1M");
    lab.ok("image bitmap add disk.qcow2 daily");
    for options in ["", "-o cluster_size=4k", "-o extended_l2=on,compression_type=zstd"] {
        lab.ok(&format!(
            "image convert disk.qcow2 copy.qcow2 --snapshots --bitmaps {options} --force"
        ));
        assert_sound(&lab, "copy.qcow2");
        assert_same(&lab, "disk.qcow2", "copy.qcow2");
        for round in 1..4 {
            for image in ["disk", "copy"] {
                let convert = format!("convert -l s{round} -O raw {image}.qcow2 {image}.raw");
                qemu(&lab, &convert).expect_code(0);
            }
            assert!(
                fs::read(lab.path("disk.raw")).unwrap() == fs::read(lab.path("copy.raw")).unwrap(),
                "s{round}, {options}"
            );
        }
        let list = |image: &str| lab.json(&format!("image snapshot list {image}"));
        assert_eq!(list("copy.qcow2"), list("disk.qcow2"));
        let size = |name: &str| fs::metadata(lab.path(name)).unwrap().len();
        assert!(size("copy.qcow2") <= size("disk.qcow2") + MIB, "what was shared is shared");
    }
}
