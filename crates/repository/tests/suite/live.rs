//! Disks that are written while their trees change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_types::ByteCount;
use jobs::Monitor;
use repository::{CollectOptions, Collected, Disk, Repository};
use testkit::rng::Rng;
use volume::SnapshotName;

use crate::common::{Model, Sectors, name, options};

/// Sectors of a disk: two pieces, several steps.
const SECTORS: usize = 6000;

fn repository() -> (tempfile::TempDir, Arc<Repository>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sr");
    Repository::create(&path).expect("created");
    let repository = Repository::open(&path, &options()).expect("opened");
    (dir, repository)
}

fn collect(repository: &Repository) -> Collected {
    let monitor = Monitor::new(ByteCount::ZERO);
    repository.collect(&CollectOptions { merges: 3 }, &monitor).expect("collected")
}

/// Writes to a disk at random, and looks at all of it now and then.
fn write(disk: &Disk, sectors: &mut Sectors, seed: u64, stop: &AtomicBool) {
    use block_io::BlockDevice;
    let mut rng = Rng::new(seed);
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        let at = rng.index(SECTORS);
        let count = 1 + rng.index((SECTORS - at).min(64));
        sectors.write(disk, at, count, rng.bits()).expect("written");
        round += 1;
        if round % 50 == 0 {
            disk.flush().expect("flushed");
            sectors.flush();
            sectors.check(disk).expect("read");
        }
    }
    sectors.check(disk).expect("read");
}

/// A hundred nodes, guests at several leaves, deletions and merges under them.
#[test]
fn trees_shrink_under_guests_to_the_least_there_can_be() {
    let (_dir, repository) = repository();
    let mut model = Model::default();
    let mut rng = Rng::new(7);
    let volumes = ["a", "b", "c", "d"];
    for volume in volumes {
        repository
            .create_disk(&name(volume), ByteCount::from_sectors(SECTORS as u64))
            .expect("created");
        let mut sectors = Sectors::new(SECTORS);
        for round in 0..12 {
            {
                let disk = repository.open_disk(&name(volume), false).expect("opened");
                for _ in 0..1 + rng.index(20) {
                    let at = rng.index(SECTORS - 64);
                    let count = 1 + rng.index(64);
                    sectors.write(&disk, at, count, rng.bits()).expect("written");
                }
            }
            let snapshot = SnapshotName::parse(&format!("s{round}")).expect("a name");
            let new = repository.snapshot(&name(volume), &snapshot).expect("taken");
            sectors.flush();
            model.0.insert(new, sectors.clone());
        }
        model.0.insert(name(volume), sectors);
    }
    assert!(repository.report().len() >= 96, "{}", repository.report().len());
    let stop = AtomicBool::new(false);
    let mut guests: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|volume| {
            let sectors = model.0.remove(&name(volume)).expect("made");
            (repository.open_disk(&name(volume), false).expect("opened"), sectors)
        })
        .collect();
    std::thread::scope(|scope| {
        for (seed, (disk, sectors)) in guests.iter_mut().enumerate() {
            let stop = &stop;
            scope.spawn(move || write(disk, sectors, seed as u64, stop));
        }
        let mut snapshots: Vec<_> =
            model.0.keys().filter(|name| name.snapshot.is_some()).cloned().collect();
        while !snapshots.is_empty() {
            for _ in 0..rng.index(8) + 1 {
                if snapshots.is_empty() {
                    break;
                }
                let gone = snapshots.swap_remove(rng.index(snapshots.len()));
                repository.delete(&gone).expect("deleted");
                model.0.remove(&gone);
            }
            assert_eq!(collect(&repository).put_off, 0, "{:#?}", repository.report());
            for (name, sectors) in &model.0 {
                let disk = repository.open_disk(name, false).expect("opened");
                sectors.check(&disk).expect("read");
            }
            repository.close_idle().expect("closed");
        }
        stop.store(true, Ordering::SeqCst);
    });
    for (disk, sectors) in &guests {
        sectors.check(disk).expect("read");
        println!(
            "{}: longest pause {:?}",
            block_io::BlockDevice::name(&**disk),
            disk.longest_pause()
        );
    }
    let guests: Vec<_> = guests.into_iter().map(|(_, sectors)| sectors).collect();
    repository.close_idle().expect("closed");
    collect(&repository);
    let report = repository.report();
    assert_eq!(report.len(), 4, "{report:#?}");
    for (volume, sectors) in ["a", "b", "c"].iter().zip(&guests) {
        sectors.check(&repository.open_disk(&name(volume), false).expect("opened")).expect("read");
    }
    repository.close().expect("closed");
}

/// The question that was asked of the collector: sixteen snapshots made and deleted.
#[test]
fn sixteen_snapshots_leave_nothing_behind() {
    let (_dir, repository) = repository();
    repository.create_disk(&name("db"), ByteCount::from_sectors(SECTORS as u64)).expect("created");
    let mut sectors = Sectors::new(SECTORS);
    let mut rng = Rng::new(16);
    let disk = repository.open_disk(&name("db"), false).expect("opened");
    let snapshots: Vec<_> = (0..16)
        .map(|number| {
            for _ in 0..30 {
                let at = rng.index(SECTORS - 8);
                sectors.write(&disk, at, 8, rng.bits()).expect("written");
            }
            let snapshot = SnapshotName::parse(&format!("s{number}")).expect("a name");
            repository.snapshot(&name("db"), &snapshot).expect("taken")
        })
        .collect();
    assert_eq!(repository.report().len(), 33);
    snapshots.iter().for_each(|snapshot| repository.delete(snapshot).expect("deleted"));
    collect(&repository);
    let report = repository.report();
    assert_eq!(report.len(), 1, "{report:#?}");
    assert_eq!(report[0].parent, None);
    sectors.check(&disk).expect("read");
}

/// A snapshot ends a merge of the same leaf that is on its way, and both come to their ends.
#[test]
fn a_merge_gives_way_to_a_snapshot() {
    let (_dir, repository) = repository();
    repository.create_disk(&name("db"), ByteCount::from_sectors(SECTORS as u64)).expect("created");
    let disk = repository.open_disk(&name("db"), false).expect("opened");
    let mut sectors = Sectors::new(SECTORS);
    sectors.write(&disk, 0, SECTORS, 1).expect("written");
    let gone =
        repository.snapshot(&name("db"), &SnapshotName::parse("a").expect("a name")).expect("ok");
    sectors.write(&disk, 100, 3000, 2).expect("written");
    repository.delete(&gone).expect("deleted");
    let monitor = Monitor::new(ByteCount::ZERO);
    monitor.pause();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| repository.collect(&CollectOptions::default(), &monitor));
        std::thread::sleep(std::time::Duration::from_millis(50));
        sectors.write(&disk, 500, 10, 3).expect("written");
        let kept = SnapshotName::parse("b").expect("a name");
        repository.snapshot(&name("db"), &kept).expect("taken");
        let then = sectors.clone();
        sectors.write(&disk, 505, 10, 4).expect("written");
        monitor.resume();
        merging.join().expect("no panic").expect("collected");
        then.check(&repository.open_disk(&name("db@b"), false).expect("opened")).expect("read");
    });
    sectors.check(&disk).expect("read");
    assert_eq!(repository.report().len(), 3, "{:#?}", repository.report());
}
