//! `firn serve`: what it makes, announces and refuses, and how it ends.

use std::fs;

use crate::lab::{Lab, run};

const MIB: u64 = 1 << 20;

#[test]
fn makes_what_is_missing_and_nothing_else() {
    let lab = Lab::new();
    let server = lab.serve("lab --new 1G --volume db=64M --volume web=1M");
    assert_eq!(server.ready["pool"], "lab");
    lab.image("disk.img", 64 * MIB, 0, 1000);
    lab.ok("volume import lab/db disk.img");
    assert!(server.stop().success());
    // Begun again with the same words, it takes what is there.
    let before = lab.json("volume show lab/db");
    assert_eq!(before["mapped"], 64 << 10);
    let server = lab.serve("lab --new 1G --volume db=64M --volume log=1M");
    assert_eq!(lab.json("volume show lab/db"), before);
    assert_eq!(lab.json("volume list lab").as_array().unwrap().len(), 3);
    assert!(server.stop().success());
}

/// A volume copied from one server to another pool, over the protocol.
#[test]
fn volumes_and_snapshots_are_exports() {
    let lab = Lab::with_volume();
    let content = lab.image("disk.img", 64 * MIB, 12345, 100_000);
    lab.ok("volume import lab/db disk.img");
    lab.ok("snapshot create lab/db@monday");
    lab.ok("volume discard lab/db");
    let server = lab.serve("lab --socket s --cache writeback");
    lab.ok("pool create other --size 1G");
    lab.ok("volume import other/db nbd+unix:///db@monday?socket=s");
    let ran = lab.run("volume import other/none nbd+unix:///none?socket=s");
    assert!(ran.sentence(1).contains("none"), "{ran:?}");
    assert!(server.stop().success());
    lab.ok("volume export other/db out.img");
    assert!(fs::read(lab.path("out.img")).unwrap() == content);
}

#[test]
fn runs_a_command_and_ends_with_its_code() {
    let lab = Lab::with_volume();
    let mut command = lab.command("serve lab --quiet --run");
    let ran = run(command.arg("echo \"$uri\"; exit 7"));
    assert_eq!((ran.code, ran.stderr.as_str()), (7, ""), "{ran:?}");
    assert!(ran.stdout.starts_with("nbd+unix:///"), "{ran:?}");
    // What the command asks of the pool goes through the server that runs it.
    let mut command = lab.command("serve lab --quiet --run");
    let inside = format!("'{}' volume show lab/db --json", env!("CARGO_BIN_EXE_firn"));
    let ran = run(command.arg(inside));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("\"name\": \"db\""), "{ran:?}");
}

#[test]
fn tells_where_it_is() {
    let lab = Lab::with_volume();
    let server = lab.serve("lab --tcp 127.0.0.1:0");
    let uri = server.ready["nbd-uri"].as_str().unwrap();
    assert!(uri.starts_with("nbd+unix:///") && uri.ends_with("lab/nbd.sock"), "{uri}");
    let tcp = server.ready["nbd-tcp-uri"].as_str().unwrap().to_owned();
    let port = tcp.trim_end_matches('/').rsplit(':').next().unwrap();
    assert_ne!(port.parse::<u16>().unwrap(), 0, "{tcp}");
    assert!(lab.path("lab/control.sock").exists());
    lab.ok("pool create other --size 1G");
    lab.ok(&format!("volume import other/db nbd://127.0.0.1:{port}/db"));
    assert!(server.stop().success());
    assert!(!lab.path("lab/control.sock").exists());
}

#[test]
fn a_read_only_server_changes_nothing() {
    let lab = Lab::with_volume();
    let before = lab.state();
    let server = lab.serve("lab --read-only");
    let sentence = lab.run("volume create lab/new --size 1M").sentence(1);
    assert!(sentence.contains("read-only"), "{sentence}");
    lab.image("disk.img", MIB, 0, 1000);
    let sentence = lab.run("volume import lab/db disk.img").sentence(1);
    assert!(sentence.contains("read-only"), "{sentence}");
    lab.ok("volume export lab/db out.img");
    assert!(server.stop().success());
    fs::remove_file(lab.path("disk.img")).unwrap();
    fs::remove_file(lab.path("out.img")).unwrap();
    assert_eq!(lab.state(), before);
}

#[test]
fn refuses_what_is_not_there_or_in_use() {
    let lab = Lab::new();
    let sentence = lab.refused("serve lab", 1);
    assert!(sentence.starts_with("lab: there is no such directory; "), "{sentence}");
    assert!(sentence.contains("--new 100G"), "{sentence}");
    lab.ok("pool create lab --size 1G");
    let server = lab.serve("lab");
    let sentence = lab.run("serve lab").sentence(1);
    assert!(sentence.contains(&format!("firn serve (pid {})", server.pid())), "{sentence}");
    assert!(server.stop().success());
}
