//! What is done to a pool while clients write to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::ByteOffset;
use nbd::Client;
use testkit::rng::Rng;

use crate::history::{History, Moment};
use crate::lab::{KIB, Lab, MIB, content, wait_for};
use crate::writer::{Shared, Writer};

/// The unit in which the pool gives space.
const BLOCK: usize = 64 * KIB as usize;

const SECTOR: usize = 512;

/// Where the counter stands, first and second, in blocks that have nothing to do with one another.
const FIRST: ByteOffset = ByteOffset::new(0);
const SECOND: ByteOffset = ByteOffset::new(37 * MIB);

/// Snapshots that are taken while the counter counts.
const CUTS: usize = 12;

/// A counter that is written to one place, and once that was answered to another.
struct Counter {
    clients: [Client; 2],
    stop: AtomicBool,
}

impl Counter {
    /// Counts until it is told to stop, or the server does not answer any more.
    fn count(&self) -> u64 {
        let mut value = 0;
        while !self.stop.load(Ordering::Relaxed) {
            value += 1;
            let sector = [value; SECTOR / 8].map(u64::to_le_bytes).concat();
            self.clients[0].write_at(&sector, FIRST).unwrap();
            self.clients[1].write_at(&sector, SECOND).unwrap();
        }
        value
    }
}

/// Stops it however a test ends, so that nobody waits for it.
struct Stopping<'c>(&'c Counter);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The counter's value at a place; the whole sector tells it.
fn value_at(device: &dyn BlockDevice, place: ByteOffset) -> u64 {
    let mut sector = [0; SECTOR];
    device.read_at(&mut sector, place).unwrap();
    let value = u64::from_le_bytes(sector[..8].try_into().unwrap());
    assert!(sector.chunks(8).all(|word| word == value.to_le_bytes()), "a torn sector");
    value
}

#[test]
fn a_snapshot_is_one_moment() {
    let lab = Lab::new(&["db", "web"], "64M");
    let server = lab.serve("");
    let clients = [lab.connect("db"), lab.connect("db")];
    let counter = Counter { clients, stop: AtomicBool::new(false) };
    let noise = new_history(2, 64 * MIB);
    let noise = Writer::start(lab.connect("web"), &noise, Rng::new(2));
    let last = thread::scope(|scope| {
        let counting = scope.spawn(|| counter.count());
        let stopping = Stopping(&counter);
        let look = lab.connect("db");
        for cut in 0..CUTS {
            let before = value_at(&look, SECOND);
            lab.ok(&format!("snapshot create lab/db@{cut}"));
            let after = value_at(&look, FIRST);
            let snapshot = lab.connect(&format!("db@{cut}"));
            let (first, second) = (value_at(&snapshot, FIRST), value_at(&snapshot, SECOND));
            assert!(first == second || first == second + 1, "{first} and {second} at no moment");
            assert!(
                before <= second,
                "{before} was answered before the snapshot, {second} is in it"
            );
            assert!(first <= after, "{first} is in the snapshot, {after} was written after it");
        }
        drop(stopping);
        counting.join().unwrap()
    });
    assert!(last > CUTS as u64, "the counter stood still");
    noise.finish();
    drop(counter);
    // All of them once more, with nobody writing: the older ones are not newer than the later ones.
    let mut earlier = 0;
    for cut in 0..CUTS {
        let snapshot = lab.connect(&format!("db@{cut}"));
        let (first, second) = (value_at(&snapshot, FIRST), value_at(&snapshot, SECOND));
        assert!((first == second || first == second + 1) && second >= earlier);
        earlier = second;
    }
    assert!(server.stop().success());
    lab.assert_sound();
}

/// A volume that is written all the time.
struct Busy<'l> {
    lab: &'l Lab,
    name: &'static str,
    shared: Shared,
    writer: Writer,
}

fn new_history(mark: u64, bytes: u64) -> Shared {
    Arc::new(Mutex::new(History::new(mark, bytes)))
}

impl<'l> Busy<'l> {
    fn start(lab: &'l Lab, name: &'static str, mark: u64) -> Self {
        let shared = new_history(mark, 8 * MIB);
        let writer = Writer::start(lab.connect(name), &shared, Rng::new(mark));
        Self { lab, name, shared, writer }
    }

    /// Lets the writer make some more requests.
    fn go_on(&self) {
        let from = self.writer.done();
        wait_for("the writer's next request", || self.writer.done() > from + 20);
    }

    /// Runs a command; between which of the writer's steps that was.
    fn during(&self, words: &str) -> Moment {
        let done = self.writer.done();
        self.lab.ok(words);
        Moment { done, begun: self.shared.lock().unwrap().begun }
    }

    /// Takes a snapshot, and returns what it holds.
    fn snapshot(&self, name: &str) -> Vec<u8> {
        let name = format!("{}@{name}", self.name);
        let moment = self.during(&format!("snapshot create lab/{name}"));
        let content = self.lab.content(&name);
        let checked = self.shared.lock().unwrap().check(&content, moment);
        checked.unwrap_or_else(|why| panic!("{name}: {why}"));
        content
    }

    /// Goes back to a snapshot that holds `content`.
    fn roll_back(&self, name: &str, content: &[u8]) {
        let done = self.writer.done();
        self.lab.ok(&format!("snapshot rollback lab/{}@{name}", self.name));
        let mut history = self.shared.lock().unwrap();
        let moment = Moment { done, begun: history.begun };
        history.rolled_back(content, moment).unwrap();
    }

    /// Reads all of it while the writer waits, and holds it against the history.
    fn check(&self) {
        let _waiting = self.writer.pause();
        let mut history = self.shared.lock().unwrap();
        let mut content = self.lab.content(self.name);
        // It may have grown since.
        assert!(content.split_off(8 * MIB as usize).iter().all(|&byte| byte == 0));
        let moment = history.now();
        history.settle(&content, moment).unwrap_or_else(|why| panic!("{}: {why}", self.name));
    }
}

#[test]
fn everything_at_once() {
    let lab = Lab::new(&["db", "web"], "8M");
    let server = lab.serve("");
    let (db, web) = (Busy::start(&lab, "db", 1), Busy::start(&lab, "web", 2));
    let mut old = Vec::new();
    for round in 0..5 {
        db.go_on();
        let monday = db.snapshot(&format!("monday{round}"));
        lab.ok(&format!("snapshot clone lab/db@monday{round} lab/clone{round}"));
        assert!(lab.content(&format!("clone{round}")) == monday, "a clone is no copy");
        db.go_on();
        let tuesday = db.snapshot(&format!("tuesday{round}"));
        compare_diff(&lab, round, &monday, &tuesday);
        assert_eq!(
            lab.json(&format!("snapshot diff lab/db@monday{round} lab/clone{round}"))
                .as_array()
                .unwrap()
                .len(),
            0
        );
        lab.ok(&format!("volume resize lab/web --size +{}M", 1 + round));
        db.roll_back(&format!("monday{round}"), &monday);
        db.check();
        db.go_on();
        db.check();
        web.check();
        lab.ok(&format!("snapshot delete lab/db@tuesday{round}"));
        old.push(monday);
    }
    assert_eq!(lab.json("volume show lab/web")["size"], 23 * MIB);
    assert_eq!(lab.connect("web").size().get(), 23 * MIB);
    for (round, monday) in old.iter().enumerate() {
        assert!(lab.content(&format!("db@monday{round}")) == *monday, "snapshot {round} changed");
        assert!(lab.content(&format!("clone{round}")) == *monday, "clone {round} changed");
    }
    delete_what_is_in_use(&lab, &db);
    db.check();
    db.writer.finish();
    web.check();
    let cut_off = web;
    lab.ok("volume delete lab/web --force");
    cut_off.writer.fail();
    assert!(server.stop().success());
    lab.assert_sound();
}

/// Every block that differs is in the difference, and a discarded one reads as zeros.
fn compare_diff(lab: &Lab, round: usize, from: &[u8], to: &[u8]) {
    let ranges = lab.json(&format!("snapshot diff lab/db@monday{round} lab/db@tuesday{round}"));
    let ranges: Vec<_> = ranges.as_array().unwrap().iter().collect();
    let number = |range: &serde_json::Value, key: &str| range[key].as_u64().unwrap() as usize;
    let covers = |at: usize| {
        ranges.iter().any(|range| {
            let start = number(range, "start");
            (start..start + number(range, "length")).contains(&at)
        })
    };
    for (index, (old, new)) in from.chunks(BLOCK).zip(to.chunks(BLOCK)).enumerate() {
        assert!(old == new || covers(index * BLOCK), "block {index} is not in {ranges:?}");
    }
    for range in ranges.iter().filter(|range| range["kind"] == "discarded") {
        let (start, length) = (number(range, "start"), number(range, "length"));
        assert!(to[start..start + length].iter().all(|&byte| byte == 0), "{range}");
    }
}

/// A volume with clients is not deleted, and those who have it open are named.
fn delete_what_is_in_use(lab: &Lab, db: &Busy<'_>) {
    let sentence = lab.refused("volume delete lab/db");
    assert!(sentence.contains("snapshot"), "{sentence}");
    let sentence = lab.refused("volume delete lab/web");
    assert!(sentence.contains("client") && sentence.contains("--force"), "{sentence}");
    let look = lab.connect("db@monday0");
    let sentence = lab.refused("snapshot delete lab/db@monday0");
    assert!(sentence.contains("client") && sentence.contains("db@monday0"), "{sentence}");
    assert_eq!(content(&look).len(), 8 * MIB as usize, "the client was not disturbed");
    drop(look);
    wait_for("the end of the client", || {
        lab.firn("snapshot delete lab/db@monday0").run().code() == Some(0)
    });
    db.go_on();
}

/// A volume grows under a client, and everybody who comes after that sees it.
#[test]
fn who_comes_later_sees_the_new_size() {
    let lab = Lab::new(&["db"], "8M");
    let server = lab.serve("");
    let early = lab.connect("db");
    early.write_at(&[1; 4096], ByteOffset::new(8 * MIB - 4096)).unwrap();
    lab.ok("volume resize lab/db --size 16M");
    let late = lab.connect("db");
    assert_eq!((early.size().get(), late.size().get()), (8 * MIB, 16 * MIB));
    late.write_at(&[2; 4096], ByteOffset::new(16 * MIB - 4096)).unwrap();
    early.write_at(&[3; 4096], ByteOffset::new(0)).unwrap();
    let all = content(&late);
    assert_eq!((all[0], all[8 * MIB as usize - 1], all[16 * MIB as usize - 1]), (3, 1, 2));
    drop((early, late));
    assert!(server.stop().success());
    assert_eq!(lab.json("volume show lab/db")["size"], 16 * MIB);
    lab.assert_sound();
}

#[test]
fn a_pool_has_one_server() {
    let lab = Lab::new(&["db"], "8M");
    let mut server = lab.serve("");
    let holder = format!("firn serve (pid {})", server.pid());
    for words in ["serve lab", "serve lab --socket other.sock", "serve lab --read-only"] {
        let sentence = lab.refused(words);
        assert!(sentence.contains(&holder), "{words}: {sentence}");
    }
    // What the second one tried has cost the first one nothing.
    assert!(server.is_running() && !lab.path("other.sock").exists());
    lab.connect("db").write_at(&[1; 512], ByteOffset::new(0)).unwrap();
    lab.ok("snapshot create lab/db@monday");
    server.kill();
    thread::sleep(Duration::from_millis(1));
    assert!(lab.serve("").stop().success());
}
