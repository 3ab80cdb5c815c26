//! Internal snapshots: the worked example, and what QEMU makes of ours and we of QEMU's.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use super::common::{Folder, contents, same};
use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ErrorKind};
use disk_image::qcow2::{CreateOptions, Image};

const CLUSTER: usize = 64 << 10;

/// Of every tree of an image its guest clusters: host cluster, its count, its first byte.
type Dump = BTreeMap<String, BTreeMap<u64, (u64, u16, u8)>>;

/// The same without the hosts.
type Trees = BTreeMap<String, Vec<(u64, u16, char)>>;

/// Reads a default image with tools of its own.
fn dump(bytes: &[u8]) -> Dump {
    let word =
        |at: u64| u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().expect("done"));
    let half =
        |at: u64| u32::from_be_bytes(bytes[at as usize..at as usize + 4].try_into().expect("done"));
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let count = |cluster: u64| {
        let block = word(word(48) + cluster / 32768 * 8);
        let at = (block + cluster % 32768 * 2) as usize;
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    };
    let tree = |l1: u64| {
        let table = word(l1) & OFFSET;
        let entry = |guest: u64| (guest, word(table + guest * 8) & OFFSET);
        let mapped = (0..6).map(entry).filter(|(_, at)| *at != 0);
        mapped.map(|(guest, at)| (guest, (at >> 16, count(at >> 16), bytes[at as usize]))).collect()
    };
    let mut dump = Dump::new();
    dump.insert("active".into(), tree(word(40)));
    let mut at = word(64);
    for _ in 0..half(60) {
        let (id, name) = (half(at + 12) >> 16, half(at + 12) & 0xffff);
        let extra = half(at + 36);
        let start = (at + 40) as usize + extra as usize + id as usize;
        let text = String::from_utf8(bytes[start..start + name as usize].to_vec()).expect("done");
        dump.insert(text, tree(word(at)));
        at = (at + 40 + u64::from(extra + id + name)).next_multiple_of(8);
    }
    dump
}

/// The counts and contents without the places, which are another program's business; but two guest
/// clusters have one place in all trees or in none.
fn shape(dump: &Dump) -> (Trees, BTreeMap<u64, usize>) {
    let mut users = BTreeMap::new();
    dump.values().flat_map(BTreeMap::values).for_each(|(host, _, _)| {
        *users.entry(*host).or_insert(0) += 1;
    });
    let tree = |tree: &BTreeMap<u64, (u64, u16, u8)>| {
        tree.iter().map(|(guest, (_, count, byte))| (*guest, *count, *byte as char)).collect()
    };
    (dump.iter().map(|(name, held)| (name.clone(), tree(held))).collect(), users)
}

fn fill(image: &Image, byte: u8, from: usize, to: usize) {
    let bytes = vec![byte; (to - from) << 10];
    image.write_at(&bytes, ByteOffset::new((from as u64) << 10)).expect("written");
}

fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn the_worked_example_of_the_thread() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(384 << 10)));
    fill(&image, b'A', 0, 128);
    image.create_snapshot("S1", now()).expect("taken");
    fill(&image, b'B', 64, 192);
    image.create_snapshot("S2", now()).expect("taken");
    fill(&image, b'C', 128, 256);
    image.close().expect("closed");

    let before = dump(&fs::read(folder.file("a.qcow2")).expect("done"));
    let (trees, users) = shape(&before);
    assert_eq!(trees["S1"], [(0, 3, 'A'), (1, 1, 'A')]);
    assert_eq!(trees["S2"], [(0, 3, 'A'), (1, 2, 'B'), (2, 1, 'B')]);
    assert_eq!(trees["active"], [(0, 3, 'A'), (1, 2, 'B'), (2, 1, 'C'), (3, 1, 'C')]);
    // Every count is the number of trees that name the place.
    for (host, count, _) in before.values().flat_map(BTreeMap::values) {
        assert_eq!(users[host], usize::from(*count), "host cluster {host}");
    }
    folder.check("a.qcow2");
    let expect = |text: &str| -> Vec<u8> {
        text.bytes().flat_map(|byte| vec![if byte == b'.' { 0 } else { byte }; CLUSTER]).collect()
    };
    same(&folder.content("a.qcow2", "-l S1"), &expect("AA...."));
    same(&folder.content("a.qcow2", "-l S2"), &expect("ABB..."));
    same(&folder.content("a.qcow2", ""), &expect("ABCC.."));

    image.delete_snapshot("S2").expect("deleted");
    image.close().expect("closed");
    let bytes = fs::read(folder.file("a.qcow2")).expect("done");
    let after = dump(&bytes);
    let (trees, users) = shape(&after);
    assert_eq!(trees["S1"], [(0, 2, 'A'), (1, 1, 'A')]);
    assert_eq!(trees["active"], [(0, 2, 'A'), (1, 1, 'B'), (2, 1, 'C'), (3, 1, 'C')]);
    let (gone, _, _) = before["S2"][&2];
    assert!(!users.contains_key(&gone), "only S2 had host cluster {gone}");
    folder.check("a.qcow2");
    same(&folder.content("a.qcow2", "-l S1"), &expect("AA...."));
    same(&folder.content("a.qcow2", ""), &expect("ABCC.."));
    image.delete_snapshot("1").expect("deleted by its id");
    image.close().expect("closed");
    folder.check("a.qcow2");
    same(&contents(&*image), &expect("ABCC.."));
}

#[test]
fn snapshots_that_qemu_took() {
    let folder = Folder::new();
    for layout in ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=4k"] {
        folder.img(&format!("create -q -f qcow2 -o {layout} a.qcow2 384k"));
        folder.io("a.qcow2", &["write -q -P 65 0 128k".into()]);
        folder.img("snapshot -c S1 a.qcow2");
        folder.io("a.qcow2", &["write -q -P 66 64k 128k".into()]);
        folder.img("snapshot -c S2 a.qcow2");
        folder.io("a.qcow2", &["write -q -P 67 128k 128k".into()]);
        let content = |more: &str| folder.content("a.qcow2", more);
        let (one, two, active) = (content("-l S1"), content("-l S2"), content(""));
        let image = folder.open("a.qcow2");
        let view = image.open_snapshot("S1").expect("opened");
        same(&contents(&*view), &one);
        assert_eq!(image.delete_snapshot("S1").expect_err("open").kind(), ErrorKind::Busy);
        same(&contents(&*image.open_snapshot("2").expect("opened")), &two);
        same(&contents(&*image), &active);
        // A write to what is shared, and one to what is absent.
        image.write_at(&[b'x'; 5000], ByteOffset::new(10_000)).expect("written");
        image.write_at(&[b'y'; 5000], ByteOffset::new(300_000)).expect("written");
        image.flush().expect("flushed");
        same(&contents(&*view), &one);
        folder.check("a.qcow2");
        same(&folder.content("a.qcow2", "-l S1"), &one);
        same(&folder.content("a.qcow2", "-l S2"), &two);
        drop(view);
        image.revert_to_snapshot("S1").expect("reverted");
        same(&contents(&*image), &one);
        image.write_at(&[b'z'; 100], ByteOffset::new(512)).expect("written");
        image.delete_snapshot("S1").expect("deleted");
        image.close().expect("closed");
        folder.check("a.qcow2");
        same(&folder.content("a.qcow2", "-l S2"), &two);
        drop(image);
        folder.img("snapshot -a S2 a.qcow2");
        folder.img("snapshot -d S2 a.qcow2");
        folder.check("a.qcow2");
        let image = folder.open("a.qcow2");
        same(&contents(&*image), &two);
        assert!(image.snapshots().is_empty());
    }
}

#[test]
fn snapshots_that_qemu_goes_back_to() {
    let folder = Folder::new();
    let mut options = CreateOptions::new(ByteCount::new(1 << 20));
    options.extended_l2 = true;
    for extended_l2 in [true, false] {
        let name = format!("{extended_l2}.qcow2");
        let image = folder.create(&name, &CreateOptions { extended_l2, ..options.clone() });
        fill(&image, 1, 0, 256);
        let taken = image.create_snapshot("first", now()).expect("taken");
        assert_eq!((taken.id.as_str(), taken.disk_size.get()), ("1", 1 << 20));
        fill(&image, 2, 100, 105);
        fill(&image, 3, 700, 800);
        image.create_snapshot("second", now()).expect("taken");
        fill(&image, 4, 0, 1024);
        image.close().expect("closed");
        drop(image);
        folder.check(&name);
        let listed = folder.img(&format!("snapshot -l {name}"));
        assert!(listed.contains("first") && listed.contains("second"), "{listed}");
        let second = folder.content(&name, "-l second");
        folder.img(&format!("snapshot -a second {name}"));
        same(&folder.content(&name, ""), &second);
        folder.img(&format!("snapshot -d first {name}"));
        folder.check(&name);
        let image = folder.open(&name);
        same(&contents(&*image), &second);
        assert_eq!(image.snapshots().len(), 1);
        let error = image.create_snapshot("second", now()).expect_err("there is one");
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert_eq!(image.delete_snapshot("none").expect_err("none").kind(), ErrorKind::NotFound);
    }
}

#[test]
fn counts_that_are_too_narrow_are_an_answer() {
    let folder = Folder::new();
    let mut options = CreateOptions::new(ByteCount::new(1 << 20));
    options.refcount_bits = 1;
    let image = folder.create("a.qcow2", &options);
    fill(&image, 1, 0, 256);
    let error = image.create_snapshot("first", now()).expect_err("too narrow");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    fill(&image, 2, 100, 300);
    image.close().expect("closed");
    folder.check("a.qcow2");
}

#[test]
fn the_size_of_a_snapshot_comes_back_with_it() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(1 << 20)));
    fill(&image, 1, 0, 1024);
    image.create_snapshot("small", now()).expect("taken");
    image.resize(ByteCount::new(2 << 30)).expect("grown");
    image.write_at(&[2; 512], ByteOffset::new((2 << 30) - 512)).expect("written");
    image.create_snapshot("large", now()).expect("taken");
    image.revert_to_snapshot("small").expect("reverted");
    assert_eq!(image.size().get(), 1 << 20);
    same(&contents(&*image), &vec![1; 1 << 20]);
    image.close().expect("closed");
    folder.check("a.qcow2");
    image.revert_to_snapshot("large").expect("reverted");
    let mut end = [0; 512];
    image.read_at(&mut end, ByteOffset::new((2 << 30) - 512)).expect("read");
    assert_eq!(end, [2; 512]);
    let dynamic: Arc<dyn BlockDevice> = image.clone();
    assert_eq!(dynamic.size().get(), 2 << 30);
    image.close().expect("closed");
    folder.check("a.qcow2");
}

/// Bytes of a disk, and of a machine's state that lies behind it, in an image of clusters of 512
/// bytes, of which a table of the first level maps 32 KiB by each entry.
const DISK: usize = 64 << 10;
const STATE: usize = 60_000;

/// An image with a snapshot that has a machine's state, as a running QEMU makes one: the disk of a
/// larger image is cut, in the header and in the snapshot's entry.
fn with_state(folder: &Folder) -> Vec<u8> {
    let mut options = CreateOptions::new(ByteCount::new(128 << 10));
    options.cluster_size = ByteCount::new(512);
    let image = folder.create("a.qcow2", &options);
    image.write_at(&[b'D'; 5000], ByteOffset::new(1000)).expect("written");
    let state: Vec<u8> = (0..STATE).map(|at| (at % 251) as u8).collect();
    image.write_at(&state, ByteOffset::new(DISK as u64)).expect("written");
    image.create_snapshot("vm", now()).expect("taken");
    image.close().expect("closed");
    set_sizes(folder, DISK as u64, STATE as u64);
    state
}

/// Says of the image and of its first snapshot how large the disk is, and the machine's state.
fn set_sizes(folder: &Folder, disk: u64, state: u64) {
    let mut bytes = fs::read(folder.file("a.qcow2")).expect("read");
    let at = u64::from_be_bytes(bytes[64..72].try_into().expect("eight")) as usize;
    bytes[24..32].copy_from_slice(&disk.to_be_bytes());
    bytes[at + 40..at + 48].copy_from_slice(&state.to_be_bytes());
    bytes[at + 48..at + 56].copy_from_slice(&disk.to_be_bytes());
    fs::write(folder.file("a.qcow2"), bytes).expect("written");
}

#[test]
fn a_machine_s_state_stays_with_its_snapshot() {
    let folder = Folder::new();
    let state = with_state(&folder);
    folder.check("a.qcow2");
    let image = folder.open("a.qcow2");
    let size = |image: &Image| image.snapshots()[0].vm_state_size.get();
    assert_eq!(size(&image), STATE as u64);
    image.write_at(&[b'E'; 3000], ByteOffset::new(20_000)).expect("written");
    image.create_snapshot("later", now()).expect("taken");
    image.revert_to_snapshot("vm").expect("reverted");
    image.write_at(&[b'F'; 3000], ByteOffset::new(40_000)).expect("written");
    image.create_snapshot("last", now()).expect("taken");
    image.delete_snapshot("later").expect("deleted");
    while !image.compact_step(ByteCount::new(16 << 10)).expect("compacted").done {}
    assert_eq!(size(&image), STATE as u64);
    image.close().expect("closed");
    drop(image);
    folder.check("a.qcow2");
    let listed = folder.img("snapshot -l a.qcow2");
    assert!(listed.contains("58.6 KiB"), "{listed}");
    // With the disk as large as it was once, the state is a part of it.
    set_sizes(&folder, 128 << 10, 0);
    let content = folder.content("a.qcow2", "-l vm");
    same(&content[DISK..DISK + STATE], &state);
    assert_eq!(content[1000..6000], [b'D'; 5000]);
}
