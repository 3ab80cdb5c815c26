//! Images with things in them that a careless writer destroys: shared clusters, recording bitmaps,
//! encryption, features and extensions that nobody here knows.

use std::fs;

use super::common::{Folder, contents, same};
use block_io::BlockDevice;
use block_types::{ByteOffset, ErrorKind};
use disk_image::qcow2::{Encryption, Header, OpenOptions};

fn base(folder: &Folder) {
    folder.img("create -q -f qcow2 a.qcow2 1M");
    folder.io("a.qcow2", &["write -q -P 65 0 256k".into()]);
}

#[test]
fn a_cluster_that_a_snapshot_shares_is_not_written_in_place() {
    let folder = Folder::new();
    base(&folder);
    folder.img("snapshot -c S1 a.qcow2");
    let image = folder.open("a.qcow2");
    image.write_at(&[b'B'; 65536], ByteOffset::new(65536)).expect("written");
    image.flush().expect("flushed");
    folder.check("a.qcow2");
    let mut old = vec![0; 1 << 20];
    old[..256 << 10].fill(b'A');
    same(&folder.content("a.qcow2", "-l S1"), &old);
    let mut new = old;
    new[65536..131_072].fill(b'B');
    same(&folder.content("a.qcow2", ""), &new);
}

#[test]
fn a_new_cluster_beside_a_snapshot_does_not_free_its_table() {
    let folder = Folder::new();
    base(&folder);
    folder.img("snapshot -c S1 a.qcow2");
    let image = folder.open("a.qcow2");
    image.write_at(&[b'B'; 65536], ByteOffset::new(512 << 10)).expect("written");
    image.flush().expect("flushed");
    folder.check("a.qcow2");
    let mut old = vec![0; 1 << 20];
    old[..256 << 10].fill(b'A');
    same(&folder.content("a.qcow2", "-l S1"), &old);
}

#[test]
fn a_recording_bitmap_does_not_stay_consistent() {
    let folder = Folder::new();
    base(&folder);
    folder.img("bitmap --add a.qcow2 daily");
    folder.img("bitmap --add --disable a.qcow2 still");
    let before = fs::read(folder.file("a.qcow2")).expect("done");
    let image = folder.open("a.qcow2");
    image.read_at(&mut [0; 512], ByteOffset::ZERO).expect("read");
    image.flush().expect("flushed");
    image.close().expect("closed");
    assert!(fs::read(folder.file("a.qcow2")).expect("done") == before, "written for nothing");
    image.write_at(&[b'B'; 512], ByteOffset::ZERO).expect("written");
    image.close().expect("closed");
    drop(image);
    folder.check("a.qcow2");
    // The one that records is marked, the other is as it was.
    let info = folder.img("info --output=json a.qcow2").replace([' ', '\n'], "");
    let daily = info.find("\"name\":\"daily\"").expect("daily");
    let still = info.find("\"name\":\"still\"").expect("still");
    let flags = |from: usize| {
        let entry = &info[..from];
        entry[entry.rfind("\"flags\":").expect("flags")..].to_owned()
    };
    assert!(flags(daily).contains("in-use"), "{info}");
    assert!(!flags(still).contains("in-use"), "{info}");
}

#[test]
fn an_encrypted_image_is_not_written_in_plain_text() {
    let folder = Folder::new();
    folder.img(
        "create -q -f qcow2 --object secret,id=k,data=firn \
         -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 a.qcow2 1M",
    );
    let before = fs::read(folder.file("a.qcow2")).expect("done");
    for read_only in [true, false] {
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let error = folder.try_open("a.qcow2", options).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("encrypted"), "{error}");
    }
    let header = Header::read(&*folder.host("a.qcow2", true)).expect("the header is readable");
    assert_eq!(header.encryption(), Some(Encryption::Luks));
    let report = disk_image::qcow2::check(&folder.host("a.qcow2", true)).expect("checked");
    assert!(report.is_sound(), "{report:?}");
    assert!(fs::read(folder.file("a.qcow2")).expect("done") == before);
}

/// Changes bytes of the file.
fn patch(folder: &Folder, at: usize, bytes: &[u8]) {
    let mut image = fs::read(folder.file("a.qcow2")).expect("done");
    image[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(folder.file("a.qcow2"), image).expect("done");
}

#[test]
fn unknown_features() {
    let folder = Folder::new();
    base(&folder);
    // Compatible and autoclear bits nobody knows: kept, and cleared before the first write.
    patch(&folder, 80, &(1u64 << 40).to_be_bytes());
    patch(&folder, 88, &(1u64 << 41).to_be_bytes());
    let read = |at: usize| fs::read(folder.file("a.qcow2")).expect("done")[at..at + 8].to_vec();
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    drop(folder.try_open("a.qcow2", options).expect("opened"));
    let image = folder.open("a.qcow2");
    assert_eq!(read(88), (1u64 << 41).to_be_bytes());
    image.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    assert_eq!((read(80), read(88)), ((1u64 << 40).to_be_bytes().to_vec(), vec![0; 8]));
    image.create_snapshot("s", std::time::SystemTime::now()).expect("taken");
    assert_eq!(read(80), (1u64 << 40).to_be_bytes());
    drop(image);
    // An incompatible one is refused, by the name that the image gives it.
    patch(&folder, 72, &(1u64 << 42 | 1 << 5).to_be_bytes());
    let error = folder.try_open("a.qcow2", OpenOptions::default()).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("incompatible bit 42"), "{error}");
    // The second entry of the table of names: now of bit 42.
    patch(&folder, 0x78 + 48, &[0, 42]);
    patch(&folder, 0x78 + 50, b"sastrugi  ");
    let error = folder.try_open("a.qcow2", OpenOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("sastrugi"), "{error}");
}

#[test]
fn a_header_with_more_fields_keeps_them() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 a.qcow2 1M");
    let bytes = fs::read(folder.file("a.qcow2")).expect("done");
    // Sixteen bytes more, which say something; the extensions move back, and one is unknown.
    let mut header = bytes[..112].to_vec();
    header[100..104].copy_from_slice(&128u32.to_be_bytes());
    header.extend_from_slice(b"sixteen bytes...");
    header.extend_from_slice(&0x1234_5678u32.to_be_bytes());
    header.extend_from_slice(&5u32.to_be_bytes());
    header.extend_from_slice(b"hello***");
    header.extend_from_slice(&[0; 8]);
    patch(&folder, 0, &header);
    let image = folder.open("a.qcow2");
    image.write_at(&[1; 100_000], ByteOffset::new(1000)).expect("written");
    image.create_snapshot("s", std::time::SystemTime::now()).expect("taken");
    image.write_at(&[2; 100_000], ByteOffset::new(1000)).expect("written");
    image.close().expect("closed");
    let after = fs::read(folder.file("a.qcow2")).expect("done");
    assert_eq!(after[104..152], header[104..152]);
    folder.check("a.qcow2");
    let mut disk = vec![0; 1 << 20];
    disk[1000..101_000].fill(2);
    same(&contents(&*image), &disk);
}

#[test]
fn an_image_that_was_not_closed_by_a_lazy_writer() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o lazy_refcounts=on a.qcow2 4M");
    // Aborts with the counts not made up for.
    let abort =
        ["-f", "qcow2", "-c", "write -q -P 7 0 1M", "-c", "flush", "-c", "abort", "a.qcow2"];
    testkit::peer::peer("qemu-io").args(abort).in_folder(folder.path()).run();
    let header = Header::read(&*folder.host("a.qcow2", true)).expect("read");
    assert!(header.is_dirty() && header.lazy_refcounts());
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = folder.try_open("a.qcow2", options).expect("reading needs no counts");
    let mut disk = vec![0; 4 << 20];
    disk[..1 << 20].fill(7);
    same(&contents(&*image), &disk);
    drop(image);
    let image = folder.open("a.qcow2");
    assert!(!image.header().is_dirty() && image.header().lazy_refcounts());
    image.write_at(&[8; 300_000], ByteOffset::new(1 << 19)).expect("written");
    disk[1 << 19..(1 << 19) + 300_000].fill(8);
    image.close().expect("closed");
    folder.check("a.qcow2");
    same(&folder.content("a.qcow2", ""), &disk);
}

#[test]
fn an_image_that_is_marked_as_corrupt_is_only_read() {
    let folder = Folder::new();
    base(&folder);
    patch(&folder, 72, &2u64.to_be_bytes());
    let error = folder.try_open("a.qcow2", OpenOptions::default()).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = folder.try_open("a.qcow2", options).expect("opened");
    image.read_at(&mut [0; 512], ByteOffset::ZERO).expect("read");
    let error = image.write_at(&[0; 512], ByteOffset::ZERO).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}
