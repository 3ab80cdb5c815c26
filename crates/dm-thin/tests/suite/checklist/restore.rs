//! Metadata as text and back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use block_io::{CacheMode, FileOptions, HostFile};
use dm_thin::dump::Options;
use dm_thin::restore::{Overrides, restore};
use testkit::kernel::Kernel;
use testkit::peer::peer;

use crate::common::BLOCK;
use crate::tools::{Metadata, expanded, pools, restored, same};

#[test]
fn dump_restore_dump_is_idempotent() {
    for seed in 0..40 {
        let pool = Metadata::new(pools::generate(seed));
        let before = pool.dump(&expanded());
        let again = restored(&before, 4 << 20);
        same(&again.dump(&expanded()), &before, &format!("pool {seed}"));
        // With what is shared written once: the names of that are metadata blocks, which are
        // others after the first restoring.
        let once = restored(&pool.dump(&Options::default()), 4 << 20);
        same(&once.dump(&expanded()), &before, &format!("pool {seed}, shared"));
        let before = once.dump(&Options::default());
        let twice = restored(&before, 4 << 20);
        same(&twice.dump(&Options::default()), &before, &format!("pool {seed}, twice"));
    }
}

/// Where a mapping is, and what is expected in its block: the number of the data block.
struct Probe {
    device: u32,
    guest: u64,
    data: u64,
}

#[test]
fn kernel_happy_with_random_restored_data() {
    let pool = Metadata::new(pools::generate(7));
    let xml = pool.dump(&Options::default());
    let folder = tempfile::tempdir().expect("a folder");
    let (metadata, data) = (folder.path().join("metadata"), folder.path().join("data"));
    File::create(&metadata).and_then(|file| file.set_len(4 << 20)).expect("made");
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    let device = Arc::new(HostFile::open(&metadata, options).expect("opened"));
    restore(xml.as_bytes(), device, &Overrides::default()).expect("restored");

    let mappings = crate::tools::mappings(&pool);
    let file = File::create(&data).expect("made");
    file.set_len(pools::DATA * BLOCK).expect("sized");
    let step = mappings.len() / 60;
    let probes: Vec<Probe> = mappings
        .iter()
        .step_by(step.max(1))
        .map(|&(device, guest, data)| Probe { device, guest, data })
        .collect();
    for probe in &probes {
        file.write_all_at(&number(probe.data), probe.data * BLOCK).expect("written");
    }
    let mut devices: Vec<u32> = probes.iter().map(|probe| probe.device).collect();
    devices.dedup();
    let (pool_sectors, sectors) = (pools::DATA * BLOCK / 512, pools::VOLUME * BLOCK / 512);
    let mut script = format!(
        "set -e\n\
         probe() {{ [ $(dd if=/dev/mapper/t bs=16 count=1 iflag=skip_bytes skip=$1 status=none) = \
         $2 ]; }}\n\
         dmsetup create pool \
         --table '0 {pool_sectors} thin-pool /dev/ubda /dev/ubdb 128 0'\n"
    );
    for device in devices {
        let of_it = probes.iter().filter(|probe| probe.device == device);
        script +=
            &format!("dmsetup create t --table '0 {sectors} thin /dev/mapper/pool {device}'\n");
        for probe in of_it {
            let expected = number(probe.data);
            let expected = std::str::from_utf8(&expected).expect("digits");
            script += &format!("probe {} {expected}\n", probe.guest * BLOCK);
        }
        // What is shared is copied, what is not mapped is given a block.
        script += "for at in 0 1 2 700 5000; do dd if=/dev/zero of=/dev/mapper/t bs=64k count=1 \
                   seek=$at oflag=direct status=none; done\ndmsetup remove t\n";
    }
    script += "dmsetup message pool 0 'create_thin 12345678'\n\
               dmsetup status pool | grep -q ' rw '\ndmsetup remove pool\n";
    let kernel = Kernel::new().disk(&metadata).disk(&data);
    kernel.script(&script).run().expect("booted").ok();
    peer("thin_check").arg(&metadata).ok();
    let after = Metadata::new(fs::read(&metadata).expect("read"));
    assert!(after.dump(&Options::default()).contains("dev_id=\"12345678\""));
}

/// The number of a block in digits, as long for every one.
fn number(block: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits.copy_from_slice(format!("{block:016}").as_bytes());
    digits
}
