//! What a repair has done, and what is lost.

use crate::{DeviceId, GuestBlock};

/// Where the trees of a repaired pool were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Where the superblock says.
    Superblock,
    /// By looking at every block: what was found may be some commits old.
    Search,
}

/// Guest blocks whose mappings are lost, if they were mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// The first of them.
    pub first: GuestBlock,
    /// The last of them; `None` if they reach to the end of the device.
    pub last: Option<GuestBlock>,
}

/// A device of the repaired pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairedDevice {
    /// Its number.
    pub id: DeviceId,
    /// Blocks that it maps.
    pub mapped: u64,
    /// Blocks that it mapped before, where its details survive.
    pub stated: Option<u64>,
    /// Where mappings are lost.
    pub lost: Vec<LostRange>,
    /// Mappings that were dropped because their data block does not exist.
    pub dropped: u64,
    /// Whether what was found may be a state some commits old: blocks that were mapped since may
    /// hold other data by now.
    pub doubtful: bool,
}

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// Where the tree of devices was found.
    pub roots: Roots,
    /// Where the tree of details was found; `None` where it was made up.
    pub details: Option<Roots>,
    /// The devices.
    pub devices: Vec<RepairedDevice>,
    /// What else is worth knowing, in words.
    pub notes: Vec<String>,
}

impl RepairReport {
    /// Whether anything is lost, as far as can be known.
    pub fn is_complete(&self) -> bool {
        let whole = |device: &RepairedDevice| {
            device.lost.is_empty()
                && device.dropped == 0
                && !device.doubtful
                && device.stated.is_none_or(|stated| stated == device.mapped)
        };
        let details = self.details == Some(Roots::Superblock);
        self.roots == Roots::Superblock && details && self.devices.iter().all(whole)
    }

    /// What is lost or doubtful, a line for each finding.
    pub fn findings(&self) -> Vec<String> {
        let mut findings = self.notes.clone();
        findings.extend(self.devices.iter().flat_map(RepairedDevice::findings));
        findings
    }
}

impl RepairedDevice {
    fn findings(&self) -> Vec<String> {
        let id = self.id;
        let range = |range: &LostRange| match (range.first.get(), range.last) {
            (0, None) => format!("device {id}: all mappings are lost"),
            (first, None) => format!("device {id}: mappings are lost from block {first} on"),
            (first, Some(last)) => {
                format!("device {id}: mappings of blocks {first} to {} are lost", last.get())
            }
        };
        let mut findings: Vec<String> = self.lost.iter().map(range).collect();
        if self.doubtful {
            findings.push(format!("device {id}: its mappings may be some commits old"));
        }
        if self.dropped > 0 {
            let dropped = self.dropped;
            findings
                .push(format!("device {id}: {dropped} mappings led behind the end of the data"));
        }
        if let Some(stated) = self.stated.filter(|stated| *stated != self.mapped) {
            let mapped = self.mapped;
            findings.push(format!("device {id}: {mapped} blocks are mapped, there were {stated}"));
        }
        findings
    }
}
