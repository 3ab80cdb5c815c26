//! What one device of the model may hold.

use std::collections::BTreeSet;
use std::ops::Range;

use block_types::Result;

/// What a device holds: of each sector the value that it reads as now, and those it may come back
/// with after a crash. 0 is a sector of zeros.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) live: Vec<u64>,
    pub(crate) possible: Vec<Vec<u64>>,
    /// Sectors that a write which failed may or may not have reached.
    doubtful: BTreeSet<u64>,
}

impl Content {
    /// These values, durably.
    pub(crate) fn settled(live: Vec<u64>) -> Self {
        let possible = live.iter().map(|&value| vec![value]).collect();
        Self { live, possible, doubtful: BTreeSet::new() }
    }

    /// The values of now, durably, with what is in doubt.
    pub(crate) fn moment(&self) -> Self {
        let mut moment = self.clone();
        moment.settle();
        moment
    }

    pub(crate) fn set(&mut self, sectors: Range<u64>, value: u64) {
        for sector in sectors {
            self.doubtful.remove(&sector);
            self.live[sector as usize] = value;
            self.possible[sector as usize].push(value);
        }
    }

    /// Everything that was answered is durable.
    pub(crate) fn settle(&mut self) {
        for (sector, value) in self.live.iter().enumerate() {
            if !self.doubtful.contains(&(sector as u64)) {
                self.possible[sector] = vec![*value];
            }
        }
    }

    /// Takes over what a crash left, if that is possible.
    pub(crate) fn survive(&mut self, read: Vec<u64>) -> std::result::Result<(), String> {
        for (sector, value) in read.iter().enumerate() {
            if !self.possible[sector].contains(value) {
                let possible = &self.possible[sector];
                return Err(format!("sector {sector} reads {value}, possible were {possible:?}"));
            }
        }
        *self = Self::settled(read);
        Ok(())
    }

    /// Holds values that were read against the model; of a sector in doubt the value is taken.
    pub(crate) fn check(&mut self, read: &[u64], place: Range<usize>, name: &str) {
        for (sector, &value) in place.zip(read) {
            let live = self.live[sector];
            if value == live {
                continue;
            }
            let doubtful = self.doubtful.contains(&(sector as u64));
            let known = self.possible[sector].contains(&value);
            assert!(doubtful && known, "sector {sector} of {name} reads {value}, not {live}");
            self.live[sector] = value;
        }
    }
}

/// Notes a write that succeeded, or that may have come any way.
pub(crate) fn doubt(
    content: &mut Content,
    sectors: Range<u64>,
    value: u64,
    done: Result<()>,
) -> Result<()> {
    content.set(sectors.clone(), value);
    done.inspect_err(|_| content.doubtful.extend(sectors))
}
