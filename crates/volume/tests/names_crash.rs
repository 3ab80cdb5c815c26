//! Names and metadata are two files: a power failure at every single operation in between, and what
//! the next open makes of it. Each name has its device and its content, each device its name.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};
use dm_thin::{BlockSize, Pool};
use volume::{
    DeviceId, Message, NamesLog, NodeName, PoolDevices, PoolDirectory, SnapshotName, VolumeName,
};

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

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).expect("24 bits")
}

fn send(pool: &PoolDirectory, message: &str) -> Result<()> {
    pool.message(Message::parse(message)?)
}

/// The steps of the scenario, and what is there once each of them is done: nodes, and the first
/// byte of each.
type Step = (fn(&PoolDirectory) -> Result<()>, &'static [(&'static str, u8)]);

const STEPS: [Step; 16] = [
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
    // Devices come and go by message, without a name until they are given one.
    (|pool| send(pool, "create_thin 9"), &[("db", 1), ("#9", 0)]),
    (|pool| pool.name_device(id(9), &volume("nine"), SIZE).map(drop), &[("db", 1), ("nine", 0)]),
    (
        |pool| pool.rename_volume(&volume("nine"), &volume("ten")).map(drop),
        &[("db", 1), ("ten", 0)],
    ),
    (
        |pool| {
            let now = pool.status().transaction;
            send(pool, &format!("set_transaction_id {now} {}", now + 10))
        },
        &[("db", 1), ("ten", 0)],
    ),
    (|pool| send(pool, "create_snap 10 9"), &[("db", 1), ("ten", 0), ("#10", 0)]),
    (|pool| send(pool, "delete 10"), &[("db", 1), ("ten", 0)]),
    (|pool| send(pool, "delete 9"), &[("db", 1)]),
    (|pool| pool.delete_volume(&volume("db"), false), &[]),
];

/// The nodes that the pool knows, devices without a name by their number.
fn nodes(pool: &PoolDirectory) -> Vec<String> {
    let mut nodes = Vec::new();
    for volume in pool.volumes() {
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
    let mut named = expected.iter().filter(|(node, _)| !node.starts_with('#'));
    named.all(|(node, value)| {
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

/// A name that was given and taken away must not come true a second time, when the transaction id
/// goes back and reaches it again.
#[test]
fn names_of_the_past_stay_there() {
    let pool = || -> [Arc<dyn BlockDevice>; 3] {
        let [metadata, data, names] = formatted();
        [("metadata", metadata), ("data", data), ("names", names)]
            .map(|(name, bytes)| Arc::new(MemoryDevice::from_bytes(name, bytes)) as _)
    };
    let devices = pool();
    let lab = open(devices.clone()).expect("opened");
    lab.create_volume(&volume("db"), SIZE).expect("made");
    lab.delete_volume(&volume("db"), false).expect("deleted");
    // Device 0 again, in the transaction in which `db` was made.
    for message in ["set_transaction_id 2 0", "create_thin 0", "set_transaction_id 0 1"] {
        send(&lab, message).unwrap_or_else(|error| panic!("{error}"));
    }
    lab.close().expect("closed");
    drop(lab);
    let lab = open(devices).expect("opened");
    assert_eq!(nodes(&lab), ["#0"]);
}

/// A record whose commit a crash prevented is still in the log. It must not come true when a
/// message moves the transaction id on, whether there are other names or not.
#[test]
fn a_record_that_did_not_come_true_never_does() {
    for keep in [false, true] {
        let ghosts = (1..60).filter(|moment| leaves_a_record(*moment, keep)).count();
        assert!(ghosts > 0, "no crash left a record behind");
    }
}

/// Whether a crash so many operations into making a volume leaves a record of it and nothing else;
/// then that record is held against what messages do.
fn leaves_a_record(moment: u64, keep: bool) -> bool {
    let world = CrashWorld::new(moment);
    let [metadata, data, names] = formatted();
    let devices: [Arc<dyn BlockDevice>; 3] = [
        world.device("metadata", metadata),
        world.device("data", data),
        world.device("names", names),
    ];
    let pool = open(devices).expect("opened");
    if keep {
        pool.create_volume(&volume("keep"), SIZE).expect("made");
    }
    let before = pool.status().transaction;
    world.crash_at(world.ops() + moment);
    let made = pool.create_volume(&volume("db"), SIZE);
    drop(pool);
    let images = world.images(moment).into_iter();
    let devices: Vec<Arc<dyn BlockDevice>> =
        images.map(|(name, bytes)| Arc::new(MemoryDevice::from_bytes(name, bytes)) as _).collect();
    let devices: [Arc<dyn BlockDevice>; 3] = devices.try_into().ok().expect("three devices");
    let mut log = vec![0; devices[2].size().as_usize()];
    devices[2].read_at(&mut log, ByteOffset::ZERO).expect("read");
    let (_, records) = volume::parse_log("names", &log).expect("a log");
    let pool = open(devices.clone()).expect("opened");
    if made.is_ok() || pool.status().transaction != before || records.len() as u64 == before {
        return false;
    }
    // The device that the record speaks of, made by a message.
    let messages =
        [format!("create_thin {before}"), format!("set_transaction_id {before} {}", before + 1)];
    for message in &messages {
        send(&pool, message).unwrap_or_else(|error| panic!("{error}"));
    }
    pool.close().expect("closed");
    drop(pool);
    let expected = if keep { &["#1", "keep"][..] } else { &["#0"] };
    assert_eq!(nodes(&open(devices).expect("opened")), expected, "moment {moment}");
    true
}
