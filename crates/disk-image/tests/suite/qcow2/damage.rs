//! Check and repair, side by side with QEMU's.

use std::fs;
use std::sync::Arc;

use super::common::{Folder, contents, same, text};
use block_io::BlockDevice;
use block_types::ByteOffset;
use disk_image::qcow2::{Repair, check, repair};
use testkit::peer::peer;

fn base(folder: &Folder, layout: &str) -> Vec<u8> {
    folder.img(&format!("create -q -f qcow2 -o {layout} a.qcow2 4M"));
    let image = folder.open("a.qcow2");
    let mut disk = vec![0; 4 << 20];
    let bytes = text(1 << 20, 1);
    disk[50_000..50_000 + bytes.len()].copy_from_slice(&bytes);
    image.write_at(&bytes, ByteOffset::new(50_000)).expect("written");
    image.create_snapshot("s", std::time::SystemTime::now()).expect("taken");
    image.write_at(&[1; 5000], ByteOffset::new(60_000)).expect("written");
    disk[60_000..65_000].fill(1);
    image.close().expect("closed");
    disk
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().expect("done"))
}

/// The numbers in qemu-img's report.
fn theirs(folder: &Folder) -> (i32, u64, u64) {
    let args = ["check", "--output=json", "-f", "qcow2", "a.qcow2"];
    let outcome = peer("qemu-img").args(args).in_folder(folder.path()).run();
    let text = outcome.text();
    let number = |name: &str| {
        let after = text.split(&format!("\"{name}\": ")).nth(1)?;
        after.split([',', '\n']).next()?.trim().parse().ok()
    };
    let code = outcome.code().expect("ended");
    (code, number("corruptions").unwrap_or(0), number("leaks").unwrap_or(0))
}

#[test]
fn counts_that_are_wrong_are_found_and_made_right() {
    for layout in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=64"] {
        let folder = Folder::new();
        let disk = base(&folder, layout);
        let good = fs::read(folder.file("a.qcow2")).expect("done");
        let block = word(&good, word(&good, 48)) as usize;
        // Too low, too high, and all gone.
        for (damage, len) in [(0, 40), (0x11, 64), (0, 512)] {
            let mut bad = good.clone();
            bad[block + 16..block + 16 + len].fill(damage);
            fs::write(folder.file("a.qcow2"), &bad).expect("done");
            let file = folder.host("a.qcow2", false);
            let report = check(&file).expect("checked");
            let (code, corruptions, leaks) = theirs(&folder);
            assert_eq!(report.leaks, leaks, "{layout} {damage}: {report:#?}");
            assert_eq!(report.corruption_count > 0, corruptions > 0, "{layout}: {report:#?}");
            assert!(code == 2 || code == 3);
            let after = repair(&file, Repair::All).expect("repaired");
            assert!(after.is_sound(), "{layout} {damage}: {after:#?}");
            folder.check("a.qcow2");
            same(&contents(&*folder.open("a.qcow2")), &disk);
        }
    }
}

#[test]
fn leaks_are_taken_back_where_they_lie() {
    let folder = Folder::new();
    let disk = base(&folder, "cluster_size=64k");
    let mut bytes = fs::read(folder.file("a.qcow2")).expect("done");
    let block = word(&bytes, word(&bytes, 48)) as usize;
    // Clusters far behind that nobody uses.
    bytes[block + 1000..block + 1010].copy_from_slice(&[0, 1, 0, 1, 0, 1, 0, 2, 0, 0]);
    bytes.resize(600 << 16, 0);
    fs::write(folder.file("a.qcow2"), &bytes).expect("done");
    let file = folder.host("a.qcow2", false);
    let report = check(&file).expect("checked");
    assert_eq!((report.leaks, report.corruption_count), (4, 0), "{report:#?}");
    assert_eq!(theirs(&folder), (3, 0, 4));
    assert!(repair(&file, Repair::Leaks).expect("repaired").is_sound());
    folder.check("a.qcow2");
    same(&contents(&*folder.open("a.qcow2")), &disk);
}

#[test]
fn marks_that_are_wrong_are_found_and_set_right() {
    let folder = Folder::new();
    let disk = base(&folder, "cluster_size=64k");
    let mut bytes = fs::read(folder.file("a.qcow2")).expect("done");
    let l2 = (word(&bytes, word(&bytes, 40)) & 0x00ff_ffff_ffff_fe00) as usize;
    for entry in 0..4 {
        bytes[l2 + entry * 8] ^= 0x80;
    }
    fs::write(folder.file("a.qcow2"), &bytes).expect("done");
    let file: Arc<dyn BlockDevice> = folder.host("a.qcow2", false);
    let report = check(&file).expect("checked");
    assert_eq!((report.corruption_count, report.leaks), (4, 0), "{report:#?}");
    assert_eq!(theirs(&folder).1, 4);
    // A mark is not believed when the image is written: the counts decide.
    let image = folder.open("a.qcow2");
    let before = folder.content("a.qcow2", "-l s");
    image.write_at(&[7; 512], ByteOffset::new(130_000)).expect("written");
    drop(image);
    same(&folder.content("a.qcow2", "-l s"), &before);
    fs::write(folder.file("a.qcow2"), &bytes).expect("done");
    assert!(repair(&file, Repair::All).expect("repaired").is_sound());
    folder.check("a.qcow2");
    same(&contents(&*folder.open("a.qcow2")), &disk);
}

#[test]
fn figures_are_qemus() {
    let folder = Folder::new();
    base(&folder, "cluster_size=64k");
    let report = check(&folder.host("a.qcow2", true)).expect("checked");
    let theirs = folder.img("check --output=json -f qcow2 a.qcow2");
    for (name, ours) in [
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("image-end-offset", report.image_end.get()),
    ] {
        assert!(
            ours == 0 || theirs.contains(&format!("\"{name}\": {ours}")),
            "{name} {ours}: {theirs}"
        );
    }
}
