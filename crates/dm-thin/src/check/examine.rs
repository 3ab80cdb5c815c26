//! The order of a check.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::Result;
use persistent_data::bulk::Mismatches;

use super::census::Census;
use super::report::{CheckReport, LISTED, and_more};
use super::{CheckDepth, CheckOptions, aliases, devices, names, spaces};
use crate::Time;
use crate::superblock::Superblock;

/// Below so many snapshots that the pool can still take, a check says so.
const FEW_SNAPSHOTS: u32 = 1 << 16;

/// What a check found, and which counts are wrong.
pub(super) struct Examined {
    pub(super) report: CheckReport,
    pub(super) superblock: Superblock,
    pub(super) data: Mismatches,
    pub(super) metadata: Mismatches,
}

/// Checks the metadata as far as `options` say.
pub(super) fn examine(metadata: Arc<dyn BlockDevice>, options: CheckOptions) -> Result<Examined> {
    let superblock = Superblock::read(&*metadata)?;
    let mut report = CheckReport::default();
    look_at(&superblock, &mut report);
    let (data, counts) = (Mismatches::new(0), Mismatches::new(0));
    let mut examined = Examined { report, superblock, data, metadata: counts };
    if options.depth != CheckDepth::Superblock {
        walk(&mut examined, metadata, options);
    }
    Ok(examined)
}

fn walk(examined: &mut Examined, metadata: Arc<dyn BlockDevice>, options: CheckOptions) {
    let Examined { report, superblock, data, metadata: counts } = examined;
    let everything = options.depth == CheckDepth::Everything;
    let roots = superblock.roots();
    let mut census = Census::new(metadata, superblock);
    census.devices();
    if everything {
        census.mappings(&roots);
        census.data_index(&roots);
        *data = spaces::data(&mut census, &roots.data_map, report);
        *counts = spaces::metadata(&mut census, &roots.metadata_map, report);
    }
    let problems = std::mem::take(&mut census.problems);
    let (settled, misplaced) = census.forest.settle();
    let misplaced = misplaced.into_iter().map(|problem| (census.kind(problem.at), problem));
    let problems: Vec<_> = problems.into_iter().chain(misplaced).collect();
    names::name(&census, &settled, &problems, report);
    devices::compare(&census, &settled, everything, roots.time, report);
    if everything {
        report.mappings = mappings(&census, &settled);
        outside(&census, report);
        aliases::name(&census, data, report);
        if census.leaves.newest > roots.time.get() {
            let (newest, time) = (census.leaves.newest, roots.time.get());
            report.warn(format!("mappings are of time {newest}, after the pool's time {time}"));
        }
    }
    // Counts that follow from a block that is missing would bury the block itself: they come last.
    spaces::name("data", data, !options.ignore_leaks, report);
    spaces::name("metadata", counts, !options.ignore_leaks, report);
}

/// What the superblock says about the pool.
fn look_at(superblock: &Superblock, report: &mut CheckReport) {
    report.needs_check = superblock.needs_check();
    if report.needs_check {
        report.warn("the pool's metadata is marked as in need of a check".to_owned());
    }
    let time = superblock.roots().time;
    if time > Time::MAX {
        report.warn(format!(
            "the pool's time is {}, more than the {} that a mapping can hold: from there on, Linux \
             maps new blocks to wrong places",
            time.get(),
            Time::MAX.get()
        ));
    } else if Time::MAX.get() - time.get() < FEW_SNAPSHOTS {
        let left = Time::MAX.get() - time.get();
        report.warn(format!("the pool's time is {}: {left} more snapshots fit", time.get()));
    }
    if let Some(bits) = superblock.forbids_writing() {
        report.warn(format!("the pool uses features that forbid writing: bits {bits:#x}"));
    }
}

/// Mappings of all devices of the pool.
fn mappings(census: &Census, settled: &persistent_data::bulk::Settled<'_>) -> u64 {
    let live = census.trees.iter().filter(|trees| !trees.held);
    let roots = live.flat_map(|trees| census.roots_of(trees));
    roots.map(|(_, root)| settled.entries(root)).fold(0, u64::saturating_add)
}

/// Names the mappings to data blocks that the pool does not have.
fn outside(census: &Census, report: &mut CheckReport) {
    for (leaf, guest, data) in &census.leaves.outside {
        let (guest, data) = (guest.get(), data.get());
        let devices = names::owners_of(census, *leaf, guest);
        report.error(format!(
            "metadata block {leaf}: {devices}: block {guest} is mapped to data block {data}, which \
             the pool does not have"
        ));
    }
    let more = census.leaves.outsides.saturating_sub(LISTED as u64);
    report.errors.extend(and_more(more, "mappings to blocks that the pool does not have"));
}
