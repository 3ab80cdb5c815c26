//! Where two devices differ, or two states of one.
//!
//! The trees of both are walked side by side. What lies in the same metadata block on both sides is
//! the same without being looked at, so that without [`same`](Options::same) the cost is that of
//! what differs, and with it what both share is read once. Nothing is collected: ranges come out
//! as they are found.

mod merge;
mod text;
mod walk;

use std::io::Write;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;
use persistent_data::MetaBlock;

use crate::dump::{Item, Source, View, stream};
use crate::{DataBlock, DeviceId, GuestBlock};
use merge::Merge;
use text::Printer;

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A device.
    Device(DeviceId),
    /// The tree of mappings with its root in this block, whether or not a device has it.
    Root(MetaBlock),
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The first of the two.
    pub left: Side,
    /// The second.
    pub right: Side,
    /// Which state of the metadata both are looked up in.
    pub view: View,
    /// Whether ranges that are the same are reported too, which the thin tools do. Without them
    /// what both share is not read at all.
    pub same: bool,
}

/// How a range of two devices compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both have it in the same data blocks.
    Same,
    /// Only the left has it.
    LeftOnly,
    /// Only the right has it.
    RightOnly,
    /// Both have it, in different data blocks.
    Different,
}

/// Guest blocks that compare in one way, and that lie side by side on either side's data as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// How they compare.
    pub kind: Kind,
    /// The first guest block.
    pub from: GuestBlock,
    /// How many.
    pub len: u64,
    /// Where the left has the first.
    pub left: Option<DataBlock>,
    /// Where the right has the first.
    pub right: Option<DataBlock>,
}

/// Calls `each` with the ranges that the two devices have, in order, each as long as it can be. The
/// times of mappings make no difference.
///
/// # Errors
/// `NotFound` for a device that is not there, `Corrupt` for broken metadata; the device's failures
/// and those of `each`, which end the comparison.
pub fn delta(
    metadata: Arc<dyn BlockDevice>,
    options: &Options,
    each: &mut dyn FnMut(Range) -> Result<()>,
) -> Result<()> {
    run(&Source::open(metadata, options.view)?, options, each)
}

/// How a comparison is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Which guest blocks compare how.
    #[default]
    Simple,
    /// Where both sides have them, too.
    Verbose,
}

/// Writes how the two devices compare as the XML of `thin_delta`.
///
/// # Errors
/// As [`delta`], and the failures of `out`.
pub fn write_delta(
    metadata: Arc<dyn BlockDevice>,
    options: &Options,
    detail: Detail,
    out: impl Write,
) -> Result<()> {
    let source = Source::open(metadata, options.view)?;
    let mut printer = Printer::new(out, detail);
    // Both sides are known to be there before anything is written.
    roots(&source, options)?;
    printer.begin(&source.fields, options)?;
    run(&source, options, &mut |range| printer.range(&range))?;
    printer.end()
}

fn roots(source: &Source, options: &Options) -> Result<(MetaBlock, MetaBlock)> {
    let root = |side| match side {
        Side::Device(id) => source.device(id).map(|device| device.root),
        Side::Root(root) => Ok(root),
    };
    Ok((root(options.left)?, root(options.right)?))
}

fn run(
    source: &Source,
    options: &Options,
    each: &mut dyn FnMut(Range) -> Result<()>,
) -> Result<()> {
    let (left, right) = roots(source, options)?;
    if left == right && !options.same {
        return Ok(());
    }
    let mut merge = Merge::new(each, options.same);
    stream(
        source.metadata(),
        |feeder| walk::feed(feeder, source, left, right, options.same),
        |item| match item {
            Item::Event(whose) => merge.expect(whose),
            Item::Leaf(leaf) => merge.leaf(leaf),
        },
    )
    .and_then(|()| merge.finish())
}
