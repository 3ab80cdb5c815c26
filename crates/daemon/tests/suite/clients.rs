//! NBD clients, ours and others', and what happens to a pool under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block_types::{ByteOffset, ErrorKind};
use daemon::{Daemon, access};
use nbd::Client;
use testkit::peer::peer;

use crate::world::{MIB, World, mib, node, options, read, snapshot, volume, write};

#[test]
fn others_find_every_volume_and_snapshot() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(2)).unwrap();
    pool.create_snapshot(&volume("db"), &snapshot("monday")).unwrap();
    let base = daemon.ready().nbd_uri.clone();
    assert_eq!(base, format!("nbd+unix:///?socket={}", world.nbd_socket().display()));

    // One volume: who names none means it.
    let size = mib(2).get().to_string();
    assert_eq!(peer("nbdinfo").args(["--size", &base]).ok().trim(), size);
    let list = peer("nbdinfo").args(["--list", "--json", &base]).ok();
    assert!(list.contains("\"db\"") && list.contains("\"db@monday\""), "{list}");
    assert!(list.contains("snapshot of db, 2 MiB"), "{list}");
    let uri = |name: &str| base.replace("///", &format!("///{name}"));
    let info = peer("nbdinfo").args(["--json", &uri("db@monday")]).ok();
    assert!(info.contains("\"is_read_only\": true"), "{info}");
    let info = peer("nbdinfo").args(["--json", &uri("db")]).ok();
    assert!(info.contains("\"is_read_only\": false"), "{info}");
    assert_ne!(peer("nbdinfo").arg(uri("web")).run().status.unwrap().code(), Some(0));

    // Two volumes: none is the default.
    pool.create_volume(&volume("web"), mib(1)).unwrap();
    let outcome = peer("nbdinfo").args(["--size", &base]).run();
    assert_ne!(outcome.status.unwrap().code(), Some(0));
    assert!(outcome.stderr.contains("no export named ''"), "{}", outcome.stderr);
    daemon.stop().unwrap();
}

#[test]
fn data_goes_in_by_nbdcopy_and_comes_out_of_a_clone() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let image = world.pool.join("image");
    let bytes: Vec<u8> = (0..3 * MIB).map(|at| (at / 4096 % 251) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();
    pool.create_volume(&volume("db"), mib(3)).unwrap();
    let uri = |name: &str| daemon.ready().nbd_uri.replace("///", &format!("///{name}"));
    peer("nbdcopy").arg("--flush").arg(&image).arg(uri("db")).ok();
    pool.create_snapshot(&volume("db"), &snapshot("monday")).unwrap();
    pool.clone_snapshot(&volume("db"), &snapshot("monday"), &volume("db-test")).unwrap();
    let back = world.pool.join("back");
    peer("nbdcopy").arg(uri("db-test")).arg(&back).ok();
    assert!(std::fs::read(&back).unwrap() == bytes, "the copy differs");
    daemon.stop().unwrap();
}

/// A client writes rising numbers to two places, the first before the second, each answered before
/// the next: a snapshot may see them equal or the first one ahead by one, and nothing else.
/// Whatever was answered before the snapshot was asked for has to be in it.
#[test]
fn snapshots_while_a_client_writes() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let db = volume("db");
    pool.create_volume(&db, mib(8)).unwrap();
    let device = pool.open_device(&node("db"), false).unwrap();
    let answered = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
        move || {
            for number in 1u64.. {
                let block = number.to_le_bytes().repeat(512);
                device.write_at(&block, ByteOffset::ZERO).unwrap();
                device.write_at(&block, ByteOffset::new(4 * MIB)).unwrap();
                answered.store(number, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    let mut floors = Vec::new();
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(5));
        let floor = answered.load(Ordering::SeqCst);
        pool.create_snapshot(&db, &snapshot(&format!("s{round}"))).unwrap();
        floors.push((floor, answered.load(Ordering::SeqCst)));
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    for (round, (floor, ceiling)) in floors.into_iter().enumerate() {
        let past = pool.open_device(&node(&format!("db@s{round}")), true).unwrap();
        let number = |at| {
            let mut bytes = [0; 4096];
            past.read_at(&mut bytes, ByteOffset::new(at)).unwrap();
            let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes == *first.to_le_bytes().repeat(512), "a torn write in snapshot {round}");
            first
        };
        let (first, second) = (number(0), number(4 * MIB));
        assert!(first == second || first == second + 1, "{round}: {first}, {second}");
        assert!((floor..=ceiling + 1).contains(&second), "{round}: {floor} {second} {ceiling}");
    }
    daemon.stop().unwrap();
}

#[test]
fn what_has_clients_is_deleted_by_force_only() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let (db, monday) = (volume("db"), snapshot("monday"));
    pool.create_volume(&db, mib(1)).unwrap();
    pool.create_snapshot(&db, &monday).unwrap();
    let present = pool.open_device(&node("db"), false).unwrap();
    let second = pool.open_device(&node("db"), false).unwrap();
    let past = pool.open_device(&node("db@monday"), true).unwrap();

    let error = pool.delete_snapshot(&db, &monday).unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::Busy, "snapshot db@monday"));
    let me = std::process::id().to_string();
    assert!(error.problem().starts_with("1 NBD client is connected: "), "{error}");
    assert!(error.problem().contains(&me), "{error}");
    assert!(error.advice().unwrap().contains("--force"), "{error}");
    let error = pool.delete_volume(&db, true).unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::Busy, "volume db"));
    assert!(error.problem().starts_with("3 NBD clients are connected: "), "{error}");

    // Refused because of its snapshots, and nobody is disconnected for that.
    let error = pool.delete_volume_by_force(&db, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.problem().contains("snapshot"), "{error}");
    write(&present, 0, 65536, 1);
    write(&second, 65536, 65536, 2);
    assert_eq!(read(&past, 0, 65536), 0);

    pool.delete_snapshot_by_force(&db, &monday).unwrap();
    assert!(past.read_at(&mut [0; 512], ByteOffset::ZERO).is_err());
    assert_eq!(read(&present, 0, 65536), 1);
    pool.delete_volume_by_force(&db, false).unwrap();
    assert!(present.read_at(&mut [0; 512], ByteOffset::ZERO).is_err());
    assert!(second.flush().is_err());
    assert_eq!(pool.volumes().unwrap(), []);
    daemon.stop().unwrap();
}

/// A refused deletion leaves everything as it was; one after the last client has left succeeds.
#[test]
fn what_nobody_uses_any_more_is_deleted() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    let device = pool.open_device(&node("db"), false).unwrap();
    pool.delete_volume(&volume("db"), false).unwrap_err();
    // The export can be had again.
    let uri = daemon.ready().nbd_uri.clone();
    assert_eq!(peer("nbdinfo").args(["--size", &uri]).ok().trim(), MIB.to_string());
    drop(device);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !pool.exports().unwrap()[0].clients.is_empty() {
        assert!(Instant::now() < deadline, "the client was not forgotten");
        std::thread::sleep(Duration::from_millis(1));
    }
    pool.delete_volume(&volume("db"), false).unwrap();
    daemon.stop().unwrap();
}

/// Clients come and go while the volume is deleted and made again: whatever happens, nobody gets a
/// device of the old one under the new one's name, and deletion is refused only for clients.
#[test]
fn deletion_and_clients_at_once() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    let db = volume("db");
    let stop = Arc::new(AtomicBool::new(false));
    let uri: nbd::Uri = daemon.ready().nbd_uri.replace("///", "///db").parse().unwrap();
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (uri, stop) = (uri.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut connected = 0;
                while !stop.load(Ordering::SeqCst) {
                    connected += u64::from(Client::connect(&uri).is_ok());
                }
                connected
            })
        })
        .collect();
    for round in 1..=20 {
        pool.create_volume(&db, mib(round)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let device = pool.open_device(&node("db"), false).unwrap();
        assert_eq!(device.size(), mib(round));
        pool.delete_volume_by_force(&db, false).unwrap();
        assert!(device.read_at(&mut [0; 512], ByteOffset::ZERO).is_err());
    }
    stop.store(true, Ordering::SeqCst);
    let connected: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(connected > 0, "no client was ever there");
    daemon.stop().unwrap();
}

#[test]
fn a_read_only_daemon_refuses_every_change() {
    let world = World::new();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    drop(pool);
    let mut read_only = options(&world.pool);
    read_only.read_only = true;
    let daemon = Daemon::start(&read_only).unwrap();
    let uri: nbd::Uri = daemon.ready().nbd_uri.replace("///", "///db").parse().unwrap();
    let client = Client::connect(&uri).unwrap();
    assert!(block_io::BlockDevice::limits(&client).read_only);
    // Others may read beside it; who wants to write is sent to the daemon, which refuses.
    access(&world.pool, true).unwrap().status().unwrap();
    let pool = access(&world.pool, false).unwrap();
    assert!(pool.exports().unwrap()[0].read_only);
    let error = pool.create_volume(&volume("web"), mib(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    daemon.stop().unwrap();
}

#[test]
fn tcp_beside_the_unix_socket() {
    let world = World::new();
    let mut with_tcp = options(&world.pool);
    with_tcp.tcp = Some("127.0.0.1:0".parse().unwrap());
    with_tcp.socket = Some(world.pool.join("elsewhere.sock"));
    let daemon = Daemon::start(&with_tcp).unwrap();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    let ready = daemon.ready().clone();
    assert!(ready.nbd_uri.ends_with("elsewhere.sock"), "{}", ready.nbd_uri);
    for uri in [ready.nbd_uri, ready.nbd_tcp_uri.unwrap()] {
        assert_eq!(peer("nbdinfo").args(["--size", &uri]).ok().trim(), MIB.to_string(), "{uri}");
    }
    // The command's way in follows the socket.
    pool.open_device(&node("db"), true).unwrap();
    daemon.stop().unwrap();
    assert!(!world.pool.join("elsewhere.sock").exists());
}

/// Requests that were taken are finished and answered before the daemon ends; what was flushed, or
/// not, is there afterwards, for the pool was closed in good order.
#[test]
fn stopping_under_load() {
    let world = World::new();
    let daemon = world.serve();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(64)).unwrap();
    let writers: Vec<_> = (0..2u64)
        .map(|lane| {
            let device = pool.open_device(&node("db"), false).unwrap();
            std::thread::spawn(move || {
                let mut answered = 0;
                let bytes = vec![7; 65536];
                // 512 blocks each; it starts over, should it ever get that far.
                loop {
                    let at = ByteOffset::new((lane * 512 + answered % 512) * 65536);
                    if device.write_at(&bytes, at).is_err() {
                        return answered;
                    }
                    answered += 1;
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    daemon.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(8));
    assert!(!world.nbd_socket().exists() && !world.control_socket().exists());
    let answered: Vec<u64> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();

    let pool = access(&world.pool, true).unwrap();
    assert_eq!(pool.check().unwrap().errors, Vec::<String>::new());
    let device = pool.open_device(&node("db"), true).unwrap();
    for (lane, answered) in (0..).zip(answered) {
        assert!(answered > 0);
        for block in 0..answered.min(512) {
            assert_eq!(read(&device, (lane * 512 + block) * 65536, 65536), 7, "{lane} {block}");
        }
    }
}
