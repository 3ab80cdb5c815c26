//! The wait before the origin may be overwritten: for those who still read the past from it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block_io::{BlockDevice, Limits, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use dm_snapshot::{Mode, Origin, SnapshotOptions, Store};
use parking_lot::{Condvar, Mutex};

use crate::common::{chunk, options};

const CHUNK: u64 = 4096;

/// A device whose reads wait, once it is told so, until they are let go on.
struct Slow {
    inner: MemoryDevice,
    /// Whether reads wait, and whether one does.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Slow {
    fn hold(&self) {
        self.state.lock().0 = true;
    }

    fn await_reader(&self) {
        let mut state = self.state.lock();
        while !state.1 {
            self.changed.wait(&mut state);
        }
        // Copies are not to wait.
        state.0 = false;
    }

    fn release(&self) {
        self.state.lock().1 = false;
        self.changed.notify_all();
    }
}

impl BlockDevice for Slow {
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
        let mut state = self.state.lock();
        if state.0 {
            state.1 = true;
            self.changed.notify_all();
            while state.1 {
                self.changed.wait(&mut state);
            }
        }
        drop(state);
        self.inner.read_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.inner.write_at(bytes, at)
    }
    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.inner.zero(range, mode)
    }
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.inner.discard(range)
    }
    fn flush(&self) -> Result<()> {
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

/// A reader of the snapshot has been sent to the origin and has not read yet. However the copy of
/// its chunk hurries, the origin is written after it, in every mode (SNAPSHOT-FIXED).
#[test]
fn a_reader_sent_to_the_origin_is_waited_for() {
    for mode in [Mode::Sync, Mode::Async, Mode::Deferred] {
        let base = Arc::new(Slow {
            inner: MemoryDevice::from_bytes("base", vec![1; 4 * CHUNK as usize]),
            state: Mutex::new((false, false)),
            changed: Condvar::new(),
        });
        let origin = Origin::open(Arc::clone(&base) as Arc<dyn BlockDevice>, options());
        let origin = origin.expect("opened");
        let device = Arc::new(MemoryDevice::new("store", ByteCount::new(16 * CHUNK)));
        let store = Store::create(device, chunk(CHUNK)).expect("made");
        let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
        let snapshot = origin.attach("snapshot", store, options).expect("attached");
        let written = AtomicBool::new(false);
        base.hold();
        let (read, early) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut bytes = [0; CHUNK as usize];
                snapshot.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
                bytes
            });
            base.await_reader();
            scope.spawn(|| {
                origin.write_at(&[2; CHUNK as usize], ByteOffset::ZERO).expect("written");
                origin.flush().expect("flushed");
                written.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(60));
            let early = written.load(Ordering::SeqCst);
            base.release();
            (reader.join().expect("the reader does not panic"), early)
        });
        assert!(!early, "{mode}: written under a reader");
        assert_eq!(read, [1; CHUNK as usize], "{mode}: the past has changed");
        assert!(written.load(Ordering::SeqCst));
    }
}
