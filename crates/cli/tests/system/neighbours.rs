//! Writes to parts of one block, many at a time, while snapshots make the block a shared one.
//!
//! One of them finds the block unshared and is on its way to it; then comes a snapshot, and the
//! next one copies the block to a new place. If the copy is made before the first one has arrived,
//! what the client was told is written is in the snapshot, and no longer in the volume.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::lab::Lab;
use crate::raw::{self, Raw, WRITE};

/// What one request writes.
const PART: usize = 4096;

/// Parts of a block.
const PARTS: u64 = 16;

/// Clients, each of which writes some parts of every block.
const CLIENTS: u64 = 4;

const BLOCKS: u64 = 4;

/// Parts that one client writes in turn, and with each of them the number of a new turn.
const OWN: u64 = BLOCKS * PARTS / CLIENTS;

/// Turns between two looks at the volume.
const STRETCH: u64 = 60;

const SNAPSHOTS: usize = 60;

#[test]
fn no_write_is_lost_beside_a_copy() {
    let lab = Lab::new(&["db"], "1M");
    let server = lab.serve("");
    let stop = AtomicBool::new(false);
    let turns = thread::scope(|scope| {
        let writing = scope.spawn(|| write(&lab, &stop));
        let _stopping = Stopping(&stop);
        for index in 0..SNAPSHOTS {
            lab.ok(&format!("snapshot create lab/db@{index}"));
            if index > 2 {
                lab.ok(&format!("snapshot delete lab/db@{}", index - 2));
            }
            assert!(!writing.is_finished(), "a writer has failed");
        }
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    assert!(turns > STRETCH, "{turns} turns");
    assert!(server.stop().success());
    lab.assert_sound();
}

/// Stops the writers however the test ends.
struct Stopping<'s>(&'s AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes until it is told to stop; the number of turns.
fn write(lab: &Lab, stop: &AtomicBool) -> u64 {
    let mut clients: Vec<_> = (0..CLIENTS).map(|index| Client::open(lab, index)).collect();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let next = turn + STRETCH;
        thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(move || (turn..next).for_each(|turn| client.take_turn(turn)));
            }
        });
        turn = next;
        for client in &mut clients {
            client.await_all();
        }
        let content = lab.content("db");
        for (index, part) in content.chunks(PART).take((BLOCKS * PARTS) as usize).enumerate() {
            let (block, held) = (index as u64 / PARTS, part[0]);
            assert!(part == bytes(turn - 1), "block {block} lost a write: {held} at turn {turn}");
        }
    }
    turn
}

/// One connection, with at most one request for each part on its way.
struct Client {
    index: u64,
    raw: Raw,
    waiting: BTreeSet<u64>,
}

impl Client {
    fn open(lab: &Lab, index: u64) -> Self {
        let raw = Raw::open(&lab.path("lab/nbd.sock"), "db");
        Self { index, raw, waiting: BTreeSet::new() }
    }

    /// Writes all of its parts once, block by block.
    fn take_turn(&mut self, turn: u64) {
        let mine = self.index;
        for part in (0..OWN).map(|part| part * CLIENTS + mine) {
            // Answers come in any order.
            while self.waiting.contains(&part) {
                self.answer();
            }
            let at = part * PART as u64;
            self.raw.send(&raw::request(WRITE, part, at, PART as u32, &bytes(turn)));
            self.waiting.insert(part);
        }
    }

    fn await_all(&mut self) {
        while !self.waiting.is_empty() {
            self.answer();
        }
    }

    fn answer(&mut self) {
        let reply = self.raw.replies(1)[0];
        assert!(reply.error == 0 && self.waiting.remove(&reply.cookie), "{reply:?}");
    }
}

/// What is written in a turn: its number, in every byte.
fn bytes(turn: u64) -> Vec<u8> {
    vec![(1 + turn % 250) as u8; PART]
}
