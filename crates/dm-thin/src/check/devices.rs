//! Holding the two trees of devices, and what is mapped, against each other.

use std::collections::BTreeMap;

use persistent_data::bulk::Settled;

use super::census::{Census, DeviceTrees};
use super::report::CheckReport;
use crate::layout::DetailsLayout;
use crate::{DeviceId, Time};

/// Compares the devices of every pair of trees, and their numbers of mapped blocks if the mappings
/// were walked.
pub(super) fn compare(
    census: &Census,
    settled: &Settled<'_>,
    with_mappings: bool,
    time: Time,
    report: &mut CheckReport,
) {
    for trees in &census.trees {
        let mut found = Vec::new();
        compare_pair(census, settled, trees, with_mappings, &mut found);
        report.errors_of("findings on devices", found);
        if !trees.held {
            warn_of_times(census, trees, time, report);
        }
    }
}

fn compare_pair(
    census: &Census,
    settled: &Settled<'_>,
    trees: &DeviceTrees,
    with_mappings: bool,
    found: &mut Vec<String>,
) {
    let place = if trees.held { "the metadata snapshot: " } else { "" };
    let mut details: BTreeMap<u64, DetailsLayout> = census.details_of(trees).into_iter().collect();
    let (roots, all) = (census.roots_of(trees), settled.is_sound(trees.details));
    for (device, root) in roots {
        if device > DeviceId::MAX.key() {
            found.push(format!("{place}device {device} is larger than 24 bits"));
        }
        let Some(details) = details.remove(&device) else {
            // Where details cannot be read, that is the error; not each device that lacks them.
            if all {
                found.push(format!("{place}device {device} has mappings but no details"));
            }
            continue;
        };
        let (stated, counted) = (details.mapped.get(), settled.entries(root));
        if with_mappings && settled.is_sound(root) && stated != counted {
            found.push(format!(
                "{place}device {device} has {counted} mapped blocks, its details say {stated}"
            ));
        }
    }
    if settled.is_sound(trees.mappings) {
        let stray = details.into_keys();
        found.extend(
            stray.map(|device| format!("{place}device {device} has details but no mappings")),
        );
    }
}

/// Tells of devices that claim to be younger than the pool.
fn warn_of_times(census: &Census, trees: &DeviceTrees, time: Time, report: &mut CheckReport) {
    let details = census.details_of(trees).into_iter();
    let late = details
        .filter(|(_, details)| details.created.get().max(details.snapshotted.get()) > time.get());
    let devices: Vec<String> = late.map(|(device, _)| device.to_string()).collect();
    if !devices.is_empty() {
        let (devices, time) = (devices.join(", "), time.get());
        report.warn(format!("devices of a time after the pool's, {time}: {devices}"));
    }
}
