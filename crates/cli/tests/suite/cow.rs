//! `firn cow`, and origins that are served.

use std::fs;
use std::os::unix::fs::symlink;

use crate::lab::Lab;

const MIB: u64 = 1 << 20;

/// A directory with a disk of 4 MiB.
fn lab() -> (Lab, Vec<u8>) {
    let lab = Lab::new();
    let bytes = lab.image("disk.img", 4 * MIB, 0, 4 * MIB as usize);
    (lab, bytes)
}

#[test]
fn a_day_with_a_snapshot() {
    let (lab, before) = lab();
    let said = lab.ok("cow create disk.img --store past.cow --chunk-size 4K");
    assert!(said.contains("@past: taken, sync in "), "{said}");
    let report = lab.json("cow status past.cow");
    let past = &report["snapshots"][0];
    assert_eq!((past["state"].as_str(), past["exceptions"].as_u64()), (Some("active"), Some(0)));
    assert_eq!(lab.ok("cow status disk.img --dm"), "0 8192 snapshot 16/8240 16\n");
    let table = lab.ok("cow status disk.img --table");
    let path = |name: &str| lab.path(name).canonicalize().unwrap().display().to_string();
    let expected = format!("0 8192 snapshot {} {} PO 8\n", path("disk.img"), path("past.cow"));
    assert_eq!(table, expected);
    let server = lab.serve("disk.img");
    let uri = server.ready["nbd-uri"].as_str().unwrap().to_owned();
    let snapshot = server.ready["snapshot-uris"][0].as_str().unwrap().to_owned();
    assert!(snapshot.contains("disk.img@past"), "{snapshot}");
    write(&uri, 7, 8192);
    write(&snapshot, 9, 0);
    lab.ok("cow create disk.img --store later.cow --mode deferred");
    write(&uri, 8, 16384);
    assert_eq!(lab.json("cow status later.cow")["snapshots"][0]["mode"], "deferred");
    assert!(lab.ok("cow status disk.img").contains("served by"));
    lab.ok("cow grow past.cow --size 16M");
    assert!(server.stop().success());
    let state = lab.json("cow status disk.img");
    assert_eq!(state["snapshots"][0]["total"], 16 * MIB);
    assert_eq!(state["snapshots"][1]["exceptions"], 1);
    lab.ok("cow drop later.cow");
    assert!(!lab.path("later.cow").exists());
    let said = lab.ok("cow merge past.cow");
    assert!(said.ends_with("is what the snapshot past was\n"), "{said}");
    let mut expected = before;
    expected[..512].fill(9);
    assert!(fs::read(lab.path("disk.img")).unwrap() == expected);
    let left: Vec<_> = lab.state().into_keys().collect();
    assert_eq!(left, [lab.path("disk.img")], "something was left behind");
}

fn write(uri: &str, value: u8, at: u64) {
    use block_io::BlockDevice;
    let client = nbd::Client::connect(&uri.parse().unwrap()).unwrap();
    client.write_at(&[value; 512], block_types::ByteOffset::new(at)).unwrap();
    client.flush().unwrap();
}

/// An origin is not written past its snapshots: not by Firn, and not unnoticed by anybody.
#[test]
fn nobody_writes_past_a_snapshot() {
    let (lab, _) = lab();
    lab.ok("cow create disk.img --store past.cow");
    let said = lab.refused("image resize disk.img +1M", 1);
    assert!(said.contains("past") && said.contains("firn serve"), "{said}");
    lab.ok("image info disk.img");
    // As any other program would.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let bytes = fs::read(lab.path("disk.img")).unwrap();
    fs::write(lab.path("disk.img"), bytes).unwrap();
    for words in ["cow status disk.img", "serve disk.img", "cow create disk.img --store b.cow"] {
        let said = lab.refused(words, 1);
        assert!(said.contains("written past its snapshots"), "{words}: {said}");
    }
    lab.ok("cow status disk.img --trust-origin");
    lab.ok("cow create disk.img --store b.cow --trust-origin");
    lab.ok("cow status disk.img");
    fs::remove_file(lab.path("past.cow")).unwrap();
    let said = lab.refused("serve disk.img", 1);
    assert!(said.contains("the store of the snapshot past"), "{said}");
    lab.ok("cow drop past.cow");
    assert_eq!(lab.json("cow status disk.img")["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn a_store_does_not_lie_on_its_origin() {
    let (lab, _) = lab();
    symlink("disk.img", lab.path("link")).unwrap();
    fs::hard_link(lab.path("disk.img"), lab.path("hard")).unwrap();
    for store in ["disk.img", "link", "hard"] {
        for more in ["", "--existing"] {
            let said = lab.refused(&format!("cow create disk.img --store {store} {more}"), 64);
            assert!(said.contains("lies on"), "{said}");
        }
    }
    fs::write(lab.path("zeros"), vec![0; MIB as usize]).unwrap();
    let said = lab.refused("serve disk.img --cow zeros", 1);
    assert!(said.contains("its header is zero"), "{said}");
    let said = lab.refused("cow create disk.img --store zeros --existing", 1);
    assert!(said.contains("its header is zero"), "{said}");
    lab.ok("cow create disk.img --store zeros");
    let said = lab.refused("cow create disk.img --store zeros --name again", 1);
    assert!(said.contains("zeros"), "{said}");
    let said = lab.refused("cow status past.cow", 1);
    assert!(said.contains("neither"), "{said}");
    lab.ok("image create other.qcow2 1M");
    let said = lab.refused("cow create other.qcow2 --store past.cow", 1);
    assert!(said.contains("is a qcow2 image"), "{said}");
}

/// The kernel's lines do what the kernel does with them, but for stores that are not there.
#[test]
fn table_lines_are_taken_as_the_kernel_takes_them() {
    let (lab, before) = lab();
    lab.ok("cow create disk.img --store past.cow --chunk-size 4K");
    let serve = |line: &str| {
        let mut command = lab.command("serve disk.img --json --run true --table");
        crate::lab::run(command.arg(line))
    };
    for (line, word) in [
        ("0 8192 snapshot disk.img none.cow P 8", "none.cow"),
        ("0 8192 snapshot other.img past.cow P 8", "another origin"),
        ("0 8193 snapshot disk.img past.cow P 8", "another length"),
        ("0 8191 snapshot-origin disk.img", "another length"),
        ("8 8184 snapshot disk.img past.cow P 8", "sector 0"),
        ("0 8192 snapshot disk.img past.cow X 8", "none of P, PO and N"),
    ] {
        let ran = serve(line);
        assert!(ran.code != 0 && ran.stderr.contains(word), "{line}: {ran:?}");
    }
    let ran = serve("0 8192 snapshot-origin disk.img");
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = serve("0 8192 snapshot disk.img past.cow PO 8");
    assert!(ran.code == 0 && ran.stdout.contains("disk.img@past"), "{ran:?}");
    fs::write(lab.path("ram"), vec![0; MIB as usize]).unwrap();
    let ran = serve("0 8192 snapshot disk.img ram N 8");
    assert!(ran.code == 0 && ran.stdout.contains("disk.img@ram"), "{ran:?}");
    assert_eq!(lab.json("cow status disk.img")["snapshots"].as_array().unwrap().len(), 1);
    let server = lab.serve("disk.img");
    write(server.ready["nbd-uri"].as_str().unwrap(), 7, 0);
    assert!(server.stop().success());
    let server = {
        let words = "0 8192 snapshot-merge disk.img past.cow PO 8";
        let mut command = lab.command("serve disk.img --json --run");
        let wait = "while [ \"$($FIRN cow status disk.img --json | grep -c exceptions)\" != 0 ]; \
                    do sleep 0.05; done";
        command.arg(wait).arg("--table").arg(words).env("FIRN", env!("CARGO_BIN_EXE_firn"));
        crate::lab::run(&mut command)
    };
    assert_eq!(server.code, 0, "{server:?}");
    assert!(fs::read(lab.path("disk.img")).unwrap() == before, "the merge did not go back");
}

/// An origin and its stores may be moved together, and a store alone where its new place is said.
#[test]
fn stores_that_move_are_found_again() {
    let (lab, _) = lab();
    lab.ok("cow create disk.img --store past.cow");
    fs::create_dir(lab.path("new")).unwrap();
    for file in ["disk.img", "disk.img.snapshots", "past.cow"] {
        fs::rename(lab.path(file), lab.path("new").join(file)).unwrap();
    }
    assert_eq!(lab.json("cow status new/past.cow")["snapshots"][0]["state"], "active");
    fs::rename(lab.path("new/past.cow"), lab.path("past.cow")).unwrap();
    assert!(lab.refused("serve new/disk.img", 1).contains("past.cow"));
    let server = lab.serve("new/disk.img --cow past.cow");
    assert!(server.stop().success());
    assert_eq!(lab.json("cow status past.cow")["snapshots"][0]["name"], "past");
    lab.ok("cow drop past.cow --keep");
    let said = lab.refused("serve new/disk.img --cow past.cow", 1);
    assert!(said.contains("marked invalid"), "{said}");
}

/// The store grows before it is full, and not past its limit: then the snapshot is lost, and the
/// origin goes on.
#[test]
fn stores_grow_up_to_their_limit() {
    let (lab, _) = lab();
    lab.ok("cow create disk.img --store past.cow --size 256K --chunk-size 4K");
    lab.ok("cow create disk.img --store small.cow --size 256K --max-size 512K --chunk-size 4K");
    let server = lab.serve("disk.img");
    let uri = server.ready["nbd-uri"].as_str().unwrap().to_owned();
    (0..1024).for_each(|block| write(&uri, 3, block * 4096));
    let report = lab.json("cow status disk.img");
    let state = |number: usize| report["snapshots"][number]["state"].clone();
    assert_eq!((state(0), state(1)), ("active".into(), "invalid".into()));
    assert_eq!(report["snapshots"][1]["total"], 512 << 10);
    assert_eq!(lab.ok("cow status small.cow --dm"), "0 8192 snapshot Invalid\n");
    assert!(server.stop().success());
    assert_eq!(lab.json("cow status past.cow")["snapshots"][0]["exceptions"], 1024);
}

/// Three snapshots in one store: one copy serves them, and each goes by itself.
#[test]
fn snapshots_share_a_store() {
    let (lab, before) = lab();
    lab.ok("cow create disk.img --store all.cow --shared --name one --chunk-size 4K");
    let server = lab.serve("disk.img");
    let uri = server.ready["nbd-uri"].as_str().unwrap().to_owned();
    lab.ok("cow create disk.img --store all.cow --shared --name two");
    let used = || lab.json("cow status disk.img")["snapshots"][0]["exceptions"].as_u64().unwrap();
    let first = used();
    write(&uri, 7, 0);
    assert_eq!(used(), first + 1, "one copy for both");
    lab.ok("cow create disk.img --store all.cow --shared --name three");
    write(&uri, 8, 0);
    let snapshot = |name: &str| uri.replace("disk.img?", &format!("disk.img@{name}?"));
    write(&snapshot("two"), 9, 4096);
    let byte = |name: &str, at: u64| {
        use block_io::BlockDevice;
        let client = nbd::Client::connect(&snapshot(name).parse().unwrap()).unwrap();
        let mut sector = [0; 512];
        client.read_at(&mut sector, block_types::ByteOffset::new(at)).unwrap();
        sector[0]
    };
    assert_eq!((byte("one", 0), byte("two", 0), byte("three", 0)), (before[0], before[0], 7));
    assert_eq!((byte("one", 4096), byte("two", 4096)), (before[4096], 9));
    assert!(server.stop().success());
    assert!(lab.refused("cow drop all.cow", 64).contains("--name: one, two, three"));
    assert!(lab.refused("cow merge all.cow --name one", 1).contains("shares its store"));
    lab.ok("cow drop all.cow --name two");
    let server = lab.serve("disk.img");
    assert_eq!(server.ready["snapshot-uris"].as_array().unwrap().len(), 2);
    assert_eq!((byte("one", 0), byte("three", 0)), (before[0], 7));
    lab.ok("cow drop all.cow --name one");
    lab.ok("cow drop all.cow");
    assert!(server.stop().success());
    assert!(!lab.path("all.cow").exists() && !lab.path("disk.img.snapshots").exists());
}
