//! Volumes over images of the peers and over another's export: made, served, freed and merged by
//! the command, beside real clients.

use std::fs;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange};
use testkit::peer::{find, peer};
use testkit::rng::Rng;
use testkit::server::{Listens, Server};

use crate::lab::{KIB, Lab, MIB, content, wait_for};

const SIZE: u64 = 10 * MIB;

/// Data, holes and written zeros.
fn base() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mut rng = Rng::new(11);
    for start in [0, 3 * MIB + 512, 7 * MIB] {
        rng.fill(&mut bytes[start as usize..][..MIB as usize]);
    }
    bytes
}

/// A pool without volumes, and beside it the raw disk `base.img`, and `base.qcow2` and `base.vhd`,
/// which QEMU made of it.
fn lab() -> Lab {
    let lab = Lab::new(&[], "0");
    fs::write(lab.path("base.img"), base()).unwrap();
    for (format, name, options) in
        [("qcow2", "base.qcow2", "compat=1.1"), ("vpc", "base.vhd", "force_size=on")]
    {
        let words = ["convert", "-f", "raw", "-O", format, "-o", options, "base.img", name];
        peer("qemu-img").args(words).in_folder(lab.folder()).ok();
    }
    lab
}

/// Writes to a volume that is served, and to what it should hold.
fn write(lab: &Lab, export: &str, expected: &mut [u8], seed: u64) {
    let client = lab.connect(export);
    let mut rng = Rng::new(seed);
    for _ in 0..5 {
        let at = rng.within(0..expected.len() as u64 / 512 - 64) * 512;
        let part = &mut expected[at as usize..][..rng.within(1..64) as usize * 512];
        rng.fill(part);
        client.write_at(part, ByteOffset::new(at)).unwrap();
    }
    // Older data must not come back.
    let gone = ByteRange::new(ByteOffset::new(7 * MIB), ByteCount::new(256 * KIB));
    client
        .write_at(&expected[gone.start.get() as usize..][..gone.len.as_usize()], gone.start)
        .unwrap();
    client.discard(gone).unwrap();
    let mut read = vec![1; gone.len.as_usize()];
    client.read_at(&mut read, gone.start).unwrap();
    let part = &mut expected[gone.start.get() as usize..][..gone.len.as_usize()];
    assert!(read.iter().all(|byte| *byte == 0) || read == part);
    part.copy_from_slice(&read);
    client.flush().unwrap();
}

#[test]
fn volumes_over_images_of_every_format() {
    let lab = lab();
    let mut expected = Vec::new();
    for (name, file, format) in
        [("raw", "base.img", "raw"), ("cow", "base.qcow2", "qcow2"), ("vhd", "base.vhd", "vhd")]
    {
        let info = lab.json(&format!("volume create lab/{name} --origin {file} --size 12M"));
        assert_eq!(info["origin"]["format"], format);
        let path = lab.path(file).canonicalize().unwrap();
        assert_eq!(info["origin"]["address"], path.to_str().unwrap());
        lab.ok(&format!("snapshot create lab/{name}@first"));
        let mut bytes = base();
        bytes.resize(12 * MIB as usize, 0);
        expected.push((name, bytes));
    }
    let listed = lab.ok("volume list lab");
    assert!(listed.contains("ORIGIN") && listed.contains("base.qcow2"), "{listed}");
    let shown = lab.ok("volume show lab/cow");
    assert!(shown.contains("base.qcow2 (qcow2)"), "{shown}");

    let server = lab.serve("");
    // QEMU, with the same origin under an overlay of its own, agrees.
    let uri = lab.uri("cow@first");
    peer("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2", &uri, "base.qcow2"])
        .in_folder(lab.folder())
        .run()
        .expect_code(0);
    for (seed, (name, bytes)) in (0..).zip(&mut expected) {
        assert!(lab.content(name) == *bytes, "{name}");
        write(&lab, name, bytes, seed);
        assert!(lab.content(name) == *bytes, "{name}, written");
        // Through the daemon, with a client connected and writing.
        let hydrated = lab.json(&format!("volume hydrate lab/{name} --family"));
        assert!(hydrated["copied"].as_u64().unwrap() > 2 * MIB, "{hydrated}");
        assert!(lab.json(&format!("volume show lab/{name}"))["origin"].is_null());
    }
    let jobs = lab.json("job list lab");
    assert_eq!(jobs.as_array().unwrap().len(), 3, "{jobs}");
    assert!(server.stop().success());
    for file in ["base.img", "base.qcow2", "base.vhd"] {
        fs::remove_file(lab.path(file)).unwrap();
    }
    let server = lab.serve("");
    for (name, bytes) in &expected {
        assert!(lab.content(name) == *bytes, "{name} without its origin");
        let mut first = base();
        first.resize(12 * MIB as usize, 0);
        assert!(lab.content(&format!("{name}@first")) == first, "{name}@first");
    }
    assert!(server.stop().success());
    lab.assert_sound();
}

#[test]
fn a_volume_over_an_export_of_nbdkit() {
    let lab = lab();
    let socket = lab.path("kit.sock");
    let file = lab.path("base.img");
    let words = ["-f", "-U", socket.to_str().unwrap(), "file", file.to_str().unwrap()];
    let program = find("nbdkit").unwrap();
    let kit = Server::start(program, words, Listens::Unix(socket.clone())).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    lab.ok(&format!("volume create lab/far --origin {uri}"));
    lab.ok("volume create lab/near --size 1M");
    let server = lab.serve("");
    let mut expected = base();
    assert!(lab.content("far") == expected);
    write(&lab, "far", &mut expected, 3);
    lab.ok("volume hydrate lab/far");
    assert!(lab.content("far") == expected);
    assert!(server.stop().success());
    kit.kill();
    let server = lab.serve("");
    assert!(lab.content("far") == expected, "without its origin");
    assert!(server.stop().success());
    lab.assert_sound();
}

#[test]
fn a_missing_origin_is_named_with_advice() {
    let lab = lab();
    lab.ok("volume create lab/cow --origin base.qcow2");
    lab.ok("volume create lab/other --size 1M");
    fs::rename(lab.path("base.qcow2"), lab.path("away.qcow2")).unwrap();
    let text = lab.refused("volume map lab/cow");
    assert!(text.contains("volume cow") && text.contains("base.qcow2"), "{text}");
    assert!(text.contains("bring the origin back"), "{text}");
    lab.ok("volume map lab/other");
    lab.ok("snapshot create lab/cow@s");
    let server = lab.serve("");
    assert_eq!(lab.content("other").len() as u64, MIB);
    assert!(nbd::Client::connect(&lab.uri("cow").parse().unwrap()).is_err());
    fs::rename(lab.path("away.qcow2"), lab.path("base.qcow2")).unwrap();
    assert!(lab.content("cow@s") == base(), "it is back");
    assert!(server.stop().success());
    let text = lab.refused("volume create lab/none --origin none.img");
    assert!(text.contains("none.img"), "{text}");
    let text = lab.firn("volume create lab/none").run();
    assert_eq!(text.code(), Some(64), "{text}");
}

/// Killed in the middle of a slow hydration, and taken up again.
#[test]
fn a_hydration_survives_sigkill() {
    let lab = lab();
    lab.ok("volume create lab/db --origin base.img");
    lab.ok("snapshot create lab/db@s");
    let mut expected = base();
    let server = lab.serve("");
    write(&lab, "db", &mut expected, 5);
    let hydrate = std::thread::spawn({
        let hydrate = lab.firn("volume hydrate lab/db --family --rate 64K");
        move || hydrate.run()
    });
    wait_for("the hydration", || {
        let jobs = lab.json("job list lab");
        jobs.as_array().unwrap().iter().any(|job| job["done"].as_u64() > Some(0))
    });
    std::thread::sleep(Duration::from_millis(50));
    server.kill();
    assert_ne!(hydrate.join().unwrap().code(), Some(0));
    let server = lab.serve("");
    assert!(lab.content("db") == expected);
    assert!(lab.content("db@s") == base());
    assert!(!lab.json("volume show lab/db")["origin"].is_null());
    assert!(server.stop().success());
    // Offline this time.
    lab.ok("volume hydrate lab/db --family");
    fs::remove_file(lab.path("base.img")).unwrap();
    let server = lab.serve("");
    assert!(content(&lab.connect("db")) == expected);
    assert!(lab.content("db@s") == base());
    assert!(server.stop().success());
    lab.assert_sound();
}

/// What the volume held is in the origin, where QEMU finds it; the volume is empty and shows it.
#[test]
fn a_merge_reaches_the_origin() {
    let lab = lab();
    for (name, file, format) in
        [("raw", "base.img", "raw"), ("cow", "base.qcow2", "qcow2"), ("vhd", "base.vhd", "vpc")]
    {
        lab.ok(&format!("volume create lab/{name} --origin {file}"));
        let mut expected = base();
        let server = lab.serve("");
        write(&lab, name, &mut expected, 8);
        let text = lab.refused(&format!("volume merge lab/{name}"));
        assert!(text.contains("served"), "{text}");
        assert!(server.stop().success());
        lab.ok(&format!("snapshot create lab/{name}@s"));
        let text = lab.refused(&format!("volume merge lab/{name}"));
        assert!(text.contains(&format!("{name}@s")) && text.contains("--force"), "{text}");
        lab.ok(&format!("snapshot delete lab/{name}@s"));
        lab.ok(&format!("volume merge lab/{name}"));
        assert_eq!(lab.json(&format!("volume show lab/{name}"))["mapped"], 0);
        let server = lab.serve("");
        assert!(lab.content(name) == expected, "{name}");
        assert!(server.stop().success());
        let words = ["convert", "-f", format, "-O", "raw", file, "merged.img"];
        peer("qemu-img").args(words).in_folder(lab.folder()).ok();
        assert!(fs::read(lab.path("merged.img")).unwrap() == expected, "{file}");
        lab.ok(&format!("volume delete lab/{name}"));
    }
    lab.assert_sound();
}
