//! Dirty bitmaps of an image that is served, and whose server is killed again and again.
//!
//! What was written is in the bitmap, and little more; QEMU reads it as Firn does. `FIRN_LONG=1`
//! for more of it.

use std::collections::BTreeSet;
use std::env;
use std::thread;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::ByteOffset;
use nbd::{Client, Uri};
use serde_json::Value;
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::server::{Listens, Server};

use crate::lab::{FIRN, KIB, Lab, MIB, Served};

const SIZE: u64 = 256 * MIB;
const GRANULE: u64 = 64 * KIB;
/// What a crash may leave too much: a region of 1024 bits.
const REGION: u64 = 1024 * GRANULE;

/// Rounds, each of which ends with a kill.
const ROUNDS: u32 = 50;
const MANY_ROUNDS: u32 = 400;

fn lab() -> Lab {
    let lab = Lab::new(&[], "1M");
    qemu(&lab, &format!("create -q -f qcow2 disk.qcow2 {SIZE}"));
    qemu(&lab, "bitmap --add disk.qcow2 daily");
    lab
}

#[track_caller]
fn qemu(lab: &Lab, words: &str) -> String {
    peer("qemu-img").args(words.split_whitespace()).in_folder(lab.folder()).ok()
}

fn serve(lab: &Lab) -> Served {
    let disk = lab.path("disk.qcow2");
    let socket = lab.path("disk.qcow2.sock");
    let words = ["serve".as_ref(), disk.as_os_str()];
    let server = Server::start(FIRN, words, Listens::Unix(socket));
    Served::watch(server.unwrap_or_else(|error| panic!("{error}")))
}

fn uri(lab: &Lab) -> String {
    Uri::unix(lab.path("disk.qcow2.sock"), "disk.qcow2").to_string()
}

fn connect(lab: &Lab) -> Client {
    Client::connect(&uri(lab).parse().unwrap()).unwrap_or_else(|error| panic!("{error}"))
}

/// The dirty granules that a server tells of, in the words of nbdinfo.
#[track_caller]
fn dirty(lab: &Lab, server: &[&str]) -> BTreeSet<u64> {
    let asked = peer("nbdinfo").args(["--json", "--map=qemu:dirty-bitmap:daily", "--"]);
    let map: Value =
        serde_json::from_str(&asked.args(server).in_folder(lab.folder()).ok()).expect("JSON");
    let number = |run: &Value, field: &str| run[field].as_u64().expect("a number");
    let runs = map.as_array().expect("a list").iter().filter(|run| run["type"] != 0);
    runs.flat_map(|run| {
        let (start, len) = (number(run, "offset"), number(run, "length"));
        start / GRANULE..(start + len).div_ceil(GRANULE)
    })
    .collect()
}

/// What QEMU reads of the bitmap, which it has to believe. A server that was killed may leave leaks
/// in the image, and nothing worse.
#[track_caller]
fn dirty_to_qemu(lab: &Lab, killed: bool) -> BTreeSet<u64> {
    let checked =
        peer("qemu-img").args(["check", "-q", "disk.qcow2"]).in_folder(lab.folder()).run();
    let leaks_only = checked.code() == Some(3) && killed;
    assert!(checked.code() == Some(0) || leaks_only, "{checked}");
    dirty(lab, &["[", "qemu-nbd", "-r", "-f", "qcow2", "-B", "daily", "disk.qcow2", "]"])
}

#[test]
fn clients_and_qemu_see_what_was_written() {
    let lab = lab();
    let server = serve(&lab);
    let client = connect(&lab);
    let written = [0, 7, 8, 1500, 4095];
    for granule in written {
        client.write_at(&[1; 512], ByteOffset::new(granule * GRANULE + 512)).unwrap();
    }
    assert_eq!(dirty(&lab, &[&uri(&lab)]), BTreeSet::from(written));
    drop(client);
    assert!(server.stop().success());
    assert_eq!(dirty_to_qemu(&lab, false), BTreeSet::from(written));
    // One that does not record is shown as it is, and a reading server shows both.
    qemu(&lab, "bitmap --disable disk.qcow2 daily");
    let server = serve(&lab);
    connect(&lab).write_at(&[1; 512], ByteOffset::new(3 * GRANULE)).unwrap();
    assert_eq!(dirty(&lab, &[&uri(&lab)]), BTreeSet::from(written));
    assert!(server.stop().success());
    assert_eq!(dirty_to_qemu(&lab, false), BTreeSet::from(written));
}

#[test]
fn a_killed_server_never_reports_too_little() {
    let rounds = if env::var_os("FIRN_LONG").is_some() { MANY_ROUNDS } else { ROUNDS };
    let lab = lab();
    let mut rng = Rng::new(7);
    let (mut answered, mut begun) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..rounds {
        let server = serve(&lab);
        let client = connect(&lab);
        let mut rng = rng.fork();
        let life = Duration::from_millis(rng.within(1..60));
        let writer = thread::spawn(move || {
            let mut answered = BTreeSet::new();
            loop {
                // In one half of the disk: a region that nobody writes to stays clean.
                let granule = rng.within(0..SIZE / GRANULE / 2);
                let at = ByteOffset::new(granule * GRANULE);
                if client.write_at(&[round as u8; 4096], at).is_err() {
                    return (answered, granule);
                }
                answered.insert(granule);
                if rng.chance(1, 8) && client.flush().is_err() {
                    return (answered, granule);
                }
            }
        });
        thread::sleep(life);
        server.kill();
        let (written, last) = writer.join().unwrap();
        answered.extend(&written);
        begun.extend(written);
        begun.insert(last);
        // The next server that writes makes it an ordinary bitmap again.
        if round % 8 == 0 {
            assert!(serve(&lab).stop().success());
            let found = dirty_to_qemu(&lab, true);
            let missed: Vec<_> = answered.difference(&found).collect();
            assert!(missed.is_empty(), "round {round}: {missed:?} were written");
            let regions: BTreeSet<_> = begun.iter().map(|at| at * GRANULE / REGION).collect();
            let excess = found.iter().find(|at| !regions.contains(&(*at * GRANULE / REGION)));
            assert_eq!(excess, None, "round {round}: nobody wrote there");
        }
    }
    assert!(answered.len() > rounds as usize, "next to nothing was written");
}
