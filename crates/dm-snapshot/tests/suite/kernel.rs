//! Linux 6.1 and Firn take turns at one origin and its store: each reads what the other wrote, and
//! each finishes the merge that the other began.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset};
use dm_snapshot::{
    Label, Mode, Origin, OriginOptions, Snapshot, SnapshotOptions, Store, TableLine,
};
use testkit::kernel::{Kernel, POWER_CUT};
use testkit::peer::peer;
use testkit::rng::Rng;

use crate::common::chunk;

const ORIGIN: u64 = 4 << 20;
const STORE: u64 = 6 << 20;

/// An origin and a store in two files, and what both should hold.
struct Table {
    folder: tempfile::TempDir,
    rng: Rng,
    chunk: u64,
    origin: Vec<u8>,
    past: Vec<u8>,
}

/// Which of the two a write is for.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Origin,
    Snapshot,
}

impl Table {
    /// An origin with random bytes, and a store of zeros.
    fn new(seed: u64, chunk: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rng = Rng::new(seed);
        let mut origin = vec![0; ORIGIN as usize];
        rng.fill(&mut origin);
        fs::write(folder.path().join("origin"), &origin).expect("written");
        fs::write(folder.path().join("store"), vec![0; STORE as usize]).expect("written");
        let past = origin.clone();
        Self { folder, rng, chunk, origin, past }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn device(&self, name: &str) -> Arc<HostFile> {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        Arc::new(HostFile::open(&self.path(name), options).expect("opened"))
    }

    fn create(&self) {
        let mut store = Store::create(self.device("store"), chunk(self.chunk)).expect("made");
        store.set_label(label()).expect("labelled");
    }

    fn open(&self, mode: Mode) -> (Origin, Snapshot) {
        let options = OriginOptions { buffer: ByteCount::new(1 << 20), ..OriginOptions::default() };
        let origin = Origin::open(self.device("origin"), options).expect("opened");
        let store = Store::open(self.device("store")).expect("opened");
        assert!(store.is_valid());
        let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
        let snapshot = origin.attach("snapshot", store, options).expect("attached");
        (origin, snapshot)
    }

    /// A write of 4 KiB blocks to come, which is noted.
    fn write(&mut self, side: Side) -> (u64, Vec<u8>) {
        let block = self.rng.within(0..ORIGIN / 4096 - 24);
        let blocks = if self.rng.chance(1, 4) { self.rng.within(1..24) } else { 1 };
        let mut bytes = vec![0; (blocks * 4096) as usize];
        self.rng.fill(&mut bytes);
        let content = if side == Side::Origin { &mut self.origin } else { &mut self.past };
        content[(block * 4096) as usize..][..bytes.len()].copy_from_slice(&bytes);
        (block, bytes)
    }

    fn side(&mut self) -> Side {
        if self.rng.chance(2, 3) { Side::Origin } else { Side::Snapshot }
    }

    /// Firn's turn: everything is compared, then written to at random. Returns the status line.
    fn firn(&mut self, mode: Mode) -> String {
        let (origin, snapshot) = self.open(mode);
        assert!(read(&origin) == self.origin, "the origin differs");
        assert!(read(&snapshot) == self.past, "the snapshot differs");
        for _ in 0..60 {
            let side = self.side();
            let (block, bytes) = self.write(side);
            let device: &dyn BlockDevice = if side == Side::Origin { &origin } else { &snapshot };
            device.write_at(&bytes, ByteOffset::new(block * 4096)).expect("written");
        }
        origin.flush().expect("flushed");
        snapshot.flush().expect("flushed");
        assert!(read(&snapshot) == self.past, "the snapshot has changed");
        let line = self.line("snapshot").status_line(&snapshot.status());
        origin.close().expect("closed");
        let report = dm_snapshot::check(
            &(self.device("store") as Arc<dyn BlockDevice>),
            Some(ByteCount::new(ORIGIN)),
        );
        let report = report.expect("checked");
        assert!(report.errors.is_empty() && report.hints.is_empty(), "{report:?}");
        line
    }

    /// Overwrites single sectors in random order, no two of them neighbours: the kernel merges each
    /// by itself, which takes it long enough to be stopped in the middle.
    fn scatter(&mut self, count: usize) {
        let (origin, _snapshot) = self.open(Mode::Deferred);
        for _ in 0..count {
            let at = self.rng.within(0..ORIGIN / 1024) * 1024;
            let mut bytes = [0; 512];
            self.rng.fill(&mut bytes);
            origin.write_at(&bytes, ByteOffset::new(at)).expect("written");
            self.origin[at as usize..at as usize + 512].copy_from_slice(&bytes);
            if self.rng.chance(1, 8) {
                // So that they are listed in this order, not in that of the buffer.
                origin.flush().expect("flushed");
            }
        }
        origin.close().expect("closed");
    }

    /// The table line of the snapshot, as the kernel is given it.
    fn line(&self, target: &str) -> TableLine {
        let sectors = (ORIGIN / 512, self.chunk / 512);
        let line = format!("0 {} {target} /dev/mapper/base /dev/ubdb P {}", sectors.0, sectors.1);
        line.parse().expect("a table line")
    }

    /// The kernel's turn: it tells the status that it finds, compares, and writes at random.
    fn linux(&mut self) -> String {
        let mut patterns = Vec::new();
        let mut script = format!(
            "set -e\n{}{}",
            self.devices(),
            "dmsetup status snap\n\
             sum() { echo $1 $(sha256sum /dev/mapper/$1 | cut -d' ' -f1); }\n\
             sum snap; sum orig\n"
        );
        let before =
            (sha256(&self.path("past"), &self.past), sha256(&self.path("now"), &self.origin));
        for _ in 0..40 {
            let side = self.side();
            let (block, bytes) = self.write(side);
            let device = if side == Side::Origin { "orig" } else { "snap" };
            let (skip, count) = (patterns.len() / 4096, bytes.len() / 4096);
            script += &format!(
                "dd if=/dev/ubdc of=/dev/mapper/{device} bs=4096 skip={skip} seek={block} \
                 count={count} oflag=direct status=none\n"
            );
            patterns.extend_from_slice(&bytes);
        }
        script += "dmsetup table snap; dmsetup remove snap; dmsetup remove orig\n";
        fs::write(self.path("patterns"), patterns).expect("written");
        let output = self.boot(&script).run().expect("booted").ok();
        let mut lines = output.lines();
        let status = lines.next().expect("a status").to_owned();
        assert_eq!(lines.next(), Some(format!("snap {}", before.0).as_str()), "{output}");
        assert_eq!(lines.next(), Some(format!("orig {}", before.1).as_str()), "{output}");
        let table: TableLine = lines.next().expect("a table").parse().expect("as it prints them");
        assert_eq!(table.len.get(), ORIGIN);
        status
    }

    fn devices(&self) -> String {
        let sectors = ORIGIN / 512;
        format!(
            "dmsetup create base --table \"0 {sectors} linear /dev/ubda 0\"\n\
             dmsetup create snap --table \"{}\"\n\
             dmsetup create orig --table \"0 {sectors} snapshot-origin /dev/mapper/base\"\n",
            self.line("snapshot")
        )
    }

    fn boot(&self, script: &str) -> Kernel {
        if !self.path("patterns").exists() {
            fs::write(self.path("patterns"), [0; 4096]).expect("written");
        }
        Kernel::new()
            .disk(self.path("origin"))
            .disk(self.path("store"))
            .disk(self.path("patterns"))
            .script(script)
    }

    /// Has the kernel merge until its status is what `until`, a condition of the shell on `$a`,
    /// `$m` and `$first`, the sectors allocated now, of metadata and allocated at first, says.
    fn merge_by_linux(&self, until: &str, then: &str) -> testkit::kernel::Output {
        let script = format!(
            "set -e\n\
             dmsetup create base --table \"0 {} linear /dev/ubda 0\"\n\
             first=\n\
             dmsetup create merge --table \"{}\"\n\
             while :; do\n\
               set -- $(dmsetup status merge)\n\
               a=${{4%/*}}; m=$5; [ -n \"$first\" ] || first=$a\n\
               if {until}; then break; fi\n\
             done\n\
             dmsetup status merge\n{then}",
            ORIGIN / 512,
            self.line("snapshot-merge")
        );
        self.boot(&script).run().expect("booted")
    }
}

fn label() -> Label {
    Label::new([5; 16], b"/disks/origin")
}

fn read(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

fn sha256(file: &Path, bytes: &[u8]) -> String {
    fs::write(file, bytes).expect("written");
    let line = peer("sha256sum").arg(file).ok();
    line.split(' ').next().expect("a sum").to_owned()
}

/// A store that Firn made goes to the kernel and back, used in one mode and then in the other.
fn goes_to_the_kernel_and_back(seed: u64, chunk: u64, modes: [Mode; 2]) {
    let mut table = Table::new(seed, chunk);
    table.create();
    for mode in modes {
        let ours = table.firn(mode);
        assert_eq!(table.linux(), ours, "chunk {chunk}");
    }
    table.firn(Mode::Sync);
    let kept = Store::label_of(&*table.device("store")).expect("read");
    assert_eq!(kept, Some(label()), "neither of the two has touched the label");
}

/// What Linux does not understand it leaves alone.
#[test]
fn the_kernel_refuses_a_store_that_several_snapshots_share() {
    let table = Table::new(7, 4096);
    Store::create_shared(table.device("store"), chunk(4096)).expect("made");
    let before = fs::read(table.path("store")).expect("read");
    let script = format!(
        "dmsetup create base --table \"0 {} linear /dev/ubda 0\"\n\
         dmsetup create snap --table \"{}\" && echo taken\n\
         dmesg | grep -i 'snapshot disk version'\n",
        ORIGIN / 512,
        table.line("snapshot")
    );
    let said = table.boot(&script).run().expect("booted").ok();
    assert!(!said.contains("taken") && said.contains("version 2"), "{said}");
    assert!(fs::read(table.path("store")).expect("read") == before, "it was written to");
}

#[test]
fn a_store_of_firn_goes_to_the_kernel_and_back() {
    goes_to_the_kernel_and_back(1, 4096, [Mode::Sync, Mode::Deferred]);
}

/// Areas of 32 exceptions: many of them.
#[test]
fn a_store_of_small_chunks_goes_to_the_kernel_and_back() {
    goes_to_the_kernel_and_back(2, 512, [Mode::Deferred, Mode::Async]);
}

#[test]
fn a_store_of_large_chunks_goes_to_the_kernel_and_back() {
    goes_to_the_kernel_and_back(3, 16384, [Mode::Async, Mode::Sync]);
}

#[test]
fn a_store_of_the_kernel_comes_to_firn_and_back() {
    let mut table = Table::new(4, 4096);
    // The kernel makes the store: its header is zero.
    assert_eq!(table.linux(), "0 8192 snapshot 16/12288 16");
    let ours = table.firn(Mode::Deferred);
    assert_eq!(table.linux(), ours);
    table.firn(Mode::Sync);
}

#[test]
fn a_merge_of_firn_is_finished_by_the_kernel() {
    let mut table = Table::new(5, 512);
    table.create();
    table.firn(Mode::Sync);
    let (origin, snapshot) = table.open(Mode::Sync);
    let merge = origin.merge(&snapshot).expect("begun");
    for _ in 0..9 {
        assert!(!merge.step().expect("merged").is_done());
    }
    // A write to the merging origin, wherever it goes.
    let (block, bytes) = table.write(Side::Snapshot);
    origin.write_at(&bytes, ByteOffset::new(block * 4096)).expect("written");
    origin.flush().expect("flushed");
    let ours = merge.status().to_string();
    origin.close().expect("closed");
    let sectors = ORIGIN / 512;
    let seen = table
        .boot(&format!(
            "set -e; dmsetup create base --table \"0 {sectors} linear /dev/ubda 0\"\n\
             dmsetup create snap --table \"{}\"\n\
             dmsetup status snap; sha256sum /dev/mapper/snap | cut -d' ' -f1\n",
            table.line("snapshot")
        ))
        .run()
        .expect("booted")
        .ok();
    let sum = sha256(&table.path("past"), &table.past);
    assert_eq!(seen, format!("0 {sectors} snapshot {ours}\n{sum}\n"));
    table.merge_by_linux("[ $a = $m ]", "dmsetup remove merge\n").ok();
    assert!(fs::read(table.path("origin")).expect("read") == table.past, "the merge went wrong");
    assert_eq!(Store::open(table.device("store")).expect("opened").exceptions(), 0);
}

#[test]
fn a_merge_of_the_kernel_is_finished_by_firn() {
    let mut table = Table::new(6, 512);
    table.create();
    table.firn(Mode::Sync);
    table.scatter(2000);
    let output = table.merge_by_linux("[ $a -lt $((first - 100)) ]", "power-cut\nsleep 9\n");
    assert_eq!(output.status, POWER_CUT, "{output}");
    let (origin, snapshot) = table.open(Mode::Sync);
    assert!(read(&snapshot) == table.past, "the snapshot differs in the middle of the merge");
    let left = snapshot.status().exceptions;
    assert!(left > 0, "the kernel was done already");
    let merge = origin.merge(&snapshot).expect("begun");
    assert!(read(&origin) == table.past);
    merge.run().expect("merged");
    assert_eq!(merge.status().room.allocated, merge.status().room.metadata);
    origin.close().expect("closed");
    assert!(fs::read(table.path("origin")).expect("read") == table.past);
}
