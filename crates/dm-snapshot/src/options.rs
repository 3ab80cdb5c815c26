//! What is chosen when a snapshot is attached, and when an origin is opened.

use std::sync::Arc;

use block_types::ByteCount;

use crate::{GrowPolicy, Mode};

/// What happens when a write to the snapshot itself finds its store full. A write to the origin
/// makes the snapshot invalid in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// The snapshot becomes invalid: the kernel's `P`.
    Invalidate,
    /// The snapshot is read on, and takes no more writes: the kernel's `PO`.
    #[default]
    Overflow,
}

/// How a snapshot is attached.
#[derive(Clone, Default)]
pub struct SnapshotOptions {
    /// When a write to the origin goes ahead; of no effect with a transient store.
    pub mode: Mode,
    /// What a write to the snapshot does when the store is full.
    pub on_full: OnFull,
    /// Discards of the snapshot make those whole chunks zero that are in its store: the kernel's
    /// `discard_zeroes_cow`. Otherwise they do nothing.
    pub discard_zeroes: bool,
    /// They also go to the device under the origin, as far as no other snapshot needs what is
    /// there: the kernel's `discard_passdown_origin`, which spares the others too. The origin loses
    /// what it holds there.
    pub discard_passdown: bool,
    /// Writes to the snapshot are refused.
    pub read_only: bool,
    /// The snapshot's size, where the origin has grown since it was taken; the origin's otherwise.
    pub size: Option<ByteCount>,
    /// When the store grows; never otherwise.
    pub grow: Option<Arc<dyn GrowPolicy>>,
}

/// How an origin is opened.
#[derive(Clone, Copy, Debug)]
pub struct OriginOptions {
    /// What the buffer of mode deferred holds at most, in whole pages of 4 KiB.
    pub buffer: ByteCount,
    /// A thread empties the buffer when it is half full, and after a second. Without one only those
    /// who write and flush do, and runs repeat exactly.
    pub background: bool,
    /// Threads that copy a large batch, each with many requests in flight.
    pub workers: usize,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self { buffer: ByteCount::new(64 << 20), background: true, workers: 4 }
    }
}
