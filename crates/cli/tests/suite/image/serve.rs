//! Serving an image over NBD.

use testkit::peer::peer;

use super::{MIB, assert_same, assert_sound, qemu};
use crate::lab::{Lab, run};

#[test]
fn an_image_is_one_export_that_is_written() {
    let lab = Lab::new();
    lab.image("base.raw", 8 * MIB, MIB, 500_000);
    lab.ok("image create disk.qcow2 -b base.raw -F raw");
    lab.ok("image convert disk.qcow2 expected.raw -O raw");
    let server = lab.serve("disk.qcow2 --socket s");
    assert_eq!(server.ready["image"], "disk.qcow2");
    let uri = server.ready["nbd-uri"].as_str().unwrap().to_owned();
    assert!(uri.starts_with("nbd+unix:///disk.qcow2?socket=/"), "{uri}");
    for command in ["write -P 5 100k 1M", "write -z 2M 1M", "write -P 6 7M 1M"] {
        for target in ["nbd+unix:///?socket=s", "expected.raw"] {
            let io = peer("qemu-io").args(["-f", "raw", "-c", command, target]);
            io.in_folder(lab.path("")).ok();
        }
    }
    let busy = lab.run("image map disk.qcow2").sentence(1);
    assert!(busy.contains("is being written by firn (pid "), "{busy}");
    lab.ok("image info disk.qcow2");
    assert!(lab.run("image resize base.raw +1M").code == 1, "in use below");
    assert!(server.stop().success());
    assert!(!lab.path("s").exists());
    assert_sound(&lab, "disk.qcow2");
    assert_same(&lab, "disk.qcow2", "expected.raw");
}

#[test]
fn every_format_is_served() {
    let lab = Lab::new();
    let content = lab.image("disk.raw", 8 * MIB, MIB, 500_000);
    lab.ok("image convert disk.raw disk.vhd -O vhd");
    lab.ok("image convert disk.raw disk.qcow2 -c");
    for name in ["disk.raw", "disk.vhd", "disk.qcow2"] {
        let server = lab.serve(&format!("{name} --read-only --cache writeback"));
        let socket = format!("{name}.sock");
        qemu(&lab, &format!("convert -O raw nbd+unix:///?socket={socket} copy.raw")).expect_code(0);
        assert!(std::fs::read(lab.path("copy.raw")).unwrap() == content, "{name}");
        let write = ["-f", "raw", "-c", "write 0 4k"];
        let uri = format!("nbd+unix:///?socket={socket}");
        let io = peer("qemu-io").args(write).arg(uri).in_folder(lab.path("")).run();
        assert_ne!(io.code(), Some(0), "{name} is served read-only");
        assert!(server.stop().success());
    }
}

#[test]
fn a_command_finds_the_image() {
    let lab = Lab::new();
    lab.ok("image create disk.qcow2 1M");
    let mut command = lab.command("serve disk.qcow2 --quiet --run");
    let ran = run(command.arg("qemu-io -f raw -c 'write 0 64k' \"$uri\" >&2; echo $exportname"));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "disk.qcow2\n"), "{ran:?}");
    assert_sound(&lab, "disk.qcow2");
    assert_eq!(lab.json("image check disk.qcow2")["allocated-clusters"], 1);
    assert!(lab.refused("serve disk.qcow2 --new 1G", 64).contains("for pools"));
}
