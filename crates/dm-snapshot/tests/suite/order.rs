//! The order in which things are written, beside the one that was recorded of the kernel
//! (`fixtures/ordering-logwrites.txt`), and how many flushes each mode takes.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use dm_snapshot::{Mode, Origin, Snapshot, SnapshotOptions, Store};
use parking_lot::Mutex;

use crate::common::{chunk, options};

const CHUNK: u64 = 4096;

/// What was done to which device, in order: `base 5`, `store 1`, `store flush`.
type Log = Arc<Mutex<Vec<String>>>;

/// A device that writes down what is done to it, by the chunk.
struct Recorder {
    inner: MemoryDevice,
    log: Log,
}

impl Recorder {
    fn note(&self, what: impl std::fmt::Display) {
        self.log.lock().push(format!("{} {what}", self.inner.name()));
    }
}

impl BlockDevice for Recorder {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> ByteCount {
        self.inner.size()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.inner.read_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        for piece in range.pieces(ByteCount::new(CHUNK)) {
            self.note(piece.start.get() / CHUNK);
        }
        self.inner.write_at(bytes, at)
    }
    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.note("zero");
        self.inner.zero(range, mode)
    }
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.note("discard");
        self.inner.discard(range)
    }
    fn flush(&self) -> Result<()> {
        self.note("flush");
        self.inner.flush()
    }
    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.inner.extents(range, each)
    }
}

struct Table {
    log: Log,
    origin: Origin,
    snapshot: Snapshot,
}

/// An origin of 512 chunks with a snapshot in `mode`; what was done so far is forgotten.
fn table(mode: Mode) -> Table {
    let log = Log::default();
    let device = |name: &str, chunks: u64| -> Arc<dyn BlockDevice> {
        let inner = MemoryDevice::new(name, ByteCount::new(chunks * CHUNK));
        Arc::new(Recorder { inner, log: Arc::clone(&log) })
    };
    let open = dm_snapshot::OriginOptions { buffer: ByteCount::new(2 << 20), ..options() };
    let origin = Origin::open(device("base", 512), open).expect("opened");
    let store = Store::create(device("store", 600), chunk(CHUNK)).expect("made");
    let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
    let snapshot = origin.attach("snapshot", store, options).expect("attached");
    log.lock().clear();
    Table { log, origin, snapshot }
}

impl Table {
    fn write(&self, first: u64, chunks: u64) {
        let bytes = vec![7; (chunks * CHUNK) as usize];
        self.origin.write_at(&bytes, ByteOffset::new(first * CHUNK)).expect("written");
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}

/// `store` writes of these chunks.
fn store(chunks: impl Iterator<Item = u64>) -> Vec<String> {
    chunks.map(|chunk| format!("store {chunk}")).collect()
}

/// The lines one after the other.
fn lines(parts: &[&[String]]) -> Vec<String> {
    parts.concat()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The marks `start`, `two` and the end of the area in `fill` of the recorded run.
#[test]
fn mode_sync_writes_in_the_kernels_order() {
    let table = table(Mode::Sync);
    let commit = words(&["store flush", "store 1", "store flush"]);
    table.write(5, 1);
    assert_eq!(table.done(), lines(&[&store(2..3), &commit, &words(&["base 5"])]));
    table.write(160, 16);
    let base: Vec<String> = (160..176).map(|chunk| format!("base {chunk}")).collect();
    assert_eq!(table.done(), lines(&[&store(3..19), &commit, &base]));
    table.write(320, 128);
    table.done();
    table.write(0, 5);
    table.done();
    table.write(16, 105);
    table.done();
    // The first of these fills the area: the next one is zeroed before the full one is listed.
    table.write(480, 2);
    let order = ["store flush", "store 1", "store 258", "store flush", "base 480", "base 481"];
    assert_eq!(table.done(), lines(&[&store([257, 259, 258].into_iter()), &words(&order)]));
    table.write(5, 1);
    assert_eq!(table.done(), ["base 5"], "what is copied is written straight");
}

/// One commit for a flush of the guest, however many writes it covers.
#[test]
fn mode_deferred_commits_once_for_a_flush() {
    let table = table(Mode::Deferred);
    for chunk in [9, 300, 5, 100] {
        table.write(chunk, 1);
    }
    assert!(table.done().is_empty(), "a buffered write did something");
    table.origin.flush().expect("flushed");
    let order = ["store flush", "store 1", "store flush", "base 5", "base 9", "base 100"];
    let expected = [store(2..6), words(&order), words(&["base 300", "base flush"])].concat();
    assert_eq!(table.done(), expected);
    table.write(9, 1);
    table.origin.flush().expect("flushed");
    assert_eq!(table.done(), ["base 9", "base flush"]);
}

/// Nothing is flushed, the table goes out by the sector of 32 exceptions, and the header is marked
/// from the first moment to the close.
#[test]
fn mode_async_flushes_nothing() {
    let table = table(Mode::Async);
    for chunk in 0..32 {
        table.write(chunk, 1);
    }
    let done = table.done();
    assert!(!done.iter().any(|line| line.ends_with("flush")), "{done:?}");
    assert_eq!(done[..2], ["base 0", "store 2"], "the origin does not wait for the copy");
    assert_eq!(done.iter().filter(|line| *line == "store 1").count(), 1);
    assert_eq!(done.last().map(String::as_str), Some("store 1"));
    table.write(100, 1);
    table.done();
    table.origin.close().expect("closed");
    let end = ["base flush", "store 1", "store flush", "store 0", "store flush"];
    assert_eq!(table.done(), end);
}

/// The origin is flushed before exceptions go, and they are gone for good before it may be written.
#[test]
fn a_merge_flushes_the_origin_and_then_the_store() {
    let table = table(Mode::Sync);
    for chunk in [40, 7, 90] {
        table.write(chunk, 1);
    }
    let merge = table.origin.merge(&table.snapshot).expect("begun");
    table.done();
    merge.run().expect("merged");
    let end = ["base 7", "base 40", "base 90", "base flush", "store 1", "store flush"];
    assert_eq!(table.done(), end);
}
