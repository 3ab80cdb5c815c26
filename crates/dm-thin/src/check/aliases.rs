//! Two guest blocks in one data block.
//!
//! Snapshots share a data block at one and the same guest block. A data block that two different
//! guest blocks are mapped to is the mark of a kernel whose time has passed 24 bits: it packs the
//! bit that does not fit into the number of the block next to it. Each then reads what was written
//! to the other.

use std::collections::{BTreeMap, HashSet};

use persistent_data::MetaBlock;
use persistent_data::bulk::{Mismatches, NodeView};

use super::census::{Census, MAPPINGS};
use super::names::Owners;
use super::report::CheckReport;
use crate::Mapping;

/// Mappings that are looked at, per thread: a pool with more is broken beyond any list.
const USES: usize = 1 << 14;
/// Mappings that are looked up in devices, for the same reason.
const LOOKUPS: usize = 1 << 25;

/// A mapping to a suspected block: the data block, the guest block, and the leaf that has it.
type Use = (u64, u64, MetaBlock);

/// Two guest blocks that lie in one data block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alias {
    data: u64,
    one: u64,
    other: u64,
}

/// Names all pairs of guest blocks of one device that share a data block; and those of two devices
/// where the count of the data block shows that they should not.
pub(super) fn name(census: &Census, low: &Mismatches, report: &mut CheckReport) {
    let low: HashSet<u64> = low.low.iter().map(|mismatch| mismatch.block).collect();
    let mut suspects = low.clone();
    suspects.extend(&census.leaves.suspects);
    if suspects.is_empty() {
        return;
    }
    let uses = uses(census, &suspects);
    let mut found = BTreeMap::<Alias, Owners>::new();
    let mut across = Vec::new();
    let devices: Vec<_> = census
        .trees
        .iter()
        .flat_map(|trees| {
            census.roots_of(trees).into_iter().map(|(id, root)| (trees.held, id, root))
        })
        .collect();
    let mut lookups = 0;
    for uses in uses.chunk_by(|one, other| one.0 == other.0) {
        if uses.iter().all(|(_, guest, _)| *guest == uses[0].1) {
            continue;
        }
        lookups += uses.len() * devices.len();
        if lookups > LOOKUPS {
            break;
        }
        let owned = owned(census, &devices, uses);
        let inside = pairs(uses[0].0, &owned, &mut found);
        if !inside && low.contains(&uses[0].0) {
            across.extend(strangers(&owned, uses[0].0));
        }
    }
    let pairs = found.into_iter().map(|(Alias { data, one, other }, owners)| {
        format!("{owners}: blocks {one} and {other} both lie in data block {data}")
    });
    report.errors_of("pairs of blocks that lie in one data block", pairs.chain(across));
}

/// All mappings to one of `suspects`, sorted.
fn uses(census: &Census, suspects: &HashSet<u64>) -> Vec<Use> {
    let leaves = census.forest.leaves_of(MAPPINGS);
    let found =
        census.forest.reader().for_each(&leaves, Vec::new, |found: &mut Vec<Use>, at, block| {
            // A leaf that is broken was named already.
            let Ok(leaf) = block.and_then(|block| NodeView::read(block, at)) else { return };
            if leaf.value_size() != MAPPINGS.value_size {
                return;
            }
            for (guest, value) in leaf.entries::<u64>() {
                let data = Mapping::unpack(value).block.get();
                if suspects.contains(&data) && found.len() < USES {
                    found.push((data, guest, at));
                }
            }
        });
    let mut uses: Vec<Use> = found.into_iter().flatten().collect();
    uses.sort_unstable();
    uses
}

/// A guest block of a device, and whether the device is one of the metadata snapshot.
type Place = (bool, u64, u64);

/// Which of `devices` have these mappings.
fn owned(census: &Census, devices: &[(bool, u64, MetaBlock)], uses: &[Use]) -> Vec<Place> {
    let mut places = Vec::new();
    for &(held, device, root) in devices {
        let has = |(_, guest, leaf): &&Use| census.forest.leaf_for(root, *guest) == Some(*leaf);
        places.extend(uses.iter().filter(has).map(|(_, guest, _)| (held, device, *guest)));
    }
    places
}

/// Adds the pairs inside each device, of neighbours where there are more than two. Says whether
/// there are any.
fn pairs(data: u64, places: &[Place], found: &mut BTreeMap<Alias, Owners>) -> bool {
    let mut any = false;
    for of_device in places.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
        for pair in of_device.windows(2).filter(|pair| pair[0].2 != pair[1].2) {
            let (held, device, one) = pair[0];
            let alias = Alias { data, one, other: pair[1].2 };
            found.entry(alias).or_default().add(device, held);
            any = true;
        }
    }
    any
}

/// The first two devices that have different guest blocks there.
fn strangers(places: &[Place], data: u64) -> Option<String> {
    let (_, device, guest) = places.first()?;
    let (_, other, elsewhere) =
        places.iter().find(|(_, other, elsewhere)| other != device && elsewhere != guest)?;
    Some(format!(
        "block {guest} of device {device} and block {elsewhere} of device {other} both lie in data \
         block {data}"
    ))
}
