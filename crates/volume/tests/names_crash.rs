//! Names and metadata are two files: a power failure at every single operation in between, and what
//! the next open makes of it. Each name has its device and its content, each device its name.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};
use dm_thin::{BlockSize, Pool};
use volume::{NamesLog, NodeName, PoolDevices, PoolDirectory, SnapshotName, VolumeName};

const SIZE: ByteCount = ByteCount::new(256 << 10);

fn formatted() -> [Vec<u8>; 3] {
    let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(1 << 20)));
    let data = MemoryDevice::new("data", ByteCount::new(2 << 20));
    let names = Arc::new(MemoryDevice::new("names", ByteCount::ZERO));
    let block = BlockSize::new(ByteCount::new(64 << 10)).expect("a block size");
    let device: Arc<dyn BlockDevice> = metadata.clone();
    Pool::format(&device, &data, block).expect("formatted");
    NamesLog::format(names.clone()).expect("formatted");
    [metadata.to_bytes(), data.to_bytes(), names.to_bytes()]
}

fn open(devices: [Arc<dyn BlockDevice>; 3]) -> Result<Arc<PoolDirectory>> {
    let [metadata, data, names] = devices;
    let devices = PoolDevices { metadata, data, names: Some(names) };
    let options = dm_thin::OpenOptions { background: false, ..Default::default() };
    PoolDirectory::open_devices(Path::new("lab"), devices, options)
}

fn volume(name: &str) -> VolumeName {
    VolumeName::parse(name).expect("a name")
}

fn snapshot(name: &str) -> SnapshotName {
    SnapshotName::parse(name).expect("a name")
}

fn first_byte(pool: &PoolDirectory, node: &str) -> u8 {
    let node = NodeName::parse(node).expect("a node");
    let mut byte = [0; 512];
    let device = pool.open_node(&node, true).expect("opened");
    device.read_at(&mut byte, ByteOffset::ZERO).expect("read");
    byte[0]
}

fn write(pool: &PoolDirectory, node: &str, value: u8) -> Result<()> {
    let node = NodeName::parse(node).expect("a node");
    pool.open_node(&node, false)?.write_at(&[value; 512], ByteOffset::ZERO)
}

/// The steps of the scenario, and what is there once each of them is done: nodes, and the first
/// byte of each.
type Step = (fn(&PoolDirectory) -> Result<()>, &'static [(&'static str, u8)]);

const STEPS: [Step; 9] = [
    (|pool| pool.create_volume(&volume("db"), SIZE).map(drop), &[("db", 0)]),
    (
        |pool| {
            write(pool, "db", 1)?;
            pool.create_snapshot(&volume("db"), &snapshot("monday")).map(drop)
        },
        &[("db", 1), ("db@monday", 1)],
    ),
    (
        |pool| {
            write(pool, "db", 2)?;
            pool.clone_snapshot(&volume("db"), &snapshot("monday"), &volume("test")).map(drop)
        },
        &[("db", 2), ("db@monday", 1), ("test", 1)],
    ),
    (
        |pool| pool.rollback(&volume("db"), &snapshot("monday")),
        &[("db", 1), ("db@monday", 1), ("test", 1)],
    ),
    (
        |pool| pool.resize_volume(&volume("test"), ByteCount::new(128 << 10)).map(drop),
        &[("db", 1), ("db@monday", 1), ("test", 1)],
    ),
    (|pool| pool.delete_snapshot(&volume("db"), &snapshot("monday")), &[("db", 1), ("test", 1)]),
    (
        |pool| {
            write(pool, "test", 3)?;
            pool.create_snapshot(&volume("test"), &snapshot("tuesday")).map(drop)
        },
        &[("db", 1), ("test", 3), ("test@tuesday", 3)],
    ),
    (|pool| pool.delete_volume(&volume("test"), true), &[("db", 1)]),
    (|pool| pool.delete_volume(&volume("db"), false), &[]),
];

/// The nodes that the pool knows, and that it has no device without a name.
fn nodes(pool: &PoolDirectory) -> Vec<String> {
    let mut nodes = Vec::new();
    for volume in pool.volumes() {
        assert!(!volume.name.starts_with('#'), "device {} has lost its name", volume.id);
        nodes.extend(
            volume.snapshots.iter().map(|snapshot| format!("{}@{}", volume.name, snapshot.name)),
        );
        nodes.push(volume.name);
    }
    nodes.sort();
    nodes
}

/// Whether the pool is as after step `done`, contents included; a write that no commit has followed
/// may be there early.
fn is_at(pool: &PoolDirectory, done: Option<usize>) -> bool {
    let expected = done.map_or(&[][..], |step| STEPS[step].1);
    let mut names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    if nodes(pool) != names {
        return false;
    }
    let next = done.map_or(0, |step| step + 1);
    expected.iter().all(|(node, value)| {
        let read = first_byte(pool, node);
        let early = STEPS.get(next).is_some_and(|(_, after)| {
            after.iter().any(|(later, value)| later == node && *value == read)
        });
        // Step 2 writes a 2 to db that step 3 rolls back again.
        read == *value || early
    })
}

#[test]
fn every_moment_between_names_and_metadata_is_resolved() {
    let images = formatted();
    let mut moment = 1;
    loop {
        let world = CrashWorld::new(moment);
        let [metadata, data, names] = &images;
        let devices: [Arc<dyn BlockDevice>; 3] = [
            world.device("metadata", metadata.clone()),
            world.device("data", data.clone()),
            world.device("names", names.clone()),
        ];
        let pool = open(devices).expect("opened");
        world.crash_at(moment);
        let mut done = None;
        for (index, (step, _)) in STEPS.iter().enumerate() {
            if step(&pool).is_err() {
                break;
            }
            done = Some(index);
        }
        drop(pool);
        for draw in 0..8 {
            let devices: Vec<Arc<dyn BlockDevice>> = world
                .images(draw)
                .into_iter()
                .map(|(name, bytes)| Arc::new(MemoryDevice::from_bytes(name, bytes)) as _)
                .collect();
            let devices = devices.try_into().ok().expect("three devices");
            let pool = open(devices).unwrap_or_else(|error| panic!("moment {moment}: {error}"));
            let next = Some(done.map_or(0, |step| step + 1));
            assert!(
                is_at(&pool, done) || is_at(&pool, next),
                "moment {moment}, draw {draw}, after step {done:?}: {:?}",
                nodes(&pool)
            );
            // Names go on from here without a clash.
            pool.create_volume(&volume("afterwards"), SIZE).expect("made");
        }
        if !world.crashed() {
            break;
        }
        moment += 1;
    }
    assert!(moment > 60, "the scenario has only {moment} operations");
}
