//! A pool that fills under clients: they wait for space, or the pool grows before they have to.

use std::thread;
use std::time::{Duration, Instant};

use block_io::BlockDevice;
use block_types::{ByteOffset, ErrorKind};

use crate::lab::{Lab, MIB, wait_for};

/// Writers at once.
const WRITERS: u64 = 4;
/// What each of them writes, in MiB.
const SHARE: u64 = 32;
/// The longest that one write may take while the pool grows by itself.
const LONG: Duration = Duration::from_secs(10);

fn mode(lab: &Lab) -> String {
    lab.json("pool status lab")["mode"].as_str().unwrap().to_owned()
}

/// A pool of 16 MiB, 16 of whose 16 MiB are in use.
fn full() -> Lab {
    let lab = Lab::empty();
    lab.ok("pool create lab --size 16M");
    lab.ok("volume create lab/db --size 256M");
    lab
}

fn fill(lab: &Lab) {
    let client = lab.connect("db");
    for at in 0..16 {
        client.write_at(&vec![at as u8; MIB as usize], ByteOffset::new(at * MIB)).unwrap();
    }
}

#[test]
fn a_pool_with_a_policy_does_not_fill_under_fast_writers() {
    let lab = full();
    lab.ok("pool set lab --autogrow 70:50 --no-space-timeout 20");
    let server = lab.serve("");
    let slowest = thread::scope(|scope| {
        let writers = (0..WRITERS).map(|writer| {
            let client = lab.connect("db");
            scope.spawn(move || {
                let mut slowest = Duration::ZERO;
                for step in 0..SHARE {
                    let begin = Instant::now();
                    let at = ByteOffset::new((writer * SHARE + step) * MIB);
                    client.write_at(&vec![writer as u8 + 1; MIB as usize], at).unwrap();
                    slowest = slowest.max(begin.elapsed());
                }
                client.flush().unwrap();
                slowest
            })
        });
        let writers: Vec<_> = writers.collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).max().unwrap()
    });
    assert!(slowest < LONG, "a write took {slowest:?}");
    let status = lab.json("pool status lab");
    assert!(status["size"].as_u64().unwrap() > WRITERS * SHARE * MIB, "{status}");
    assert_eq!(status["mode"], "rw");
    let events = lab.json("pool events lab");
    let names: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|it| &it["event"]).collect();
    assert!(names.iter().any(|name| *name == "data-grown"), "{names:?}");
    assert!(names.iter().all(|name| *name != "no-space-timeout"), "{names:?}");
    assert!(server.stop().success());
    lab.assert_sound();
}

#[test]
fn writes_wait_until_somebody_grows_the_pool() {
    let lab = full();
    lab.ok("pool set lab --no-space-timeout 0");
    let server = lab.serve("");
    fill(&lab);
    let client = lab.connect("db");
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.write_at(&[9; 4096], ByteOffset::new(100 * MIB)));
        wait_for("want of space", || mode(&lab) == "out_of_data_space");
        let other = lab.connect("db");
        other.write_at(&[8; 4096], ByteOffset::new(MIB)).unwrap();
        other.flush().unwrap();
        lab.ok("snapshot create lab/db@full");
        assert!(lab.ok("pool status lab --dm").contains(" 256/256 - out_of_data_space "));
        assert!(!writer.is_finished());
        lab.ok("pool grow lab --size 32M");
        writer.join().unwrap().unwrap();
    });
    assert_eq!(mode(&lab), "rw");
    let events = lab.json("pool events lab");
    let modes = events["events"].as_array().unwrap().iter().filter(|it| it["event"] == "mode");
    assert_eq!(modes.count(), 2, "{events}");
    assert!(server.stop().success());
    lab.assert_sound();
}

#[test]
fn writes_that_wait_do_not_hold_up_the_end_and_can_be_made_to_fail() {
    let lab = full();
    lab.ok("pool set lab --no-space-timeout 0");
    let server = lab.serve("");
    fill(&lab);
    let [client, other] = [lab.connect("db"), lab.connect("db")];
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.write_at(&[9; 4096], ByteOffset::new(100 * MIB)));
        wait_for("want of space", || mode(&lab) == "out_of_data_space");
        lab.ok("pool set lab --no-space error");
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), ErrorKind::OutOfSpace);
        lab.ok("pool set lab --no-space queue");
        let writer = scope.spawn(|| other.write_at(&[9; 4096], ByteOffset::new(101 * MIB)));
        thread::sleep(Duration::from_millis(200));
        assert!(!writer.is_finished());
        let begin = Instant::now();
        assert!(server.stop().success());
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
        assert!(writer.join().unwrap().is_err());
    });
    lab.assert_sound();
    // Kept with the pool.
    assert_eq!(lab.json("pool set lab")["no-space-timeout"], 0);
}
