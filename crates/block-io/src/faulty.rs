//! A device whose n-th call fails, for tests.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};
use parking_lot::Mutex;

use crate::{BlockDevice, Limits, ZeroMode};

/// Which calls are counted, and so may fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCalls {
    /// `read_at`.
    pub reads: bool,
    /// `write_at`.
    pub writes: bool,
    /// `zero`.
    pub zeroes: bool,
    /// `discard`.
    pub discards: bool,
    /// `flush`.
    pub flushes: bool,
    /// `provision`.
    pub provisions: bool,
    /// `extents`.
    pub extents: bool,
    /// `resize`.
    pub resizes: bool,
}

/// Which call fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    /// The number of the call that fails, among those that are counted, from 1; 0 for none.
    pub fail_at: u64,
    /// What is counted.
    pub calls: FaultCalls,
    /// The kind of the error.
    pub kind: ErrorKind,
    /// Every counted call after that one fails too.
    pub sticky: bool,
}

/// Passes calls on to another device, but for one, or all from one on, that fails and changes
/// nothing. Resolves nothing, so that all I/O comes through here.
pub struct FaultyDevice {
    inner: Arc<dyn BlockDevice>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    counted: u64,
    armed: bool,
}

impl FaultCalls {
    /// Every call.
    pub const ALL: Self = Self {
        reads: true,
        writes: true,
        zeroes: true,
        discards: true,
        flushes: true,
        provisions: true,
        extents: true,
        resizes: true,
    };

    /// Every call that changes the device or makes it durable.
    pub const CHANGES: Self = Self { reads: false, extents: false, ..Self::ALL };
}

impl FaultyDevice {
    /// Wraps `inner`; armed.
    pub fn new(inner: Arc<dyn BlockDevice>, plan: FaultPlan) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::new(State { plan, counted: 0, armed: true }) })
    }

    /// Calls counted since it was armed, the failed ones included.
    pub fn counted(&self) -> u64 {
        self.state.lock().counted
    }

    /// Begins to count, from zero, by a new plan.
    pub fn arm(&self, plan: FaultPlan) {
        *self.state.lock() = State { plan, counted: 0, armed: true };
    }

    /// Lets every call pass, and counts none.
    pub fn disarm(&self) {
        self.state.lock().armed = false;
    }

    /// Counts a call that `chosen` may pick, and fails it if it is its turn.
    fn count(&self, chosen: impl Fn(&FaultCalls) -> bool, call: &str) -> Result<()> {
        let mut state = self.state.lock();
        if !state.armed || !chosen(&state.plan.calls) {
            return Ok(());
        }
        state.counted += 1;
        let FaultPlan { fail_at, kind, sticky, .. } = state.plan;
        let number = state.counted;
        if fail_at == 0 || number < fail_at || (number > fail_at && !sticky) {
            return Ok(());
        }
        let problem = format!("{call} failed as planned (counted call {number})");
        Err(Error::new(kind, self.inner.name(), problem))
    }
}

impl BlockDevice for FaultyDevice {
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
        self.count(|calls| calls.reads, "a read")?;
        self.inner.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        self.count(|calls| calls.writes, "a write")?;
        self.inner.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.count(|calls| calls.zeroes, "zeroing")?;
        self.inner.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.count(|calls| calls.discards, "a discard")?;
        self.inner.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.count(|calls| calls.flushes, "a flush")?;
        self.inner.flush()
    }

    fn provision(&self, range: ByteRange) -> Result<()> {
        self.count(|calls| calls.provisions, "provisioning")?;
        self.inner.provision(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.count(|calls| calls.extents, "looking for extents")?;
        self.inner.extents(range, each)
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.count(|calls| calls.resizes, "resizing")?;
        self.inner.resize(size)
    }
}

#[cfg(test)]
mod tests {
    use super::{FaultCalls, FaultPlan, FaultyDevice};
    use crate::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};
    use std::sync::Arc;

    fn plan(fail_at: u64, calls: FaultCalls, sticky: bool) -> FaultPlan {
        FaultPlan { fail_at, calls, kind: ErrorKind::OutOfSpace, sticky }
    }

    fn device(plan: FaultPlan) -> Arc<FaultyDevice> {
        let inner = Arc::new(MemoryDevice::new("memory", ByteCount::new(4096)));
        FaultyDevice::new(inner, plan)
    }

    #[test]
    fn the_nth_counted_call_fails_and_changes_nothing() {
        let writes = FaultCalls { writes: true, ..FaultCalls::default() };
        let device = device(plan(2, writes, false));
        device.write_at(&[1], ByteOffset::ZERO).unwrap();
        device.flush().unwrap();
        let error = device.write_at(&[2], ByteOffset::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert_eq!(error.object(), "memory");
        let mut byte = [0];
        device.read_at(&mut byte, ByteOffset::ZERO).unwrap();
        assert_eq!(byte, [1]);
        device.write_at(&[3], ByteOffset::ZERO).unwrap();
        assert_eq!(device.counted(), 3);
    }

    #[test]
    fn sticky_faults_stay_until_disarmed() {
        let device = device(plan(1, FaultCalls::ALL, true));
        assert!(device.flush().is_err());
        assert!(device.read_at(&mut [0], ByteOffset::ZERO).is_err());
        device.disarm();
        device.flush().unwrap();
        assert_eq!(device.counted(), 2);
        device.arm(plan(0, FaultCalls::CHANGES, true));
        device.flush().unwrap();
        device.read_at(&mut [0], ByteOffset::ZERO).unwrap();
        assert_eq!(device.counted(), 1);
    }
}
