//! What was written where and when, and so what may be read.
//!
//! A volume is taken as sectors. Every request that changes it has a number, and a sector that it
//! wrote tells the number, the place and the volume in every byte; so a sector from another place,
//! another volume or another time is found and can be named. The log of a sector says what it may
//! hold at a moment of which only this is known: every request up to one number was done, none
//! after another one was begun.

use testkit::rng::Rng;

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;

/// Bytes after which a sector's content repeats: number, place, volume, checksum.
const LABEL: usize = 32;

/// The number of a request; 0 is what was there before the first.
pub(crate) type Step = u64;

/// What a request left in a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    step: Step,
    /// The step whose label it holds, 0 for zeros.
    stamp: Step,
    /// Whether it holds that for certain. A discard may as well have done nothing.
    certain: bool,
}

/// What a request does to the sectors that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Write,
    Zero,
    Discard,
}

/// Which requests a moment is after for certain, and the last one that may be before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) done: Step,
    pub(crate) begun: Step,
}

/// The history of one volume, which one client writes, one request at a time.
#[derive(Clone, Debug)]
pub(crate) struct History {
    volume: u64,
    log: Vec<Vec<Entry>>,
    /// The request that was sent last.
    pub(crate) begun: Step,
    /// The request that was answered last.
    pub(crate) done: Step,
    /// The request that was answered last before a flush that succeeded.
    pub(crate) flushed: Step,
}

impl History {
    /// A new volume of zeros; `volume` is its mark.
    pub(crate) fn new(volume: u64, bytes: u64) -> Self {
        let zeros = Entry { step: 0, stamp: 0, certain: true };
        let sectors = usize::try_from(bytes).unwrap() / SECTOR;
        Self { volume, log: vec![vec![zeros]; sectors], begun: 0, done: 0, flushed: 0 }
    }

    pub(crate) fn sectors(&self) -> usize {
        self.log.len()
    }

    /// Notes that a request on `count` sectors is about to be sent; the bytes to write.
    pub(crate) fn begin(&mut self, change: Change, first: usize, count: usize) -> Vec<u8> {
        self.begun += 1;
        let step = self.begun;
        let stamp = if change == Change::Write { step } else { 0 };
        let entry = Entry { step, stamp, certain: change != Change::Discard };
        let mut bytes = vec![0; count * SECTOR];
        for (place, sector) in (first..).zip(bytes.chunks_mut(SECTOR)) {
            self.log[place].push(entry);
            fill(sector, self.volume, place, stamp);
        }
        bytes
    }

    /// Notes the answer to the last request.
    pub(crate) fn answered(&mut self) {
        self.done = self.begun;
    }

    /// What the volume holds between two requests now.
    pub(crate) fn now(&self) -> Moment {
        Moment { done: self.done, begun: self.begun }
    }

    /// What the volume may hold after a crash now.
    pub(crate) fn after_crash(&self) -> Moment {
        Moment { done: self.flushed, begun: self.begun }
    }

    /// Holds `bytes`, the content of the whole volume at `moment`, against the log.
    pub(crate) fn check(&self, bytes: &[u8], moment: Moment) -> Result<(), String> {
        self.walk(bytes, moment).map(|_| ())
    }

    /// [`History::check`]; what was read is all that the volume can hold from now on.
    pub(crate) fn settle(&mut self, bytes: &[u8], moment: Moment) -> Result<(), String> {
        let found = self.walk(bytes, moment)?;
        let step = self.begun;
        for (log, stamp) in self.log.iter_mut().zip(found) {
            *log = vec![Entry { step, stamp, certain: true }];
        }
        (self.done, self.flushed) = (step, step);
        Ok(())
    }

    /// Notes that the volume became what `snapshot` of it holds: after every request up to
    /// `moment.done`, and before every one after `moment.begun`.
    pub(crate) fn rolled_back(&mut self, snapshot: &[u8], moment: Moment) -> Result<(), String> {
        for (place, sector) in snapshot.chunks(SECTOR).enumerate() {
            let stamp = self.stamp_of(place, sector).ok_or_else(|| describe(place, sector))?;
            let log = &mut self.log[place];
            log.retain(|entry| entry.step > moment.done);
            for entry in log.iter_mut().filter(|entry| entry.step <= moment.begun) {
                entry.certain = false;
            }
            log.insert(0, Entry { step: moment.done, stamp, certain: true });
        }
        Ok(())
    }

    /// The stamp in every sector of `bytes`, all of them possible at `moment`.
    fn walk(&self, bytes: &[u8], moment: Moment) -> Result<Vec<Step>, String> {
        assert_eq!(bytes.len(), self.sectors() * SECTOR, "the size of the volume");
        let mut found = Vec::with_capacity(self.sectors());
        for (place, sector) in bytes.chunks(SECTOR).enumerate() {
            let possible = self.possible(place, moment);
            match self.stamp_of(place, sector).filter(|stamp| possible.contains(stamp)) {
                Some(stamp) => found.push(stamp),
                None => {
                    let held = describe(place, sector);
                    return Err(format!("{held}; possible are {possible:?} at {moment:?}"));
                }
            }
        }
        Ok(found)
    }

    /// The stamps that a sector may hold at `moment`.
    fn possible(&self, place: usize, moment: Moment) -> Vec<Step> {
        let log = &self.log[place];
        let sure = log.iter().rposition(|entry| entry.certain && entry.step <= moment.done);
        let begun = log[sure.unwrap_or(0)..].iter().filter(|entry| entry.step <= moment.begun);
        begun.map(|entry| entry.stamp).collect()
    }

    /// The stamp that the content of a sector tells, if it is of this volume and place.
    fn stamp_of(&self, place: usize, sector: &[u8]) -> Option<Step> {
        let stamp = word(sector, 0);
        let mut expected = [0; SECTOR];
        fill(&mut expected, self.volume, place, stamp);
        (sector == expected).then_some(stamp)
    }
}

/// A random run of sectors: mostly small, some of them several blocks of the pool.
pub(crate) fn random_run(rng: &mut Rng, sectors: usize) -> (usize, usize) {
    let most = rng.weighted(&[(6, 16), (3, 128), (1, 400)]);
    let count = 1 + rng.index(most);
    (rng.index(sectors - count), count)
}

/// Writes what a request leaves in a sector.
fn fill(sector: &mut [u8], volume: u64, place: usize, stamp: Step) {
    if stamp == 0 {
        return sector.fill(0);
    }
    let words = [stamp, place as u64, volume];
    let check = Rng::new(stamp ^ (place as u64) << 24 ^ volume << 56).bits();
    for label in sector.chunks_mut(LABEL) {
        for (word, part) in words.into_iter().chain([check]).zip(label.chunks_mut(8)) {
            part.copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn word(sector: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(sector[index * 8..][..8].try_into().unwrap())
}

fn describe(place: usize, sector: &[u8]) -> String {
    let (stamp, at, volume) = (word(sector, 0), word(sector, 1), word(sector, 2));
    let torn =
        if sector.chunks(LABEL).all(|label| label == &sector[..LABEL]) { "" } else { "torn " };
    format!("sector {place} holds {torn}write {stamp} of sector {at} of volume {volume}")
}

#[test]
fn a_history_knows_lost_early_and_foreign_content() {
    let mut history = History::new(1, 4 * SECTOR as u64);
    let old = [history.begin(Change::Write, 0, 4)].concat();
    history.answered();
    history.flushed = history.done;
    let new = history.begin(Change::Write, 1, 2);
    let torn = [&old[..SECTOR], &new[..SECTOR], &old[2 * SECTOR..]].concat();
    let moment = history.after_crash();
    assert!(history.check(&torn, moment).is_ok());
    assert!(history.check(&old, Moment { done: 2, begun: 2 }).is_err(), "the write was lost");
    assert!(history.check(&torn, Moment { done: 1, begun: 1 }).is_err(), "the write came early");
    assert!(history.check(&vec![0; 4 * SECTOR], moment).is_err(), "a flushed write was lost");
    let moved = [&old[SECTOR..2 * SECTOR], &old[SECTOR..]].concat();
    assert!(history.check(&moved, moment).is_err(), "it is of another place");
    history.settle(&torn, moment).unwrap();
    history.begin(Change::Discard, 0, 4);
    history.answered();
    let moment = history.now();
    assert!(history.check(&torn, moment).is_ok() && history.check(&vec![0; 2048], moment).is_ok());
}
