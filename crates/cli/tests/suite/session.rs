//! A whole session: first with the pool closed, every verb opening it, then through a server. What
//! is asked and what is answered is the same.

use std::fs;

use crate::lab::Lab;

const MIB: u64 = 1 << 20;

/// Everything that one does with volumes and snapshots.
fn session(lab: &Lab) {
    lab.ok("volume create lab/db --size 64M");
    let monday = lab.image("monday.img", 64 * MIB, 3 * MIB, 200_000);
    assert!(lab.ok("volume import lab/db monday.img").starts_with("lab/db: 64 MiB imported"));
    lab.ok("snapshot create lab/db@monday");
    let tuesday = lab.image("tuesday.img", 64 * MIB, 40 * MIB, 70_000);
    lab.ok("volume import lab/db tuesday.img");
    lab.ok("snapshot clone lab/db@monday lab/db-test");

    exports_as(lab, "lab/db", &tuesday);
    exports_as(lab, "lab/db@monday", &monday);
    exports_as(lab, "lab/db-test", &monday);
    differences(lab);

    lab.ok("snapshot rollback lab/db@monday");
    exports_as(lab, "lab/db", &monday);
    lab.ok("volume discard lab/db --offset 3M --length 1M");
    exports_as(lab, "lab/db", &vec![0; monday.len()]);
    exports_as(lab, "lab/db@monday", &monday);

    sizes(lab);
    endings(lab);
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));
}

fn exports_as(lab: &Lab, node: &str, content: &[u8]) {
    lab.ok(&format!("volume export {node} out.img --force"));
    assert!(fs::read(lab.path("out.img")).unwrap() == content, "{node} has another content");
}

/// What Monday's blocks and Tuesday's blocks differ in: everything that one of them has.
fn differences(lab: &Lab) {
    let ranges = lab.json("snapshot diff lab/db@monday lab/db");
    let kinds: Vec<_> = ranges.as_array().unwrap().iter().map(|range| &range["kind"]).collect();
    assert_eq!(kinds, ["discarded", "data"], "{ranges}");
    assert_eq!(ranges[0]["start"], 3 * MIB);
    assert_eq!(ranges[1]["start"], 40 * MIB);
    assert_eq!(ranges[1]["length"], 128 << 10, "70 000 bytes lie in two blocks of 64 KiB");
    assert_eq!(lab.json("snapshot diff lab/db@monday lab/db-test").as_array().unwrap().len(), 0);
}

fn sizes(lab: &Lab) {
    lab.ok("volume resize lab/db-test --size +16M");
    assert_eq!(lab.json("volume show lab/db-test")["size"], 80 * MIB);
    let sentence = lab.run("volume resize lab/db-test --size 8M").sentence(64);
    assert!(sentence.contains("--shrink"), "{sentence}");
    lab.ok("volume resize lab/db-test --size 8M --shrink");
    assert_eq!(lab.json("volume show lab/db-test")["size"], 8 * MIB);
    lab.ok("pool grow lab --size +1G");
    assert_eq!(lab.json("pool status lab")["size"], 3u64 << 30);
}

fn endings(lab: &Lab) {
    let list = lab.ok("snapshot list lab/db");
    assert!(list.contains("db@monday"), "{list}");
    assert_eq!(lab.ok("snapshot list lab"), list);
    let sentence = lab.run("volume delete lab/db").sentence(1);
    assert!(sentence.contains("--with-snapshots"), "{sentence}");
    lab.ok("snapshot create lab/db@second");
    lab.ok("snapshot delete lab/db@monday");
    lab.ok("volume delete lab/db --with-snapshots");
    let volumes = lab.json("volume list lab");
    let names: Vec<_> = volumes.as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["db-test"]);
    lab.ok("volume delete lab/db-test");
    assert_eq!(lab.json("pool status lab")["data-used"], 0);
}

#[test]
fn with_the_pool_closed() {
    let lab = Lab::new();
    assert_eq!(lab.ok("pool create lab --size 2G"), "lab: created, for up to 2 GiB\n");
    session(&lab);
}

#[test]
fn through_a_server() {
    let lab = Lab::new();
    lab.ok("pool create lab --size 2G");
    let server = lab.serve("lab");
    session(&lab);
    lab.ok("volume create lab/after --size 1M");
    assert_eq!(server.stop().code(), Some(0));
    // What the server did is there for those who open the pool themselves.
    assert_eq!(lab.json("volume list lab")[0]["name"], "after");
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));
}
