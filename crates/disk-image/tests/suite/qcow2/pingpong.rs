//! QEMU and Firn by turns on one image: writes, zeros, snapshots, reverts. 300 rounds in all.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::common::{Folder, contents, same};
use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange};
use disk_image::qcow2::Image;
use testkit::rng::Rng;

const SIZE: u64 = 1 << 20;

struct Game {
    folder: Folder,
    rng: Rng,
    disk: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    rounds: u64,
    taken: u64,
}

enum Move {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Create(String),
    Delete(String),
    Revert(String),
}

impl Game {
    fn new(layout: &str, seed: u64) -> Self {
        let folder = Folder::new();
        folder.img(&format!("create -q -f qcow2 -o {layout} a.qcow2 {SIZE}"));
        let (disk, snapshots) = (vec![0; SIZE as usize], BTreeMap::new());
        Self { folder, rng: Rng::new(seed), disk, snapshots, rounds: 0, taken: 0 }
    }

    fn choose(&mut self) -> Move {
        let start = self.rng.within(0..SIZE / 512) * 512;
        let len = (self.rng.within(1..400) * 512).min(SIZE - start);
        let names: Vec<_> = self.snapshots.keys().cloned().collect();
        match self.rng.within(0..20) {
            0..2 if names.len() < 4 => {
                self.taken += 1;
                Move::Create(format!("s{}", self.taken))
            }
            2 if !names.is_empty() => Move::Delete(self.rng.pick(&names).clone()),
            3 if !names.is_empty() => Move::Revert(self.rng.pick(&names).clone()),
            4..8 => Move::Zero(start, len),
            _ => Move::Write(start, len, self.rng.within(1..256) as u8),
        }
    }

    fn note(&mut self, what: &Move) {
        match what {
            Move::Write(start, len, byte) => {
                self.disk[*start as usize..(start + len) as usize].fill(*byte);
            }
            Move::Zero(start, len) => self.disk[*start as usize..(start + len) as usize].fill(0),
            Move::Create(name) => drop(self.snapshots.insert(name.clone(), self.disk.clone())),
            Move::Delete(name) => drop(self.snapshots.remove(name)),
            Move::Revert(name) => self.disk.clone_from(&self.snapshots[name]),
        }
    }

    fn qemu(&mut self) {
        let mut commands = Vec::new();
        for _ in 0..3 {
            let what = self.choose();
            match &what {
                Move::Write(start, len, byte) => {
                    commands.push(format!("write -q -P {byte} {start} {len}"));
                }
                Move::Zero(start, len) => commands.push(format!("write -q -z -u {start} {len}")),
                Move::Create(name) => self.snapshot(&mut commands, &format!("-c {name}")),
                Move::Delete(name) => self.snapshot(&mut commands, &format!("-d {name}")),
                Move::Revert(name) => self.snapshot(&mut commands, &format!("-a {name}")),
            }
            self.note(&what);
        }
        if !commands.is_empty() {
            self.folder.io("a.qcow2", &commands);
        }
    }

    fn snapshot(&self, before: &mut Vec<String>, what: &str) {
        if !before.is_empty() {
            self.folder.io("a.qcow2", &std::mem::take(before));
        }
        self.folder.img(&format!("snapshot {what} a.qcow2"));
    }

    fn firn(&mut self) {
        let image = self.folder.open("a.qcow2");
        self.compare(&image);
        for _ in 0..6 {
            let what = self.choose();
            match &what {
                Move::Write(start, len, byte) => {
                    image.write_at(&vec![*byte; *len as usize], ByteOffset::new(*start))
                }
                Move::Zero(start, len) => {
                    let range = ByteRange::new(ByteOffset::new(*start), ByteCount::new(*len));
                    let may_unmap = self.rng.chance(1, 2);
                    image.zero(range, ZeroMode { may_unmap, only_if_fast: false })
                }
                Move::Create(name) => image.create_snapshot(name, SystemTime::now()).map(drop),
                Move::Delete(name) => image.delete_snapshot(name),
                Move::Revert(name) => image.revert_to_snapshot(name),
            }
            .expect("done");
            self.note(&what);
        }
        same(&contents(&*image), &self.disk);
        if self.rng.chance(1, 2) { image.close() } else { image.flush() }.expect("closed");
    }

    fn compare(&self, image: &std::sync::Arc<Image>) {
        same(&contents(&**image), &self.disk);
        for (name, content) in &self.snapshots {
            same(&contents(&*image.open_snapshot(name).expect("opened")), content);
        }
    }

    fn play(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.rounds += 1;
            self.qemu();
            self.firn();
            self.folder.check("a.qcow2");
            if self.rounds.is_multiple_of(10) {
                same(&self.folder.content("a.qcow2", ""), &self.disk);
                for (name, content) in &self.snapshots {
                    same(&self.folder.content("a.qcow2", &format!("-l {name}")), content);
                }
            }
        }
    }
}

#[test]
fn qemu_and_firn_by_turns() {
    let layouts = [
        "cluster_size=64k",
        "cluster_size=4k,refcount_bits=8",
        "extended_l2=on,cluster_size=32k",
        "compat=0.10,cluster_size=16k",
        "cluster_size=512",
        "lazy_refcounts=on,refcount_bits=64",
    ];
    std::thread::scope(|scope| {
        for (seed, layout) in (0..).zip(layouts) {
            scope.spawn(move || Game::new(layout, seed).play(50));
        }
    });
}
