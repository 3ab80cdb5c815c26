//! Metadata contexts: what BLOCK_STATUS can tell about an export.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteRange, ExtentState, Result};

use crate::wire::{BASE_ALLOCATION, StatusExtent};

/// Most extents in one answer: 128 KiB of them in the compact form.
const MAX_EXTENTS: usize = 16 << 10;

/// One view of what lies where in an export.
pub trait MetaContext: Send + Sync {
    /// The name clients choose it by, as `base:allocation` or `qemu:dirty-bitmap:daily`.
    fn name(&self) -> &str;

    /// Calls `each` with lengths and flags of what lies in `range`, from its start, in order and
    /// without gaps, until it breaks off. Neighbours may have the same flags. May block.
    ///
    /// # Errors
    /// What the device reports.
    fn status(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(StatusExtent) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// `base:allocation`: data, zeros and holes.
pub(super) struct BaseAllocation {
    device: Arc<dyn BlockDevice>,
}

impl BaseAllocation {
    const HOLE: u64 = 1;
    const ZERO: u64 = 2;

    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self { device }
    }

    /// The flags of a state.
    const fn flags(state: ExtentState) -> u64 {
        match state {
            ExtentState::Data => 0,
            ExtentState::Zero => Self::ZERO,
            ExtentState::Hole => Self::HOLE | Self::ZERO,
        }
    }
}

impl MetaContext for BaseAllocation {
    fn name(&self) -> &str {
        BASE_ALLOCATION
    }

    fn status(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(StatusExtent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.device.extents(range, &mut |extent| {
            each(StatusExtent { length: extent.range.len, flags: Self::flags(extent.state) })
        })
    }
}

/// What `context` says about `range`: equal neighbours joined, one extent if `one`, never past the
/// range, perhaps not all of it.
pub(super) fn gather(
    context: &dyn MetaContext,
    range: ByteRange,
    one: bool,
) -> Result<Vec<StatusExtent>> {
    let most = if one { 1 } else { MAX_EXTENTS };
    let mut extents: Vec<StatusExtent> = Vec::new();
    let mut left = range.len.get();
    context.status(range, &mut |extent| {
        let length = extent.length.get().min(left);
        left -= length;
        let full = extents.len() == most;
        match extents.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.flags == extent.flags => {
                last.length = ByteCount::new(last.length.get() + length);
            }
            _ if full => return ControlFlow::Break(()),
            _ => extents.push(StatusExtent { length: ByteCount::new(length), flags: extent.flags }),
        }
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if extents.is_empty() {
        // Saying nothing is not allowed; status 0 is always safe.
        extents.push(StatusExtent { length: range.len, flags: 0 });
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::{MetaContext, gather};
    use crate::wire::StatusExtent;
    use block_types::{ByteCount, ByteOffset, ByteRange, Result};
    use std::ops::ControlFlow;

    /// Says one flag value per block of 10 bytes, cut or not as the range has it.
    struct Stripes(&'static [u64]);

    impl MetaContext for Stripes {
        fn name(&self) -> &'static str {
            "test:stripes"
        }

        fn status(
            &self,
            _range: ByteRange,
            each: &mut dyn FnMut(StatusExtent) -> ControlFlow<()>,
        ) -> Result<()> {
            for &flags in self.0 {
                if each(StatusExtent { length: ByteCount::new(10), flags }).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn status(stripes: &'static [u64], len: u64, one: bool) -> Vec<(u64, u64)> {
        let range = ByteRange::new(ByteOffset::ZERO, ByteCount::new(len));
        let extents = gather(&Stripes(stripes), range, one).unwrap();
        extents.iter().map(|extent| (extent.length.get(), extent.flags)).collect()
    }

    #[test]
    fn joins_neighbours_and_stays_inside() {
        assert_eq!(status(&[1, 1, 0, 0, 3], 45, false), [(20, 1), (20, 0), (5, 3)]);
        assert_eq!(status(&[1, 1, 1], 15, false), [(15, 1)]);
    }

    #[test]
    fn one_extent_is_as_long_as_it_can_be() {
        assert_eq!(status(&[2, 2, 0], 30, true), [(20, 2)]);
    }

    #[test]
    fn a_silent_context_counts_as_data() {
        assert_eq!(status(&[], 30, false), [(30, 0)]);
    }
}
