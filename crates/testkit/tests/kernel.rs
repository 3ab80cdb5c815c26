//! The kernel runner itself, against real boots.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use block_types::ErrorKind;
use testkit::kernel::{Kernel, POWER_CUT};
use testkit::peer::peer;

fn file(folder: &Path, name: &str, size: u64) -> std::path::PathBuf {
    let path = folder.join(name);
    File::create(&path)
        .and_then(|file| file.set_len(size))
        .expect("the scratch folder takes files");
    path
}

#[test]
fn returns_status_and_output() {
    let output = Kernel::new().script("true").run().unwrap();
    assert_eq!(output.status, 0, "{output}");
    let output = Kernel::new()
        .env("GREETING", "it's 1 $x")
        .script("echo \"$GREETING\"; id -u; echo oh dear >&2; exit 3")
        .run()
        .unwrap();
    assert_eq!(
        (output.status, output.stdout.as_str(), output.stderr.as_str()),
        (3, "it's 1 $x\n0\n", "oh dear\n")
    );
}

#[test]
fn long_output_arrives_whole() {
    let text = Kernel::new().script("seq 1 60000").run().unwrap().ok();
    assert_eq!(text.lines().count(), 60000);
    assert!(text.ends_with("\n60000\n"));
}

#[test]
fn writes_reach_disks_and_the_shared_folder_only() {
    let scratch = tempfile::tempdir().unwrap();
    let share = scratch.path().join("share");
    fs::create_dir(&share).unwrap();
    let disk = file(scratch.path(), "disk", 1 << 20);
    let stray = scratch.path().join("stray");
    Kernel::new()
        .disk(&disk)
        .share(&share)
        .env("SHARE", &share)
        .env("STRAY", &stray)
        .script(
            "set -e; echo hello >/dev/ubda; echo kept >$SHARE/file; echo lost >$STRAY
             cat $STRAY; busybox ping -c 1 -q 127.0.0.1",
        )
        .run()
        .unwrap()
        .ok();
    assert!(fs::read(&disk).unwrap().starts_with(b"hello\n"));
    assert_eq!(fs::read(share.join("file")).unwrap(), b"kept\n");
    assert!(!stray.exists(), "a write outside the shared folder reached the host");
}

#[test]
fn the_time_limit_and_a_panic_are_errors() {
    let begun = Instant::now();
    let limit = Duration::from_secs(4);
    let error = Kernel::new().limit(limit).script("echo started; sleep 60").run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.problem().contains("started"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));

    let error = Kernel::new().script("echo c >/proc/sysrq-trigger").run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.problem().contains("panic"), "{error}");

    let error = Kernel::new().modules(&["no-such-module"]).script("true").run().unwrap_err();
    assert!(error.problem().contains("no module no-such-module"), "{error}");
}

#[test]
fn a_power_cut_keeps_what_was_flushed() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = file(scratch.path(), "disk", 1 << 20);
    let output = Kernel::new()
        .disk(&disk)
        .script(
            "exec 7<>/dev/ubda # the last close of a block device would write its cache back
             echo flushed | dd of=/dev/ubda conv=fsync status=none
             echo lost | dd of=/dev/ubda bs=4k seek=16 status=none; power-cut; sleep 9",
        )
        .run()
        .unwrap();
    assert_eq!(output.status, POWER_CUT, "{output}");
    let bytes = fs::read(&disk).unwrap();
    assert!(bytes.starts_with(b"flushed\n"));
    assert!(bytes[65536..].iter().all(|&byte| byte == 0), "an unflushed write was written");
}

#[test]
fn mounts_ext4() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = file(scratch.path(), "disk", 16 << 20);
    let script = "set -e; mkfs.ext4 -q /dev/ubda; mount /dev/ubda /mnt
                  seq 1 100000 >/mnt/f; umount /mnt; e2fsck -fn /dev/ubda";
    Kernel::new().disk(&disk).script(script).run().unwrap().ok();
    peer("e2fsck").arg("-fn").arg(&disk).ok();
}

/// Metadata that the thin tools wrote, activated by the kernel.
#[test]
fn activates_a_restored_pool() {
    let scratch = tempfile::tempdir().unwrap();
    let meta = file(scratch.path(), "meta", 4 << 20);
    let data = file(scratch.path(), "data", 64 << 20);
    let xml = r#"<superblock uuid="" time="0" transaction="5" data_block_size="128"
                             nr_data_blocks="1024">
        <device dev_id="7" mapped_blocks="3" transaction="0" creation_time="0" snap_time="0">
            <range_mapping origin_begin="2" data_begin="10" length="3" time="0"/>
        </device></superblock>"#;
    let dump = scratch.path().join("xml");
    fs::write(&dump, xml).unwrap();
    peer("thin_restore").arg("-q").arg("-i").arg(&dump).arg("-o").arg(&meta).ok();
    fs::write(&data, vec![b'x'; 64 << 20]).unwrap();
    let text = Kernel::new()
        .disk(&meta)
        .disk(&data)
        .script(
            "set -e
             dmsetup create pool --table '0 131072 thin-pool /dev/ubda /dev/ubdb 128 0'
             dmsetup create thin --table '0 2048 thin /dev/mapper/pool 7'
             dmsetup status pool; dmsetup status thin
             dd if=/dev/mapper/thin bs=64k skip=1 count=2 status=none | tr -d '\\0'",
        )
        .run()
        .unwrap()
        .ok();
    let lines: Vec<_> = text.splitn(3, '\n').collect();
    assert!(lines[0].starts_with("0 131072 thin-pool 5 "), "{text}");
    assert!(lines[0].contains(" 3/1024 - rw "), "{text}");
    assert_eq!(lines[1], "0 2048 thin 384 639");
    // Block 1 is not mapped and reads as zeros, block 2 is data block 10.
    assert_eq!(lines[2], "x".repeat(65536));
}
