//! The same script, the same answers and the same errors, whoever has the pool open.

use std::time::{Duration, Instant};

use block_types::{ByteCount, ErrorKind, Result};
use daemon::{PoolAccess, access};
use volume::{ChangedRange, DeviceId, Message, OpenOptions, PoolDirectory, VolumeInfo};

use crate::world::{MIB, World, mib, node, options, read, snapshot, volume, write};

/// What a step of the script came to: the kind and the sentence of its error, if it failed.
type Outcome = std::result::Result<String, (ErrorKind, String)>;

/// Every operation, successes and failures, with what it came to. Times and the pool's path, which
/// differ from run to run, are taken out.
fn script(pool: &dyn PoolAccess, path: &str) -> Vec<(&'static str, Outcome)> {
    let (db, web) = (volume("db"), volume("web+1"));
    let (monday, tuesday) = (snapshot("monday"), snapshot("tue+sday"));
    let mut log = Vec::new();
    let mut note = |step, outcome: Result<String>| {
        let outcome = outcome
            .map(|text| text.replace(path, "POOL"))
            .map_err(|error| (error.kind(), error.to_string().replace(path, "POOL")));
        log.push((step, outcome));
    };
    note("create", pool.create_volume(&db, mib(8)).map(told));
    note("create again", pool.create_volume(&db, mib(8)).map(told));
    note("create odd", pool.create_volume(&volume("odd"), ByteCount::new(513)).map(told));
    note("show", pool.volume(&db).map(told));
    note("show none", pool.volume(&web).map(told));
    note("resize", pool.resize_volume(&db, mib(16)).map(told));
    note("resize none", pool.resize_volume(&web, mib(16)).map(told));

    let device = pool.open_device(&node("db"), false).unwrap();
    write(&device, 0, MIB, 1);
    device.flush().unwrap();
    note("snapshot", pool.create_snapshot(&db, &monday).map(|info| info.name));
    note("snapshot again", pool.create_snapshot(&db, &monday).map(|info| info.name));
    note("snapshot of none", pool.create_snapshot(&web, &monday).map(|info| info.name));
    write(&device, MIB, MIB, 2);
    device.flush().unwrap();
    note("snapshot 2", pool.create_snapshot(&db, &tuesday).map(|info| info.name));
    drop(device);

    let diff = |from, to| differences(pool, from, to).map(|diff| format!("{diff:?}"));
    note("diff", diff("db@monday", "db@tue+sday"));
    note("diff of none", diff("db@monday", "db@friday"));
    note("clone", pool.clone_snapshot(&db, &monday, &web).map(told));
    note("clone again", pool.clone_snapshot(&db, &monday, &web).map(told));
    note("rollback", pool.rollback(&db, &monday).map(|()| "done".to_owned()));
    note("rollback to none", pool.rollback(&db, &snapshot("friday")).map(|()| "done".to_owned()));
    for name in ["db@friday", "none", "none@friday"] {
        note("open none", pool.open_device(&node(name), true).map(|_| "opened".to_owned()));
    }
    note("list", pool.volumes().map(|volumes| volumes.into_iter().map(told).collect()));
    note("line", pool.status_line());
    note("line of a volume", pool.volume_status_line(&web));
    note("line of none", pool.volume_status_line(&volume("none")));
    for message in MESSAGES {
        let sent = Message::parse(message).and_then(|message| pool.message(message));
        note(message, sent.map(|()| "done".to_owned()));
    }
    let device = DeviceId::new(77).unwrap();
    note("name", pool.name_device(device, &volume("new"), mib(1)).map(told));
    note("name again", pool.name_device(device, &volume("newer"), mib(1)).map(told));
    note("rename", pool.rename_volume(&volume("new"), &volume("newest")).map(told));
    note("rename to db", pool.rename_volume(&volume("newest"), &db).map(told));
    note("rename none", pool.rename_volume(&volume("new"), &db).map(told));
    note("delete snapshot", pool.delete_snapshot(&db, &tuesday).map(|()| "done".to_owned()));
    note("delete none", pool.delete_snapshot(&db, &tuesday).map(|()| "done".to_owned()));
    note("delete", pool.delete_volume(&db, false).map(|()| "done".to_owned()));
    note("delete all", pool.delete_volume(&db, true).map(|()| "done".to_owned()));
    note("delete again", pool.delete_volume(&db, true).map(|()| "done".to_owned()));
    note("force none", pool.delete_volume_by_force(&db, true).map(|()| "done".to_owned()));
    note("grow", pool.grow(mib(2048)).map(|report| report.size.to_string()));
    note("shrink", pool.grow(mib(1)).map(|report| report.size.to_string()));
    note("check", pool.check().map(|report| format!("{:?} {:?}", report.errors, report.leaks)));
    note("status", pool.status().map(|report| format!("{} {}", report.path, report.volumes)));
    log
}

/// Device 0 is `db`, which has snapshots; nobody has made 77 yet.
const MESSAGES: [&str; 9] = [
    "create_thin 77",
    "create_thin 77",
    "create_snap 78 77",
    "create_snap 79 4711",
    "delete 78",
    "delete 0",
    "set_transaction_id 0 1",
    "reserve_metadata_snap",
    "reserve_metadata_snap",
];

/// A volume without the times, which differ from run to run.
fn told(info: VolumeInfo) -> String {
    let mut info = info;
    assert!(info.created.take().is_some());
    for snapshot in &mut info.snapshots {
        assert!(snapshot.created.take().is_some());
    }
    format!("{info:?}\n")
}

fn differences(pool: &dyn PoolAccess, from: &str, to: &str) -> Result<Vec<ChangedRange>> {
    let mut found = Vec::new();
    pool.diff(&node(from), &node(to), &mut |range| {
        found.push(range);
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn local_and_remote_are_the_same() {
    let (here, there) = (World::new(), World::new());
    let daemon = there.serve();
    let local = access(&here.pool, false).unwrap();
    let remote = access(&there.pool, false).unwrap();
    let local = (script(&*local, here.pool.to_str().unwrap()), local.close());
    let remote = (script(&*remote, there.pool.to_str().unwrap()), remote.close());
    local.1.unwrap();
    remote.1.unwrap();
    for (local, remote) in local.0.iter().zip(&remote.0) {
        assert_eq!(local, remote);
    }
    let failed: Vec<_> = local.0.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert_eq!(failed.len(), 26, "{failed:#?}");
    daemon.stop().unwrap();
}

#[test]
fn data_and_diff_are_what_was_written() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let db = volume("db");
    pool.create_volume(&db, mib(4)).unwrap();
    let device = pool.open_device(&node("db"), false).unwrap();
    write(&device, 0, MIB, 1);
    pool.create_snapshot(&db, &snapshot("monday")).unwrap();
    write(&device, MIB / 2, MIB, 2);
    device.flush().unwrap();
    let changed = differences(&*pool, "db@monday", "db").unwrap();
    assert_eq!(changed, [ChangedRange { start: MIB / 2, length: MIB, kind: "data".to_owned() }]);

    let past = pool.open_device(&node("db@monday"), true).unwrap();
    assert!(past.limits().read_only);
    assert_eq!((read(&past, 0, MIB), read(&past, MIB, MIB)), (1, 0));
    // Under a client that is connected.
    pool.rollback(&db, &snapshot("monday")).unwrap();
    assert_eq!((read(&device, 0, MIB), read(&device, MIB, MIB)), (1, 0));
    drop((device, past));
    daemon.stop().unwrap();

    let pool = access(&world.pool, true).unwrap();
    let device = pool.open_device(&node("db"), true).unwrap();
    assert_eq!((read(&device, 0, MIB), read(&device, MIB, MIB)), (1, 0));
}

/// The server notices a moment later that a client is gone.
fn await_no_clients(pool: &dyn PoolAccess) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while pool.exports().unwrap().iter().any(|export| !export.clients.is_empty()) {
        assert!(Instant::now() < deadline, "a client does not go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn clients_are_not_disturbed_by_messages_and_new_names() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let (db, web) = (volume("db"), volume("web"));
    let info = pool.create_volume(&db, mib(1)).unwrap();
    let delete = Message::Delete(DeviceId::new(info.id).unwrap());
    let device = pool.open_device(&node("db"), false).unwrap();
    let error = pool.message(delete).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error.to_string().starts_with("message 'delete 0': EBUSY: db: 1 NBD client"),
        "{error}"
    );
    let error = pool.rename_volume(&db, &web).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("1 NBD client"), "{error}");
    write(&device, 0, MIB, 1);
    device.flush().unwrap();
    drop(device);
    await_no_clients(&*pool);
    assert_eq!(pool.rename_volume(&db, &web).unwrap().name, "web");
    let device = pool.open_device(&node("web"), false).unwrap();
    assert_eq!(read(&device, 0, MIB), 1);
    assert!(pool.open_device(&node("db"), false).is_err());
    drop(device);
    await_no_clients(&*pool);
    pool.message(delete).unwrap();
    assert_eq!(pool.volumes().unwrap(), []);
    daemon.stop().unwrap();
}

#[test]
fn exports_are_told_by_a_daemon_only() {
    let world = World::new();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    pool.create_snapshot(&volume("db"), &snapshot("monday")).unwrap();
    let error = pool.exports().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    drop(pool);

    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let device = pool.open_device(&node("db"), true).unwrap();
    let exports = pool.exports().unwrap();
    let names: Vec<_> = exports.iter().map(|export| export.name.as_str()).collect();
    assert_eq!(names, ["db", "db@monday"]);
    let socket = world.nbd_socket();
    assert_eq!(exports[0].uri, format!("nbd+unix:///db?socket={}", socket.display()));
    assert_eq!(exports[1].uri, format!("nbd+unix:///db@monday?socket={}", socket.display()));
    assert_eq!((exports[0].read_only, exports[1].read_only), (false, true));
    assert_eq!((exports[0].clients.len(), exports[1].clients.len()), (1, 0));
    let peer = &exports[0].clients[0].peer;
    assert!(peer.contains(&std::process::id().to_string()), "{peer}");
    drop(device);
    daemon.stop().unwrap();
}

/// Somebody has the pool, and does not serve it: whoever waits in vain is told who it is.
#[test]
fn a_busy_pool_names_its_holder() {
    let world = World::new();
    let open = OpenOptions {
        read_only: false,
        cache: options(&world.pool).cache,
        holder: "a long job".to_owned(),
    };
    let holder = PoolDirectory::open(&world.pool, &open).unwrap();
    let error = access(&world.pool, false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let holder_text = format!("a long job (pid {})", std::process::id());
    assert!(error.to_string().contains(&holder_text), "{error}");
    // One that ends meanwhile is waited for.
    let waiting = std::thread::spawn({
        let pool = world.pool.clone();
        move || access(&pool, false).map(drop)
    });
    std::thread::sleep(Duration::from_millis(300));
    holder.close().unwrap();
    drop(holder);
    waiting.join().unwrap().unwrap();
}

#[test]
fn what_is_no_pool_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let error = access(&folder.path().join("lab"), false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// The lock goes with the access; a device that outlives it must not write without the lock.
#[test]
fn devices_do_not_outlive_the_access() {
    let world = World::new();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    let device = pool.open_device(&node("db"), false).unwrap();
    write(&device, 0, MIB, 1);
    drop(pool);
    let error = device.write_at(&[2; 65536], block_types::ByteOffset::ZERO).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Stopped | ErrorKind::ReadOnly), "{error}");
    let pool = access(&world.pool, false).unwrap();
    assert_eq!(read(&pool.open_device(&node("db"), true).unwrap(), 0, MIB), 1);
}
