//! The verbs that change chains, offline and through the daemon that serves the image.

use std::time::{Duration, Instant};

use testkit::peer::peer;

use super::{MIB, assert_same, assert_sound, qemu, qemu_io, qemu_json};
use crate::lab::{Lab, run};

/// Where the clusters of an image lie, as qemu-img sees it: guest cluster, depth, host cluster.
fn clusters(lab: &Lab, image: &str) -> Vec<(u64, u64, u64)> {
    const CLUSTER: u64 = 65536;
    let map = qemu_json(lab, &format!("map -f qcow2 {image}"));
    let number = |value: &serde_json::Value| value.as_u64().unwrap() / CLUSTER;
    let runs = map.as_array().unwrap().iter().filter(|run| run["data"] == true);
    runs.flat_map(|run| {
        let (start, host) = (number(&run["start"]), number(&run["offset"]));
        let depth = run["depth"].as_u64().unwrap();
        (0..number(&run["length"])).map(move |ahead| (start + ahead, depth, host + ahead))
    })
    .collect()
}

/// The chain of the worked example: A, then B over it, then C.
fn worked_example(lab: &Lab) {
    qemu(lab, "create -f qcow2 base 384K").expect_code(0);
    qemu_io(lab, "base", "write -P 65 0 128K");
    qemu(lab, "create -f qcow2 -b base -F qcow2 mid").expect_code(0);
    qemu_io(lab, "mid", "write -P 66 64K 128K");
    qemu(lab, "create -f qcow2 -b mid -F qcow2 active").expect_code(0);
    qemu_io(lab, "active", "write -P 67 128K 128K");
    qemu(lab, "convert -O raw active expected.raw").expect_code(0);
    let depths: Vec<_> = clusters(lab, "active").iter().map(|run| run.1).collect();
    assert_eq!(depths, [2, 1, 0, 0]);
}

/// The worked example of the qemu-devel thread, external snapshots: commit mid into base.
#[test]
fn qemu_devel_example_commit_mid() {
    let lab = Lab::new();
    worked_example(&lab);
    let done = lab.json("image commit active --top mid");
    assert_eq!(done["result"]["backing"], "base");
    assert_eq!(clusters(&lab, "base"), [(0, 0, 5), (1, 0, 6), (2, 0, 7)]);
    assert_eq!(clusters(&lab, "active"), [(0, 1, 5), (1, 1, 6), (2, 0, 5), (3, 0, 6)]);
    assert_same(&lab, "active", "expected.raw");
    for image in ["base", "active"] {
        assert_sound(&lab, image);
    }
    // The base: A, B, B.
    for command in ["read -P 65 0 64K", "read -P 66 64K 128K", "read -P 0 192K 192K"] {
        qemu_io(&lab, "base", command);
    }
}

/// The same: pull mid into active.
#[test]
fn qemu_devel_example_pull_mid() {
    let lab = Lab::new();
    worked_example(&lab);
    lab.ok("image stream active --base base");
    let own: Vec<_> = clusters(&lab, "active").into_iter().filter(|run| run.1 == 0).collect();
    assert_eq!(own, [(1, 0, 7), (2, 0, 5), (3, 0, 6)]);
    assert_same(&lab, "active", "expected.raw");
    assert_sound(&lab, "active");
    let info = lab.json("image info active");
    assert_eq!(
        (&info["backing-filename"], &info["backing-filename-format"]),
        (&"base".into(), &"qcow2".into())
    );
    // What was pulled from is as it was.
    assert_eq!(clusters(&lab, "mid"), [(0, 1, 5), (1, 0, 5), (2, 0, 6)]);
}

/// A base with two children, one of which stands on an image in between: that one is taken out
/// under both of its own children.
#[test]
fn an_image_with_several_children_is_taken_out() {
    let lab = Lab::new();
    worked_example(&lab);
    lab.ok("image overlay mid other");
    qemu_io(&lab, "other", "write -P 68 300K 20K");
    qemu(&lab, "convert -O raw other other.raw").expect_code(0);
    lab.ok("image stream active --base base");
    lab.ok("image stream other --base base");
    std::fs::remove_file(lab.path("mid")).unwrap();
    assert_same(&lab, "active", "expected.raw");
    assert_same(&lab, "other", "other.raw");
    assert_sound(&lab, "active");
    assert_sound(&lab, "other");
}

#[test]
fn rebase_keeps_what_is_read_unless_it_is_told_otherwise() {
    let lab = Lab::new();
    worked_example(&lab);
    lab.image("new.raw", MIB, 70_000, 100_000);
    lab.ok("image rebase active -b new.raw -F raw");
    assert_same(&lab, "active", "expected.raw");
    assert_sound(&lab, "active");
    assert_eq!(lab.json("image info active")["backing-filename"], "new.raw");
    lab.ok("image rebase -u mid -b new.raw -F raw");
    assert_eq!(lab.json("image info mid")["backing-filename"], "new.raw");
    assert_eq!(run(lab.command("image rebase -u mid -b").arg("")).code, 0);
    assert_eq!(lab.json("image info mid")["backing-filename"], serde_json::Value::Null);
    assert_sound(&lab, "mid");
    let sentence = lab.refused("image rebase -u mid -b new.raw", 64);
    assert!(sentence.contains("say it with -F"), "{sentence}");
    let sentence = lab.refused("image rebase mid -b new.raw -F raw", 64);
    assert!(sentence.contains("has no backing file to change"), "{sentence}");
}

fn wait_for(lab: &Lab, id: u64, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.json(&format!("job show top.qcow2 {id}"))["state"] != state {
        assert!(Instant::now() < deadline, "{}", lab.ok("job list top.qcow2"));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A chain of three with 24 MiB of data, and what the topmost reads.
fn long_chain(lab: &Lab) {
    lab.image("base.raw", 32 * MIB, 0, 16 << 20);
    lab.ok("image create mid.qcow2 -b base.raw -F raw");
    qemu_io(lab, "mid.qcow2", "write -P 7 8M 16M");
    lab.ok("image overlay mid.qcow2 top.qcow2");
    qemu_io(lab, "top.qcow2", "write -P 8 1M 1M");
    qemu(lab, "convert -O raw top.qcow2 expected.raw").expect_code(0);
}

fn write_both(lab: &Lab, uri: &str, command: &str) {
    for target in [uri, "expected.raw"] {
        peer("qemu-io").args(["-f", "raw", "-c", command, target]).in_folder(lab.path("")).ok();
    }
}

/// The server is killed in the middle of each job, begun again, and killed again.
#[test]
fn jobs_under_clients_survive_the_server_being_killed() {
    let lab = Lab::new();
    long_chain(&lab);
    let uri = "nbd+unix:///?socket=s";
    let jobs = ["image commit top.qcow2 --top mid.qcow2", "image stream top.qcow2"];
    for (round, job) in jobs.into_iter().enumerate() {
        let server = lab.serve("top.qcow2 --socket s");
        assert!(lab.path("top.qcow2.control.sock").exists());
        let begun = lab.json(&format!("{job} --background --rate 4M"));
        let id = begun["id"].as_u64().unwrap();
        assert_eq!(lab.json(&format!("job pause top.qcow2 {id}"))["state"], "paused");
        let busy = lab.run("image stream top.qcow2").sentence(1);
        assert!(busy.contains("other work on its chain goes on"), "{busy}");
        lab.ok(&format!("job resume top.qcow2 {id}"));
        write_both(&lab, uri, &format!("write -P {} 3M 3M", 20 + round));
        write_both(&lab, uri, "write -P 9 23M 2M");
        peer("qemu-io").args(["-f", "raw", "-c", "flush", uri]).in_folder(lab.path("")).ok();
        assert_eq!(lab.json(&format!("job show top.qcow2 {id}"))["state"], "running");
        drop(server);
        assert_same(&lab, "top.qcow2", "expected.raw");
        lab.ok("image check top.qcow2 --repair leaks");

        let server = lab.serve("top.qcow2 --socket s");
        let id = lab.json(&format!("{job} --background"))["id"].as_u64().unwrap();
        write_both(&lab, uri, "write -P 10 11M 1M");
        wait_for(&lab, id, "done");
        write_both(&lab, uri, "write -P 11 15M 3M");
        assert!(server.stop().success());
        assert_same(&lab, "top.qcow2", "expected.raw");
        assert_sound(&lab, "top.qcow2");
    }
    let info = lab.json("image info top.qcow2");
    assert_eq!(info["backing-filename"], serde_json::Value::Null);
}

#[test]
fn the_verbs_reach_an_image_that_is_served() {
    let lab = Lab::new();
    long_chain(&lab);
    let server = lab.serve("top.qcow2 --socket s");
    let refused = lab.run("image commit top.qcow2").sentence(1);
    assert!(refused.contains("is not committed while clients write to it"), "{refused}");
    lab.ok("image snapshot create top.qcow2 before");
    write_both(&lab, "nbd+unix:///?socket=s", "write -P 30 2M 2M");
    let moved = lab.ok("image rebase top.qcow2 -b base.raw -F raw");
    assert!(moved.contains("stands on base.raw"), "{moved}");
    let begun = lab.json("image stream top.qcow2 --background --rate 1M");
    let id = begun["id"].as_u64().unwrap();
    let cancelled = lab.json(&format!("job cancel top.qcow2 {id}"));
    assert_eq!(cancelled["state"], "cancelled");
    lab.run(&format!("job wait top.qcow2 {id}")).sentence(1);
    assert!(server.stop().success());
    assert!(!lab.path("top.qcow2.control.sock").exists());
    assert_same(&lab, "top.qcow2", "expected.raw");
    assert_sound(&lab, "top.qcow2");
    lab.ok("image snapshot revert top.qcow2 before");
    assert_sound(&lab, "top.qcow2");
}
