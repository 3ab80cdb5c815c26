//! Which blocks of which devices lie in a range of data blocks.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use persistent_data::MetaBlock;
use persistent_data::btree::KeyRange;

use crate::dump::{Feeder, Item, Source, View, stream};
use crate::xml::Text;
use crate::{DataBlock, DeviceId, GuestBlock, Mapping};

/// Which of the devices that share a leaf of mappings are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Every one: whatever reads from the data blocks.
    #[default]
    Every,
    /// Only the first, as `thin_rmap` of all versions has it.
    First,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Ranges of data blocks.
    pub regions: Vec<Range<DataBlock>>,
    /// Which state of the metadata is read.
    pub view: View,
    /// Who is named where several devices share.
    pub naming: Naming,
}

/// Data blocks that lie side by side on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The first data block.
    pub from: DataBlock,
    /// The data block behind the last.
    pub end: DataBlock,
    /// The device that maps them.
    pub device: DeviceId,
    /// The guest block that the first is.
    pub guest: GuestBlock,
}

/// A guest block and the data block that it is mapped to.
type Match = (GuestBlock, DataBlock);

/// The uses of the data blocks in `options.regions`, in the order of data blocks, then devices.
///
/// # Errors
/// `Invalid` for an empty region or none at all, `Corrupt` for broken metadata, `NotFound` if there
/// is no metadata snapshot; the device's failures.
pub fn rmap(metadata: Arc<dyn BlockDevice>, options: &Options) -> Result<Vec<Use>> {
    let regions = Regions::new(&options.regions)?;
    let source = Source::open(metadata, options.view)?;
    let matches = matches(&source, &regions)?;
    let mut found = Found { uses: Vec::new(), device: None };
    let mut met = (options.naming == Naming::First).then(HashSet::new);
    for device in &source.devices {
        found.device = Some(device.id);
        each_leaf(&source, device.root, &mut met, &mut |leaf| {
            let here = matches.get(&leaf).into_iter().flatten();
            here.for_each(|&(guest, block)| found.add(guest, block));
            Ok(())
        })?;
    }
    found.uses.sort_unstable();
    Ok(found.uses)
}

/// Writes the uses of data blocks, a line each, as `thin_rmap` has them.
///
/// # Errors
/// As [`rmap`], and the failures of `out`.
pub fn write_rmap(
    metadata: Arc<dyn BlockDevice>,
    options: &Options,
    out: impl Write,
) -> Result<()> {
    let uses = rmap(metadata, options)?;
    let mut text = Text::new(out);
    for item in uses {
        let (from, end, guest) = (item.from.get(), item.end.get(), item.guest.get());
        text.word("data ").number(from).word("..").number(end);
        text.word(" -> thin(").number(item.device.get().into()).word(") ");
        text.number(guest).word("..").number(guest + (end - from)).line()?;
    }
    text.finish()
}

/// What each leaf maps to the regions, if anything. However many devices share a leaf, it is read
/// once.
fn matches(source: &Source, regions: &Regions) -> Result<HashMap<MetaBlock, Vec<Match>>> {
    let feed = |feeder: &mut Feeder<'_, MetaBlock>| {
        let mut met = Some(HashSet::new());
        source.devices.iter().try_for_each(|device| {
            each_leaf(source, device.root, &mut met, &mut |leaf| {
                feeder.event(leaf)?;
                feeder.leaf(leaf)
            })
        })
    };
    let mut matches = HashMap::new();
    let mut at = None;
    stream(source.metadata(), feed, |item| {
        match item {
            Item::Event(leaf) => at = Some(leaf),
            Item::Leaf(leaf) => {
                let entries = leaf.entries().map(|(key, value)| (key, Mapping::unpack(value)));
                let inside = entries.filter(|(_, mapping)| regions.contain(mapping.block));
                let here: Vec<Match> =
                    inside.map(|(key, mapping)| (GuestBlock::new(key), mapping.block)).collect();
                if !here.is_empty() {
                    matches.extend(at.map(|at| (at, here)));
                }
            }
        }
        Ok(())
    })?;
    Ok(matches)
}

/// Calls `each` with the leaves of a tree, in order; without those below nodes that were `met`
/// before, if somebody keeps book.
fn each_leaf(
    source: &Source,
    root: MetaBlock,
    met: &mut Option<HashSet<MetaBlock>>,
    each: &mut dyn FnMut(MetaBlock) -> Result<()>,
) -> Result<()> {
    let depth = source.depth(root)?;
    leaves_below(source, root, depth, KeyRange::whole(), met, each)
}

fn leaves_below(
    source: &Source,
    at: MetaBlock,
    depth: usize,
    place: KeyRange,
    met: &mut Option<HashSet<MetaBlock>>,
    each: &mut dyn FnMut(MetaBlock) -> Result<()>,
) -> Result<()> {
    if met.as_mut().is_some_and(|met| !met.insert(at)) {
        return Ok(());
    }
    if depth == 0 {
        return each(at);
    }
    let node = source.internal(at, place)?;
    for (index, child) in node.children().enumerate() {
        leaves_below(source, child, depth - 1, place.child(&node, index), met, each)?;
    }
    Ok(())
}

/// Ranges of data blocks, ascending and apart.
struct Regions(Vec<Range<u64>>);

impl Regions {
    fn new(regions: &[Range<DataBlock>]) -> Result<Self> {
        let refused = |object: String, problem: &str| {
            Error::new(ErrorKind::Invalid, object, problem)
                .advise("give ranges of data blocks as 5..45, without the last")
        };
        let mut sorted = Vec::with_capacity(regions.len());
        for region in regions {
            let (start, end) = (region.start.get(), region.end.get());
            if start >= end {
                return Err(refused(format!("region {start}..{end}"), "holds no block"));
            }
            sorted.push(start..end);
        }
        sorted.sort_unstable_by_key(|region| region.start);
        let mut apart: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
        for region in sorted {
            match apart.last_mut() {
                Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
                _ => apart.push(region),
            }
        }
        if apart.is_empty() {
            return Err(refused("regions".to_owned(), "are missing"));
        }
        Ok(Self(apart))
    }

    #[inline]
    fn contain(&self, block: DataBlock) -> bool {
        let block = block.get();
        match &self.0[..] {
            [only] => only.contains(&block),
            several => {
                let behind = several.partition_point(|region| region.start <= block);
                behind > 0 && several[behind - 1].contains(&block)
            }
        }
    }
}

/// What was found so far; the last one may still grow.
struct Found {
    uses: Vec<Use>,
    device: Option<DeviceId>,
}

impl Found {
    fn add(&mut self, guest: GuestBlock, block: DataBlock) {
        let Some(device) = self.device else { return };
        let end = DataBlock::new(block.get() + 1);
        if let Some(last) = self.uses.last_mut() {
            let len = last.end.get() - last.from.get();
            if last.device == device
                && last.end == block
                && guest.get() == last.guest.get().wrapping_add(len)
            {
                last.end = end;
                return;
            }
        }
        self.uses.push(Use { from: block, end, device, guest });
    }
}

#[cfg(test)]
mod tests {
    use super::Regions;
    use crate::DataBlock;

    #[test]
    fn regions_may_overlap_in_any_order() {
        let region = |start, end| DataBlock::new(start)..DataBlock::new(end);
        let regions = Regions::new(&[region(20, 30), region(5, 7), region(6, 9)]).unwrap();
        let inside: Vec<u64> =
            (0..40).filter(|&block| regions.contain(DataBlock::new(block))).collect();
        let expected: Vec<u64> = (5..9).chain(20..30).collect();
        assert_eq!(inside, expected);
        assert!(Regions::new(&[region(5, 5)]).is_err());
        assert!(Regions::new(&[]).is_err());
    }
}
