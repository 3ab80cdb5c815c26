//! Data that ends, metadata that ends, pools that grow just then, and disks that fail in the middle
//! of it: afterwards the pool can be used, holds what was written, and is sound
//! (FULL-IS-NOT-BROKEN, FAIL-STOP).
//!
//! Every run begins at a pool that is full, and goes on at random for a while; so that the points
//! at which something fails all lie where space ends. `FIRN_LONG=1` tries ten times as many.

mod oracle;
mod sparse;

use std::sync::Arc;

use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, Error, ErrorKind};
use dm_thin::{BlockSize, OpenOptions, Pool};
use testkit::rng::Rng;
use testkit::thin_tools;

use crate::common::BLOCK;
use oracle::Oracle;
use sparse::Sparse;

/// What a pool runs out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scarce {
    Data,
    Metadata,
}

/// When a pool grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growing {
    /// Once all is over.
    Afterwards,
    /// In the middle, too.
    Meanwhile,
}

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Nothing,
    /// A call to the data device, or all from one on.
    Data(u64, bool),
    /// The same of the metadata device.
    Metadata(u64, bool),
}

/// A pool that is full, closed.
struct Full {
    scarce: Scarce,
    metadata: Vec<u8>,
    data: Sparse,
    oracle: Oracle,
}

/// The disks of a run.
struct Disks {
    metadata: Arc<MemoryDevice>,
    data: Arc<Sparse>,
    /// The metadata device as the pool sees it: it grows only once this is disarmed.
    fixed: Arc<FaultyDevice>,
}

impl Disks {
    fn new(scarce: Scarce, metadata: Vec<u8>, data: Sparse) -> Self {
        let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
        let calls = FaultCalls { resizes: scarce == Scarce::Metadata, ..FaultCalls::default() };
        let fixed = FaultyDevice::new(metadata.clone(), plan(1, calls, true));
        fixed.arm(FaultPlan { kind: ErrorKind::Unsupported, ..plan(1, calls, true) });
        Self { metadata, data: Arc::new(data), fixed }
    }

    fn open(&self) -> Arc<Pool> {
        open(self.fixed.clone(), self.data.clone())
    }

    fn grow(&self, pool: &Pool, scarce: Scarce, blocks: u64) -> block_types::Result<()> {
        match scarce {
            Scarce::Data => pool.grow_data(ByteCount::new(blocks * BLOCK)),
            Scarce::Metadata => {
                self.fixed.disarm();
                Ok(())
            }
        }
    }

    fn check(&self, what: &str) {
        let report = dm_thin::check(self.metadata.clone()).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "{what}: {report:#?}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), self.metadata.to_bytes()).expect("written");
        thin_tools::check(file.path());
    }
}

const fn plan(fail_at: u64, calls: FaultCalls, sticky: bool) -> FaultPlan {
    FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky }
}

fn open(metadata: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Arc<Pool> {
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    Pool::open("pool", metadata, data, options).expect("opened")
}

/// Blocks of data: few, or more than the metadata can map.
fn data_blocks(scarce: Scarce) -> u64 {
    match scarce {
        Scarce::Data => 400,
        Scarce::Metadata => 20_000,
    }
}

impl Full {
    /// Uses a new pool until there is no space.
    fn new(scarce: Scarce, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let data = Sparse::new(data_blocks(scarce) * BLOCK);
        let metadata: Arc<dyn BlockDevice> =
            Arc::new(MemoryDevice::new("metadata", ByteCount::new(1 << 20)));
        let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
        Pool::format(&metadata, &data, size).expect("formatted");
        let mut bytes = vec![0; metadata.size().as_usize()];
        metadata.read_at(&mut bytes, block_types::ByteOffset::ZERO).expect("read");
        let disks = Disks::new(scarce, bytes, data);
        let (pool, mut oracle) = (disks.open(), Oracle::default());
        let error = (0..20_000).find_map(|_| oracle.fill(&pool, &mut rng).err());
        let error = error.expect("there is an end of space");
        assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error}");
        oracle.compare(&pool);
        pool.close().expect("closed");
        drop(pool);
        let status = disks.open().status();
        // Metadata ends before its last block: what deleting and committing need is kept.
        let is_full = (status.data_used == status.data_total) == (scarce == Scarce::Data);
        assert!(is_full, "{status:?}");
        disks.check("full");
        oracle.settle();
        let (metadata, data) = (disks.metadata.to_bytes(), disks.data.copy());
        Self { scarce, metadata, data, oracle }
    }

    /// Goes on with a copy of it. Returns how often there was no space.
    fn run(&self, growing: Growing, fault: Fault, seed: u64) -> u64 {
        let what = format!("{:?}, growing {growing:?}, {fault:?}, seed {seed}", self.scarce);
        let disks = Disks::new(self.scarce, self.metadata.clone(), self.data.copy());
        let (mut oracle, mut rng) = (self.oracle.clone(), Rng::new(seed));
        let nothing = plan(0, FaultCalls::ALL, false);
        let metadata = FaultyDevice::new(disks.fixed.clone(), nothing);
        let data = FaultyDevice::new(disks.data.clone(), nothing);
        let pool = open(metadata.clone(), data.clone());
        match fault {
            Fault::Nothing => {}
            Fault::Data(call, sticky) => data.arm(plan(call, FaultCalls::ALL, sticky)),
            Fault::Metadata(call, sticky) => metadata.arm(plan(call, FaultCalls::ALL, sticky)),
        }
        let (mut refused, mut blocks) = (0, data_blocks(self.scarce));
        for step in 0..80 {
            let done = if growing == Growing::Meanwhile && step % 20 == 10 {
                blocks += 5;
                disks.grow(&pool, self.scarce, blocks)
            } else {
                oracle.step(&pool, &mut rng)
            };
            refused += u64::from(done.as_ref().is_err_and(is_full));
            if let Err(error) = done
                && !is_full(&error)
            {
                // A pool that stopped has no answer but failure, whatever it is asked for.
                let planned = error.kind() == ErrorKind::Io || pool.status().read_only.is_some();
                assert!(planned && !matches!(fault, Fault::Nothing), "{what}: {error}");
            }
        }
        if let Fault::Nothing = fault {
            let status = pool.status();
            assert!(status.read_only.is_none() && !status.needs_check, "{what}: {status:?}");
            oracle.compare(&pool);
        }
        drop(pool);
        disks.check(&what);
        self.use_again(&disks, oracle, &mut rng, &what);
        refused
    }

    /// Opens the pool without faults and lets it grow: everything is there, and everything works.
    fn use_again(&self, disks: &Disks, mut oracle: Oracle, rng: &mut Rng, what: &str) {
        // A pool whose commit failed asks for a check, which was made.
        let metadata: Arc<dyn BlockDevice> = disks.metadata.clone();
        dm_thin::clear_needs_check(&metadata).expect("sound");
        let pool = disks.open();
        oracle.survive(&pool).unwrap_or_else(|problem| panic!("{what}: {problem}"));
        disks.grow(&pool, self.scarce, 4000).expect("growing is always possible");
        for _ in 0..40 {
            oracle.step(&pool, rng).unwrap_or_else(|error| panic!("{what}, grown: {error}"));
        }
        oracle.compare(&pool);
        pool.close().unwrap_or_else(|error| panic!("{what}: {error}"));
        disks.check(what);
    }
}

fn is_full(error: &Error) -> bool {
    error.kind() == ErrorKind::OutOfSpace
}

/// As many as that, or ten times as many.
fn many(count: u64) -> u64 {
    if std::env::var_os("FIRN_LONG").is_some() { 10 * count } else { count }
}

fn without_faults(scarce: Scarce, growing: Growing) {
    for seed in 0..many(2) {
        let full = Full::new(scarce, seed);
        let runs = (0..5).map(|run| full.run(growing, Fault::Nothing, seed << 8 | run));
        let refused: u64 = runs.sum();
        assert!(refused > 0 || growing == Growing::Meanwhile, "seed {seed}: it was never full");
    }
}

/// Fails calls here and there, those of the beginning all of them.
fn with_faults(scarce: Scarce, growing: Growing) {
    let full = Full::new(scarce, 1);
    for point in 0..many(8) {
        let call = 1 + point + point * point / 4;
        for sticky in [false, true] {
            full.run(growing, Fault::Data(call, sticky), point);
            full.run(growing, Fault::Metadata(call, sticky), point);
        }
    }
}

#[test]
fn data_exhaustion() {
    without_faults(Scarce::Data, Growing::Afterwards);
}

#[test]
fn metadata_exhaustion() {
    without_faults(Scarce::Metadata, Growing::Afterwards);
}

#[test]
fn growing_during_data_exhaustion() {
    without_faults(Scarce::Data, Growing::Meanwhile);
}

#[test]
fn growing_during_metadata_exhaustion() {
    without_faults(Scarce::Metadata, Growing::Meanwhile);
}

#[test]
fn device_errors_during_data_exhaustion() {
    with_faults(Scarce::Data, Growing::Afterwards);
}

#[test]
fn device_errors_during_metadata_exhaustion() {
    with_faults(Scarce::Metadata, Growing::Afterwards);
}

#[test]
fn device_errors_while_full_data_grows() {
    with_faults(Scarce::Data, Growing::Meanwhile);
}

#[test]
fn device_errors_while_full_metadata_grows() {
    with_faults(Scarce::Metadata, Growing::Meanwhile);
}
