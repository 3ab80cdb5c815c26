//! Images that QEMU made, read by Firn.

use super::common::{Folder, contents, same, text};
use disk_image::qcow2::{OpenOptions, check};

/// Every way of laying out an image that qemu-img knows.
pub(crate) const LAYOUTS: &[&str] = &[
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=64",
    "refcount_bits=8,cluster_size=512",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=metadata,extended_l2=on",
    "preallocation=full",
];

fn raw(folder: &Folder) -> Vec<u8> {
    let mut disk = vec![0; 5 << 20];
    let body = text(3 << 20, 7);
    disk[100_000..100_000 + body.len()].copy_from_slice(&body);
    disk.truncate((5 << 20) - 1536);
    std::fs::write(folder.file("disk.raw"), &disk).expect("done");
    disk
}

#[test]
fn every_layout_that_qemu_makes() {
    let folder = Folder::new();
    let disk = raw(&folder);
    for layout in LAYOUTS {
        for compressed in ["", "-c"] {
            if compressed == "-c" && layout.contains("preallocation") {
                continue;
            }
            folder
                .img(&format!("convert -f raw -O qcow2 {compressed} -o {layout} disk.raw a.qcow2"));
            let before = std::fs::read(folder.file("a.qcow2")).expect("done");
            let options = OpenOptions { read_only: true, ..OpenOptions::default() };
            let image = folder.try_open("a.qcow2", options).expect(layout);
            same(&contents(&*image), &disk);
            let report = check(&folder.host("a.qcow2", true)).expect("checked");
            assert!(report.is_sound(), "{layout}: {report:?}");
            // Opening for writing writes nothing either.
            let image = folder.open("a.qcow2");
            same(&contents(&*image), &disk);
            drop(image);
            assert!(std::fs::read(folder.file("a.qcow2")).expect("done") == before, "{layout}");
        }
    }
}
