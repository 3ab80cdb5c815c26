//! Compressed clusters that Firn writes, read by QEMU; and written over by both.

use super::common::{Folder, contents, same, text};
use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{Compression, CreateOptions, check};

#[test]
fn qemu_reads_what_firn_compresses() {
    let folder = Folder::new();
    let mut number = 0;
    for compression in [Compression::Zlib, Compression::Zstd] {
        for (bits, extended_l2, refcount_bits) in
            [(9, false, 16), (12, false, 1), (16, false, 16), (16, true, 2), (21, false, 16)]
        {
            number += 1;
            let name = format!("{number}.qcow2");
            let size: u64 = if bits < 12 { 200 << 10 } else { 5 << 20 };
            let mut options = CreateOptions::new(ByteCount::new(size - 1024));
            options.cluster_size = ByteCount::new(1 << bits);
            options.compression = compression;
            options.extended_l2 = extended_l2;
            options.refcount_bits = refcount_bits;
            let image = folder.create(&name, &options);
            let mut disk = text(size as usize - 1024, number);
            // Noise does not shrink, and is written as it is.
            testkit::rng::Rng::new(number).fill(&mut disk[70_000..100_000]);
            for (at, cluster) in (0..).zip(disk.chunks(1 << bits)) {
                image.write_compressed(cluster, ByteOffset::new(at << bits)).expect("written");
            }
            same(&contents(&*image), &disk);
            image.close().expect("closed");
            folder.check(&name);
            let report = check(&folder.host(&name, true)).expect("checked");
            assert!(report.is_sound() && report.compressed_clusters > 0, "{report:?}");
            same(&folder.content(&name, ""), &disk);
            // Written over, by both.
            image.write_at(&[1; 700], ByteOffset::new(5000)).expect("written");
            disk[5000..5700].fill(1);
            image.write_compressed(&disk[..1 << bits], ByteOffset::ZERO).expect("written again");
            same(&contents(&*image), &disk);
            image.close().expect("closed");
            drop(image);
            folder.check(&name);
            folder.io(&name, &["write -q -P 2 120k 512".into()]);
            disk[120 << 10..(120 << 10) + 512].fill(2);
            folder.check(&name);
            same(&contents(&*folder.open(&name)), &disk);
        }
    }
}

#[test]
fn packed_clusters_take_little_space() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(8 << 20)));
    let cluster = text(65_536, 1);
    for at in 0..128 {
        image.write_compressed(&cluster, ByteOffset::new(at << 16)).expect("written");
    }
    image.close().expect("closed");
    let len = std::fs::metadata(folder.file("a.qcow2")).expect("done").len();
    assert!(len < 3 << 20, "{len} bytes");
    folder.check("a.qcow2");
    let error = image.write_compressed(&cluster[..512], ByteOffset::ZERO).expect_err("a part");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn compressed_clusters_and_snapshots() {
    let folder = Folder::new();
    let disk = text(1 << 20, 3);
    std::fs::write(folder.file("disk.raw"), &disk).expect("done");
    folder.img("convert -f raw -O qcow2 -c disk.raw a.qcow2");
    let image = folder.open("a.qcow2");
    image.create_snapshot("s", std::time::SystemTime::now()).expect("taken");
    image.write_at(&[1; 200_000], ByteOffset::new(1000)).expect("written");
    image.close().expect("closed");
    folder.check("a.qcow2");
    same(&folder.content("a.qcow2", "-l s"), &disk);
    image.revert_to_snapshot("s").expect("reverted");
    image.delete_snapshot("s").expect("deleted");
    same(&contents(&*image), &disk);
    image.close().expect("closed");
    folder.check("a.qcow2");
}
