//! What a script for dmsetup does: messages, status lines, and names for what messages made; with
//! the pool closed and through a server alike.

use crate::lab::{Lab, run};

/// Names of all volumes, devices without one by their number.
fn names(lab: &Lab) -> Vec<String> {
    let volumes = lab.json("volume list lab");
    let names = volumes.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap());
    names.map(str::to_owned).collect()
}

/// Checks that a message is refused with the kernel's word.
fn refused(lab: &Lab, message: &str, code: i32, parts: &[&str]) {
    let sentence = lab.run(&format!("pool message lab {message}")).sentence(code);
    assert!(sentence.starts_with(&format!("message '{message}': {}: ", parts[0])), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{message}: no '{part}' in {sentence}");
    }
}

fn script(lab: &Lab) {
    let used = lab.json("pool status lab")["metadata-used"].as_u64().unwrap() / 4096;
    // 16 MiB of metadata: 409 of its 4096 blocks count as used from the start.
    let line = format!(
        "0 2097152 thin-pool 0 {}/4096 0/16384 - rw discard_passdown queue_if_no_space - 1024 \n",
        used + 409
    );
    assert_eq!(lab.ok("pool status lab --dm"), line);
    assert_eq!(lab.json("pool status lab --dm")["line"], line.trim_end_matches('\n'));

    assert_eq!(lab.ok("pool message lab create_thin 7"), "lab: create_thin 7: done\n");
    let ran = run(lab.command("pool message lab -q").arg("Create_Snap  8 7"));
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    assert_eq!(lab.json("pool message lab create_thin 9")["message"], "create_thin 9");
    assert_eq!(names(lab), ["#7", "#8", "#9"]);
    refused(lab, "create_thin 7", 1, &["EEXIST", "device 7"]);
    refused(lab, "create_snap 10 11", 1, &["ENODATA", "device 11"]);
    refused(lab, "create_thin 16777216", 64, &["EINVAL", "16777215"]);
    refused(lab, "trim 0 1", 64, &["EINVAL", "no message", "create_thin ID"]);
    refused(lab, "set_transaction_id 3 4", 64, &["EINVAL", "is 0, not 3"]);
    lab.ok("pool message lab set_transaction_id 0 5");
    lab.ok("pool message lab set_transaction_id 5 2");

    names_for_devices(lab);
    named_devices(lab);
    metadata_snapshots(lab);
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));
}

fn names_for_devices(lab: &Lab) {
    let sentence = lab.run("volume rename lab/#7 lab/db").sentence(64);
    assert!(sentence.starts_with("lab/#7: has no size yet") && sentence.contains("--size"));
    assert_eq!(lab.ok("volume rename lab/#7 lab/db --size 64M"), "lab/#7: is lab/db now\n");
    assert_eq!(lab.json("volume show lab/db")["id"], 7);
    assert_eq!(lab.ok("volume show lab/db --dm"), "0 131072 thin 0 -\n");
    lab.image("disk.img", 64 << 20, 1 << 20, 70_000);
    lab.ok("volume import lab/db disk.img");
    assert_eq!(lab.ok("volume show lab/db --dm"), "0 131072 thin 256 2303\n");
    for (words, code, part) in [
        ("volume rename lab/#7 lab/web --size 1M", 1, "has a name already, db"),
        ("volume rename lab/#4 lab/web --size 1M", 1, "no such device"),
        ("volume rename lab/#9 lab/db --size 1M", 1, "already"),
        ("volume rename lab/#x lab/web --size 1M", 64, "no number"),
        ("volume rename lab/db lab/web --size 1M", 64, "has a size already"),
        ("volume rename lab/web lab/log", 1, "no such volume"),
        ("volume rename lab/db other/db", 64, "one pool"),
    ] {
        let sentence = lab.run(words).sentence(code);
        assert!(sentence.contains(part), "{words}: {sentence}");
    }
    lab.ok("volume rename lab/#8 lab/past --size 64M");
    lab.ok("volume rename lab/past lab/history");
    assert_eq!(names(lab), ["db", "history", "#9"]);
}

fn named_devices(lab: &Lab) {
    lab.ok("snapshot create lab/db@monday");
    lab.ok("snapshot clone lab/db@monday lab/clone");
    lab.ok("volume rename lab/db lab/web");
    assert_eq!(lab.json("volume show lab/clone")["parent"], "web@monday");
    assert_eq!(lab.json("volume show lab/web")["snapshots"][0]["name"], "monday");
    let ids = |names: [&str; 2]| {
        names.map(|name| lab.json(&format!("volume show lab/{name}"))["id"].to_string())
    };
    let [web, history] = ids(["web", "history"]);
    refused(lab, &format!("delete {web}"), 1, &["EBUSY", "volume web", "--with-snapshots"]);
    let transaction = lab.json("pool status lab")["transaction"].as_u64().unwrap();
    let back = format!("set_transaction_id {transaction} 1");
    refused(lab, &back, 64, &["EINVAL", "cannot go back to 1 while volumes have names"]);
    lab.ok(&format!("pool message lab set_transaction_id {transaction} 100"));
    lab.ok(&format!("pool message lab delete {history}"));
    lab.ok("pool message lab delete 9");
    assert_eq!(names(lab), ["clone", "web"]);
    assert_eq!(lab.json("pool status lab")["transaction"], 101);
}

fn metadata_snapshots(lab: &Lab) {
    refused(lab, "release_metadata_snap", 64, &["EINVAL", "no metadata snapshot"]);
    lab.ok("pool message lab reserve_metadata_snap");
    refused(lab, "reserve_metadata_snap", 1, &["EBUSY", "held already"]);
    let line = lab.ok("pool status lab --dm");
    assert!(line.split(' ').nth(6).unwrap().parse::<u64>().is_ok(), "{line}");
    lab.ok("volume discard lab/web");
    lab.ok("pool message lab release_metadata_snap");
    assert!(lab.ok("pool status lab --dm").contains(" - rw "));
}

#[test]
fn with_the_pool_closed() {
    let lab = Lab::new();
    lab.ok("pool create lab --size 1G");
    lab.ok("pool create other --size 1G");
    script(&lab);
}

#[test]
fn through_a_server() {
    let lab = Lab::new();
    lab.ok("pool create lab --size 1G");
    lab.ok("pool create other --size 1G");
    let server = lab.serve("lab");
    script(&lab);
    assert!(server.stop().success());
    assert_eq!(names(&lab), ["clone", "web"]);
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));
}
