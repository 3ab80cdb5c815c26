//! SIGKILL at every point, on real files, with the content of every disk compared before, after the
//! crash, and after recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block_io::{BlockDevice, CacheMode, HostFile};
use block_types::{ByteCount, ByteOffset, crc32c};
use disk_image::vhd::{
    self, BlockSize, Content, CreateOptions, DiskId, ParentLink, Timestamp, VhdImage,
};
use jobs::Monitor;
use repository::{CollectOptions, OpenOptions, Point, Probe, Repository};
use rustix::process::{Signal, getpid, kill_process};
use volume::SnapshotName;

use crate::common::{name, options};

/// Bytes of a disk: several pieces.
const SIZE: u64 = 5 << 20;

/// Points that only a log of thousands of records reaches.
const ELSEWHERE: [Point; 2] = [Point::LogNext, Point::LogReplaced];

/// Points of the recovery itself, and the one after which it has such work.
const OF_RECOVERY: [Point; 2] = [Point::SettleRelinked, Point::SettleFlagged];

/// What a process writes down before each step: what every disk that may exist holds then, and
/// which must exist.
struct Ledger {
    path: PathBuf,
    hashes: BTreeMap<String, u32>,
}

impl Ledger {
    fn write(&self, maybe: &[&str]) {
        let mut text = String::new();
        for (name, hash) in &self.hashes {
            let must = !maybe.contains(&name.as_str());
            text.push_str(&format!("{name} {hash} {must}\n"));
        }
        let next = self.path.with_extension("next");
        let mut file =
            FileOptions::new().create(true).write(true).truncate(true).open(&next).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::fs::rename(next, &self.path).unwrap();
    }

    fn read(path: &Path) -> BTreeMap<String, (u32, bool)> {
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut word = || words.next().unwrap();
            (word(), (word().parse().unwrap(), word().parse().unwrap()))
        };
        text.lines().map(line).collect()
    }
}

fn hash(repository: &Repository, disk: &str) -> u32 {
    let disk = repository.open_disk(&name(disk), false).expect("opened");
    let mut bytes = vec![0; disk.size().as_usize()];
    disk.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    crc32c(&bytes)
}

/// A repository at work, with its ledger.
struct Work {
    repository: Arc<Repository>,
    ledger: Ledger,
    written: u8,
}

impl Work {
    /// Writes `len` bytes at `at`, durably.
    fn write(&mut self, disk: &str, at: u64, len: usize) {
        self.written += 1;
        // Until it is there, either content is right: so nothing is killed here.
        let device = self.repository.open_disk(&name(disk), false).expect("opened");
        device.write_at(&vec![self.written; len], ByteOffset::new(at)).expect("written");
        device.flush().expect("flushed");
        drop(device);
        self.ledger.hashes.insert(disk.to_owned(), hash(&self.repository, disk));
        self.ledger.write(&[]);
    }

    fn create(&mut self, disk: &str) {
        self.ledger.hashes.insert(disk.to_owned(), crc32c(&vec![0; SIZE as usize]));
        self.ledger.write(&[disk]);
        self.repository.create_disk(&name(disk), ByteCount::new(SIZE)).expect("created");
        self.ledger.write(&[]);
    }

    fn snapshot(&mut self, volume: &str, snapshot: &str) {
        let new = format!("{volume}@{snapshot}");
        self.ledger.hashes.insert(new.clone(), self.ledger.hashes[volume]);
        self.ledger.write(&[&new]);
        let snapshot = SnapshotName::parse(snapshot).unwrap();
        self.repository.snapshot(&name(volume), &snapshot).expect("taken");
        self.ledger.write(&[]);
    }

    fn clone_disk(&mut self, source: &str, new: &str) {
        self.ledger.hashes.insert(new.to_owned(), self.ledger.hashes[source]);
        self.ledger.write(&[new]);
        self.repository.clone_disk(&name(source), &name(new)).expect("cloned");
        self.ledger.write(&[]);
    }

    fn delete(&mut self, disk: &str) {
        self.ledger.write(&[disk]);
        self.repository.delete(&name(disk)).expect("deleted");
        self.ledger.hashes.remove(disk);
        self.ledger.write(&[]);
    }

    fn collect(&self) {
        let monitor = Monitor::new(ByteCount::ZERO);
        let done = self.repository.collect(&CollectOptions::default(), &monitor);
        assert_eq!(done.expect("collected").put_off, 0);
    }
}

/// A VHD outside, to be added.
fn outside(path: &Path, number: u8) {
    let file = HostFile::create(path, ByteCount::ZERO, CacheMode::Cached).unwrap();
    let id = DiskId::new([number; 16]);
    let block_size = BlockSize::new(ByteCount::new(16 << 10)).unwrap();
    let options = CreateOptions::new(ByteCount::new(SIZE), id, Timestamp::new(0));
    vhd::create(&file, &CreateOptions { block_size, ..options }).unwrap();
    let image = VhdImage::open(Arc::new(file), None, vhd::OpenOptions::default()).unwrap();
    image.write_at(&vec![number; 3 << 20], ByteOffset::ZERO).unwrap();
    image.close().unwrap();
}

/// A VHD that holds nothing by itself and stands on another beside it.
fn outside_over(path: &Path, number: u8, parent: u8, beside: &str) {
    let file = HostFile::create(path, ByteCount::ZERO, CacheMode::Cached).unwrap();
    let id = DiskId::new([number; 16]);
    let link = ParentLink {
        id: Some(DiskId::new([parent; 16])),
        modified: Timestamp::new(0),
        path: beside.to_owned(),
    };
    let block_size = BlockSize::new(ByteCount::new(16 << 10)).unwrap();
    let options = CreateOptions::new(ByteCount::new(SIZE), id, Timestamp::new(0));
    let content = Content::Differencing(link);
    vhd::create(&file, &CreateOptions { block_size, content, ..options }).unwrap();
}

/// Does everything that a repository can do, so that every point is reached.
fn everything(dir: &Path, probe: Probe) {
    let path = dir.join("sr");
    if !Repository::is_at(&path) {
        Repository::create(&path).expect("created");
    }
    let options = OpenOptions { probe, ..options() };
    let repository = Repository::open(&path, &options).expect("opened");
    let ledger = Ledger { path: dir.join("ledger"), hashes: BTreeMap::new() };
    let mut work = Work { repository, ledger, written: 0 };
    if !work.repository.names().is_empty() {
        return;
    }
    work.create("db");
    work.write("db", 0, 3 << 20);
    outside(&dir.join("ext.vhd"), 77);
    let added = {
        let mut bytes = vec![0; SIZE as usize];
        bytes[..3 << 20].fill(77);
        crc32c(&bytes)
    };
    work.ledger.hashes.insert("ext".into(), added);
    work.ledger.write(&["ext"]);
    work.repository.add(&dir.join("ext.vhd"), &name("ext")).expect("added");
    work.ledger.write(&[]);
    // Put there by others: a scan gives it the name of its file.
    work.ledger.hashes.insert("foreign".into(), {
        let mut bytes = vec![0; SIZE as usize];
        bytes[..3 << 20].fill(78);
        crc32c(&bytes)
    });
    work.ledger.write(&["foreign"]);
    outside(&path.join("foreign.vhd"), 78);
    work.repository.scan().expect("scanned");
    work.ledger.write(&[]);
    // A chain that others made: a disk that is deleted under another one is hidden.
    work.ledger.hashes.extend(["below", "above"].map(|disk| {
        let mut bytes = vec![0; SIZE as usize];
        bytes[..3 << 20].fill(79);
        (disk.to_owned(), crc32c(&bytes))
    }));
    work.ledger.write(&["below", "above"]);
    outside(&path.join("below.vhd"), 79);
    outside_over(&path.join("above.vhd"), 80, 79, "below.vhd");
    work.repository.scan().expect("scanned");
    work.ledger.write(&[]);
    work.delete("below");
    work.collect();
    // A live leaf is merged down: little over much.
    work.snapshot("db", "a");
    work.write("db", 1 << 20, 8192);
    work.delete("db@a");
    work.collect();
    // And up: much over little.
    work.create("up");
    work.write("up", 4096, 4096);
    work.snapshot("up", "a");
    work.write("up", 0, 4 << 20);
    work.delete("up@a");
    work.collect();
    // A row of hidden nodes with several children at its end, one of them a clone.
    for snapshot in ["b", "c", "d"] {
        work.snapshot("db", snapshot);
        work.write("db", 2 << 20, 4096);
    }
    work.clone_disk("db@d", "twin");
    work.write("twin", 3 << 20, 4096);
    work.snapshot("db", "e");
    work.clone_disk("db@e", "third");
    work.repository.close_idle().expect("closed");
    work.delete("db@b");
    work.delete("db@c");
    work.collect();
    // A disk that others stand on.
    work.delete("db@d");
    work.collect();
    // Offline: nobody has the leaf open.
    work.snapshot("ext", "a");
    work.write("ext", 0, 4096);
    work.repository.close_idle().expect("closed");
    work.delete("ext@a");
    work.collect();
    let base = path.join("foreign.vhd");
    assert!(base.exists());
    work.clone_disk("foreign", "leaf");
    work.repository.close().expect("closed");
}

/// The process that is killed; it is run by the test below.
#[test]
#[ignore = "is run by every_point_is_survived, as a process to be killed"]
fn child() {
    let dir = PathBuf::from(std::env::var_os("REPOSITORY_DIR").expect("the directory"));
    let point = std::env::var("REPOSITORY_POINT").expect("the point");
    let nth: u32 = std::env::var("REPOSITORY_NTH").expect("the number").parse().unwrap();
    let reached = AtomicU32::new(0);
    everything(
        &dir,
        Probe::new(move |at| {
            if at.name() == point && reached.fetch_add(1, Ordering::SeqCst) + 1 == nth {
                kill_process(getpid(), Signal::KILL).expect("killed");
            }
        }),
    );
}

/// Has a process end itself at a point; whether it came that far.
fn kill_at(dir: &Path, point: Point, nth: u32) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["points::child", "--exact", "--ignored", "--nocapture"])
        .env("REPOSITORY_DIR", dir)
        .env("REPOSITORY_POINT", point.name())
        .env("REPOSITORY_NTH", nth.to_string())
        .output()
        .unwrap();
    match output.status.signal() {
        Some(9) => true,
        None if output.status.success() => false,
        _ => panic!("{point}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Checks what a killed process has left.
fn check(dir: &Path, point: Point) {
    let expected = Ledger::read(&dir.join("ledger"));
    let repository = Repository::open(&dir.join("sr"), &options()).expect("opened");
    let compare = || {
        let names: BTreeSet<String> =
            repository.names().into_iter().map(|name| name.to_string()).collect();
        for (name, (hash_before, must)) in &expected {
            assert!(!must || names.contains(name), "{point}: {name} is gone");
            if names.contains(name) {
                assert_eq!(hash(&repository, name), *hash_before, "{point}: {name}");
            }
        }
        assert!(names.iter().all(|name| expected.contains_key(name)), "{point}: {names:?}");
        repository.close_idle().expect("closed");
    };
    compare();
    let monitor = Monitor::new(ByteCount::ZERO);
    let done = repository.collect(&CollectOptions::default(), &monitor).expect("collected");
    assert_eq!(done.put_off, 0, "{point}: {:#?}", repository.report());
    compare();
    for node in repository.report() {
        let needed = node.name.is_some() || node.children > 1;
        assert!(needed, "{point}: {node:?} is left");
    }
    for file in std::fs::read_dir(dir.join("sr")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "vhd") {
            let file = HostFile::open(
                &path,
                block_io::FileOptions { cache: CacheMode::Cached, read_only: true },
            );
            let report = vhd::check(&file.unwrap(), None).unwrap();
            assert_eq!(report.errors, Vec::<String>::new(), "{point}: {}", path.display());
        }
    }
    repository.close().expect("closed");
}

fn survive(point: Point, nth: u32) -> bool {
    let dir = tempfile::tempdir().unwrap();
    if OF_RECOVERY.contains(&point) {
        assert!(kill_at(dir.path(), Point::MergeRelinking, nth), "{point}: no crash before");
    }
    let reached = kill_at(dir.path(), point, nth);
    check(dir.path(), point);
    reached
}

#[test]
fn every_point_is_survived() {
    let next = std::sync::Mutex::new(Point::ALL.iter().filter(|p| !ELSEWHERE.contains(p)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(&point) = next.lock().unwrap().next() else { return };
                    assert!(survive(point, 1), "{point} was never reached");
                    if !OF_RECOVERY.contains(&point) {
                        survive(point, 3);
                    }
                }
            });
        }
    });
}
