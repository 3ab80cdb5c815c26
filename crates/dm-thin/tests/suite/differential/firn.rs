//! A sequence, done by Firn in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};
use dm_thin::{BlockSize, Discards, OpenOptions, Pool, ThinVolume};
use testkit::peer::peer;

use super::Trace;
use super::sequence::{DATA, METADATA, Operation, Sequence, VOLUME, patterns};
use crate::common::{BLOCK, id};
use crate::messages::{name_of_failure, send};

struct Runner {
    metadata: Arc<FaultyDevice>,
    bytes: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
    pool: Arc<Pool>,
    open: BTreeMap<u64, ThinVolume>,
    patterns: Vec<u8>,
    answers: Vec<String>,
}

pub(super) fn run(sequence: &Sequence) -> Trace {
    let bytes = Arc::new(MemoryDevice::new("metadata", ByteCount::new(METADATA)));
    // It cannot grow, like the kernel's.
    let calls = FaultCalls { resizes: true, ..FaultCalls::default() };
    let plan = FaultPlan { fail_at: 1, calls, kind: ErrorKind::Unsupported, sticky: true };
    let metadata = FaultyDevice::new(bytes.clone(), plan);
    let data = Arc::new(MemoryDevice::new("data", ByteCount::new(DATA[0] * BLOCK)));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let device: Arc<dyn BlockDevice> = metadata.clone();
    Pool::format(&device, &*data, size).expect("formatted");
    let pool = open(&metadata, &data, sequence.seed);
    let (open, patterns) = (BTreeMap::new(), patterns());
    let mut runner = Runner { metadata, bytes, data, pool, open, patterns, answers: Vec::new() };
    for operation in &sequence.operations {
        runner.step(operation, sequence.seed);
    }
    runner.pool.close().expect("closed");
    Trace { answers: runner.answers, metadata: runner.bytes.to_bytes() }
}

/// Without passdown, which the kernel's disks here do not have; with and without threads.
fn open(metadata: &Arc<FaultyDevice>, data: &Arc<MemoryDevice>, seed: u64) -> Arc<Pool> {
    let background = seed.is_multiple_of(2);
    let mut options = OpenOptions { background, ..OpenOptions::default() };
    options.settings.features.discards = Discards::Kept;
    options.settings.features.error_if_no_space = true;
    Pool::open("pool", metadata.clone(), data.clone(), options).expect("opened")
}

impl Runner {
    fn step(&mut self, operation: &Operation, seed: u64) {
        match operation {
            Operation::Message(message) => {
                let answer = name_of_failure(send(&self.pool, message));
                self.answers.push(format!("{message}: {answer}"));
            }
            Operation::Open(device) => {
                let volume = self.volume(*device);
                self.answer(&format!("open {device}"), &volume);
                self.open.extend(volume.ok().map(|volume| (*device, volume)));
            }
            Operation::Close(device) => drop(self.open.remove(device)),
            Operation::Write { device, at, len, from } => {
                let bytes = &self.patterns[*from as usize..][..*len as usize];
                let done = self.open[device].write_at(bytes, ByteOffset::new(*at));
                self.answer(&format!("write {device} {at} {len}"), &done);
            }
            Operation::Discard { device, at, len } => {
                let range = ByteRange::new(ByteOffset::new(*at), ByteCount::new(*len));
                let done = self.open[device].discard(range);
                self.answer(&format!("discard {device} {at} {len}"), &done);
            }
            Operation::Reopen { blocks: _ } => {
                self.open.clear();
                self.pool.close().expect("closed");
                self.pool = open(&self.metadata, &self.data, seed);
            }
            Operation::Grow { blocks } => {
                let size = ByteCount::new(blocks * BLOCK);
                self.pool.grow_data(size).expect("grown");
            }
            Operation::Status => self.status(),
            Operation::Sums(devices) => {
                devices.iter().for_each(|device| self.sum(*device));
            }
        }
    }

    fn volume(&self, device: u64) -> Result<ThinVolume> {
        let size = ByteCount::new(VOLUME * BLOCK);
        self.pool.open_volume(id(device as u32), &format!("t{device}"), size, false)
    }

    fn answer<T>(&mut self, what: &str, done: &Result<T>) {
        let word = if done.is_ok() { "done" } else { "failed" };
        self.answers.push(format!("{what}: {word}"));
    }

    fn status(&mut self) {
        let line = self.pool.status_line().expect("a line");
        self.answers.push(format!("pool: {line}"));
        for &device in self.open.keys() {
            let size = ByteCount::new(VOLUME * BLOCK);
            let status = self.pool.thin_status(id(device as u32), size).expect("there");
            self.answers.push(format!("t{device}: {}", status.line()));
        }
    }

    fn sum(&mut self, device: u64) {
        let volume = self.volume(device).expect("opened");
        let mut bytes = vec![0; volume.size().as_usize()];
        volume.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        let sum = peer("sha256sum").input(bytes).ok();
        let sum = sum.split(' ').next().expect("a sum");
        self.answers.push(format!("sum {device}: {sum}"));
    }
}
