//! The same transitions in Linux 6.1 and here, held against each other by status line: out of data,
//! failing at once, growing, back to read-write, read-only, and the low water mark told once.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::{BlockSize, Change, DeviceId, Discards, EventKind, OpenOptions, Pool, PoolSettings};
use testkit::kernel::Kernel;

const BLOCK: u64 = 64 << 10;
/// Data blocks at first, and once the pool has grown.
const BLOCKS: [u64; 2] = [16, 24];
const LOW_WATER: u64 = 4;

fn make(folder: &Path) {
    for (name, size) in [("metadata", 4 << 20), ("data", BLOCKS[1] * BLOCK)] {
        File::create(folder.join(name)).expect("made").set_len(size).expect("sized");
    }
}

fn device(folder: &Path, name: &str) -> Arc<HostFile> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    Arc::new(HostFile::open(&folder.join(name), options).expect("opened"))
}

/// What a line says from the data blocks to the mark of a check: how metadata lies is not compared.
fn told(line: &str) -> String {
    line.split(' ').skip(5).take(6).collect::<Vec<_>>().join(" ")
}

fn linux(folder: &Path) -> Vec<String> {
    let [small, large] = BLOCKS.map(|blocks| blocks * BLOCK / 512);
    let volume = 64 * BLOCK / 512;
    let script = format!(
        "table() {{ echo \"0 $1 thin-pool /dev/ubda /dev/ubdb 128 {LOW_WATER} $2\"; }}\n\
         put() {{ dd if=/dev/zero of=/dev/mapper/t bs=4096 count=1 seek=$(($1 * 16)) \
         oflag=direct status=none 2>/dev/null && echo answer done || echo answer failed; }}\n\
         line() {{ echo \"answer $(dmsetup status pool | cut -d' ' -f6-11)\"; }}\n\
         events() {{ dmsetup info -c --noheadings -o events pool; }}\n\
         again() {{ dmsetup suspend pool && dmsetup reload pool --table \"$1\" && \
         dmsetup resume pool; }}\n\
         dmsetup create pool --table \"$(table {small} '1 error_if_no_space')\"\n\
         dmsetup message pool 0 'create_thin 0'\n\
         dmsetup create t --table '0 {volume} thin /dev/mapper/pool 0'\n\
         line\nfor n in 0 1 2 3 4 5 6 7 8 9 10 11; do put $n; done\nbefore=$(events)\n\
         for n in 12 13 14 15; do put $n; done\necho answer low $(($(events) - before))\nline\n\
         put 16\nline\nput 3\n\
         again \"$(table {large} '1 error_if_no_space')\"\nline\nput 16\nline\n\
         again \"$(table {large} '2 error_if_no_space read_only')\"\nline\n\
         dmsetup remove t\ndmsetup remove pool\n"
    );
    let kernel = Kernel::new().disk(folder.join("metadata")).disk(folder.join("data"));
    let output = kernel.script(&script).run().expect("booted").ok();
    let answers = output.lines().filter_map(|line| line.strip_prefix("answer "));
    answers.map(|answer| answer.trim().to_owned()).collect()
}

fn firn(folder: &Path) -> Vec<String> {
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let metadata: Arc<dyn BlockDevice> = device(folder, "metadata");
    let data = device(folder, "data");
    data.resize(ByteCount::new(BLOCKS[0] * BLOCK)).expect("resized");
    Pool::format(&metadata, &*data, size).expect("formatted");
    let mut settings = PoolSettings { low_water: LOW_WATER, ..PoolSettings::default() };
    settings.features.error_if_no_space = true;
    settings.features.discards = Discards::Kept;
    let options = OpenOptions { settings, waits: true, ..OpenOptions::default() };
    let pool = Pool::open("pool", metadata, data, options).expect("opened");
    let id = DeviceId::new(0).expect("24 bits");
    pool.change(&[Change::CreateThin(id)]).expect("made");
    let thin = pool.open_volume(id, "thin", ByteCount::new(64 * BLOCK), false).expect("opened");
    let put = |block: u64| match thin.write_at(&[0; 4096], ByteOffset::new(block * BLOCK)) {
        Ok(()) => "done".to_owned(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
            "failed".to_owned()
        }
    };
    let line = || told(&pool.status_line().expect("a line"));
    let low = || {
        let events = pool.events(0, Duration::ZERO).events;
        events.iter().filter(|event| matches!(event.kind, EventKind::LowWater { .. })).count()
    };
    let mut answers = vec![line()];
    answers.extend((0..12).map(put));
    let before = low();
    answers.extend((12..16).map(put));
    answers.push(format!("low {}", low() - before));
    answers.extend([line(), put(16), line(), put(3)]);
    pool.grow_data(ByteCount::new(BLOCKS[1] * BLOCK)).expect("grown");
    answers.extend([line(), put(16), line()]);
    settings.features.read_only = true;
    pool.configure(settings).expect("configured");
    answers.push(line());
    answers
}

#[test]
fn linux_and_firn_go_through_the_same_modes() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    folders.iter().for_each(|folder| make(folder.path()));
    let (linux, firn) = (linux(folders[0].path()), firn(folders[1].path()));
    assert_eq!(linux, firn);
    assert!(firn.iter().any(|answer| answer.contains("16/16 - out_of_data_space")), "{firn:?}");
    assert!(firn.contains(&"low 1".to_owned()), "{firn:?}");
}
