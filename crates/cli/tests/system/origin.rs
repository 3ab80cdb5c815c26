//! A served origin with its snapshots that is killed again and again under load.
//!
//! What was flushed is there, the snapshots hold what they held, and what was written to them and
//! flushed; a merge goes on where it was. `FIRN_LONG=1` for more of it.

use std::env;
use std::fs;
use std::thread;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::ByteOffset;
use nbd::{Client, Uri};
use testkit::peer::{Outcome, peer};
use testkit::rng::Rng;
use testkit::server::{Listens, Server};

use crate::lab::{FIRN, Lab, MIB, Served, content};

/// The disk; fio has the second half of it.
const SIZE: u64 = 16 * MIB;
const HALF: u64 = SIZE / 2;
const BLOCK: u64 = 4096;

/// Rounds, each of which ends with a kill.
const ROUNDS: u64 = 20;
const MANY_ROUNDS: u64 = 100;

/// A disk with snapshots, and what they are to hold.
struct Disk {
    lab: Lab,
    rng: Rng,
    /// By name.
    pasts: Vec<(&'static str, Vec<u8>)>,
}

fn rounds() -> u64 {
    if env::var_os("FIRN_LONG").is_some() { MANY_ROUNDS } else { ROUNDS }
}

impl Disk {
    /// A disk of noise.
    fn new(seed: u64) -> Self {
        let disk = Self { lab: Lab::new(&[], "1M"), rng: Rng::new(seed), pasts: Vec::new() };
        let mut bytes = vec![0; SIZE as usize];
        Rng::new(seed + 1).fill(&mut bytes);
        fs::write(disk.lab.path("disk.img"), bytes).unwrap();
        disk
    }

    /// Takes a snapshot of what the origin holds now.
    fn take(&mut self, name: &'static str, words: &str) {
        let now = fs::read(self.lab.path("disk.img")).unwrap();
        self.lab.ok(&format!("cow create disk.img --store {name}.cow {words}"));
        self.pasts.push((name, now));
    }

    fn serve(&self) -> Served {
        let disk = self.lab.path("disk.img");
        let socket = self.lab.path("disk.img.sock");
        let words = ["serve".as_ref(), disk.as_os_str()];
        let server = Server::start(FIRN, words, Listens::Unix(socket));
        Served::watch(server.unwrap_or_else(|error| panic!("{error}")))
    }

    fn uri(&self, export: &str) -> String {
        Uri::unix(self.lab.path("disk.img.sock"), export).to_string()
    }

    fn connect(&self, export: &str) -> Client {
        Client::connect(&self.uri(export).parse().unwrap()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Holds the snapshots against what they are to hold.
    #[track_caller]
    fn verify(&self) {
        for (name, past) in &self.pasts {
            let found = content(&self.connect(&format!("disk.img@{name}")));
            let wrong = found.chunks(512).zip(past.chunks(512)).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "sector of {name} that has changed");
        }
    }

    /// Writes to a snapshot, which is then to hold it.
    fn write_past(&mut self, number: usize, value: u8) {
        let (name, past) = &mut self.pasts[number];
        let at = self.rng.within(0..SIZE / BLOCK) * BLOCK;
        let client = Client::connect(
            &Uri::unix(self.lab.path("disk.img.sock"), *name).to_string().parse().unwrap(),
        )
        .unwrap();
        client.write_at(&[value; BLOCK as usize], ByteOffset::new(at)).unwrap();
        client.flush().unwrap();
        past[at as usize..][..BLOCK as usize].fill(value);
    }

    /// fio writes to the second half, and verifies what it wrote, until its server is gone.
    fn fio(&self, life: Duration, kill: impl FnOnce()) -> Outcome {
        let uri = self.uri("disk.img");
        let words = format!(
            "--name=w --ioengine=nbd --uri={uri} --rw=randwrite --bs=4k --iodepth=16 \
             --offset={HALF} --size={HALF} --verify=crc32c --verify_backlog=64 --verify_fatal=1 \
             --fsync=50 --randrepeat=0 --loops=1000"
        );
        let fio = peer("fio").in_folder(self.lab.folder()).args(words.split_whitespace());
        thread::scope(|scope| {
            let running = scope.spawn(|| fio.limit(Duration::from_secs(30)).run());
            thread::sleep(life);
            kill();
            running.join().unwrap()
        })
    }
}

/// Blocks of the first half with the number of the round in them: written and flushed, or written
/// only.
struct Marks {
    flushed: u64,
    written: u64,
}

impl Marks {
    fn check(&self, origin: &Client) {
        let value = |at: u64| {
            let mut sector = [0; 512];
            origin.read_at(&mut sector, ByteOffset::new(at)).unwrap();
            u64::from_le_bytes(sector[..8].try_into().unwrap())
        };
        if self.flushed > 0 {
            assert_eq!(value(0), self.flushed, "what was flushed is lost");
            assert_eq!(value(HALF - BLOCK), self.flushed, "what was flushed is lost");
            let later = value(BLOCK);
            assert!(later == self.flushed || later == self.written, "neither old nor new: {later}");
        }
    }

    fn write(&mut self, origin: &Client, round: u64) {
        let put = |at: u64, value: u64| {
            let bytes = value.to_le_bytes().repeat(BLOCK as usize / 8);
            origin.write_at(&bytes, ByteOffset::new(at)).unwrap();
        };
        put(0, round);
        put(BLOCK, round);
        put(HALF - BLOCK, round);
        origin.flush().unwrap();
        self.flushed = round;
        self.written = round + 1_000_000;
        put(BLOCK, self.written);
    }
}

#[test]
fn a_killed_server_loses_neither_what_was_flushed_nor_a_snapshot() {
    let mut disk = Disk::new(7);
    disk.take("one", "--mode sync --chunk-size 4K");
    disk.take("two", "--mode deferred --chunk-size 16K --size 1M");
    let mut marks = Marks { flushed: 0, written: 0 };
    for round in 1..=rounds() {
        let server = disk.serve();
        let origin = disk.connect("disk.img");
        marks.check(&origin);
        disk.verify();
        disk.write_past(round as usize % 2, round as u8);
        marks.write(&origin, round);
        let life = Duration::from_millis(disk.rng.within(150..500));
        let outcome = disk.fio(life, || server.kill());
        assert!(!outcome.text().contains("verify"), "round {round}: {outcome}");
    }
    let server = disk.serve();
    marks.check(&disk.connect("disk.img"));
    disk.verify();
    let status = disk.lab.json("cow status disk.img");
    for snapshot in status["snapshots"].as_array().unwrap() {
        assert_eq!(snapshot["state"], "active", "{snapshot}");
        assert!(snapshot["exceptions"].as_u64().unwrap() > 100, "{snapshot}");
    }
    assert!(server.stop().success());
}

/// While it is merged the origin reads as the snapshot, whatever is killed; what is written to it
/// and flushed stays; another snapshot keeps what it has.
#[test]
fn a_killed_merge_goes_on() {
    let mut disk = Disk::new(11);
    disk.take("other", "--mode sync");
    disk.take("past", "--mode deferred --chunk-size 4K");
    let server = disk.serve();
    let origin = disk.connect("disk.img");
    // Every second block, backwards: no two exceptions are neighbours.
    for block in (0..SIZE / BLOCK / 2).rev() {
        origin.write_at(&[1; BLOCK as usize], ByteOffset::new(2 * block * BLOCK)).unwrap();
    }
    origin.flush().unwrap();
    drop(origin);
    let (_, mut now) = disk.pasts.pop().unwrap();
    disk.lab.ok("cow merge past.cow --detach");
    let mut server = Some(server);
    for round in 1..=8u8 {
        let running = server.take().unwrap_or_else(|| disk.serve());
        let origin = disk.connect("disk.img");
        assert!(content(&origin) == now, "round {round}: the origin is not what the snapshot was");
        let at = disk.rng.within(0..SIZE / BLOCK) * BLOCK;
        origin.write_at(&[round; BLOCK as usize], ByteOffset::new(at)).unwrap();
        origin.flush().unwrap();
        now[at as usize..][..BLOCK as usize].fill(round);
        assert!(content(&origin) == now, "round {round}: after a write");
        disk.verify();
        running.kill();
    }
    // Whatever is left is merged by the command, which nobody serves now.
    if disk.lab.path("past.cow").exists() {
        disk.lab.ok("cow merge past.cow");
    }
    assert!(fs::read(disk.lab.path("disk.img")).unwrap() == now);
    let server = disk.serve();
    disk.verify();
    assert_eq!(disk.lab.json("cow status disk.img")["snapshots"].as_array().unwrap().len(), 1);
    assert!(server.stop().success());
}
