//! Snapshots that share a store: against a model, through power failures and faults, and how often
//! a chunk is copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ErrorKind, Result};
use dm_snapshot::{
    Mode, Origin, SharedStore, Snapshot, SnapshotOptions, SnapshotState, Store, ViewId, check,
};
use testkit::rng::Rng;

use crate::common::{
    Disks, SECTORS, STORE, chunk, contents, first_bytes, memory, options, range, some_sectors,
    values,
};
use crate::content::{Content, doubt};

/// Snapshots at once.
const MOST: usize = 4;

/// What the origin and its snapshots hold.
#[derive(Clone)]
struct Model {
    origin: Content,
    views: BTreeMap<u16, Content>,
    /// A snapshot whose taking or dropping failed, with what it would hold.
    unsure: Option<(Option<u16>, Content)>,
    mode: Mode,
    /// The store may be too small, or fail: it may then be invalid.
    tight: bool,
    next_value: u64,
}

struct Session {
    origin: Origin,
    store: SharedStore,
    views: BTreeMap<u16, Snapshot>,
}

fn attach(disks: &Disks, mode: Mode) -> Result<Session> {
    let origin = Origin::open(Arc::clone(&disks.base), options())?;
    let store = Store::open(Arc::clone(&disks.stores[0]))?;
    let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
    let store = origin.attach_shared("shared", store, options)?;
    let views = store.snapshots().into_iter().map(|id| Ok((id.get(), store.open(id)?)));
    let views = views.collect::<Result<_>>()?;
    Ok(Session { origin, store, views })
}

fn is_lost(session: &Session) -> bool {
    session.store.status().state == SnapshotState::Invalid
}

impl Model {
    fn new(mode: Mode) -> Self {
        Self {
            origin: Content::settled((1..=SECTORS).collect()),
            views: BTreeMap::new(),
            unsure: None,
            mode,
            tight: false,
            next_value: 10_000,
        }
    }

    fn fresh(&mut self, sectors: &std::ops::Range<u64>) -> (u64, Vec<u8>) {
        self.next_value += 1;
        let value = self.next_value;
        (value, value.to_le_bytes().repeat(range(sectors).len.as_usize() / 8))
    }

    fn step(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        match rng.within(0..100) {
            0..45 => {
                let sectors = some_sectors(rng);
                let (value, bytes) = self.fresh(&sectors);
                let done = session.origin.write_at(&bytes, range(&sectors).start);
                doubt(&mut self.origin, sectors, value, done)
            }
            45..65 => {
                let Some(id) = self.pick(rng) else { return Ok(()) };
                let sectors = some_sectors(rng);
                let (value, bytes) = self.fresh(&sectors);
                let done = session.views[&id].write_at(&bytes, range(&sectors).start);
                doubt(self.views.get_mut(&id).expect("known"), sectors, value, done)
            }
            65..75 => {
                session.origin.flush()?;
                self.origin.settle();
                Ok(())
            }
            75..82 => {
                let Some(id) = self.pick(rng) else { return Ok(()) };
                session.views[&id].flush()?;
                self.views.get_mut(&id).expect("known").settle();
                Ok(())
            }
            82..91 if self.views.len() < MOST => self.take(session),
            91..95 => {
                let Some(id) = self.pick(rng) else { return Ok(()) };
                self.unsure = Some((Some(id), self.views[&id].clone()));
                session.store.drop_snapshot(ViewId::new(id))?;
                self.unsure = None;
                self.views.remove(&id);
                let gone = session.views.remove(&id).expect("open");
                assert!(gone.read_at(&mut [0; 512], ByteOffset::ZERO).is_err(), "it is dropped");
                Ok(())
            }
            _ => {
                let sectors = some_sectors(rng);
                let place = sectors.start as usize..sectors.end as usize;
                let read = values(&session.origin, &sectors)?;
                self.origin.check(&read, place.clone(), "origin");
                if is_lost(session) {
                    return Ok(());
                }
                for (id, view) in &session.views {
                    let read = values(view, &sectors)?;
                    let content = self.views.get_mut(id).expect("known");
                    content.check(&read, place.clone(), &format!("snapshot {id}"));
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, session: &mut Session) -> Result<()> {
        self.unsure = Some((None, self.origin.moment()));
        let (id, view) = session.store.take()?;
        self.unsure = None;
        self.origin.settle();
        assert!(self.views.insert(id.get(), self.origin.moment()).is_none(), "a number twice");
        session.views.insert(id.get(), view);
        Ok(())
    }

    fn pick(&self, rng: &mut Rng) -> Option<u16> {
        let ids: Vec<u16> = self.views.keys().copied().collect();
        (!ids.is_empty()).then(|| *rng.pick(&ids))
    }

    fn compare(&mut self, session: &Session) {
        let all = 0..SECTORS as usize;
        self.origin.check(&contents(&session.origin).expect("read"), all.clone(), "origin");
        if is_lost(session) {
            return;
        }
        for (id, view) in &session.views {
            let read = contents(view).expect("read");
            let content = self.views.get_mut(id).expect("known");
            content.check(&read, all.clone(), &format!("snapshot {id}"));
        }
    }

    /// Opens what a crash left, and holds it against what the modes promise.
    fn survive(&mut self, disks: &Disks) -> std::result::Result<Session, String> {
        let text = |error: block_types::Error| error.to_string();
        let session = attach(disks, self.mode).map_err(text)?;
        let found = contents(&session.origin).map_err(text)?;
        self.origin.survive(found).map_err(|problem| format!("origin: {problem}"))?;
        if is_lost(&session) {
            self.views.clear();
            return if self.tight { Ok(session) } else { Err("the store is invalid".to_owned()) };
        }
        if let Some((id, content)) = self.unsure.take() {
            let new = session.views.keys().find(|id| !self.views.contains_key(id)).copied();
            match id {
                None => new.into_iter().for_each(|id| drop(self.views.insert(id, content.clone()))),
                Some(id) if !session.views.contains_key(&id) => drop(self.views.remove(&id)),
                Some(_) => {}
            }
        }
        let there: Vec<u16> = session.views.keys().copied().collect();
        let known: Vec<u16> = self.views.keys().copied().collect();
        if there != known {
            return Err(format!("has the snapshots {there:?}, not {known:?}"));
        }
        for (id, content) in &mut self.views {
            let read = contents(&session.views[id]).map_err(text)?;
            content.survive(read).map_err(|problem| format!("snapshot {id}: {problem}"))?;
        }
        Ok(session)
    }
}

fn made(disks: &Disks, size: u64) {
    Store::create_shared(Arc::clone(&disks.stores[0]), chunk(size)).expect("made");
}

#[test]
fn shared_stores_agree_with_a_model() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let mode = *rng.pick(&[Mode::Sync, Mode::Deferred]);
        let mut disks = memory();
        disks.stores[0] = Arc::new(MemoryDevice::new("store", ByteCount::new(4 << 20)));
        made(&disks, *rng.pick(&[512, 1024, 4096]));
        let mut model = Model::new(mode);
        for _ in 0..4 {
            let mut session = attach(&disks, mode).expect("attached");
            model.compare(&session);
            for _ in 0..60 {
                model.step(&mut session, &mut rng).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
            model.compare(&session);
            session.origin.close().expect("closed");
            let report = check(&disks.stores[0], Some(disks.base.size())).expect("checked");
            assert!(report.valid && report.errors.is_empty(), "seed {seed}: {report:?}");
        }
    }
}

/// Runs until the power fails, and looks at what may be left.
fn crash(seed: u64, mode: Mode, store: u64) -> std::result::Result<(), String> {
    let mut rng = Rng::new(seed);
    let world = CrashWorld::new(seed);
    let base = world.device("base", first_bytes());
    let device = world.device("store", vec![0; store as usize]);
    let disks = Disks { base, stores: vec![device] };
    made(&disks, *rng.pick(&[512, 1024, 4096]));
    world.crash_at(rng.within(1..500));
    let mut model = Model::new(mode);
    model.tight = store < STORE;
    let Ok(mut session) = attach(&disks, mode) else { return Ok(()) };
    for step in 0..400 {
        let done = match step {
            0 => model.take(&mut session),
            _ => model.step(&mut session, &mut rng),
        };
        if let Err(error) = done
            && !world.crashed()
        {
            let full = matches!(error.kind(), ErrorKind::OutOfSpace | ErrorKind::Stopped);
            if !(model.tight && full) {
                return Err(format!("a failure without a power failure: {error}"));
            }
            if !is_lost(&session) {
                model.unsure = None;
            }
        }
        if world.crashed() {
            break;
        }
    }
    drop(session);
    for draw in 0..3 {
        let mut model = model.clone();
        let mut images = world.images(draw).into_iter().map(|(name, bytes)| {
            Arc::new(MemoryDevice::from_bytes(name, bytes)) as Arc<dyn BlockDevice>
        });
        let base = images.next().expect("the base");
        let disks = Disks { base, stores: images.collect() };
        let problem = |problem| format!("draw {draw}: {problem}");
        let mut session = model.survive(&disks).map_err(problem)?;
        if model.tight {
            continue;
        }
        for _ in 0..15 {
            model.step(&mut session, &mut rng).map_err(|e| problem(format!("afterwards: {e}")))?;
        }
        model.compare(&session);
    }
    Ok(())
}

fn survives(seeds: u64, mode: Mode, store: u64) {
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 10 * seeds } else { seeds };
    let failed: Vec<String> = (0..seeds)
        .filter_map(|seed| {
            crash(seed, mode, store).err().map(|problem| format!("seed {seed}: {problem}"))
        })
        .take(3)
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn shared_stores_survive_power_failures_in_mode_sync() {
    survives(300, Mode::Sync, 4 << 20);
}

#[test]
fn shared_stores_survive_power_failures_in_mode_deferred() {
    survives(300, Mode::Deferred, 4 << 20);
}

#[test]
fn full_shared_stores_survive_power_failures() {
    survives(150, Mode::Sync, 40 << 10);
}

/// Every call to the store fails in turn: the origin has everything, and the snapshots are right or
/// say that they are lost.
#[test]
fn every_call_to_a_shared_store_may_fail() {
    for call in 1..=60 {
        for sticky in [false, true] {
            let mut rng = Rng::new(call);
            let disks = memory();
            made(&disks, 512);
            let plan =
                FaultPlan { fail_at: 0, calls: FaultCalls::ALL, kind: ErrorKind::Io, sticky };
            let faulty = FaultyDevice::new(Arc::clone(&disks.stores[0]), plan);
            let stores = vec![Arc::clone(&faulty) as Arc<dyn BlockDevice>];
            let broken = Disks { base: Arc::clone(&disks.base), stores };
            let mut model = Model::new(Mode::Sync);
            model.tight = true;
            let mut session = attach(&broken, Mode::Sync).expect("attached");
            model.take(&mut session).expect("taken");
            faulty.arm(FaultPlan { fail_at: call, ..plan });
            for _ in 0..80 {
                let done = model.step(&mut session, &mut rng);
                if is_lost(&session) || (done.is_err() && model.unsure.is_some()) {
                    break;
                }
            }
            faulty.disarm();
            let mut origin = model.origin.clone();
            let read = contents(&session.origin).expect("the origin is read");
            origin.check(&read, 0..SECTORS as usize, "origin");
            drop(session);
            if sticky {
                // The mark may have failed as well: then the store must not be used again.
                continue;
            }
            let mut model = model.clone();
            model.survive(&disks).unwrap_or_else(|problem| panic!("call {call}: {problem}"));
        }
    }
}

/// Four snapshots, and each chunk is copied once.
#[test]
fn one_copy_serves_all_snapshots() {
    let disks = memory();
    made(&disks, 4096);
    let session = attach(&disks, Mode::Sync).expect("attached");
    let views: Vec<Snapshot> = (0..4).map(|_| session.store.take().expect("taken").1).collect();
    let before = session.store.status().exceptions;
    let first = contents(&views[0]).expect("read");
    for number in 0..10u64 {
        session.origin.write_at(&[9; 4096], ByteOffset::new(number * 4096)).expect("written");
    }
    assert_eq!(session.store.status().exceptions - before, 10, "a chunk was copied twice");
    for view in &views {
        assert!(contents(view).expect("read") == first);
    }
    // Without the newest ones the oldest still has its copies, and nothing is copied again.
    for number in 1..4 {
        session.store.drop_snapshot(ViewId::new(number)).expect("dropped");
    }
    session.origin.write_at(&[8; 4096], ByteOffset::ZERO).expect("written");
    assert_eq!(session.store.status().exceptions - before, 13, "three entries, no copy");
    assert!(contents(&views[0]).expect("read") == first);
    session.store.drop_snapshot(ViewId::new(0)).expect("dropped");
    session.origin.write_at(&[7; 4096], ByteOffset::new(20 * 4096)).expect("written");
    let (id, _) = session.store.take().expect("taken");
    assert_eq!((id.get(), session.store.status().exceptions), (0, 1), "the store begins anew");
}

#[test]
fn what_is_for_stores_of_one_snapshot_is_refused() {
    let disks = memory();
    made(&disks, 4096);
    let open = || Store::open(Arc::clone(&disks.stores[0])).expect("opened");
    let origin = Origin::open(Arc::clone(&disks.base), options()).expect("opened");
    let refused =
        |done: Result<()>| assert_eq!(done.expect_err("refused").kind(), ErrorKind::Unsupported);
    refused(origin.attach("one", open(), SnapshotOptions::default()).map(drop));
    let asynchronous = SnapshotOptions { mode: Mode::Async, ..SnapshotOptions::default() };
    refused(origin.attach_shared("one", open(), asynchronous).map(drop));
    let store = Store::create(Arc::clone(&disks.stores[1]), chunk(4096)).expect("made");
    refused(origin.attach_shared("one", store, SnapshotOptions::default()).map(drop));
    let store = origin.attach_shared("one", open(), SnapshotOptions::default()).expect("attached");
    let (_, view) = store.take().expect("taken");
    refused(origin.drop_snapshot(&view));
    refused(origin.merge(&view).map(drop));
    assert_eq!(store.open(ViewId::new(7)).err().expect("refused").kind(), ErrorKind::NotFound);
}

/// A store that is full to the last chunk can still be relieved of its snapshots, and used again.
#[test]
fn a_full_store_can_be_relieved() {
    for chunks in 40..110u64 {
        let mut disks = memory();
        disks.stores[0] = Arc::new(MemoryDevice::new("store", ByteCount::new(chunks * 512)));
        made(&disks, 512);
        let session = attach(&disks, Mode::Sync).expect("attached");
        let (id, view) = session.store.take().expect("taken");
        let mut number = 0;
        let error = loop {
            number += 1;
            if let Err(error) = view.write_at(&[7; 512], ByteOffset::new(number * 512)) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{chunks} chunks");
        session.store.drop_snapshot(id).unwrap_or_else(|e| panic!("{chunks} chunks: {e}"));
        assert!(session.store.snapshots().is_empty());
        drop(session);
        let session = attach(&disks, Mode::Sync).expect("attached");
        let (_, view) = session.store.take().expect("taken");
        view.write_at(&[7; 512], ByteOffset::ZERO).expect("written");
    }
}
