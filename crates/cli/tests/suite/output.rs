//! JSON and text: the fields and columns that scripts rely on.

use std::process::Stdio;

use serde_json::Value;

use crate::lab::Lab;

const MIB: u64 = 1 << 20;

fn fields(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn lab_with_history() -> Lab {
    let lab = Lab::with_volume();
    lab.image("disk.img", 64 * MIB, MIB, 65536);
    lab.ok("volume import lab/db disk.img");
    lab.ok("snapshot create lab/db@monday");
    lab
}

#[test]
fn reports_have_their_fields() {
    let lab = lab_with_history();
    let status = lab.json("pool status lab");
    let expected = [
        "block-size",
        "data-used",
        "metadata-size",
        "metadata-used",
        "mode",
        "needs-check",
        "path",
        "reason",
        "reclaiming",
        "size",
        "snapshots",
        "transaction",
        "volumes",
    ];
    let mut found = fields(&status);
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(status["size"], 1u64 << 30);
    assert_eq!(status["data-used"], 65536);
    assert_eq!((&status["volumes"], &status["snapshots"]), (&1.into(), &1.into()));

    let volume = lab.json("volume show lab/db");
    let mut found = fields(&volume);
    found.sort_unstable();
    let expected = ["created", "id", "mapped", "name", "origin", "parent", "size", "snapshots"];
    assert_eq!(found, expected);
    assert_eq!(volume["snapshots"][0]["name"], "monday");
    assert_eq!(lab.json("volume list lab")[0], volume);

    let snapshot = &lab.json("snapshot list lab/db")[0];
    let mut found = fields(snapshot);
    found.sort_unstable();
    assert_eq!(found, ["created", "id", "mapped", "name", "origin", "size", "volume"]);
    assert_eq!(snapshot["volume"], "db");

    let check = lab.json("pool check lab");
    assert_eq!(check["errors"].as_array().unwrap().len(), 0);
    assert_eq!(check["leaks"].as_array().unwrap().len(), 0);
    assert!(check["checked-blocks"].as_u64().unwrap() > 0);
}

/// The field names are those of `qemu-img map --output=json`.
#[test]
fn maps_are_as_qemu_img_has_them() {
    let lab = lab_with_history();
    let expected = serde_json::json!([
        {"start": 0, "length": MIB,
         "depth": 0, "present": false, "zero": true, "data": false},
        {"start": MIB, "length": 65536,
         "depth": 0, "present": true, "zero": false, "data": true},
        {"start": MIB + 65536, "length": 63 * MIB - 65536,
         "depth": 0, "present": false, "zero": true, "data": false},
    ]);
    assert_eq!(lab.json("volume map lab/db"), expected);
    assert_eq!(lab.json("volume map lab/db@monday"), expected);
    let server = lab.serve("lab");
    assert_eq!(lab.json("volume map lab/db"), expected, "over NBD");
    assert!(server.stop().success());
    let text = lab.ok("volume map lab/db");
    let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["START", "LENGTH", "STATE"]);
    assert_eq!(words[2], ["1048576", "65536", "data"]);
}

#[test]
fn what_was_done_is_told_in_json_too() {
    let lab = Lab::new();
    assert_eq!(lab.json("pool create lab --size 1G")["size"], 1u64 << 30);
    assert_eq!(lab.json("volume create lab/db --size 1M")["size"], MIB);
    assert_eq!(lab.json("volume resize lab/db --size 2M")["size"], 2 * MIB);
    lab.image("disk.img", MIB, 0, 5000);
    let import = lab.json("volume import lab/new disk.img");
    assert_eq!(import["size"], MIB);
    assert_eq!(import["copied"].as_u64().unwrap() + import["zeros"].as_u64().unwrap(), MIB);
    let export = lab.json("volume export lab/new out.img");
    assert_eq!((&export["name"], &export["file"]), (&"lab/new".into(), &"out.img".into()));
    let snapshot = lab.json("snapshot create lab/db@a");
    assert_eq!((&snapshot["volume"], &snapshot["name"]), (&"db".into(), &"a".into()));
    assert_eq!(lab.json("snapshot clone lab/db@a lab/b")["parent"], "db@a");
    assert_eq!(lab.json("snapshot rollback lab/db@a")["name"], "db");
    let discard = lab.json("volume discard lab/db --offset 1M");
    assert_eq!((&discard["start"], &discard["length"]), (&MIB.into(), &MIB.into()));
    assert_eq!(lab.json("snapshot delete lab/db@a")["deleted"], "lab/db@a");
    assert_eq!(lab.json("volume delete lab/b")["deleted"], "lab/b");
    assert_eq!(lab.json("pool grow lab --size 2G")["size"], 2u64 << 30);
}

#[test]
fn quiet_means_no_confirmations_but_results() {
    let lab = Lab::new();
    assert_eq!(lab.ok("-q pool create lab --size 1G"), "");
    assert_eq!(lab.ok("volume create lab/db --size 1M -q"), "");
    assert!(lab.ok("-q volume list lab").contains("db"));
}

#[test]
fn the_log_goes_to_stderr_when_it_is_asked_for() {
    let lab = Lab::with_volume();
    let ran = lab.run("-vvv volume list lab");
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stdout, lab.ok("volume list lab"));
}

#[test]
fn volumes_that_are_imported_stay_sparse_and_keep_odd_ends() {
    let lab = Lab::with_volume();
    let content = lab.image("odd.img", 5_000_001, 4_999_000, 1001);
    lab.ok("volume import lab/odd odd.img");
    let info = lab.json("volume show lab/odd");
    assert_eq!(info["size"], 5_000_001u64.next_multiple_of(512));
    assert_eq!(info["mapped"], 65536);
    lab.ok("volume export lab/odd out.img");
    let out = std::fs::read(lab.path("out.img")).unwrap();
    assert!(out[..content.len()] == content);
    assert!(out[content.len()..].iter().all(|&byte| byte == 0));
}

/// `firn ... | head -1` is no failure, and nothing to complain about.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::with_volume();
    for words in ["volume list lab", "volume map lab/db", "volume map lab/db --json", "--help"] {
        let mut command = lab.command(words);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words}");
        assert!(output.stderr.is_empty(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
