//! What a set of volumes has to hold: the naive answer, cell by cell.
//!
//! The oracle is told of every operation and knows, for every cell of every volume, which contents
//! are right now and which a crash may bring back:
//!
//! ```text
//!                     right now                       after a crash, besides
//! write               the new one                     what was right since the last flush
//! write that failed   the new one, what was right     the same
//! discard             what was right, zeros           the same
//! flush                                               nothing
//! crash               all that the crash may bring back
//! ```
//!
//! What a test reads settles the matter: from then on only that content is right.

use std::collections::BTreeMap;
use std::fmt;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange};

use crate::pattern::{CELL, CellIndex, Stamp, describe, fill, holds};

/// Read and compared at once.
const PIECE: ByteCount = ByteCount::new(1 << 20);

/// What a set of volumes has to hold.
#[derive(Debug, Default)]
pub struct Oracle {
    volumes: BTreeMap<String, Volume>,
    writes: Option<Stamp>,
}

/// A volume or a snapshot.
#[derive(Clone, Debug)]
struct Volume {
    cells: Vec<Cell>,
    /// The volume that it is a snapshot of; such a one is never written.
    snapshot_of: Option<String>,
}

/// The contents that are right for a cell.
#[derive(Clone, Debug)]
struct Cell {
    /// One that is right now.
    now: Stamp,
    /// Others that are right now as well.
    also: Vec<Stamp>,
    /// Others that a crash may bring back.
    older: Vec<Stamp>,
}

/// A cell that holds what it must not.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The volume.
    pub volume: String,
    /// The cell.
    pub place: CellIndex,
    /// What is wrong.
    pub problem: String,
}

impl Oracle {
    /// An oracle that knows of no volume.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names of the volumes that can be written.
    pub fn volumes(&self) -> Vec<&str> {
        self.names(|volume| volume.snapshot_of.is_none())
    }

    /// The names of the snapshots of `origin`, or of all snapshots.
    pub fn snapshots(&self, origin: Option<&str>) -> Vec<&str> {
        self.names(|volume| match (&volume.snapshot_of, origin) {
            (Some(of), Some(origin)) => of == origin,
            (of, None) => of.is_some(),
            (None, Some(_)) => false,
        })
    }

    fn names(&self, wanted: impl Fn(&Volume) -> bool) -> Vec<&str> {
        let wanted = self.volumes.iter().filter(|(_, volume)| wanted(volume));
        wanted.map(|(name, _)| name.as_str()).collect()
    }

    /// The size of a volume.
    pub fn size(&self, name: &str) -> ByteCount {
        ByteCount::from_sectors(self.volume(name).cells.len() as u64)
    }

    /// A new volume of zeros; its size is whole sectors.
    pub fn create(&mut self, name: &str, size: ByteCount) {
        let cells = vec![Cell::default(); CellIndex::at(ByteOffset::new(size.get())).index()];
        self.insert(name, Volume { cells, snapshot_of: None });
    }

    /// A snapshot of `origin` as it is now. It is durable at once, and does not change any more.
    pub fn snapshot(&mut self, origin: &str, name: &str) {
        let cells = self.volume(origin).settled();
        self.insert(name, Volume { cells, snapshot_of: Some(origin.to_owned()) });
    }

    /// A volume of its own with the content of `snapshot`.
    pub fn clone_volume(&mut self, snapshot: &str, name: &str) {
        let cells = self.volume(snapshot).settled();
        self.insert(name, Volume { cells, snapshot_of: None });
    }

    /// Gives `volume` the content of `snapshot` back; durable at once.
    pub fn rollback(&mut self, volume: &str, snapshot: &str) {
        let cells = self.volume(snapshot).settled();
        self.volume_mut(volume).cells = cells;
    }

    /// Forgets a volume or snapshot; the snapshots of a volume stay.
    pub fn delete(&mut self, name: &str) {
        assert!(self.volumes.remove(name).is_some(), "no volume {name}");
    }

    /// A new size; what is cut off is gone, what is added is zeros.
    pub fn resize(&mut self, name: &str, size: ByteCount) {
        let cells = CellIndex::at(ByteOffset::new(size.get())).index();
        self.volume_mut(name).cells.resize(cells, Cell::default());
    }

    /// A stamp for a write to come, and the bytes to write at `range`.
    pub fn content(&mut self, range: ByteRange) -> (Stamp, Vec<u8>) {
        let stamp = self.writes.unwrap_or(Stamp::ZERO).next();
        self.writes = Some(stamp);
        let mut bytes = vec![0; range.len.as_usize()];
        let first = CellIndex::at(range.start);
        for (number, cell) in bytes.chunks_exact_mut(CELL).enumerate() {
            fill(cell, stamp, first.plus(number));
        }
        (stamp, bytes)
    }

    /// The write of [`content`](Oracle::content) succeeded. [`Stamp::ZERO`]: the range was zeroed.
    pub fn wrote(&mut self, name: &str, range: ByteRange, stamp: Stamp) {
        self.each(name, range, |cell| cell.replace(stamp));
    }

    /// The write failed: any part of it may be there.
    pub fn failed_to_write(&mut self, name: &str, range: ByteRange, stamp: Stamp) {
        self.each(name, range, |cell| {
            let right = cell.right_now();
            cell.replace(stamp);
            cell.also = right;
        });
    }

    /// The range was discarded, or discarding it failed.
    pub fn discarded(&mut self, name: &str, range: ByteRange) {
        self.each(name, range, |cell| {
            cell.older.extend(cell.right_now());
            cell.also.push(Stamp::ZERO);
        });
    }

    /// A flush of the volume succeeded.
    pub fn flushed(&mut self, name: &str) {
        self.volume_mut(name).cells.iter_mut().for_each(|cell| cell.older.clear());
    }

    /// The machine crashed: everything that was not flushed may be as it was.
    pub fn crashed(&mut self) {
        for cell in self.volumes.values_mut().flat_map(|volume| &mut volume.cells) {
            cell.also.append(&mut cell.older);
        }
    }

    /// Compares bytes that were read at `at`.
    ///
    /// # Errors
    /// The first cell that is not right.
    pub fn compare(&mut self, name: &str, at: ByteOffset, bytes: &[u8]) -> Result<(), Mismatch> {
        let first = CellIndex::at(at);
        let volume = self.volume_mut(name);
        for (number, held) in bytes.chunks_exact(CELL).enumerate() {
            let place = first.plus(number);
            let cell = &mut volume.cells[place.index()];
            cell.settle(held, place).map_err(|problem| Mismatch {
                volume: name.to_owned(),
                place,
                problem,
            })?;
        }
        Ok(())
    }

    /// Reads the whole of `device` and compares it.
    ///
    /// # Errors
    /// The first cell that is not right, or cannot be read; or a size that is not.
    pub fn compare_device(&mut self, name: &str, device: &dyn BlockDevice) -> Result<(), Mismatch> {
        let mismatch =
            |at, problem| Mismatch { volume: name.to_owned(), place: CellIndex::at(at), problem };
        if device.size() != self.size(name) {
            let problem = format!("the device has {}", device.size());
            return Err(mismatch(ByteOffset::ZERO, problem));
        }
        let mut buffer = vec![0; PIECE.as_usize()];
        for piece in ByteRange::new(ByteOffset::ZERO, device.size()).pieces(PIECE) {
            let part = &mut buffer[..piece.len.as_usize()];
            device
                .read_at(part, piece.start)
                .map_err(|error| mismatch(piece.start, error.to_string()))?;
            self.compare(name, piece.start, part)?;
        }
        Ok(())
    }

    fn insert(&mut self, name: &str, volume: Volume) {
        let before = self.volumes.insert(name.to_owned(), volume);
        assert!(before.is_none(), "there is a volume {name} already");
    }

    fn volume(&self, name: &str) -> &Volume {
        self.volumes.get(name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    fn volume_mut(&mut self, name: &str) -> &mut Volume {
        self.volumes.get_mut(name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    /// Calls `change` with every cell of a range that is written.
    fn each(&mut self, name: &str, range: ByteRange, change: impl FnMut(&mut Cell)) {
        let volume = self.volume_mut(name);
        assert!(volume.snapshot_of.is_none(), "{name} is a snapshot");
        let (start, end) = (CellIndex::at(range.start), CellIndex::at(range.end()));
        volume.cells[start.index()..end.index()].iter_mut().for_each(change);
    }
}

impl Volume {
    /// The cells as a snapshot has them: nothing that a crash could take back.
    fn settled(&self) -> Vec<Cell> {
        let settled = |cell: &Cell| Cell { older: Vec::new(), ..cell.clone() };
        self.cells.iter().map(settled).collect()
    }
}

impl Default for Cell {
    fn default() -> Self {
        Self { now: Stamp::ZERO, also: Vec::new(), older: Vec::new() }
    }
}

impl Cell {
    fn right_now(&self) -> Vec<Stamp> {
        [&[self.now], self.also.as_slice()].concat()
    }

    fn replace(&mut self, stamp: Stamp) {
        self.older.push(self.now);
        self.older.append(&mut self.also);
        self.now = stamp;
    }

    /// Takes what was read for the cell's only right content, or says why it is not right.
    fn settle(&mut self, held: &[u8], place: CellIndex) -> Result<(), String> {
        let right = self.right_now();
        match right.iter().find(|&&stamp| holds(held, stamp, place)) {
            Some(&stamp) => {
                self.now = stamp;
                self.also.clear();
                Ok(())
            }
            None => {
                let right: Vec<_> = right.iter().map(ToString::to_string).collect();
                Err(format!("holds {}, not {}", describe(held), right.join(" or ")))
            }
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.volume, self.place, self.problem)
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    use super::Oracle;
    use crate::pattern::Stamp;
    use block_types::{ByteCount, ByteOffset, ByteRange};

    const SIZE: u64 = 4096;
    const ZEROS: [u8; SIZE as usize] = [0; SIZE as usize];

    fn whole() -> ByteRange {
        ByteRange::new(ByteOffset::ZERO, ByteCount::new(SIZE))
    }

    /// An oracle with one volume, which was written once; the bytes.
    fn written() -> (Oracle, Vec<u8>) {
        let mut oracle = Oracle::new();
        oracle.create("v", ByteCount::new(SIZE));
        let bytes = write(&mut oracle);
        (oracle, bytes)
    }

    fn write(oracle: &mut Oracle) -> Vec<u8> {
        let (stamp, bytes) = oracle.content(whole());
        oracle.wrote("v", whole(), stamp);
        bytes
    }

    fn is(oracle: &mut Oracle, bytes: &[u8]) -> bool {
        oracle.compare("v", ByteOffset::ZERO, bytes).is_ok()
    }

    #[test]
    fn only_the_last_write_is_right() {
        let (mut oracle, first) = written();
        let second = write(&mut oracle);
        assert!(is(&mut oracle, &second));
        let mismatch = oracle.compare("v", ByteOffset::ZERO, &first).unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "v, cell 0 (at 0x0): holds write 1 of cell 0 (at 0x0), not write 2"
        );
        // The right bytes at the wrong place.
        let at = ByteOffset::new(512);
        assert!(oracle.compare("v", at, &second[..512]).is_err());
        assert!(oracle.compare("v", at, &second[512..]).is_ok());
    }

    #[test]
    fn a_discard_leaves_a_choice_until_it_is_read() {
        let (mut oracle, bytes) = written();
        oracle.discarded("v", whole());
        assert!(is(&mut oracle, &ZEROS));
        assert!(!is(&mut oracle, &bytes), "it changed its mind");
        let (mut oracle, bytes) = written();
        oracle.discarded("v", whole());
        assert!(is(&mut oracle, &bytes));
        oracle.wrote("v", whole(), Stamp::ZERO);
        assert!(!is(&mut oracle, &bytes), "zeroing leaves no choice");
    }

    #[test]
    fn a_crash_brings_back_what_was_not_flushed() {
        let (mut oracle, first) = written();
        oracle.flushed("v");
        let second = write(&mut oracle);
        oracle.crashed();
        // Part of the write survived, part of it did not: both right.
        let torn = [&first[..512], &second[512..]].concat();
        assert!(is(&mut oracle, &torn));
        assert!(!is(&mut oracle, &second), "what was read stays");

        let (mut oracle, _) = written();
        oracle.flushed("v");
        oracle.crashed();
        assert!(!is(&mut oracle, &ZEROS), "a flushed write was lost");
    }

    #[test]
    fn a_failed_write_may_be_there() {
        for wins in [true, false] {
            let (mut oracle, first) = written();
            let (stamp, second) = oracle.content(whole());
            oracle.failed_to_write("v", whole(), stamp);
            assert!(is(&mut oracle, if wins { &second } else { &first }));
            assert!(!is(&mut oracle, if wins { &first } else { &second }));
        }
    }

    #[test]
    fn snapshots_stay_and_give_back() {
        let (mut oracle, first) = written();
        oracle.snapshot("v", "s");
        let second = write(&mut oracle);
        oracle.crashed();
        assert!(oracle.compare("s", ByteOffset::ZERO, &second).is_err());
        assert!(oracle.compare("s", ByteOffset::ZERO, &first).is_ok());
        oracle.clone_volume("s", "c");
        oracle.rollback("v", "s");
        oracle.delete("s");
        assert!(is(&mut oracle, &first));
        assert!(oracle.compare("c", ByteOffset::ZERO, &first).is_ok());
        assert_eq!((oracle.volumes(), oracle.snapshots(None)), (vec!["c", "v"], vec![]));
    }
}
