//! Messages and status lines, as the kernel has them: one script for Linux and for Firn, on two
//! copies of a pool.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, Result};
use dm_thin::{BlockSize, Discards, Message, OpenOptions, Pool};
use testkit::kernel::Kernel;
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::thin_tools;

use crate::common::{BLOCK, formatted, id, open};

const DATA: u64 = 256 << 20;
const VOLUME: u64 = 64 << 20;

/// What is sent to both, device 0 being in use.
const MESSAGES: [&str; 33] = [
    "create_thin 0",
    "create_thin 7",
    "create_thin 7",
    "CREATE_thin 8",
    "create_thin 16777215",
    "create_thin 16777216",
    "create_thin",
    "create_thin 1 2",
    "create_thin x",
    "create_thin 0x20",
    "create_thin +20",
    "create_snap 9 0",
    "create_snap 9 7",
    "create_snap 10 4711",
    "create_snap 9 4711",
    "create_snap 10",
    "create_snap 11 9",
    "delete 0",
    "delete 4711",
    "delete 9",
    "delete",
    "release_metadata_snap",
    "reserve_metadata_snap",
    "reserve_metadata_snap",
    "create_snap 12 7",
    "reserve_metadata_snap 1",
    "set_transaction_id 6 7",
    "set_transaction_id 5 9",
    "set_transaction_id 9 8",
    "set_transaction_id 8",
    "set_transaction_id 8 x",
    "trim 0 10",
    "delete 12",
];

/// Those, and as many at random as one run of Linux can take.
fn messages() -> Vec<String> {
    let mut rng = Rng::new(0x7417);
    let mut messages: Vec<String> = MESSAGES.map(str::to_owned).to_vec();
    let mut transaction = 9;
    for _ in 0..100 {
        let (one, other) = (rng.within(0..9), rng.within(0..9));
        messages.push(match rng.within(0..10) {
            0..3 => format!("create_thin {one}"),
            3..6 => format!("create_snap {one} {other}"),
            6..8 => format!("delete {one}"),
            8 if rng.chance(1, 2) => "reserve_metadata_snap".into(),
            8 => "release_metadata_snap".into(),
            _ => {
                // Right about the present one more often than not, and never twice the same.
                let current = transaction - rng.within(0..3) / 2;
                let message = format!("set_transaction_id {current} {}", transaction + 2);
                transaction += if current == transaction { 2 } else { 0 };
                message
            }
        });
    }
    // Held in the end, to be compared.
    messages.push("reserve_metadata_snap".into());
    messages
}

fn device(folder: &Path, name: &str) -> Arc<dyn BlockDevice> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    Arc::new(HostFile::open(&folder.join(name), options).expect("opened"))
}

/// A pool as the kernel has it here, whose disks pass no discards down.
fn open_files(folder: &Path) -> Arc<Pool> {
    let mut options = OpenOptions::default();
    options.settings.features.discards = Discards::Kept;
    options.settings.features.error_if_no_space = true;
    Pool::open("pool", device(folder, "metadata"), device(folder, "data"), options).expect("opened")
}

/// A pool with a snapshot.
fn make(folder: &Path) {
    for (name, size) in [("metadata", 4 << 20), ("data", DATA)] {
        fs::File::create(folder.join(name)).expect("made").set_len(size).expect("sized");
    }
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&device(folder, "metadata"), &*device(folder, "data"), size).expect("formatted");
    let pool = open_files(folder);
    send(&pool, "create_thin 0").expect("made");
    let volume = pool.open_volume(id(0), "thin", ByteCount::new(VOLUME), false).expect("opened");
    for block in [0, 1, 2, 500, 700] {
        volume.write_at(&[3; 4096], ByteOffset::new(block * BLOCK)).expect("written");
    }
    drop(volume);
    send(&pool, "create_snap 1 0").expect("made");
    send(&pool, "set_transaction_id 0 5").expect("changed");
    pool.close().expect("closed");
}

pub(crate) fn send(pool: &Pool, message: &str) -> Result<()> {
    Message::parse(message).and_then(|message| pool.message(message))
}

/// `EEXIST` of "message 'create_thin 0': EEXIST: ...".
pub(crate) fn name_of_failure(done: Result<()>) -> String {
    done.err().map_or("done".to_owned(), |error| error.problem().to_owned())
}

/// What dmsetup says of a failure, by the name that the number has.
pub(crate) fn kernel_name(said: &str) -> &str {
    match said.rsplit(": ").next().expect("something") {
        "" => "done",
        "File exists" => "EEXIST",
        "No data available" => "ENODATA",
        "Invalid argument" => "EINVAL",
        "Device or resource busy" => "EBUSY",
        other => other,
    }
}

/// Does everything here; the answers, one a line.
fn firn(folder: &Path, messages: &[String]) -> Vec<String> {
    let pool = open_files(folder);
    let thin = |number| pool.thin_status(id(number), ByteCount::new(VOLUME)).expect("there").line();
    let mut answers = vec![pool.status_line().expect("a line"), thin(0), thin(1)];
    let in_use = pool.open_volume(id(0), "thin", ByteCount::new(VOLUME), false).expect("opened");
    for message in messages {
        let answer = name_of_failure(send(&pool, message));
        answers.push(format!("{message}: {answer}"));
    }
    answers.extend([pool.status_line().expect("a line"), thin(0)]);
    drop(in_use);
    pool.close().expect("closed");
    answers
}

/// Does the same in Linux.
fn linux(folder: &Path, messages: &[String]) -> Vec<String> {
    let mut script = format!(
        "dmsetup create pool \
         --table '0 {} thin-pool /dev/ubda /dev/ubdb 128 0 1 error_if_no_space'\n\
         thin() {{ dmsetup create t$1 --table \"0 {} thin /dev/mapper/pool $1\"; \
         line \"$(dmsetup status t$1)\"; }}\n\
         line() {{ echo \"answer $1|\"; }}\n\
         line \"$(dmsetup status pool)\"\nthin 0\nthin 1\ndmsetup remove t1\n",
        DATA / 512,
        VOLUME / 512
    );
    for message in messages {
        script += &format!(
            "line \"{message}: $(dmsetup message pool 0 {message} 2>&1 | \
             grep -v '^Command failed')\"\n"
        );
    }
    script += "line \"$(dmsetup status pool)\"\nline \"$(dmsetup status t0)\"\n\
               dmsetup remove t0\ndmsetup remove pool\n";
    let output = Kernel::new()
        .disk(folder.join("metadata"))
        .disk(folder.join("data"))
        .script(&script)
        .run()
        .expect("booted")
        .ok();
    let answers = output.lines().filter_map(|line| line.strip_prefix("answer "));
    answers
        .map(|line| {
            let line = line.strip_suffix('|').expect("a whole line");
            match line.split_once(": ") {
                Some((message, said)) => format!("{message}: {}", kernel_name(said)),
                None => line.to_owned(),
            }
        })
        .collect()
}

#[test]
fn linux_and_firn_answer_alike_and_come_to_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, theirs] = ["ours", "theirs"].map(|name| -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir(&path).expect("made");
        path
    });
    make(&ours);
    for name in ["metadata", "data"] {
        fs::copy(ours.join(name), theirs.join(name)).expect("copied");
    }
    let messages = messages();
    let (firn, linux) = (firn(&ours, &messages), linux(&theirs, &messages));
    let without_held = |lines: &[String]| -> Vec<String> {
        // The block of a metadata snapshot is whichever was free.
        let hide = |line: &String| match line.split(' ').collect::<Vec<_>>() {
            mut words if line.contains("thin-pool") && words[6] != "-" => {
                words[6] = "held";
                words.join(" ")
            }
            _ => line.clone(),
        };
        lines.iter().map(hide).collect()
    };
    assert_eq!(without_held(&firn), without_held(&linux));
    let [ours, theirs] = [ours, theirs].map(|path| path.join("metadata"));
    assert_eq!(thin_tools::dump(&ours), thin_tools::dump(&theirs));
    let held = |file: &Path| peer("thin_dump").arg("-m").arg(file).ok();
    assert_eq!(held(&ours), held(&theirs));
    thin_tools::check(&ours);
    thin_tools::check(&theirs);
}

/// Linux lets go of a metadata snapshot of ours, and we of one of Linux.
#[test]
fn metadata_snapshots_are_released_by_the_other_side() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    make(path);
    let pool = open_files(path);
    send(&pool, "reserve_metadata_snap").expect("reserved");
    send(&pool, "delete 1").expect("deleted");
    pool.close().expect("closed");
    let script = format!(
        "set -e\ndmsetup create pool --table '0 {} thin-pool /dev/ubda /dev/ubdb 128 0'\n\
         dmsetup message pool 0 release_metadata_snap\ndmsetup status pool | grep -q ' - rw '\n\
         dmsetup message pool 0 create_snap 2 0\n\
         dmsetup message pool 0 reserve_metadata_snap\n\
         dmsetup message pool 0 delete 0\ndmsetup remove pool\n",
        DATA / 512
    );
    let kernel = Kernel::new().disk(path.join("metadata")).disk(path.join("data"));
    kernel.script(&script).run().expect("booted").ok();
    thin_tools::check(&path.join("metadata"));
    let pool = open_files(path);
    send(&pool, "delete 2").expect("deleted");
    assert_eq!(pool.status().data_used, 5, "held");
    send(&pool, "release_metadata_snap").expect("released");
    assert_eq!((pool.status().held_root, pool.status().data_used), (None, 0));
    pool.close().expect("closed");
    thin_tools::check(&path.join("metadata"));
    let report = dm_thin::check(device(path, "metadata")).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
}

#[test]
fn a_pool_that_takes_no_writes_takes_no_messages() {
    let (metadata, data) = formatted(1 << 20, 16);
    let device = |name: &str, bytes| -> Arc<dyn BlockDevice> {
        Arc::new(block_io::MemoryDevice::from_bytes(name, bytes))
    };
    let (metadata, data) = (device("metadata", metadata), device("data", data));
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let pool = Pool::open("pool", metadata, data, options).expect("opened");
    for message in ["create_thin 0", "delete 0", "reserve_metadata_snap", "set_transaction_id 0 1"]
    {
        let error = send(&pool, message).expect_err("refused");
        let head = format!("message '{message}': EOPNOTSUPP: pool: ");
        assert!(error.to_string().starts_with(&head), "{error}");
    }
    assert!(pool.status_line().expect("a line").ends_with(" - 64 "));
}

#[test]
fn closed_pools_answer_that_they_are_closed() {
    let (metadata, data) = formatted(1 << 20, 16);
    let device = |name: &str, bytes| -> Arc<dyn BlockDevice> {
        Arc::new(block_io::MemoryDevice::from_bytes(name, bytes))
    };
    let pool = open(device("metadata", metadata), device("data", data)).expect("opened");
    send(&pool, "create_thin 0").expect("made");
    pool.close().expect("closed");
    let error = send(&pool, "create_thin 1").expect_err("refused");
    assert!(error.to_string().contains("EOPNOTSUPP") && error.to_string().contains("closed"));
}
