//! A server that is killed again and again while clients write and the pool's shape changes.
//!
//! What was flushed is there, what was not is there or not, snapshots hold what they held, and no
//! crash needs anybody's help: the next server just opens the pool. `FIRN_LONG=1` for more of it.

use std::collections::BTreeMap;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use testkit::rng::Rng;
use testkit::thin_tools;

use crate::history::{History, Moment, Step};
use crate::lab::{Lab, MIB};
use crate::writer::{Shared, Writer};

const VOLUMES: [&str; 2] = ["db", "web"];
const SIZE: u64 = 8 * MIB;

/// Rounds, each of which ends with a kill.
const ROUNDS: u32 = 30;
const MANY_ROUNDS: u32 = 200;

/// Most snapshots and clones at once: all of them are read in every round.
const MOST: usize = 5;

/// A change of the pool's shape.
#[derive(Clone, Debug)]
enum Errand {
    /// A snapshot of the volume with this index.
    Snapshot { volume: usize, name: String },
    /// A clone.
    Clone { snapshot: String, name: String },
    /// A snapshot or a clone deleted.
    Delete { name: String },
}

/// How an errand ended, and when.
#[derive(Debug)]
struct Ended {
    errand: Errand,
    answered: bool,
    /// The step of the volume that was answered before it began.
    after: Step,
    /// The step that had begun when it ended, if the server lived then. Otherwise the server had
    /// done it before it was killed, or the command itself did it to what the crash had left.
    before: Option<Step>,
}

struct World {
    lab: Lab,
    volumes: Vec<Shared>,
    /// Snapshots and clones that are there, with the hash of what they hold.
    fixed: BTreeMap<String, u64>,
    rng: Rng,
    names: u32,
}

#[test]
fn nothing_flushed_is_lost_and_no_snapshot_changes() {
    let rounds = if env::var_os("FIRN_LONG").is_some() { MANY_ROUNDS } else { ROUNDS };
    let mut world = World::new(1);
    let mut ended = None;
    for _ in 0..rounds {
        ended = world.round(ended.take());
    }
    let server = world.lab.serve("");
    world.verify(ended);
    assert!(server.stop().success());
    world.lab.assert_sound();
    let steps: Vec<_> = world.volumes.iter().map(|it| it.lock().unwrap().begun).collect();
    println!("{rounds} kills, {steps:?} writes, {} names given", world.names);
    assert!(steps.iter().all(|&step| step > u64::from(rounds)), "next to nothing was written");
}

impl World {
    fn new(seed: u64) -> Self {
        let lab = Lab::new(&VOLUMES, "8M");
        let history = |mark| Arc::new(Mutex::new(History::new(mark, SIZE)));
        let volumes = (1..=VOLUMES.len() as u64).map(history).collect();
        Self { lab, volumes, fixed: BTreeMap::new(), rng: Rng::new(seed), names: 0 }
    }

    /// From one kill to the next. Returns how the errand of this round ended.
    fn round(&mut self, before: Option<Ended>) -> Option<Ended> {
        if self.rng.chance(1, 6) {
            // Killed while it begins.
            let life = Duration::from_millis(self.rng.within(1..40));
            self.lab.firn("serve lab").limit(life).run();
            thin_tools::check(&self.lab.path("lab/metadata"));
        }
        let server = self.lab.serve("");
        self.verify(before);
        let writers: Vec<_> = VOLUMES
            .iter()
            .zip(&self.volumes)
            .map(|(name, shared)| Writer::start(self.lab.connect(name), shared, self.rng.fork()))
            .collect();
        let errand = self.errand();
        let (start, life) = (self.rng.within(0..120), self.rng.within(30..200));
        let killed = AtomicBool::new(false);
        let ended = thread::scope(|scope| {
            let (world, killed) = (&*self, &killed);
            let errand = scope.spawn(move || {
                thread::sleep(Duration::from_millis(start));
                errand.map(|errand| world.run(errand, killed))
            });
            thread::sleep(Duration::from_millis(life));
            killed.store(true, Ordering::SeqCst);
            server.kill();
            errand.join().unwrap()
        });
        for writer in writers {
            writer.fail();
        }
        thin_tools::check(&self.lab.path("lab/metadata"));
        ended
    }

    /// What to do to the pool's shape in a round.
    fn errand(&mut self) -> Option<Errand> {
        let there: Vec<String> = self.fixed.keys().cloned().collect();
        let snapshots: Vec<_> = there.iter().filter(|name| name.contains('@')).collect();
        self.names += 1;
        let name = format!("n{}", self.names);
        let full = there.len() >= MOST;
        let kind = self.rng.within(0..10);
        if full || (kind < 2 && !there.is_empty()) {
            return Some(Errand::Delete { name: self.rng.pick(&there).clone() });
        }
        match kind {
            ..7 => {
                let volume = self.rng.index(VOLUMES.len());
                Some(Errand::Snapshot { volume, name: format!("{}@{name}", VOLUMES[volume]) })
            }
            7 | 8 if !snapshots.is_empty() => {
                let snapshot = (*self.rng.pick(&snapshots)).clone();
                Some(Errand::Clone { snapshot, name })
            }
            _ => None,
        }
    }

    /// Has it done, by the server or, where that is dead, by the command itself.
    fn run(&self, errand: Errand, killed: &AtomicBool) -> Ended {
        let words = match &errand {
            Errand::Snapshot { name, .. } => format!("snapshot create lab/{name}"),
            Errand::Clone { snapshot, name } => format!("snapshot clone lab/{snapshot} lab/{name}"),
            Errand::Delete { name } if name.contains('@') => format!("snapshot delete lab/{name}"),
            Errand::Delete { name } => format!("volume delete lab/{name}"),
        };
        let now = |errand: &Errand| match errand {
            Errand::Snapshot { volume, .. } => self.volumes[*volume].lock().unwrap().now(),
            _ => Moment { done: 0, begun: 0 },
        };
        let after = now(&errand).done;
        let outcome = self.lab.firn(&words).run();
        let begun = now(&errand).begun;
        let alive = !killed.load(Ordering::SeqCst);
        let answered = outcome.code() == Some(0);
        assert!(answered || !alive, "a living server refused: {outcome}");
        Ended { errand, answered, after, before: alive.then_some(begun) }
    }

    /// Holds everything that is served against what has to be there.
    fn verify(&mut self, ended: Option<Ended>) {
        let served = self.names_served();
        if let Some(ended) = ended {
            self.settle(&served, &ended);
        }
        for (name, shared) in VOLUMES.iter().zip(&self.volumes) {
            let mut history = shared.lock().unwrap();
            let moment = history.after_crash();
            let content = self.lab.content(name);
            history.settle(&content, moment).unwrap_or_else(|why| panic!("volume {name}: {why}"));
        }
        for (name, hash) in &self.fixed {
            assert_eq!(hash_of(&self.lab.content(name)), *hash, "{name} has changed");
        }
        let expected: Vec<_> = self.fixed.keys().cloned().collect();
        assert_eq!(served, expected, "what is served");
    }

    /// Snapshots and clones that the server has, by name.
    fn names_served(&self) -> Vec<String> {
        let mut names = Vec::new();
        for volume in self.lab.json("volume list lab").as_array().unwrap() {
            let name = volume["name"].as_str().unwrap();
            if !VOLUMES.contains(&name) {
                names.push(name.to_owned());
            }
        }
        for snapshot in self.lab.json("snapshot list lab").as_array().unwrap() {
            let text = |key: &str| snapshot[key].as_str().unwrap().to_owned();
            names.push(format!("{}@{}", text("volume"), text("name")));
        }
        names.sort();
        names
    }

    /// Takes note of what an errand has come to.
    fn settle(&mut self, served: &[String], ended: &Ended) {
        let there = |name: &String| served.contains(name);
        match &ended.errand {
            Errand::Snapshot { volume, name } => {
                assert!(there(name) || !ended.answered, "{name} was lost");
                if there(name) {
                    let content = self.lab.content(name);
                    let history = self.volumes[*volume].lock().unwrap();
                    let crash = history.after_crash();
                    let moment = match ended.before {
                        Some(begun) => Moment { done: ended.after, begun },
                        None => Moment { done: ended.after.min(crash.done), ..crash },
                    };
                    history.check(&content, moment).unwrap_or_else(|why| panic!("{name}: {why}"));
                    self.fixed.insert(name.clone(), hash_of(&content));
                }
            }
            Errand::Clone { snapshot, name } => {
                assert!(there(name) || !ended.answered, "{name} was lost");
                if there(name) {
                    self.fixed.insert(name.clone(), self.fixed[snapshot]);
                }
            }
            Errand::Delete { name } => {
                assert!(!there(name) || !ended.answered, "{name} came back");
                if !there(name) {
                    self.fixed.remove(name);
                }
            }
        }
    }
}

fn hash_of(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
