//! The peers' programs as clients of `firn serve`: libnbd's, QEMU's and fio.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::peer::{Outcome, Peer, peer};
use testkit::rng::Rng;

use crate::lab::{FIRN, KIB, Lab, MIB, Served};

const SIZE: u64 = 64 * MIB;

/// The unit in which the pool gives space.
const BLOCK: u64 = 64 * KIB;

/// Random bytes with holes in between: runs of blocks, and one that ends inside a block.
fn image(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mut rng = Rng::new(seed);
    for start in [0, 5 * MIB, 17 * MIB + BLOCK, SIZE - BLOCK] {
        rng.fill(&mut bytes[start as usize..][..(3 * BLOCK).min(SIZE - start) as usize]);
    }
    rng.fill(&mut bytes[(40 * MIB) as usize..][..777]);
    bytes
}

/// Where such an image has data, in whole blocks: offset and length.
const DATA: [(u64, u64); 5] = [
    (0, 3 * BLOCK),
    (5 * MIB, 3 * BLOCK),
    (17 * MIB + BLOCK, 3 * BLOCK),
    (40 * MIB, BLOCK),
    (SIZE - BLOCK, BLOCK),
];

/// A served pool with a volume `db`.
fn served() -> (Lab, Served) {
    let lab = Lab::new(&["db"], "64M");
    let server = lab.serve("");
    (lab, server)
}

/// The end that every test here has: nothing was hung up, nothing is broken.
#[track_caller]
fn finish(lab: &Lab, server: Served) {
    assert!(server.stop().success());
    lab.assert_sound();
}

fn nbdinfo(words: &[&str]) -> Peer {
    peer("nbdinfo").args(words)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Offset and length of what a peer calls data, with neighbours joined; checks that the map has no
/// gaps and ends where the volume does.
fn data_of(map: &Value, start: &str, is_data: impl Fn(&Value) -> bool) -> Vec<(u64, u64)> {
    let (mut found, mut end): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    for run in map.as_array().unwrap() {
        let (at, len) = (run[start].as_u64().unwrap(), run["length"].as_u64().unwrap());
        assert_eq!(at, end, "a gap in {map}");
        end = at + len;
        if !is_data(run) {
            continue;
        }
        match found.last_mut() {
            Some((from, sum)) if *from + *sum == at => *sum += len,
            _ => found.push((at, len)),
        }
    }
    assert_eq!(end, SIZE, "{map}");
    found
}

/// What `nbdinfo --map` takes for data.
fn mapped(uri: &str) -> Vec<(u64, u64)> {
    let map = json(&nbdinfo(&["--map", "--json", uri]).ok());
    data_of(&map, "offset", |run| run["type"] == 0)
}

#[test]
fn nbdinfo_describes_volumes_and_snapshots() {
    let (lab, server) = served();
    lab.ok("snapshot create lab/db@monday");
    for (export, read_only) in [("db", false), ("db@monday", true)] {
        let info = json(&nbdinfo(&["--json", &lab.uri(export)]).ok());
        let info = &info["exports"][0];
        assert_eq!(info["export-name"], export);
        assert_eq!(info["export-size"], SIZE);
        assert_eq!(info["block_size_preferred"], BLOCK);
        assert_eq!(info["is_read_only"], read_only, "{info}");
        for ability in ["can_flush", "can_fua", "can_multi_conn", "can_df"] {
            assert_eq!(info[ability], true, "{ability} of {info}");
        }
        for ability in ["can_trim", "can_zero", "can_fast_zero"] {
            assert_eq!(info[ability], !read_only, "{ability} of {info}");
        }
        assert_eq!(info["contexts"], Value::from(vec!["base:allocation"]));
    }
    let list = json(&nbdinfo(&["--list", "--json", &lab.uri("")]).ok());
    let list: Vec<_> = list["exports"].as_array().unwrap().iter().collect();
    let names: Vec<_> = list.iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["db", "db@monday"]);
    assert!(list[1]["description"].as_str().unwrap().contains("snapshot of db"), "{list:?}");
    let missing = nbdinfo(&[&lab.uri("none")]).run();
    assert!(missing.code() == Some(1) && missing.stderr.contains("No such file"), "{missing}");
    finish(&lab, server);
}

#[test]
fn nbdcopy_both_ways_and_the_maps_agree() {
    let (lab, server) = served();
    let first = image(1);
    fs::write(lab.path("first.img"), &first).unwrap();
    let copy = || peer("nbdcopy").arg("--connections=4").in_folder(lab.folder());
    copy().args(["--flush", "first.img", &lab.uri("db")]).ok();
    assert_eq!(mapped(&lab.uri("db")), DATA);
    lab.ok("snapshot create lab/db@monday");
    let second = image(2);
    fs::write(lab.path("second.img"), &second).unwrap();
    copy().args(["second.img", &lab.uri("db")]).ok();

    for (export, content) in [("db", &second), ("db@monday", &first)] {
        copy().args([&lab.uri(export), "out.img"]).ok();
        assert!(fs::read(lab.path("out.img")).unwrap() == *content, "{export} was copied wrongly");
        assert_eq!(mapped(&lab.uri(export)), DATA, "{export}");
    }
    // From one export to another, and what a copy of nothing but holes leaves.
    lab.ok("volume create lab/other --size 64M");
    copy().args([lab.uri("db@monday"), lab.uri("other")]).ok();
    assert!(lab.content("other") == first);
    let refused = copy().args([&lab.uri("db"), &lab.uri("db@monday")]).run();
    assert!(refused.code() == Some(1), "a snapshot was written: {refused}");
    assert!(lab.content("db@monday") == first);
    finish(&lab, server);
}

fn qemu_img(words: &[&str]) -> Peer {
    peer("qemu-img").args(words)
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let (lab, server) = served();
    let content = image(3);
    fs::write(lab.path("disk.img"), &content).unwrap();
    let img = |words: &[&str]| qemu_img(words).in_folder(lab.folder());
    img(&["convert", "-f", "raw", "-O", "qcow2", "disk.img", "disk.qcow2"]).ok();
    let uri = &lab.uri("db");
    img(&["convert", "-n", "-f", "qcow2", "-O", "raw", "disk.qcow2", uri]).ok();
    assert!(lab.content("db") == content);

    let info = json(&img(&["info", "-f", "raw", "--output=json", uri]).ok());
    assert_eq!(info["virtual-size"], SIZE);
    let map = json(&img(&["map", "-f", "raw", "--output=json", uri]).ok());
    let whole_blocks = data_of(&map, "start", |run| run["data"] == true);
    assert_eq!(whole_blocks, DATA, "{map}");
    for run in map.as_array().unwrap() {
        assert_eq!(run["zero"], run["data"] != true, "a hole that is not zero: {run}");
    }
    lab.ok("snapshot create lab/db@monday");
    let snapshot = &lab.uri("db@monday");
    img(&["compare", "-f", "raw", "-F", "qcow2", snapshot, "disk.qcow2"]).ok();
    img(&["convert", "-f", "raw", "-O", "raw", snapshot, "out.img"]).ok();
    assert!(fs::read(lab.path("out.img")).unwrap() == content);
    peer("qemu-io").args(["-f", "raw", "-c", "write -P 9 8M 512", uri]).ok();
    let differs = img(&["compare", "-f", "raw", "-F", "raw", uri, snapshot]).run();
    assert_eq!(differs.code(), Some(1), "{differs}");
    assert!(differs.text().contains("offset 8388608"), "{differs}");
    finish(&lab, server);
}

/// Runs the commands on one connection of `qemu-io`.
fn qemu_io(uri: &str, commands: &[&str]) -> Outcome {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    peer("qemu-io").args(["-f", "raw"]).args(commands).arg(uri).run()
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let (lab, server) = served();
    let uri = &lab.uri("db");
    let done = qemu_io(
        uri,
        &[
            "write -P 0x5a 1M 192k",
            "write -f -P 0x11 3M 4k",
            "write -z 1088k 64k",
            "write -z -u 1152k 64k",
            "flush",
            "read -P 0x5a 1M 64k",
            "read -P 0 1088k 128k",
            "read -P 0x11 3M 4k",
            "read -P 0 3076k 60k",
            "write -P 0x77 512 1024",
            "discard 3M 64k",
            "read -P 0 3M 64k",
            "read -P 0 0 512",
            "read -P 0x77 512 1024",
        ],
    );
    let said = done.expect_code(0);
    assert!(!said.contains("failed"), "{said}");
    lab.ok("snapshot create lab/db@monday");
    let moved = ["write -P 0x33 1M 4k", "read -P 0x33 1M 4k", "read -P 0x5a 1028k 60k"];
    qemu_io(uri, &moved).expect_code(0);
    let snapshot = &lab.uri("db@monday");
    let old = ["-r", "-f", "raw", "-c", "read -P 0x5a 1M 64k"];
    let said = peer("qemu-io").args(old).arg(snapshot).ok();
    assert!(!said.contains("failed"), "{said}");
    let refused = qemu_io(snapshot, &["write 0 64k"]);
    assert!(refused.stderr.to_lowercase().contains("permission denied"), "{refused}");
    let past = qemu_io(uri, &["read 64M 4k"]);
    assert!(past.text().contains("failed") || past.stderr.contains("failed"), "{past}");
    finish(&lab, server);
}

/// A write with FUA is there after a crash, although nobody flushed.
#[test]
fn fua_outlives_a_crash() {
    let (lab, server) = served();
    let write = qemu_io(&lab.uri("db"), &["write -f -P 0x11 3M 100k", "abort"]);
    assert_eq!(write.code(), None, "qemu-io's own abort ended it: {write}");
    server.kill();
    let server = lab.serve("");
    let read = qemu_io(&lab.uri("db"), &["read -P 0x11 3M 100k", "read -P 0 0 3M"]);
    let said = read.expect_code(0);
    assert!(!said.contains("failed"), "{said}");
    finish(&lab, server);
}

#[test]
fn nbdsh_sees_one_volume_through_two_connections() {
    let (lab, server) = served();
    let script = "
import sys
uri = sys.argv[-1]
a, b = nbd.NBD(), nbd.NBD()
for h in (a, b):
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
assert a.can_multi_conn() and a.get_size() == 64 << 20
data = bytes(range(256)) * 400
a.pwrite(data, 12345 * 512)
assert b.pread(len(data), 12345 * 512) == data
a.flush()
b.zero(65536, 12345 * 512, nbd.CMD_FLAG_NO_HOLE)
assert a.pread(len(data), 12345 * 512) == bytes(65536) + data[65536:]
b.trim(64 << 20, 0)
assert a.pread(len(data), 12345 * 512) == bytes(len(data))
extents = []
a.block_status(64 << 20, 0, lambda c, o, e, err: extents.extend(e))
assert extents == [64 << 20, 3], extents
for bad in (lambda: a.pread(512, 64 << 20), lambda: a.pwrite(bytes(512), (64 << 20) - 511)):
    try:
        bad()
        raise SystemExit('a request past the end was answered')
    except nbd.Error:
        pass
for h in (a, b):
    h.shutdown()
print('done')
";
    // The system's own Python has Debian's module, not one that comes first in the search path.
    let nbdsh = peer("nbdsh").env("PATH", "/usr/bin:/bin").env("PYTHONPATH", "");
    let said = nbdsh.arg("-c").arg(script.replace("sys.argv[-1]", &quoted(&lab.uri("db")))).ok();
    assert_eq!(said, "done\n");
    finish(&lab, server);
}

/// `text` as a literal of Python.
fn quoted(text: &str) -> String {
    format!("'{text}'")
}

/// fio on several volumes and several times on one, with discards in between.
///
/// Trims that are to be verified are alone on their connection, one request at a time: fio sends
/// the write after a trim of the same block without waiting for the trim.
#[test]
fn fio_verifies_on_several_volumes_at_once() {
    let lab = Lab::new(&["db", "web"], "64M");
    let server = lab.serve("");
    let mut jobs =
        "[global]\nioengine=nbd\nverify_fatal=1\nsize=12m\nexitall_on_error=1\n".to_owned();
    for volume in ["db", "web"] {
        // With an offset, fio's randtrimwrite does nothing but trim.
        let kinds = [
            "rw=randtrimwrite\nbs=64k\nverify=crc32c\niodepth=1",
            "rw=randrw\nbs=4k\nverify=crc32c\niodepth=16\nfsync=100\noffset=12m",
            "rw=randwrite\nbsrange=512-160k\nverify=crc32c\niodepth=8\noffset=24m",
            "rw=randtrim\nbs=16k\niodepth=8\noffset=36m",
        ];
        for (index, kind) in kinds.iter().enumerate() {
            jobs += &format!("[{volume}-{index}]\nuri={}\n{kind}\n", lab.uri(volume));
        }
    }
    fs::write(lab.path("jobs.fio"), jobs).unwrap();
    let fio = peer("fio").in_folder(lab.folder()).args(["--output-format=json", "jobs.fio"]);
    let said = fio.limit(Duration::from_secs(90)).ok();
    let report = json(&said[said.find('{').unwrap()..]);
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 8);
    for job in jobs {
        assert_eq!(job["error"], 0, "{job}");
        let count = |what: &str| job[what]["total_ios"].as_u64().unwrap();
        let only_trims = job["jobname"].as_str().unwrap().ends_with("-3");
        assert!(
            if only_trims { count("trim") > 0 } else { count("read") >= count("write") },
            "{job}"
        );
        assert!(only_trims || count("write") > 0, "{job}");
    }
    finish(&lab, server);
}

/// The line that says where a server is. It comes once the sockets accept, perhaps a moment later.
fn ready_line(server: &Served) -> String {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some((line, _)) = server.log().split_once('\n') {
            return line.to_owned();
        }
        assert!(Instant::now() < limit, "no ready line: {}", server.log());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_peers_come_by_tcp_too() {
    let lab = Lab::new(&["db", "web"], "64M");
    let server = lab.serve("--tcp 127.0.0.1:0 --json");
    let said = json(&ready_line(&server));
    let base = said["nbd-tcp-uri"].as_str().unwrap();
    assert!(base.starts_with("nbd://127.0.0.1:"), "{base}");
    let uri = |export: &str| format!("{base}{export}");
    let content = image(5);
    fs::write(lab.path("disk.img"), &content).unwrap();
    let copy = peer("nbdcopy").in_folder(lab.folder());
    copy.args(["--connections=4", "disk.img", &uri("db")]).ok();
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", &uri("db"), &lab.uri("web")]).ok();
    assert!(lab.content("web") == content);
    assert_eq!(mapped(&uri("web")), DATA);
    let fio =
        peer("fio").in_folder(lab.folder()).args(["--name=t", "--ioengine=nbd", "--size=16m"]);
    fio.args(["--rw=randrw", "--verify=crc32c", "--verify_fatal=1", "--iodepth=16"])
        .arg(format!("--uri={}", uri("web")))
        .ok();
    finish(&lab, server);
}

/// The ways in which others start a server for one client.
#[test]
fn servers_that_live_for_one_command() {
    let lab = Lab::new(&["db"], "64M");
    let run = "nbdinfo --size \"$uri\" && test -S \"$unixsocket\" && exit 3";
    let outcome = lab.firn("serve lab --quiet --run").arg(run).run();
    assert_eq!(outcome.expect_code(3), format!("{SIZE}\n"));

    // Socket activation: nbdinfo makes the socket, and ends the server when it has what it wants.
    let info = nbdinfo(&["--json", "--", "[", FIRN, "serve", "lab", "--quiet", "]"]);
    let info = json(&info.in_folder(lab.folder()).ok());
    assert_eq!(info["exports"][0]["export-size"], SIZE);
    let content = image(6);
    fs::write(lab.path("disk.img"), &content).unwrap();
    let copy = || peer("nbdcopy").in_folder(lab.folder());
    copy().args(["--", "disk.img", "[", FIRN, "serve", "lab", "--quiet", "]"]).ok();
    copy().args(["--", "[", FIRN, "serve", "lab", "--quiet", "--read-only", "]", "out.img"]).ok();
    assert!(fs::read(lab.path("out.img")).unwrap() == content);
    lab.assert_sound();
}
