//! Naming a broken block: in whose tree it is, on which path, and what hangs on it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use persistent_data::MetaBlock;
use persistent_data::bulk::{NodeProblem, Settled, TreeKind};

use super::census::{Census, DATA_INDEX, DETAILS, DEVICES, MAPPINGS};
use super::report::{CheckReport, LISTED, and_more};

/// Devices that are named in one finding.
const NAMED: usize = 8;

/// Devices by number; those that only the metadata snapshot has are listed apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    pub(super) live: BTreeSet<u64>,
    pub(super) held: BTreeSet<u64>,
}

/// Adds an error for each of `problems`.
pub(super) fn name(
    census: &Census,
    settled: &Settled<'_>,
    problems: &[(TreeKind, NodeProblem)],
    report: &mut CheckReport,
) {
    let listed = &problems[..problems.len().min(LISTED)];
    let owners = owners(census, settled, listed.iter().map(|(_, problem)| problem.at));
    for (kind, problem) in listed {
        let at = problem.at;
        let tree = match *kind {
            DEVICES => "the tree of devices".to_owned(),
            DETAILS => "the tree of details".to_owned(),
            DATA_INDEX => "the index of the data space map".to_owned(),
            MAPPINGS => owners.get(&at).map_or("the mappings".to_owned(), Owners::mappings),
            _ => "the large counts of a space map".to_owned(),
        };
        let path: Vec<String> = census.forest.path(at).iter().map(ToString::to_string).collect();
        let (low, high) = census.forest.place(at);
        let keys = match (*kind == MAPPINGS, high) {
            (false, _) => String::new(),
            (true, u64::MAX) => format!(", guest blocks from {low} on"),
            (true, _) => format!(", guest blocks {low} to {high}"),
        };
        report.error(format!("{}; {tree}{keys}, path {}", problem.error, path.join(" > ")));
    }
    let more = (problems.len() - listed.len()) as u64;
    report.errors.extend(and_more(more, "broken blocks"));
}

/// To which devices the mappings in each of these blocks belong, where something is wrong with all
/// of them.
fn owners(
    census: &Census,
    settled: &Settled<'_>,
    blocks: impl Iterator<Item = MetaBlock>,
) -> BTreeMap<MetaBlock, Owners> {
    let blocks: HashSet<MetaBlock> = blocks.collect();
    let mut owners = BTreeMap::<MetaBlock, Owners>::new();
    if blocks.is_empty() {
        return owners;
    }
    for trees in &census.trees {
        for (device, root) in census.roots_of(trees) {
            for at in settled.faulty_of(root, &blocks) {
                owners.entry(at).or_default().add(device, trees.held);
            }
        }
    }
    owners
}

/// The devices that have `guest` in the leaf `leaf`.
pub(super) fn owners_of(census: &Census, leaf: MetaBlock, guest: u64) -> Owners {
    let mut owners = Owners::default();
    for trees in &census.trees {
        for (device, root) in census.roots_of(trees) {
            if census.forest.leaf_for(root, guest) == Some(leaf) {
                owners.add(device, trees.held);
            }
        }
    }
    owners
}

impl Owners {
    pub(super) fn add(&mut self, device: u64, held: bool) {
        if !held {
            self.live.insert(device);
            self.held.remove(&device);
        } else if !self.live.contains(&device) {
            self.held.insert(device);
        }
    }

    /// "the mappings of devices 0, 2 and 3".
    fn mappings(&self) -> String {
        format!("the mappings of {self}")
    }
}

impl std::fmt::Display for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.live.is_empty() {
            return f.write_str(&list(&self.live));
        }
        write!(f, "{} of the metadata snapshot", list(&self.held))
    }
}

/// "device 3", "devices 0, 2 and 3", "devices 0, ... and 90 more".
fn list(devices: &BTreeSet<u64>) -> String {
    let mut names: Vec<String> = devices.iter().take(NAMED).map(u64::to_string).collect();
    let more = devices.len().saturating_sub(NAMED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    match names.pop() {
        None => "no device".to_owned(),
        Some(only) if names.is_empty() => format!("device {only}"),
        Some(last) => format!("devices {} and {last}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::Owners;

    #[test]
    fn lists_devices_as_one_would_say_it() {
        let named = |live: &[u64], held: &[u64]| {
            let mut owners = Owners::default();
            held.iter().for_each(|device| owners.add(*device, true));
            live.iter().for_each(|device| owners.add(*device, false));
            owners.to_string()
        };
        assert_eq!(named(&[3], &[3, 4]), "device 3");
        assert_eq!(named(&[0, 2, 3], &[]), "devices 0, 2 and 3");
        assert_eq!(named(&[], &[7]), "device 7 of the metadata snapshot");
        let many: Vec<u64> = (0..100).collect();
        assert_eq!(named(&many, &[]), "devices 0, 1, 2, 3, 4, 5, 6, 7 and 92 more");
    }
}
