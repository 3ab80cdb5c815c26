//! Internal snapshots carried along into a copy of their image.
//!
//! The states of the disk are written one after the other, each as far as it differs from the one
//! before, and a snapshot is taken of each. So what two states have in common they share in the
//! copy, as they do in the source, or more of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::DiskImage;

/// Bytes that are compared at once.
const PIECE: ByteCount = ByteCount::new(1 << 20);
/// Bytes of which is asked at once whether they are zeros.
const WINDOW: ByteCount = ByteCount::new(64 << 20);

impl DiskImage {
    /// Fills this image, which is empty, with the disk of `source` and with its internal snapshots;
    /// how many bytes were written. `told` hears of bytes that were looked at, and may end it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for snapshots with a machine's state, and where one of the two is
    /// not qcow2; those of the files and of `told`.
    pub fn fill_with_snapshots(
        &self,
        source: &Self,
        told: &mut dyn FnMut(ByteCount) -> Result<()>,
    ) -> Result<ByteCount> {
        let target = self.qcow2("snapshots")?;
        let from = source.qcow2("snapshots")?;
        let unit = target.header().cluster_size();
        let last = from.size();
        let mut before: Option<Arc<dyn BlockDevice>> = None;
        let mut written = 0;
        for info in from.snapshots() {
            if info.vm_state_size > ByteCount::ZERO {
                let object = format!("{}, snapshot {}", source.path().display(), info.name);
                let problem = "has a machine's state, which is not carried along";
                return Err(Error::new(ErrorKind::Unsupported, object, problem)
                    .advise("delete that snapshot, or copy without --snapshots"));
            }
            let state: Arc<dyn BlockDevice> = from.open_snapshot(&info.id)?;
            target.resize(state.size())?;
            written += write_difference(before.as_deref(), &*state, &**target, unit, told)?;
            target.create_snapshot_like(&info)?;
            before = Some(state);
        }
        target.resize(last)?;
        written += write_difference(before.as_deref(), &**from, &**target, unit, told)?;
        Ok(ByteCount::new(written))
    }
}

/// Makes `target`, which holds `before` (zeros if there is none), hold `state`: writes what
/// differs, in whole units.
fn write_difference(
    before: Option<&dyn BlockDevice>,
    state: &dyn BlockDevice,
    target: &dyn BlockDevice,
    unit: ByteCount,
    told: &mut dyn FnMut(ByteCount) -> Result<()>,
) -> Result<u64> {
    let piece = if unit > PIECE { unit } else { PIECE };
    let mut buffers = [vec![0; piece.as_usize()], vec![0; piece.as_usize()]];
    let mut written = 0;
    for window in ByteRange::new(ByteOffset::ZERO, state.size()).pieces(WINDOW) {
        let mut data = data_of(state, window)?;
        data.extend(before.map(|before| data_of(before, window)).transpose()?.unwrap_or_default());
        for range in window.pieces(piece) {
            if !data.iter().any(|data| !data.intersect(range).is_empty()) {
                continue;
            }
            let [new, old] = &mut buffers;
            let (new, old) = (&mut new[..range.len.as_usize()], &mut old[..range.len.as_usize()]);
            state.read_at(new, range.start)?;
            old.fill(0);
            if let Some(before) = before {
                let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, before.size()));
                if !inside.is_empty() {
                    before.read_at(&mut old[..inside.len.as_usize()], inside.start)?;
                }
            }
            for part in range.pieces(unit) {
                let from = part.start.since(range.start).as_usize();
                let within = from..from + part.len.as_usize();
                let (new, old) = (&new[within.clone()], &old[within]);
                if new == old {
                    continue;
                }
                if new.iter().all(|byte| *byte == 0) {
                    target.zero(part, ZeroMode { may_unmap: true, only_if_fast: false })?;
                } else {
                    target.write_at(new, part.start)?;
                    written += part.len.get();
                }
            }
        }
        told(window.len)?;
    }
    Ok(written)
}

/// The parts of `range` that are not known to be zeros.
fn data_of(device: &dyn BlockDevice, range: ByteRange) -> Result<Vec<ByteRange>> {
    let mut data = Vec::new();
    let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, device.size()));
    if inside.is_empty() {
        return Ok(data);
    }
    device.extents(inside, &mut |extent| {
        if !extent.state.reads_zero() {
            data.push(extent.range);
        }
        ControlFlow::Continue(())
    })?;
    Ok(data)
}
