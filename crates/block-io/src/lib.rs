//! Block devices, and how bytes reach them: files, block devices, memory, io_uring queues; for
//! tests the faulty and the crashing device. The only crate with `unsafe`.

mod blocking;
mod buffer;
mod byte_lock;
mod crashing;
mod device;
mod event;
mod faulty;
mod file;
mod flush;
mod inherited;
mod lease;
mod memory;
mod open;
mod queue;
mod random;
mod ranges;
mod request;
#[cfg(test)]
mod scratch;
mod space;
mod stall;
mod uring;

pub use buffer::AlignedBuf;
pub use byte_lock::{ByteLocks, LockHolder};
pub use crashing::{CrashDevice, CrashWorld};
pub use device::{
    BlockDevice, Intent, Limits, Place, Resolve, ZeroMode, check_range, check_writable,
};
pub use event::Event;
pub use faulty::{FaultCalls, FaultPlan, FaultyDevice};
pub use file::{CacheMode, FileOptions, HostFile};
pub use inherited::copy_inherited;
pub use lease::{Lease, LeaseSet};
pub use memory::MemoryDevice;
pub use queue::{Completion, Interest, IoQueue, QueueBackend, QueueChoice, Segment};
pub use stall::{Attempt, Stall, Ticket};
