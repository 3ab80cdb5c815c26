//! QEMU and Firn keep each other out of an image, and say who is in it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{MIB, qemu};
use crate::lab::Lab;

/// A `qemu-io` that has an image open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Opens `image` with the flags of qemu-io, and waits until it is open.
    fn open(lab: &Lab, image: &str, flags: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(flags)
            .arg(image)
            .current_dir(lab.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io of the package qemu-utils is there");
        // It reads commands only once the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap().contains("MiB")).unwrap().unwrap();
        Self(child)
    }

    fn names(&self) -> String {
        format!("qemu-io (pid {})", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The images of this test: qcow2 with a raw one below it, a VHD, and a raw one.
fn images() -> Lab {
    let lab = Lab::new();
    lab.image("base.raw", 4 * MIB, MIB, 500_000);
    lab.ok("image create disk.qcow2 -b base.raw -F raw");
    lab.ok("image convert base.raw disk.vhd");
    lab.ok("image convert base.raw disk.raw");
    lab
}

#[test]
fn what_qemu_writes_firn_leaves_alone_and_names_it() {
    let lab = images();
    for (image, format) in [("disk.qcow2", "qcow2"), ("disk.vhd", "vpc"), ("disk.raw", "raw")] {
        let holder = Holder::open(&lab, image, &["-f", format]);
        for verb in ["map", "resize"] {
            let words = format!("image {verb} {image}{}", if verb == "map" { "" } else { " +1M" });
            let said = lab.run(&words).sentence(1);
            assert!(said.contains(&holder.names()), "{words}: {said}");
        }
        lab.ok(&format!("image map -U {image}"));
        lab.ok(&format!("image info -U {image}"));
        if format != "raw" {
            assert_eq!(lab.run(&format!("image check {image}")).code, 1);
            lab.ok(&format!("image check -U {image}"));
            assert_eq!(lab.run(&format!("image check -U -r all {image}")).code, 1, "a repair");
        }
        drop(holder);
        lab.ok(&format!("image map {image}"));
    }
}

#[test]
fn what_qemu_reads_firn_reads_too() {
    let lab = images();
    let reader = Holder::open(&lab, "disk.qcow2", &["-r", "-f", "qcow2"]);
    lab.ok("image map disk.qcow2");
    let said = lab.run("image resize disk.qcow2 +1M").sentence(1);
    assert!(said.contains(&format!("is being used by {}", reader.names())), "{said}");
    drop(reader);
    // What is below an image that is written is read.
    let _writer = Holder::open(&lab, "disk.qcow2", &["-f", "qcow2"]);
    lab.ok("image map base.raw");
}

#[test]
fn what_firn_serves_qemu_leaves_alone() {
    let lab = images();
    let server = lab.serve("disk.qcow2 --socket s");
    let locked = |words: &str| {
        let outcome = qemu(&lab, words);
        assert_eq!(outcome.code(), Some(1), "{words}: {outcome}");
        assert!(outcome.stderr.contains("lock"), "{words}: {outcome}");
    };
    locked("info disk.qcow2");
    locked("check -f qcow2 disk.qcow2");
    locked("snapshot -c one disk.qcow2");
    locked("resize -f raw base.raw +1M");
    qemu(&lab, "info -U disk.qcow2").expect_code(0);
    qemu(&lab, "info base.raw").expect_code(0);
    assert!(server.stop().success());
    let server = lab.serve("disk.qcow2 --socket s --read-only");
    qemu(&lab, "check -f qcow2 disk.qcow2").expect_code(0);
    locked("snapshot -c one disk.qcow2");
    assert!(server.stop().success());
    qemu(&lab, "snapshot -c one disk.qcow2").expect_code(0);
}

#[test]
fn the_lock_of_a_process_that_was_killed_is_gone() {
    let lab = images();
    let holder = Holder::open(&lab, "disk.qcow2", &["-f", "qcow2"]);
    assert_eq!(lab.run("image map disk.qcow2").code, 1);
    let began = Instant::now();
    drop(holder);
    lab.ok("image map disk.qcow2");
    assert!(began.elapsed() < Duration::from_secs(20));
}
