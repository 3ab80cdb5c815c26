//! What people get wrong and what gets broken: one line that names the object, the problem and what
//! to do, the right exit code, and nothing written.

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, flock};

use crate::lab::Lab;

const MIB: u64 = 1 << 20;

/// Checks that each of these is refused with `code` and a sentence with these parts.
fn refused(lab: &Lab, code: i32, cases: &[(&str, &[&str])]) {
    for (words, parts) in cases {
        let sentence = lab.refused(words, code);
        for part in *parts {
            assert!(sentence.contains(part), "firn {words}: no '{part}' in: {sentence}");
        }
    }
}

#[test]
fn wrong_sizes() {
    let lab = Lab::with_volume();
    refused(
        &lab,
        64,
        &[
            ("pool create new --size 20X", &["size '20X'", "is not a size", "20G"]),
            ("pool create new --size 0", &["size '0'", "is nothing", "20G"]),
            ("pool create new --size 1G --block-size 100K", &["64"]),
            ("pool create new --size 1G --block-size 2G", &["1"]),
            ("pool create new --size 16777215T", &["new", "too large"]),
            ("pool create new --size 8E", &["too large"]),
            ("pool grow lab --size 1M", &["lab", "smaller"]),
            ("pool grow lab --size +", &["size ''", "is not a size"]),
            ("pool grow lab --size +18446744073709551104", &["cannot be added"]),
            ("volume create lab/new --size ten", &["size 'ten'", "is not a size"]),
            ("volume create lab/new --size 1000", &["size '1000'", "multiple of 512", "say 1024"]),
            ("volume create lab/new --size 8E", &["volume new", "4 EiB"]),
            ("volume resize lab/db --size +8E", &["db"]),
            ("volume resize lab/db --size 1M", &["lab/db", "64 MiB", "--shrink"]),
            ("volume discard lab/db --offset 65M", &["lab/db", "--offset"]),
            ("volume discard lab/db --offset 1M --length 64M", &["lab/db", "--length"]),
            ("serve lab --volume db", &["'db'", "says no size", "db=20G"]),
            ("serve lab --volume db=x", &["size 'x'", "is not a size"]),
        ],
    );
}

#[test]
fn names_and_addresses() {
    let lab = Lab::with_volume();
    lab.ok("snapshot create lab/db@monday");
    let long = format!("volume create lab/{} --size 1M", "x".repeat(129));
    refused(
        &lab,
        64,
        &[
            ("volume create lab/d:b --size 1M", &["volume name 'd:b'", "characters", "letters"]),
            ("volume create lab/.db --size 1M", &["volume name '.db'", "begins with"]),
            (&long, &["longer than 128"]),
            ("volume create lab/ --size 1M", &["volume name ''", "is empty", "letters"]),
            ("volume create db --size 1M", &["'db'", "names no pool", "lab/db"]),
            ("volume create lab/db@x --size 1M", &["is a snapshot", "lab/db"]),
            ("snapshot create lab/db", &["is a volume", "lab/db@monday"]),
            ("snapshot create lab/db@", &["snapshot name ''", "is empty", "letters"]),
            ("snapshot create lab/db@a/b", &["a snapshot is wanted", "lab/db@monday"]),
            ("snapshot clone lab/db@monday other/db", &["other", "one pool", "volume import"]),
            ("snapshot diff lab/db@monday other/db", &["other", "one pool"]),
            ("serve lab --volume d/b=1M", &["volume name 'd/b'", "letters"]),
        ],
    );
}

#[test]
fn unknown_objects() {
    let lab = Lab::with_volume();
    lab.ok("pool create other --size 1G");
    fs::create_dir(lab.path("empty")).unwrap();
    lab.image("disk.img", MIB, 0, 10);
    for pool in ["nowhere", "empty"] {
        for words in [
            "pool status POOL",
            "pool check POOL",
            "pool grow POOL --size 2G",
            "volume list POOL",
            "volume create POOL/db --size 1M",
            "volume import POOL/db disk.img",
            "volume export POOL/db out.img",
            "snapshot list POOL",
        ] {
            let sentence = lab.refused(&words.replace("POOL", pool), 1);
            assert!(sentence.starts_with(pool), "{words}: {sentence}");
            assert!(sentence.contains("firn pool create"), "{words}: {sentence}");
        }
    }
    refused(
        &lab,
        1,
        &[
            ("volume show lab/web", &["volume web", "no such volume", "firn volume list"]),
            ("volume map lab/web", &["web", "no such volume"]),
            ("volume resize lab/web --size 1M", &["web", "no such volume"]),
            ("volume delete lab/web", &["web", "no such volume"]),
            ("volume discard lab/web", &["web", "no such volume"]),
            ("volume export lab/web out.img", &["web", "no such volume"]),
            ("volume export lab/db@x out.img", &["db@x", "no such snapshot"]),
            ("snapshot list lab/web", &["web", "no such volume"]),
            ("snapshot create lab/web@x", &["web", "no such volume"]),
            ("snapshot delete lab/db@x", &["db@x", "no such snapshot"]),
            ("snapshot rollback lab/db@x", &["db@x", "no such snapshot"]),
            ("snapshot clone lab/db@x lab/y", &["db@x", "no such snapshot"]),
            ("snapshot diff lab/db@x lab/db", &["db@x", "no such snapshot"]),
            ("volume import lab/new nowhere.img", &["nowhere.img"]),
            ("volume import lab/new nbd+unix:///x?socket=nowhere", &["nowhere"]),
            ("volume import lab/new empty", &["empty"]),
        ],
    );
}

#[test]
fn what_exists_is_not_overwritten() {
    let lab = Lab::with_volume();
    lab.ok("snapshot create lab/db@monday");
    lab.image("disk.img", 65 * MIB, 0, 10);
    lab.image("out.img", MIB, 0, 10);
    fs::create_dir(lab.path("full")).unwrap();
    fs::write(lab.path("full/letter"), "dear reader").unwrap();
    refused(
        &lab,
        1,
        &[
            ("pool create lab --size 1G", &["lab", "there is a pool already"]),
            ("pool create full --size 1G", &["full", "not empty", "new directory"]),
            ("pool create out.img --size 1G", &["out.img"]),
            ("volume create lab/db --size 1M", &["volume db", "already"]),
            ("snapshot create lab/db@monday", &["db@monday", "already"]),
            ("snapshot clone lab/db@monday lab/db", &["volume db", "already"]),
            ("volume export lab/db out.img", &["out.img", "is there already", "--force"]),
            ("volume export lab/db full --force", &["full", "no regular file", "another"]),
            ("volume import lab/db disk.img", &["lab/db", "too few", "firn volume resize"]),
            ("volume delete lab/db", &["volume db", "--with-snapshots"]),
        ],
    );
    lab.image("late.img.part", MIB, 0, 10);
    refused(&lab, 1, &[("volume export lab/db late.img", &["late.img.part", "remove it"])]);
}

/// A pool that was damaged is never opened as if it were well, and checking it says so: 2.
#[test]
fn damaged_metadata() {
    type Damage = fn(&fs::File);
    let damages: [(&str, Damage); 4] = [
        ("truncated to nothing", |file| file.set_len(0).unwrap()),
        ("truncated in the middle", |file| file.set_len(16384).unwrap()),
        ("superblock overwritten", |file| file.write_all_at(&[0x5a; 4096], 0).unwrap()),
        ("one bit of the superblock", |file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, 300).unwrap();
            file.write_all_at(&[byte[0] ^ 4], 300).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let lab = Lab::with_volume();
        let metadata = lab.path("lab/metadata");
        let file = fs::File::options().read(true).write(true).open(&metadata).unwrap();
        damage(&file);
        let before = lab.state();
        for words in ["volume list lab", "volume create lab/x --size 1M", "serve lab"] {
            let sentence = lab.refused(words, 1);
            assert!(sentence.contains("metadata"), "{what}: firn {words}: {sentence}");
        }
        let ran = lab.run("pool check lab");
        assert_eq!(ran.code, 2, "{what}: {ran:?}");
        assert!(ran.stdout.starts_with("error: "), "{what}: {ran:?}");
        let ran = lab.run("pool check lab --json");
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(!report["errors"].as_array().unwrap().is_empty(), "{what}");
        assert_eq!(lab.state(), before, "{what}");
    }
}

#[test]
fn a_data_file_that_is_too_short() {
    let lab = Lab::with_volume();
    let data = fs::File::options().write(true).open(lab.path("lab/data")).unwrap();
    data.set_len(512 << 20).unwrap();
    refused(
        &lab,
        1,
        &[
            ("volume list lab", &["data"]),
            ("volume create lab/x --size 1M", &["data"]),
            ("serve lab", &["data"]),
        ],
    );
}

#[test]
fn a_pool_that_somebody_else_uses() {
    let lab = Lab::with_volume();
    let lock = fs::File::options().read(true).write(true).open(lab.path("lab/lock")).unwrap();
    lock.set_len(0).unwrap();
    lock.write_all_at(b"another tool (pid 4711)\n", 0).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    for words in ["volume list lab", "pool check lab", "serve lab"] {
        let sentence = lab.refused(words, 1);
        assert!(sentence.starts_with("lab: "), "firn {words}: {sentence}");
        assert!(sentence.contains("another tool (pid 4711)"), "firn {words}: {sentence}");
    }
    drop(lock);
    lab.ok("volume list lab");
}

#[test]
fn a_volume_in_use_is_not_deleted_unless_by_force() {
    let lab = Lab::with_volume();
    let server = lab.serve("lab");
    let uri = server.ready["nbd-uri"].as_str().unwrap().replace("///", "///db");
    let client = nbd::Client::connect(&uri.parse().unwrap()).unwrap();
    let sentence = lab.run("volume delete lab/db").sentence(1);
    assert!(sentence.contains("db"), "{sentence}");
    assert_eq!(lab.json("volume list lab").as_array().unwrap().len(), 1);
    lab.ok("volume delete lab/db --force");
    assert_eq!(lab.json("volume list lab").as_array().unwrap().len(), 0);
    drop(client);
    assert!(server.stop().success());
}

/// What fails halfway leaves no volume behind that was not there before.
#[test]
fn an_import_that_does_not_fit_the_pool_leaves_no_volume() {
    let lab = Lab::new();
    lab.ok("pool create lab --size 1M");
    lab.image("disk.img", 4 * MIB, 0, 4 << 20);
    let sentence = lab.run("volume import lab/db disk.img").sentence(1);
    assert!(sentence.contains("lab"), "{sentence}");
    assert!(sentence.contains("pool grow"), "{sentence}");
    assert_eq!(lab.json("volume list lab").as_array().unwrap().len(), 0);
    lab.ok("pool grow lab --size 8M");
    lab.ok("volume import lab/db disk.img");
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));
}
