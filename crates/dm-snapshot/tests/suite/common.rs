//! A model of an origin with snapshots: what every sector of each of them may hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use dm_snapshot::{
    ChunkSize, Merge, Mode, Origin, OriginOptions, Snapshot, SnapshotOptions, SnapshotState, Store,
};
use testkit::rng::Rng;

use crate::content::{Content, doubt};

/// Bytes of what the model tells apart: what a disk writes whole or not at all.
pub(crate) const SECTOR: u64 = 512;
/// Sectors of the origins here: not a whole number of large chunks.
pub(crate) const SECTORS: u64 = 389;
/// Stores, and so snapshots at once.
pub(crate) const STORES: u32 = 3;
/// Bytes of a store that has room for everything, with chunks of 4 KiB and below.
pub(crate) const STORE: u64 = 300 << 10;

/// A snapshot of the model.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) content: Content,
    pub(crate) mode: Mode,
    /// Whether it was seen to be invalid.
    pub(crate) lost: bool,
}

/// An origin and its snapshots, each by the number of its store.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) origin: Content,
    pub(crate) snapshots: BTreeMap<u32, Past>,
    /// A snapshot whose taking or dropping failed: its store may be anything.
    unsure: Option<u32>,
    /// The snapshot that is being merged: the origin has its content.
    pub(crate) merging: Option<Merging>,
    /// Stores may be too small: a snapshot may be lost before that was seen.
    pub(crate) tight: bool,
    /// Whether the origin was closed, or tried to, and did not crash.
    pub(crate) closed: bool,
    modes: Vec<Mode>,
    chunks: Vec<u64>,
    next_value: u64,
}

/// A merge of the model.
#[derive(Clone, Debug)]
pub(crate) struct Merging {
    pub(crate) number: u32,
    past: Past,
    /// What the origin held, while it is not known whether the merge has begun.
    before: Option<Content>,
}

/// The devices.
#[derive(Clone)]
pub(crate) struct Disks {
    pub(crate) base: Arc<dyn BlockDevice>,
    pub(crate) stores: Vec<Arc<dyn BlockDevice>>,
}

/// The origin that is open on them, and its snapshots.
pub(crate) struct Session {
    pub(crate) disks: Disks,
    pub(crate) origin: Origin,
    pub(crate) snapshots: BTreeMap<u32, Snapshot>,
    pub(crate) merge: Option<Merge>,
}

pub(crate) fn chunk(bytes: u64) -> ChunkSize {
    ChunkSize::new(ByteCount::new(bytes)).expect("a chunk size")
}

/// What the origins here hold at first.
pub(crate) fn first_bytes() -> Vec<u8> {
    (1..=SECTORS).flat_map(|value| value.to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}

/// Disks in memory.
pub(crate) fn memory() -> Disks {
    let stores = (0..STORES).map(|number| {
        let size = ByteCount::new(STORE);
        Arc::new(MemoryDevice::new(format!("store{number}"), size)) as Arc<dyn BlockDevice>
    });
    Disks {
        base: Arc::new(MemoryDevice::from_bytes("base", first_bytes())),
        stores: stores.collect(),
    }
}

/// Options under which runs repeat exactly, with a small buffer.
pub(crate) fn options() -> OriginOptions {
    OriginOptions { buffer: ByteCount::new(16 << 12), background: false, workers: 1 }
}

pub(crate) fn range(sectors: &Range<u64>) -> ByteRange {
    let start = ByteOffset::new(sectors.start * SECTOR);
    ByteRange::new(start, ByteCount::new((sectors.end - sectors.start) * SECTOR))
}

/// The values of sectors of a device.
pub(crate) fn values(device: &dyn BlockDevice, sectors: &Range<u64>) -> Result<Vec<u64>> {
    let mut bytes = vec![0; range(sectors).len.as_usize()];
    device.read_at(&mut bytes, range(sectors).start)?;
    let value = |(number, sector): (usize, &[u8])| {
        let value = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
        let whole = sector.chunks(8).all(|word| word == value.to_le_bytes());
        assert!(whole, "sector {} of {} is torn", number as u64 + sectors.start, device.name());
        value
    };
    Ok(bytes.chunks(SECTOR as usize).enumerate().map(value).collect())
}

pub(crate) fn contents(device: &dyn BlockDevice) -> Result<Vec<u64>> {
    values(device, &(0..device.size().sectors()))
}

impl Session {
    pub(crate) fn new(disks: Disks) -> Result<Self> {
        let origin = Origin::open(Arc::clone(&disks.base), options())?;
        Ok(Self { disks, origin, snapshots: BTreeMap::new(), merge: None })
    }

    /// Attaches what the store of that number holds.
    pub(crate) fn attach(&mut self, number: u32, mode: Mode, store: Store) -> Result<()> {
        let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
        let snapshot = self.origin.attach(format!("snapshot{number}"), store, options)?;
        self.snapshots.insert(number, snapshot);
        Ok(())
    }
}

impl Model {
    /// A model whose snapshots have one of these modes and chunk sizes.
    pub(crate) fn new(modes: &[Mode], chunks: &[u64]) -> Self {
        Self {
            origin: Content::settled((1..=SECTORS).collect()),
            snapshots: BTreeMap::new(),
            unsure: None,
            merging: None,
            tight: false,
            closed: false,
            modes: modes.to_vec(),
            chunks: chunks.to_vec(),
            next_value: 10_000,
        }
    }

    /// Does something at random.
    pub(crate) fn step(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        let done = match rng.within(0..100) {
            0..45 => self.write_origin(session, rng),
            45..50 => self.zero_origin(session, rng),
            50..53 => self.discard_origin(session, rng),
            53..70 => self.write_snapshot(session, rng),
            70..82 => self.flush_origin(session),
            82..88 => self.flush_snapshot(session, rng),
            88..95 => self.take(session, rng),
            95..97 => self.drop_snapshot(session, rng),
            97..98 => self.begin_merge(session, rng),
            _ => self.compare_some(session, rng),
        };
        let done = done.and_then(|()| {
            if session.merge.is_some() && rng.chance(1, 5) { self.go_on(session) } else { Ok(()) }
        });
        if done.is_ok() {
            self.look_for_lost(session);
        }
        done
    }

    /// Notes which snapshots are invalid now.
    pub(crate) fn look_for_lost(&mut self, session: &Session) {
        for (number, past) in &mut self.snapshots {
            let snapshot = session.snapshots.get(number);
            past.lost |= snapshot.is_some_and(|one| one.status().state == SnapshotState::Invalid);
        }
    }

    /// Begins to merge a snapshot.
    pub(crate) fn begin_merge(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        self.look_for_lost(session);
        let Some((number, snapshot)) = pick(session, rng) else { return Ok(()) };
        if self.merging.is_some() || self.snapshots[&number].lost {
            return Ok(());
        }
        let past = self.snapshots.remove(&number).expect("known");
        let before = std::mem::replace(&mut self.origin, past.content.clone());
        self.merging = Some(Merging { number, past, before: Some(before) });
        let merge = session.origin.merge(snapshot);
        if self.tight && merge.is_err() {
            // Draining the buffer filled the store: nothing was begun.
            let merging = self.merging.take().expect("begun");
            self.origin = merging.before.expect("not begun");
            self.snapshots.insert(number, merging.past);
        }
        session.merge = Some(merge?);
        session.snapshots.remove(&number);
        self.origin.settle();
        self.merging.as_mut().expect("begun").before = None;
        Ok(())
    }

    /// Merges a little.
    pub(crate) fn go_on(&mut self, session: &mut Session) -> Result<()> {
        let Some(merge) = &session.merge else { return Ok(()) };
        if merge.step()?.is_done() {
            session.merge = None;
            self.merging = None;
        }
        Ok(())
    }

    /// Bytes for these sectors, and the value of each.
    fn fresh(&mut self, sectors: &Range<u64>) -> (u64, Vec<u8>) {
        self.next_value += 1;
        let value = self.next_value;
        (value, value.to_le_bytes().repeat(range(sectors).len.as_usize() / 8))
    }

    pub(crate) fn write_origin(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let sectors = some_sectors(rng);
        let (value, bytes) = self.fresh(&sectors);
        let done = session.origin.write_at(&bytes, range(&sectors).start);
        doubt(&mut self.origin, sectors, value, done)
    }

    fn zero_origin(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let sectors = some_sectors(rng);
        let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
        let done = session.origin.zero(range(&sectors), mode);
        doubt(&mut self.origin, sectors, 0, done)
    }

    fn discard_origin(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let sectors = some_sectors(rng);
        if let Err(error) = session.origin.discard(range(&sectors)) {
            return doubt(&mut self.origin, sectors, 0, Err(error));
        }
        let found = match values(&session.origin, &sectors) {
            Ok(found) => found,
            Err(error) => return doubt(&mut self.origin, sectors, 0, Err(error)),
        };
        for (sector, value) in sectors.zip(found) {
            let before = self.origin.live[sector as usize];
            assert!(value == 0 || value == before, "a discard left {value} in sector {sector}");
            self.origin.possible[sector as usize].push(0);
            self.origin.set(sector..sector + 1, value);
        }
        Ok(())
    }

    fn write_snapshot(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let Some((number, snapshot)) = pick(session, rng) else { return Ok(()) };
        let sectors = some_sectors(rng);
        let (value, bytes) = self.fresh(&sectors);
        let done = snapshot.write_at(&bytes, range(&sectors).start);
        let Some(past) = self.snapshots.get_mut(&number) else { return Ok(()) };
        doubt(&mut past.content, sectors, value, done)
    }

    pub(crate) fn flush_origin(&mut self, session: &Session) -> Result<()> {
        session.origin.flush()?;
        self.origin.settle();
        Ok(())
    }

    fn flush_snapshot(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let Some((number, snapshot)) = pick(session, rng) else { return Ok(()) };
        snapshot.flush()?;
        if let Some(past) = self.snapshots.get_mut(&number) {
            past.content.settle();
        }
        Ok(())
    }

    /// Takes a snapshot with a store that is free.
    pub(crate) fn take(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        if self.merging.is_some() {
            return Ok(());
        }
        let free = |number: &u32| !self.snapshots.contains_key(number);
        let Some(number) = (0..STORES).find(free) else { return Ok(()) };
        let (mode, size) = (*rng.pick(&self.modes), *rng.pick(&self.chunks));
        self.unsure = Some(number);
        let device = Arc::clone(&session.disks.stores[number as usize]);
        let store = Store::recreate(device, chunk(size))?;
        session.attach(number, mode, store)?;
        self.unsure = None;
        self.origin.settle();
        let past = Past { content: self.origin.moment(), mode, lost: false };
        self.snapshots.insert(number, past);
        Ok(())
    }

    fn drop_snapshot(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        let Some((number, snapshot)) = pick(session, rng) else { return Ok(()) };
        self.unsure = Some(number);
        session.origin.drop_snapshot(snapshot)?;
        self.unsure = None;
        session.snapshots.remove(&number);
        self.snapshots.remove(&number);
        Ok(())
    }

    fn compare_some(&mut self, session: &Session, rng: &mut Rng) -> Result<()> {
        let sectors = some_sectors(rng);
        let place = sectors.start as usize..sectors.end as usize;
        let read = values(&session.origin, &sectors)?;
        self.origin.check(&read, place.clone(), "origin");
        for (number, snapshot) in &session.snapshots {
            let past = self.snapshots.get_mut(number).expect("known");
            if !past.lost {
                let read = values(snapshot, &sectors)?;
                past.content.check(&read, place.clone(), snapshot.name());
            }
        }
        Ok(())
    }

    /// Holds everything that is open against the model.
    pub(crate) fn compare_live(&mut self, session: &Session) {
        let all = 0..SECTORS as usize;
        let read = contents(&session.origin).expect("read");
        self.origin.check(&read, all.clone(), "origin");
        for (number, snapshot) in &session.snapshots {
            let past = self.snapshots.get_mut(number).expect("known");
            if !past.lost {
                let read = contents(snapshot).expect("read");
                past.content.check(&read, all.clone(), snapshot.name());
            }
        }
    }

    /// Opens what a crash left, holds it against what the modes promise, and goes on from what it
    /// finds.
    pub(crate) fn survive(&mut self, disks: &Disks) -> std::result::Result<Session, String> {
        let text = |error: block_types::Error| error.to_string();
        let mut session = Session::new(disks.clone()).map_err(text)?;
        if let Some(number) = self.unsure.take() {
            self.snapshots.remove(&number);
        }
        self.resume_merge(&mut session)?;
        if session.snapshots.is_empty() {
            let found = contents(&session.origin).map_err(text)?;
            self.origin.survive(found).map_err(|problem| format!("origin: {problem}"))?;
        }
        let mut lost = Vec::new();
        for (&number, past) in &mut self.snapshots {
            let store = Store::open(Arc::clone(&disks.stores[number as usize]))
                .map_err(|error| format!("snapshot {number}: {error}"))?;
            let must_be_lost = (past.mode == Mode::Async && !self.closed) || past.lost;
            if store.is_valid() == must_be_lost && (must_be_lost || !self.tight) {
                let is = if must_be_lost { "valid" } else { "invalid" };
                return Err(format!("snapshot {number}, {}: is {is}", past.mode));
            }
            if !store.is_valid() {
                lost.push(number);
                continue;
            }
            session.attach(number, past.mode, store).map_err(text)?;
            let read = contents(&session.snapshots[&number]).map_err(text)?;
            past.content
                .survive(read)
                .map_err(|problem| format!("snapshot {number}, {}: {problem}", past.mode))?;
        }
        lost.iter().for_each(|number| drop(self.snapshots.remove(number)));
        self.merge_again(&mut session)?;
        Ok(session)
    }

    /// Attaches the snapshot whose merge was cut short, and holds it against the model.
    fn resume_merge(&mut self, session: &mut Session) -> std::result::Result<(), String> {
        let Some(merging) = &mut self.merging else { return Ok(()) };
        let number = merging.number;
        let device = Arc::clone(&session.disks.stores[number as usize]);
        let store = Store::open(device).map_err(|error| format!("merging: {error}"))?;
        if let Some(before) = merging.before.take()
            && !store.is_valid()
        {
            // A snapshot of mode async was lost before the merge began.
            self.origin = before;
            self.merging = None;
            return Ok(());
        }
        let mode = merging.past.mode;
        session.attach(number, mode, store).map_err(|error| format!("merging: {error}"))?;
        let read = contents(&session.snapshots[&number]).map_err(|error| error.to_string())?;
        self.origin.survive(read).map_err(|problem| format!("merging {number}: {problem}"))
    }

    /// Begins the merge again that was cut short.
    fn merge_again(&mut self, session: &mut Session) -> std::result::Result<(), String> {
        let Some(merging) = &self.merging else { return Ok(()) };
        let snapshot = session.snapshots.remove(&merging.number).expect("attached");
        let merge = session.origin.merge(&snapshot).map_err(|error| format!("merging: {error}"))?;
        session.merge = Some(merge);
        Ok(())
    }

    /// Opens what was closed: nothing is lost, and all of it is there.
    pub(crate) fn reopen(&mut self, disks: &Disks) -> Session {
        self.origin.settle();
        let mut session = Session::new(disks.clone()).expect("opened");
        self.resume_merge(&mut session).expect("attached");
        for (&number, past) in &mut self.snapshots {
            past.content.settle();
            let device = Arc::clone(&disks.stores[number as usize]);
            let store = Store::open(device.clone()).expect("opened");
            assert_eq!(store.is_valid(), !past.lost);
            let report = dm_snapshot::check(&device, Some(disks.base.size())).expect("checked");
            assert!(report.errors.is_empty() && report.hints.is_empty(), "{report:?}");
            session.attach(number, past.mode, store).expect("attached");
        }
        self.merge_again(&mut session).expect("merging");
        self.compare_live(&session);
        session
    }
}

fn pick<'s>(session: &'s Session, rng: &mut Rng) -> Option<(u32, &'s Snapshot)> {
    let numbers: Vec<u32> = session.snapshots.keys().copied().collect();
    if numbers.is_empty() {
        return None;
    }
    let number = *rng.pick(&numbers);
    Some((number, &session.snapshots[&number]))
}

/// A random run of sectors: few, many, or whole chunks of 4 KiB.
pub(crate) fn some_sectors(rng: &mut Rng) -> Range<u64> {
    let (start, len) = match rng.within(0..4) {
        0 | 1 => (rng.within(0..SECTORS), rng.within(1..9)),
        2 => (rng.within(0..SECTORS), rng.within(1..60)),
        _ => (rng.within(0..SECTORS / 8) * 8, rng.within(1..5) * 8),
    };
    start..(start + len).min(SECTORS)
}

impl Model {
    /// Whether a change of the set has failed half-way.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure.is_some() || self.merging.is_some()
    }

    /// Forgets lost snapshots whose store failed for good: it could not be marked.
    pub(crate) fn forget_unmarked(&mut self, disks: &Disks) {
        self.snapshots.retain(|number, past| {
            let store = Store::open(Arc::clone(&disks.stores[*number as usize]));
            !(past.lost && store.is_ok_and(|store| store.is_valid()))
        });
    }
}
