//! The verbs on metadata, on pools that this command made and on others', against Debian's thin
//! tools; and what they refuse.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock, identify, seal};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use testkit::peer::peer;
use testkit::{fixture, thin_tools};

use crate::lab::Lab;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;

/// A pool with a volume of 1000 mappings, a snapshot, a clone, and changes after both.
fn lab_with_history() -> Lab {
    let lab = Lab::with_volume();
    lab.image("disk.img", 64 * MIB, 0, 1000 * BLOCK as usize);
    lab.ok("volume import lab/db disk.img");
    lab.ok("snapshot create lab/db@monday");
    lab.ok("snapshot clone lab/db@monday lab/test");
    lab.image("small.img", 3 * MIB, MIB, MIB as usize);
    lab.ok("volume import lab/db small.img");
    lab.ok("volume discard lab/test --offset 32M --length 1M");
    lab
}

fn metadata(lab: &Lab) -> PathBuf {
    lab.path("lab/metadata")
}

/// Everything in metadata, however its blocks lie.
fn dump(lab: &Lab, source: &str) -> String {
    lab.ok(&format!("pool dump {source} --dialect 0.9"))
}

/// What a peer says of a file.
fn says(program: &str, args: &[&str], file: &Path) -> String {
    peer(program).args(args).arg(file).ok()
}

/// The block of a leaf with at least so many mappings that is in use: the check misses it.
fn leaf(lab: &Lab, least: u32) -> u64 {
    let file = fs::File::options().read(true).write(true).open(metadata(lab)).unwrap();
    let blocks = file.metadata().unwrap().len() / BLOCK_SIZE as u64;
    for at in 1..blocks {
        let mut block = [0; BLOCK_SIZE];
        file.read_exact_at(&mut block, at * BLOCK_SIZE as u64).unwrap();
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        let (flags, entries, value_size) = (word(4), word(16), word(24));
        let node = identify(&block) == Some(BlockKind::Node);
        if !node || flags != 2 || value_size != 8 || entries < least {
            continue;
        }
        zero(&file, at);
        let corrupt = lab.run("pool check lab").code == 2;
        file.write_all_at(&block, at * BLOCK_SIZE as u64).unwrap();
        if corrupt {
            return at;
        }
    }
    panic!("no leaf of mappings is in use");
}

fn zero(file: &fs::File, block: u64) {
    file.write_all_at(&[0; BLOCK_SIZE], block * BLOCK_SIZE as u64).unwrap();
}

fn damage(lab: &Lab, block: u64) {
    zero(&fs::File::options().write(true).open(metadata(lab)).unwrap(), block);
}

/// A directory that looks like a pool's, with the metadata of a fixture.
fn pool_of(lab: &Lab, name: &str) {
    fs::create_dir(lab.path("pool")).unwrap();
    fs::write(lab.path("pool/metadata"), fixture::bytes(name)).unwrap();
    for empty in ["data", "lock"] {
        fs::write(lab.path("pool").join(empty), "").unwrap();
    }
}

#[test]
fn a_dump_is_what_thin_dump_writes() {
    let lab = lab_with_history();
    let theirs = thin_tools::dump(&metadata(&lab));
    assert!(theirs.lines().count() > 100 && lab.ok("pool dump lab --dialect 0.9") == theirs);
    // The metadata file stands for its pool, and a copy of it for itself.
    assert_eq!(lab.ok("pool dump lab/metadata --dialect 0.9"), theirs);
    fs::copy(metadata(&lab), lab.path("copy")).unwrap();
    assert_eq!(lab.ok("pool dump copy --dialect 0.9"), theirs);
    assert_eq!(lab.ok("pool dump copy --dialect 0.9 -o out.xml"), "copy: dumped to out.xml\n");
    assert_eq!(fs::read_to_string(lab.path("out.xml")).unwrap(), theirs);

    let ids = lab.json("pool ls lab");
    let id = &ids[1]["id"];
    let words = format!("--dev-id {id}");
    let one = says("thin_dump", &words.split(' ').collect::<Vec<_>>(), &metadata(&lab));
    assert_eq!(lab.ok(&format!("pool dump lab --dialect 0.9 {words}")), one);
    let heads = lab.ok("pool dump lab --skip-mappings");
    assert!(heads.contains("<device ") && !heads.contains("_mapping "), "{heads}");
    assert!(lab.ok("pool dump lab --format human").contains("begin superblock"));
    let sentence = lab.refused("pool dump lab --dev-id 99", 1);
    assert!(sentence.contains("device 99"), "{sentence}");
    lab.refused("pool dump lab --json", 64);
    lab.refused("pool dump lab --dev-id db", 64);
}

#[test]
fn nobody_reads_a_dump_to_its_end() {
    let lab = lab_with_history();
    let mut child = lab
        .command("pool dump lab --dialect 0.9")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
}

#[test]
fn what_was_dumped_is_restored() {
    let lab = lab_with_history();
    let xml = dump(&lab, "lab");
    for dialect in ["1", "0.9"] {
        lab.ok(&format!("pool dump lab --dialect {dialect} -o lab.xml --force"));
        let bin = format!("meta-{dialect}");
        let report = lab.json(&format!("pool restore -i lab.xml {bin}"));
        assert_eq!((&report["devices"], &report["kept"]), (&3.into(), &Value::Null));
        thin_tools::check(&lab.path(&bin));
        assert!(dump(&lab, &bin) == xml);
        assert_eq!(fs::metadata(lab.path(&bin)).unwrap().len(), 16 * MIB);
    }
    lab.ok("pool restore -i lab.xml changed --transaction-id 77 --nr-data-blocks 20000");
    let head = lab.ok("pool dump changed --skip-mappings");
    assert!(head.contains("transaction=\"77\" "), "{head}");
    assert!(head.contains("nr_data_blocks=\"20000\""), "{head}");
}

/// A pool goes back to what it was when it was dumped, with its names.
#[test]
fn a_pool_is_restored_and_keeps_its_old_metadata() {
    let lab = lab_with_history();
    let (xml, volumes) = (dump(&lab, "lab"), lab.json("volume list lab"));
    lab.ok("pool dump lab -o lab.xml");
    lab.ok("volume discard lab/db");
    let before = fs::read(metadata(&lab)).unwrap();
    let said = lab.ok("pool restore -i lab.xml lab");
    assert!(said.contains("3 devices") && said.contains("lab/metadata.old"), "{said}");
    assert!(fs::read(lab.path("lab/metadata.old")).unwrap() == before);
    assert!(!lab.path("lab/metadata.new").exists());
    assert!(dump(&lab, "lab") == xml);
    assert_eq!(lab.json("volume list lab"), volumes);
    lab.ok("volume create lab/more --size 1M");
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));

    // A second time there is a metadata.old, and it may be the only good one.
    let sentence = lab.refused("pool restore -i lab.xml lab", 1);
    assert!(sentence.contains("metadata.old") && sentence.contains("--force"), "{sentence}");
    lab.ok("pool restore -i lab.xml lab --force");
    assert!(dump(&lab, "lab") == xml);
}

#[test]
fn what_cannot_be_restored_changes_nothing() {
    let lab = lab_with_history();
    let xml = lab.ok("pool dump lab --dialect 0.9");
    let half = &xml[..xml.len() / 2];
    fs::write(lab.path("half.xml"), half).unwrap();
    fs::write(lab.path("lab.xml"), &xml).unwrap();
    for (words, parts) in [
        ("pool restore -i half.xml lab", &["half.xml", "line"][..]),
        ("pool restore -i half.xml new", &["half.xml", "line"]),
        ("pool restore -i nowhere.xml lab", &["nowhere.xml"]),
        ("pool restore -i lab.xml disk.img", &["disk.img", "is there already", "--force"]),
        // The data file has fewer blocks than that.
        ("pool restore -i lab.xml lab --nr-data-blocks 1000000", &["lab/data"]),
    ] {
        let sentence = lab.refused(words, 1);
        for part in parts {
            assert!(sentence.contains(part), "firn {words}: no '{part}' in: {sentence}");
        }
    }
    lab.refused("pool restore -i lab.xml new --data-block-size 100K", 64);
}

/// A leaf of mappings is lost: the rest is there, and what is lost is said.
#[test]
fn a_damaged_pool_is_repaired() {
    let lab = lab_with_history();
    damage(&lab, leaf(&lab, 60));
    let damaged = fs::read(metadata(&lab)).unwrap();
    // To a file, the pool stays as it is.
    let report = lab.json("pool repair lab -o new.bin");
    assert_eq!(report["complete"], false);
    thin_tools::check(&lab.path("new.bin"));
    assert!(fs::read(metadata(&lab)).unwrap() == damaged);
    let sentence = lab.refused("pool repair lab -o new.bin", 1);
    assert!(sentence.contains("new.bin") && sentence.contains("--force"), "{sentence}");

    let ran = lab.run("pool repair lab");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stdout.starts_with("DEVICE  "), "{ran:?}");
    assert!(ran.stdout.contains("metadata.damaged; ") && ran.stdout.contains("of 3 devices"));
    assert!(fs::read(lab.path("lab/metadata.damaged")).unwrap() == damaged);
    thin_tools::check(&metadata(&lab));
    assert!(lab.ok("pool check lab").starts_with("lab: sound"));

    // Of a device with losses, the rest reads as it was.
    let harmed: Vec<&Value> = report["devices"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|device| !device["lost"].as_array().unwrap().is_empty())
        .collect();
    assert!(!harmed.is_empty(), "{report}");
    for device in harmed {
        let (mapped, before) = (&device["mapped"], &device["mapped-before"]);
        let (mapped, before) = (mapped.as_u64().unwrap(), before.as_u64().unwrap());
        let range = &device["lost"][0];
        let lost = range["length"].as_u64().unwrap_or(64 * MIB - range["start"].as_u64().unwrap());
        assert!(mapped < before && before - mapped <= lost, "{device}");
    }
    assert_eq!(lab.json("volume list lab").as_array().unwrap().len(), 2);
    lab.ok("volume export lab/db@monday monday.img");
    let (now, then) = (lab.path("monday.img"), lab.path("disk.img"));
    let (now, then) = (fs::read(now).unwrap(), fs::read(then).unwrap());
    let blocks = now.chunks(BLOCK as usize).zip(then.chunks(BLOCK as usize));
    for (block, (now, then)) in blocks.enumerate() {
        assert!(now == then || now.iter().all(|&byte| byte == 0), "block {block}");
    }
}

/// The superblock is gone, and with it which of the last commits was the last; names keep their
/// devices all the same.
#[test]
fn a_pool_without_superblock_is_repaired() {
    let lab = lab_with_history();
    let names = || -> Vec<Value> {
        let mut volumes = lab.json("volume list lab").as_array().unwrap().clone();
        for volume in &mut volumes {
            volume.as_object_mut().unwrap().remove("mapped");
        }
        volumes
    };
    let before = names();
    damage(&lab, 0);
    assert_eq!(lab.run("pool check lab").code, 2);
    let sentence = lab.refused("pool repair lab", 1);
    assert!(sentence.contains("--data-block-size"), "{sentence}");
    let report = lab.json("pool repair lab --data-block-size 64K");
    assert_eq!((&report["searched"], &report["complete"]), (&true.into(), &false.into()));
    for device in report["devices"].as_array().unwrap() {
        assert_eq!((&device["doubtful"], &device["lost"]), (&true.into(), &Value::Array(vec![])));
    }
    thin_tools::check(&metadata(&lab));
    assert_eq!(names(), before);
    lab.ok("volume create lab/more --size 1M");
}

#[test]
fn a_sound_pool_loses_nothing_by_a_repair() {
    let lab = lab_with_history();
    let xml = dump(&lab, "lab");
    let said = lab.ok("pool repair lab");
    assert!(said.ends_with("nothing is lost\n") && said.lines().count() == 1, "{said}");
    assert!(dump(&lab, "lab") == xml);
}

#[test]
fn delta_is_what_thin_delta_writes() {
    let lab = lab_with_history();
    let (db, monday) = (lab.json("volume show lab/db"), "db@monday");
    let [right, left] = [&db["id"], &db["snapshots"][0]["id"]].map(Value::to_string);
    for verbose in [&[][..], &["--verbose"]] {
        let args = [&["--thin1", &left, "--thin2", &right], verbose].concat();
        let theirs = says("thin_delta", &args, &metadata(&lab));
        assert!(theirs.contains("<different"), "{theirs}");
        let flag = verbose.concat();
        let words = format!("pool delta lab --thin1 {monday} --thin2 db {flag}");
        assert_eq!(lab.run(&words).stdout, theirs);
        let words = format!("pool delta lab --thin1 {left} --snap2 {right} {flag}");
        assert_eq!(lab.run(&words).stdout, theirs);
    }
    let ranges = lab.json("pool delta lab --thin1 db@monday --thin2 db --skip-same");
    let ranges = ranges.as_array().unwrap();
    assert!(ranges.iter().all(|range| range["kind"] != "same"), "{ranges:?}");
    let bytes: u64 = ranges.iter().map(|range| range["length"].as_u64().unwrap()).sum();
    assert_eq!((&ranges[0]["start"], bytes), (&0.into(), 3 * MIB));
    let all = lab.json("pool delta lab --thin1 db@monday --thin2 test");
    let kinds: Vec<&Value> = all.as_array().unwrap().iter().map(|range| &range["kind"]).collect();
    assert!(kinds.contains(&&"same".into()) && kinds.contains(&&"left-only".into()), "{all}");
    for (words, code, part) in [
        ("--thin1 db@tuesday --thin2 db", 1, "db@tuesday"),
        ("--thin1 web --thin2 db", 1, "no such volume"),
        ("--thin1 99 --thin2 db", 1, "device 99"),
        ("--thin1 db", 64, "--thin2"),
        ("--thin1 db --root1 3 --thin2 4", 64, "--root1"),
    ] {
        let sentence = lab.refused(&format!("pool delta lab {words}"), code);
        assert!(sentence.contains(part), "{words}: {sentence}");
    }
}

#[test]
fn ls_and_rmap_are_what_the_thin_tools_write() {
    let lab = lab_with_history();
    assert_eq!(lab.ok("pool ls lab"), says("thin_ls", &[], &metadata(&lab)));
    let columns = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BYTES,SHARED";
    let theirs = says("thin_ls", &["--no-headers", "-o", columns], &metadata(&lab));
    assert_eq!(lab.ok(&format!("pool ls lab --no-headers -o {columns}")), theirs);
    let sentence = lab.refused("pool ls lab -o DEV,SIZE", 64);
    assert!(sentence.contains("SIZE") && sentence.contains("MAPPED_BYTES"), "{sentence}");

    let listed = lab.json("pool ls lab");
    let volume = lab.json("volume show lab/db");
    let db = listed.as_array().unwrap().iter().find(|row| row["id"] == volume["id"]).unwrap();
    assert_eq!(db["mapped"], volume["mapped"]);
    let sum = db["exclusive"].as_u64().unwrap() + db["shared"].as_u64().unwrap();
    assert_eq!(db["mapped"], sum);

    let uses = lab.ok("pool rmap lab --region 0..10 --region 990..100000");
    assert!(uses.lines().all(|line| line.starts_with("data ")), "{uses}");
    // Of devices that share, thin_rmap names the first, in full.
    let args = ["--region", "0..10", "--region", "990..100000"];
    let first = format!("-> thin({}) ", listed[0]["id"]);
    let theirs = says("thin_rmap", &args, &metadata(&lab));
    for line in theirs.lines().filter(|line| line.contains(&first)) {
        assert!(uses.lines().any(|ours| ours == line), "no '{line}' in {uses}");
    }
    let found = lab.json("pool rmap lab --region 0..10");
    let bytes = |one: &Value| one["length"].as_u64().unwrap();
    assert!(found.as_array().unwrap().iter().all(|one| bytes(one) <= 10 * BLOCK), "{found}");
    for words in ["--region 5..5", "--region 7", ""] {
        lab.refused(&format!("pool rmap lab {words}"), 64);
    }
}

#[test]
fn packs_are_unpacked() {
    let lab = lab_with_history();
    lab.ok("pool pack lab -o lab.pack");
    assert!(fs::metadata(lab.path("lab.pack")).unwrap().len() < MIB);
    lab.ok("pool unpack lab.pack -o copy");
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert_eq!(size(&lab.path("copy")), size(&metadata(&lab)));
    let xml = lab.ok("pool dump lab");
    assert_eq!(lab.ok("pool dump copy"), xml);
    // Back into the pool, which has moved on.
    lab.ok("volume discard lab/db");
    lab.ok("pool unpack lab.pack -o lab");
    assert_eq!(lab.ok("pool dump lab"), xml);
    for (words, part) in [
        ("pool pack lab -o lab.pack", "--force"),
        ("pool unpack lab.pack -o copy", "--force"),
        ("pool unpack disk.img -o new", "disk.img"),
        ("pool unpack nowhere -o new", "nowhere"),
        ("pool pack nowhere -o new", "nowhere"),
    ] {
        let sentence = lab.refused(words, 1);
        assert!(sentence.contains(part), "{words}: {sentence}");
    }
    lab.ok("pool pack lab -o lab.pack --force --quiet");
}

#[test]
fn leaks_and_the_mark_are_put_right_by_a_check() {
    let lab = Lab::new();
    let mut bytes = fixture::bytes("thin/k61-oom.md.gz");
    // Marked as in need of a check.
    bytes[4] |= 1;
    seal(&mut bytes[..BLOCK_SIZE], BlockKind::Superblock, MetaBlock::new(0));
    fs::write(lab.path("meta"), &bytes).unwrap();
    assert_eq!(lab.run("pool check meta").code, 3);
    assert_eq!(lab.run("pool check meta --superblock-only").code, 0);
    assert_eq!(lab.run("pool check meta --skip-mappings").code, 0);
    assert!(fs::read(lab.path("meta")).unwrap() == bytes);

    let said = lab.ok("pool check meta --repair-leaks");
    assert!(said.contains("repaired: the counts of") && said.contains("meta: sound"), "{said}");
    assert!(said.contains("warning: the pool's metadata is marked"), "{said}");
    let report = lab.json("pool check meta --clear-needs-check");
    assert_eq!(report["warnings"].as_array().unwrap().len(), 0, "{report}");
    thin_tools::check(&lab.path("meta"));

    // What is corrupt is left alone.
    fs::write(lab.path("broken"), fixture::bytes("thin/k61-ov.md.gz")).unwrap();
    let before = lab.state();
    for flag in ["--repair-leaks", "--clear-needs-check", ""] {
        let ran = lab.run(&format!("pool check broken {flag}"));
        assert_eq!(ran.code, 2, "{flag}: {ran:?}");
    }
    assert_eq!(lab.state(), before);
    lab.refused("pool check meta --repair-leaks --superblock-only", 64);
}

/// A pool that somebody writes to is not read, but for its metadata snapshot.
#[test]
fn a_pool_in_use_is_read_by_its_metadata_snapshot_only() {
    let lab = Lab::new();
    pool_of(&lab, "thin/k61-m2.snaps.md.gz");
    let lock = fs::File::options().read(true).write(true).open(lab.path("pool/lock")).unwrap();
    lock.write_all_at(b"another tool (pid 4711)\n", 0).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    fs::write(lab.path("some.xml"), fixture::bytes("thin/a.xml")).unwrap();
    for words in [
        "pool dump pool",
        "pool dump pool/metadata",
        "pool ls pool",
        "pool delta pool --thin1 0 --thin2 1",
        "pool rmap pool --region 0..1",
        "pool pack pool -o new",
        "pool restore -i some.xml pool",
        "pool restore -i some.xml pool/metadata",
        "pool repair pool",
        "pool repair pool -o new",
        "pool check pool --repair-leaks",
    ] {
        let sentence = lab.refused(words, 1);
        assert!(sentence.contains("another tool (pid 4711)"), "firn {words}: {sentence}");
    }
    let file = lab.path("pool/metadata");
    let theirs = says("thin_dump", &["--metadata-snap"], &file);
    for snapshot in ["-m", "--metadata-snapshot", "-m=55", "--metadata-snapshot=55"] {
        assert_eq!(lab.ok(&format!("pool dump pool --dialect 0.9 {snapshot}")), theirs);
    }
    let theirs = says("thin_delta", &["--metadata-snap=55", "--thin1", "0", "--thin2", "1"], &file);
    assert_eq!(lab.ok("pool delta pool -m --thin1 0 --thin2 1"), theirs);
    assert!(lab.ok("pool ls pool -m").starts_with("DEV "));
    assert!(lab.json("pool rmap pool -m --region 0..100").as_array().is_some());
}

#[test]
fn what_is_not_there_is_said() {
    let lab = Lab::with_volume();
    fs::create_dir(lab.path("empty")).unwrap();
    fs::write(lab.path("some.xml"), "").unwrap();
    for words in [
        "pool dump SOURCE",
        "pool repair SOURCE",
        "pool repair SOURCE -o new",
        "pool delta SOURCE --thin1 0 --thin2 1",
        "pool ls SOURCE",
        "pool rmap SOURCE --region 0..1",
        "pool pack SOURCE -o new",
        "pool check SOURCE --repair-leaks",
    ] {
        for source in ["nowhere", "empty"] {
            let sentence = lab.refused(&words.replace("SOURCE", source), 1);
            assert!(sentence.starts_with(source), "{words}: {sentence}");
            assert!(sentence.contains("firn pool create"), "{words}: {sentence}");
        }
    }
    lab.refused("pool restore -i some.xml empty", 1);
    let sentence = lab.refused("pool dump lab -m", 1);
    assert!(sentence.contains("has no metadata snapshot"), "{sentence}");
    lab.image("noise", MIB, 0, MIB as usize);
    for words in ["pool dump noise", "pool ls noise", "pool repair noise -o new"] {
        let sentence = lab.refused(words, 1);
        assert!(sentence.starts_with("noise"), "{words}: {sentence}");
    }
    let sentence = lab.refused("pool repair noise", 64);
    assert!(sentence.contains("-o"), "{sentence}");
}
