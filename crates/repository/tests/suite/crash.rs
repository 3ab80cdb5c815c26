//! Power failures over random trees and random operations, by seed.

use std::collections::BTreeSet;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ErrorKind, Result};
use jobs::Monitor;
use repository::{CollectOptions, Repository};
use testkit::rng::Rng;
use volume::{NodeName, SnapshotName};

use crate::common::{Model, Sectors, name, open};
use crate::world::CrashFolder;

/// Sectors of a disk.
const SECTORS: usize = 128;

/// A repository, what it should hold, and what the operation on its way would make of that.
struct Session {
    folder: Arc<CrashFolder>,
    repository: Arc<Repository>,
    model: Model,
    /// The model as it is if the operation that was cut short has happened.
    next: Option<Model>,
    rng: Rng,
    values: u64,
}

impl Session {
    /// One random operation; fails when the power does.
    fn step(&mut self) -> Result<()> {
        self.next = None;
        match self.rng.within(0..20) {
            0..=1 => self.create(),
            2..=9 => self.write(),
            10..=11 => self.flush(),
            12..=13 => self.snapshot(),
            14 => self.clone_disk(),
            15..=16 => self.delete(),
            17..=18 => self.collect(),
            _ => self.repository.close_idle(),
        }
    }

    fn create(&mut self) -> Result<()> {
        let new = name(&format!("d{}", self.rng.within(0..100)));
        if self.model.0.contains_key(&new) || self.model.0.len() > 6 {
            return Ok(());
        }
        self.change(|model| {
            model.0.insert(new.clone(), Sectors::new(SECTORS));
        });
        let size = ByteCount::from_sectors(SECTORS as u64);
        self.repository.create_disk(&new, size)?;
        self.happened();
        Ok(())
    }

    /// Notes what the repository will hold once the operation has happened.
    fn change(&mut self, change: impl FnOnce(&mut Model)) {
        let mut next = self.model.clone();
        change(&mut next);
        self.next = Some(next);
    }

    fn happened(&mut self) {
        self.model = self.next.take().expect("a change was noted");
    }

    /// A disk that can be written.
    fn writable(&mut self) -> Option<NodeName> {
        let name = self.model.pick(&mut self.rng)?;
        name.snapshot.is_none().then_some(name)
    }

    fn write(&mut self) -> Result<()> {
        let Some(name) = self.writable() else { return Ok(()) };
        let disk = self.repository.open_disk(&name, false)?;
        let sectors = self.model.0.get_mut(&name).expect("picked");
        for _ in 0..self.rng.within(1..4) {
            let at = self.rng.index(SECTORS);
            let count = 1 + self.rng.index((SECTORS - at).min(20));
            self.values += 1;
            sectors.write(&disk, at, count, self.values)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some(name) = self.writable() else { return Ok(()) };
        self.repository.open_disk(&name, false)?.flush()?;
        self.model.0.get_mut(&name).expect("picked").flush();
        Ok(())
    }

    fn snapshot(&mut self) -> Result<()> {
        let Some(volume) = self.writable() else { return Ok(()) };
        self.values += 1;
        let snapshot = SnapshotName::parse(&format!("s{}", self.values)).expect("a name");
        let new = NodeName { volume: volume.volume.clone(), snapshot: Some(snapshot.clone()) };
        self.split(&volume, &new);
        self.repository.snapshot(&volume, &snapshot)?;
        self.happened();
        Ok(())
    }

    /// What there is after `new` was made of `source`: whatever was written is durable then.
    fn split(&mut self, source: &NodeName, new: &NodeName) {
        self.change(|model| {
            let sectors = model.0.get_mut(source).expect("picked");
            sectors.flush();
            let copy = sectors.clone();
            model.0.insert(new.clone(), copy);
        });
    }

    fn clone_disk(&mut self) -> Result<()> {
        let Some(source) = self.model.pick(&mut self.rng) else { return Ok(()) };
        self.values += 1;
        let new = name(&format!("c{}", self.values));
        self.split(&source, &new);
        self.repository.clone_disk(&source, &new)?;
        self.happened();
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let Some(name) = self.model.pick(&mut self.rng) else { return Ok(()) };
        self.change(|model| {
            model.0.remove(&name);
        });
        self.repository.delete(&name)?;
        self.happened();
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let monitor = Monitor::new(ByteCount::ZERO);
        let done = self.repository.collect(&CollectOptions { merges: 1 }, &monitor)?;
        if done.put_off > 0 && !self.folder.world().crashed() {
            panic!("a merge failed without a crash: {:?}", self.repository.report());
        }
        Ok(())
    }

    /// Goes on with what the power failure has left.
    fn recover(mut self, seed: u64) -> Self {
        let files = self.folder.after_crash(seed);
        let folder = CrashFolder::new(seed, files);
        let repository = open(&folder).expect("opened after the crash");
        let names: BTreeSet<_> = repository.names().into_iter().collect();
        let is = |model: &Model| model.0.keys().cloned().collect::<BTreeSet<_>>() == names;
        if let Some(next) = self.next.take().filter(|next| is(next)) {
            // The snapshot itself is as durable as the record; the volume's older values, which a
            // flush would have dropped, are gone with it.
            self.model = next;
        }
        assert!(is(&self.model), "{names:?} instead of {:?}", self.model.0.keys());
        for (name, sectors) in &mut self.model.0 {
            sectors.recover(&repository.open_disk(name, false).expect("opened"));
        }
        Self { folder, repository, next: None, ..self }
    }

    /// Collects everything, and checks that what is left is the least there can be.
    fn check_minimal(&mut self) {
        self.collect().expect("collected");
        self.model.check(&self.repository).expect("read");
        let report = self.repository.report();
        let names: BTreeSet<_> = report.iter().filter_map(|node| node.name.clone()).collect();
        assert_eq!(names.len(), self.model.0.len());
        for node in &report {
            let inner = node.name.is_some() || node.children > 1;
            assert!(inner, "{node:?} is not needed: {report:#?}");
        }
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let folder = CrashFolder::new(seed, Vec::new());
    Repository::create_in(&*folder).expect("created");
    let repository = open(&folder).expect("opened");
    let mut session = Session {
        folder,
        repository,
        model: Model::default(),
        next: None,
        values: 0,
        rng: Rng::new(rng.bits()),
    };
    session.create().expect("created");
    for round in 0..2 {
        let world = Arc::clone(session.folder.world());
        world.crash_at(world.ops() + rng.within(1..800));
        for _ in 0..60 {
            match session.step() {
                Ok(()) => {}
                Err(error) if world.crashed() => {
                    assert_ne!(error.kind(), ErrorKind::Corrupt, "{error}");
                    break;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
            if world.crashed() {
                break;
            }
        }
        session = session.recover(seed.wrapping_mul(31).wrapping_add(round));
    }
    session.check_minimal();
    session.repository.close().expect("closed");
}

/// How many seeds: more by FIRN_LONG=1.
fn seeds() -> u64 {
    if std::env::var_os("FIRN_LONG").is_some() { 50_000 } else { 2_000 }
}

#[test]
fn whatever_the_power_failure_leaves_is_carried_forward() {
    let failed = std::sync::Mutex::new(None);
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds() || failed.lock().unwrap().is_some() {
                        return;
                    }
                    if std::panic::catch_unwind(|| run(seed)).is_err() {
                        *failed.lock().unwrap() = Some(seed);
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner().unwrap(), None, "this seed failed");
}
