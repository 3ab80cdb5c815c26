//! GATED-OPEN: what an image names is opened only as far as the caller lets it.

use std::fs;

use super::{MIB, assert_same, qemu, qemu_io};
use crate::lab::Lab;

/// A folder `vm` with an image over `../secret.raw`.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::create_dir(lab.path("vm")).unwrap();
    lab.image("secret.raw", MIB, 0, 1000);
    qemu(&lab, "create -q -f qcow2 -b ../secret.raw -F raw vm/disk.qcow2").expect_code(0);
    lab
}

#[test]
fn what_lies_outside_is_refused_and_can_be_allowed() {
    let lab = lab();
    for verb in ["map", "resize +1M", "convert x.raw", "snapshot_create x"] {
        let (verb, rest) = verb.split_once(' ').unwrap_or((verb, ""));
        let verb = verb.replace('_', " ");
        let sentence = lab.refused(&format!("image {verb} vm/disk.qcow2 {rest}"), 1);
        assert!(sentence.contains("--allow-backing"), "{verb}: {sentence}");
        assert!(sentence.contains("secret.raw"), "{verb}: {sentence}");
    }
    lab.refused("serve vm/disk.qcow2 --cache writeback", 1);
    lab.refused("image map vm/disk.qcow2 --allow-backing vm", 1);
    for allowed in [".", "any"] {
        let words = format!("image compare secret.raw vm/disk.qcow2 --allow-backing {allowed}");
        lab.ok(&words);
    }
    assert_same_by_name(&lab);
}

/// The image's own folder is allowed, by whatever path.
fn assert_same_by_name(lab: &Lab) {
    fs::rename(lab.path("secret.raw"), lab.path("vm/secret.raw")).unwrap();
    qemu(lab, "rebase -u -b secret.raw -F raw vm/disk.qcow2").expect_code(0);
    assert_same(lab, "vm/secret.raw", "vm/disk.qcow2");
}

#[test]
fn links_out_of_the_folder_are_refused() {
    let lab = lab();
    std::os::unix::fs::symlink(lab.path("secret.raw"), lab.path("vm/base.raw")).unwrap();
    qemu(&lab, "rebase -u -b base.raw -F raw vm/disk.qcow2").expect_code(0);
    lab.refused("image map vm/disk.qcow2", 1);
    lab.ok("image map vm/disk.qcow2 --allow-backing any");
}

#[test]
fn what_is_no_path_is_never_followed() {
    let lab = lab();
    for name in ["json:{\"driver\":\"null-co\"}", "nbd://localhost/x", "nbd:unix:/x"] {
        qemu(&lab, &format!("rebase -u -b {name} -F raw vm/disk.qcow2")).expect_code(0);
        let sentence = lab.refused("image map vm/disk.qcow2 --allow-backing any", 1);
        assert!(sentence.contains("no path"), "{sentence}");
    }
}

#[test]
fn raw_is_not_written_on_a_guess() {
    let lab = Lab::new();
    lab.image("disk", MIB, 0, 1000);
    assert!(lab.refused("image resize disk 2M", 1).contains("-f raw"));
    lab.ok("image resize disk 2M -f raw");
    lab.image("disk.img", MIB, 0, 1000);
    lab.ok("image resize disk.img 2M");
}

#[test]
fn what_is_called_raw_names_no_other_files() {
    let lab = lab();
    fs::rename(lab.path("secret.raw"), lab.path("vm/secret.raw")).unwrap();
    qemu(&lab, "rebase -u -b secret.raw -F raw vm/disk.qcow2").expect_code(0);
    // As a guest might have written it into its disk.
    fs::rename(lab.path("vm/disk.qcow2"), lab.path("vm/disk.img")).unwrap();
    assert!(lab.refused("image map vm/disk.img", 1).contains("is called raw"));
    lab.ok("image map vm/disk.img -f qcow2");
    lab.ok("image map vm/disk.img -f raw");
}

#[test]
fn a_data_file_is_gated_and_no_other_file_of_the_image() {
    let lab = lab();
    let create = "create -q -f qcow2 -o data_file=d.data x.qcow2 1M";
    qemu(&lab, create).expect_code(0);
    qemu_io(&lab, "x.qcow2", "write -P 4 0 64k");
    lab.ok("image convert x.qcow2 flat.raw -O raw");
    assert_same(&lab, "flat.raw", "x.qcow2");
    fs::rename(lab.path("d.data"), lab.path("vm/d.data")).unwrap();
    std::os::unix::fs::symlink("vm/d.data", lab.path("d.data")).unwrap();
    lab.ok("image map x.qcow2");
    fs::rename(lab.path("x.qcow2"), lab.path("vm/x.qcow2")).unwrap();
    fs::rename(lab.path("vm/d.data"), lab.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", lab.path("vm/d.data")).unwrap();
    lab.refused("image map vm/x.qcow2", 1);
    lab.ok("image compare flat.raw vm/x.qcow2 --allow-backing any");
    fs::remove_file(lab.path("vm/d.data")).unwrap();
    fs::hard_link(lab.path("vm/x.qcow2"), lab.path("vm/d.data")).unwrap();
    assert!(lab.refused("image resize vm/x.qcow2 2M", 1).contains("this very process"));
}
