//! Sequences, done by Linux, all of them in one run of it.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use testkit::kernel::Kernel;

use super::Trace;
use super::sequence::{DATA, METADATA, Operation, Sequence, VOLUME, patterns};
use crate::common::BLOCK;
use crate::messages::kernel_name;

/// What each step of the script is made of. Every sequence has its own part of the disks.
const FUNCTIONS: &str = "\
set -u
a() { echo \"answer $*|\"; }
pool() {
  dmsetup create pool --table \"0 $1 thin-pool /dev/mapper/m /dev/mapper/d 128 0 \\
    2 error_if_no_space no_discard_passdown\" || exit 1
}
grow() {
  dmsetup reload pool --table \"0 $1 thin-pool /dev/mapper/m /dev/mapper/d 128 0 \\
    2 error_if_no_space no_discard_passdown\" || exit 1
  dmsetup suspend pool && dmsetup resume pool || exit 1
}
m() {
  if dmsetup message pool 0 \"$@\" 2>/run/said; then
    a \"$*: done\"
  else
    read -r said </run/said; a \"$*: $said\"
  fi
}
o() {
  if dmsetup create t$1 --table \"0 $2 thin /dev/mapper/pool $1\" 2>/dev/null; then
    a open $1: done
  else
    a open $1: failed
  fi
}
c() { dmsetup remove t$1 || exit 1; }
w() {
  if dd if=/dev/ubdc of=/dev/mapper/t$1 bs=$3 count=1 iflag=skip_bytes,fullblock skip=$4 \\
    oflag=direct,seek_bytes seek=$2 conv=notrunc status=none 2>/dev/null
  then a write $1 $2 $3: done; else a write $1 $2 $3: failed; fi
}
d() {
  if blkdiscard -o $2 -l $3 /dev/mapper/t$1 2>/dev/null
  then a discard $1 $2 $3: done; else a discard $1 $2 $3: failed; fi
}
s() { dmsetup status | while read -r line; do a \"$line\"; done; }
sums() {
  sha256sum /dev/mapper/t* |
    while read -r sum name; do a \"sum ${name#/dev/mapper/t}: $sum\"; done
}
";

pub(super) fn run(sequences: &[Sequence]) -> Vec<Trace> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let count = sequences.len() as u64;
    for (name, size) in [("metadata", METADATA), ("data", DATA[1] * BLOCK)] {
        let file = File::create(path(name)).expect("made");
        file.set_len(count * size).expect("sized");
    }
    fs::write(path("patterns"), patterns()).expect("written");
    let mut script = FUNCTIONS.to_owned();
    for (number, sequence) in (0..).zip(sequences) {
        write(&mut script, number, sequence);
    }
    let output = Kernel::new()
        .disk(path("metadata"))
        .disk(path("data"))
        .read_only_disk(path("patterns"))
        .limit(Duration::from_secs(300))
        .script(&script)
        .run()
        .expect("booted")
        .ok();
    let mut traces = Vec::new();
    for (number, text) in (0..).zip(output.split("sequence\n").skip(1)) {
        let metadata = part(&path("metadata"), number);
        traces.push(Trace { answers: text.lines().filter_map(answer).collect(), metadata });
    }
    traces
}

/// The metadata of one of the pools.
fn part(file: &Path, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; METADATA as usize];
    let file = File::open(file).expect("opened");
    file.read_exact_at(&mut bytes, number * METADATA).expect("read");
    bytes
}

/// What one line says, in Firn's words; nothing if it is of another device than those compared.
fn answer(line: &str) -> Option<String> {
    let line = line.strip_prefix("answer ")?.strip_suffix('|').expect("a whole line");
    let (what, said) = line.split_once(": ").expect("what, and what became of it");
    if ["m", "d"].contains(&what) {
        return None;
    }
    let is_message = ["create_", "delete", "set_", "reserve_", "release_"]
        .iter()
        .any(|verb| what.starts_with(verb));
    let said = if is_message && said != "done" { kernel_name(said) } else { said };
    // The shell drops the blank at the end of the line.
    let end = if said.contains(" thin-pool ") { " " } else { "" };
    Some(format!("{what}: {said}{end}"))
}

fn write(script: &mut String, number: u64, sequence: &Sequence) {
    let (metadata, data) = (METADATA / 512, DATA[1] * BLOCK / 512);
    let sectors = |blocks: u64| blocks * BLOCK / 512;
    let mut blocks = DATA[0];
    let mut open = Vec::new();
    let mut put = |line: String| writeln!(script, "{line}").expect("text grows");
    put("echo sequence".to_owned());
    put(format!("dmsetup create m --table '0 {metadata} linear /dev/ubda {}'", number * metadata));
    put(format!("dmsetup create d --table '0 {data} linear /dev/ubdb {}'", number * data));
    put(format!("pool {}", sectors(blocks)));
    for operation in &sequence.operations {
        match operation {
            Operation::Message(message) => put(format!("m {message}")),
            Operation::Open(device) => {
                open.push(*device);
                put(format!("o {device} {}", sectors(VOLUME)));
            }
            Operation::Close(device) => {
                open.retain(|other| other != device);
                put(format!("c {device}"));
            }
            Operation::Write { device, at, len, from } => {
                put(format!("w {device} {at} {len} {from}"));
            }
            Operation::Discard { device, at, len } => put(format!("d {device} {at} {len}")),
            Operation::Reopen { blocks: now } => {
                open.drain(..).for_each(|device| put(format!("c {device}")));
                put(format!("dmsetup remove pool || exit 1\npool {}", sectors(*now)));
            }
            Operation::Grow { blocks: now } => {
                blocks = *now;
                put(format!("grow {}", sectors(blocks)));
            }
            Operation::Status => put("s".to_owned()),
            Operation::Sums(devices) => {
                let table = |device: &u64| {
                    let sectors = sectors(VOLUME);
                    format!("t{device},,,ro,0 {sectors} thin /dev/mapper/pool {device}")
                };
                let names = |device: &u64| format!(" t{device}");
                let tables: Vec<String> = devices.iter().map(table).collect();
                put(format!("dmsetup create --concise '{}' || exit 1\nsums", tables.join(";")));
                let names: String = devices.iter().map(names).collect();
                put(format!("dmsetup remove{names} || exit 1"));
            }
        }
    }
    put("dmsetup remove pool || exit 1\ndmsetup remove m d || exit 1".to_owned());
}
