//! The bitmaps of an image that is served: recorded in, looked after, and shown to clients.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use block_types::{ByteOffset, ByteRange, DirtyBitmap, Error, Result};
use nbd::wire::StatusExtent;
use nbd::{Export, MetaContext};
use volume::{DiskImage, RecordedImage, Recorder};

/// How often it is looked for a lull.
const LULL: Duration = Duration::from_secs(5);

/// The flag of what is dirty, as QEMU has it.
const DIRTY: u64 = 1;

/// The recording of an image's bitmaps, while it is served.
pub(crate) struct ServedBitmaps {
    recorded: Arc<RecordedImage>,
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// A bitmap as clients ask for it.
struct DirtyContext {
    name: String,
    bits: Bits,
}

enum Bits {
    Recorded(Arc<Recorder>),
    Still(Arc<DirtyBitmap>),
}

impl ServedBitmaps {
    /// Begins to record in the bitmaps of `image`.
    pub(crate) fn begin(image: &DiskImage) -> Result<Self> {
        let recorded = Arc::new(RecordedImage::begin(image)?);
        if recorded.recorders().is_empty() {
            return Ok(Self { recorded, stop: None, keeper: None });
        }
        let (stop, stopped) = channel();
        let watched = Arc::clone(&recorded);
        let keep = move || {
            while stopped.recv_timeout(LULL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = watched.refine_in_lull() {
                    tracing::warn!("bitmaps stay coarse: {error}");
                }
            }
        };
        let keeper = std::thread::Builder::new().name("firn-bitmaps".to_owned()).spawn(keep);
        let keeper = keeper.map_err(|error| Error::io("bitmaps", "no thread can be had", error))?;
        Ok(Self { recorded, stop: Some(stop), keeper: Some(keeper) })
    }

    /// The disk, and `export` over it with a context for each bitmap.
    pub(crate) fn export(&self, name: &str) -> Result<Export> {
        let mut export = Export::new(name, self.recorded.device())?;
        for recorder in self.recorded.recorders() {
            let name = recorder.name().to_owned();
            export = export.with_context(DirtyContext::shared(&name, Bits::Recorded(recorder)));
        }
        for (name, bits) in self.recorded.still() {
            let bits = Bits::Still(Arc::clone(bits));
            export = export.with_context(DirtyContext::shared(name, bits));
        }
        Ok(export)
    }

    /// Stores the bitmaps, once no client is left.
    pub(crate) fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the thread that looks after bitmaps panicked");
        }
        self.recorded.end()
    }
}

impl DirtyContext {
    fn shared(name: &str, bits: Bits) -> Arc<dyn MetaContext> {
        Arc::new(Self { name: format!("qemu:dirty-bitmap:{name}"), bits })
    }
}

impl MetaContext for DirtyContext {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(StatusExtent) -> ControlFlow<()>,
    ) -> Result<()> {
        let bits = match &self.bits {
            Bits::Recorded(recorder) => recorder.bits(),
            Bits::Still(bits) => bits,
        };
        let mut tell = |from: ByteOffset, to: ByteOffset, flags| {
            from >= to || each(StatusExtent { length: to.since(from), flags }).is_continue()
        };
        let mut at = range.start;
        while at < range.end() {
            let run = bits.next_dirty_run(at);
            let clean = run.map_or(range.end(), |run| run.start.min(range.end()));
            let dirty = run.map_or(range.end(), |run| run.end().min(range.end()));
            if !tell(at, clean, 0) || !tell(clean, dirty, DIRTY) {
                break;
            }
            at = dirty;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Bits, DirtyContext, StatusExtent};
    use block_types::{ByteCount, ByteOffset, ByteRange, DirtyBitmap, Granularity};
    use std::ops::ControlFlow;
    use std::sync::Arc;

    #[test]
    fn dirty_runs_are_told_without_gaps() {
        let bits = DirtyBitmap::new(ByteCount::new(10_000), Granularity::SMALLEST).unwrap();
        let range = |start, end| ByteRange::between(ByteOffset::new(start), ByteOffset::new(end));
        bits.set(range(1024, 2048));
        bits.set(range(9_999, 10_000));
        let context = DirtyContext::shared("daily", Bits::Still(Arc::new(bits)));
        assert_eq!(context.name(), "qemu:dirty-bitmap:daily");
        let status = |start, end| {
            let mut told = Vec::new();
            let each = &mut |extent: StatusExtent| {
                told.push((extent.length.get(), extent.flags));
                ControlFlow::Continue(())
            };
            context.status(range(start, end), each).unwrap();
            told
        };
        assert_eq!(status(0, 10_000), [(1024, 0), (1024, 1), (7680, 0), (272, 1)]);
        assert_eq!(status(1500, 1600), [(100, 1)]);
        assert_eq!(status(3000, 4000), [(1000, 0)]);
    }
}
