//! Random operations on a set of volumes, by seed, held against the oracle as they go.

use std::fmt;
use std::sync::Arc;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result, SECTOR};

use crate::oracle::Oracle;
use crate::pattern::Stamp;
use crate::rng::Rng;

/// What is under test: volumes by name, with snapshots.
pub trait Volumes {
    /// A new volume of zeros.
    fn create(&mut self, name: &str, size: ByteCount) -> Result<()>;

    /// A read-only snapshot of the volume `origin`.
    fn snapshot(&mut self, origin: &str, name: &str) -> Result<()>;

    /// A volume of its own with the content of `snapshot`.
    fn clone_volume(&mut self, snapshot: &str, name: &str) -> Result<()>;

    /// Gives `volume` the content of `snapshot`, one of its own, back.
    fn rollback(&mut self, volume: &str, snapshot: &str) -> Result<()>;

    /// Removes a volume or a snapshot.
    fn delete(&mut self, name: &str) -> Result<()>;

    /// The volume or snapshot as a device.
    fn device(&mut self, name: &str) -> Result<Arc<dyn BlockDevice>>;
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new volume.
    Create {
        /// The volume.
        name: String,
    },
    /// A snapshot.
    Snapshot {
        /// The volume.
        origin: String,
        /// The snapshot.
        name: String,
    },
    /// A volume out of a snapshot.
    Clone {
        /// The snapshot.
        snapshot: String,
        /// The volume.
        name: String,
    },
    /// A volume as it was.
    Rollback {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// A volume or snapshot removed.
    Delete {
        /// The volume or snapshot.
        name: String,
    },
    /// Bytes written.
    Write {
        /// The volume.
        name: String,
        /// Where.
        range: ByteRange,
    },
    /// Bytes made zero.
    Zero {
        /// The volume.
        name: String,
        /// Where.
        range: ByteRange,
        /// Whether the space may be given back.
        may_unmap: bool,
    },
    /// Bytes that nobody needs any more.
    Discard {
        /// The volume.
        name: String,
        /// Where.
        range: ByteRange,
    },
    /// Bytes read, and compared.
    Read {
        /// The volume or snapshot.
        name: String,
        /// Where.
        range: ByteRange,
    },
    /// Everything made durable.
    Flush {
        /// The volume.
        name: String,
    },
}

/// What operations to make up.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The size of every volume.
    pub size: ByteCount,
    /// The block of the format under test: ranges are made to fill it, cross it and miss it.
    pub block: ByteCount,
    /// Volumes at once, and snapshots at once, at most.
    pub most: usize,
    /// How often volumes come and go, in operations of a thousand.
    pub changes: u64,
}

/// A sequence of operations, the same for the same seed and shape.
#[derive(Clone, Debug)]
pub struct Workload {
    rng: Rng,
    shape: Shape,
    names: u64,
}

/// How a run failed: everything needed to see it again.
#[derive(Debug)]
pub struct Failure {
    /// The operations up to and with the one that failed, the last ones.
    pub last: Vec<String>,
    /// What was wrong.
    pub problem: String,
}

/// Operations that a failure tells.
const TOLD: usize = 20;

/// What is done to a volume's bytes.
#[derive(Clone, Copy)]
enum Verb {
    Write,
    Zero,
    Discard,
    Read,
    Flush,
}

/// What is done to the set of volumes.
#[derive(Clone, Copy)]
enum Event {
    Create,
    Snapshot,
    Clone,
    Rollback,
    Delete,
}

impl Workload {
    /// The workload that `seed` names.
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self { rng: Rng::new(seed), shape, names: 0 }
    }

    /// The next operation on the volumes that `oracle` knows.
    pub fn next(&mut self, oracle: &Oracle) -> Operation {
        if oracle.volumes().is_empty() {
            return Operation::Create { name: self.name("volume") };
        }
        if self.rng.chance(self.shape.changes, 1000)
            && let Some(change) = self.change(oracle)
        {
            return change;
        }
        self.request(oracle)
    }

    /// A change of the set; `None` if the one drawn is not possible now.
    fn change(&mut self, oracle: &Oracle) -> Option<Operation> {
        let (volumes, snapshots) = (oracle.volumes(), oracle.snapshots(None));
        let room_for_volume = volumes.len() < self.shape.most;
        let event = self.rng.weighted(&[
            (1, Event::Create),
            (4, Event::Snapshot),
            (2, Event::Clone),
            (2, Event::Rollback),
            (3, Event::Delete),
        ]);
        match event {
            Event::Create if room_for_volume => {
                Some(Operation::Create { name: self.name("volume") })
            }
            Event::Snapshot if snapshots.len() < self.shape.most => {
                let origin = self.rng.pick(&volumes).to_string();
                Some(Operation::Snapshot { origin, name: self.name("snapshot") })
            }
            Event::Clone if room_for_volume && !snapshots.is_empty() => {
                let snapshot = self.rng.pick(&snapshots).to_string();
                Some(Operation::Clone { snapshot, name: self.name("clone") })
            }
            Event::Rollback => {
                let volume = self.rng.pick(&volumes).to_string();
                let own = oracle.snapshots(Some(&volume));
                let own = (!own.is_empty()).then(|| self.rng.pick(&own).to_string());
                own.map(|snapshot| Operation::Rollback { volume, snapshot })
            }
            Event::Delete => {
                let all = [volumes, snapshots].concat();
                Some(Operation::Delete { name: self.rng.pick(&all).to_string() })
            }
            Event::Create | Event::Snapshot | Event::Clone => None,
        }
    }

    /// A request to one volume.
    fn request(&mut self, oracle: &Oracle) -> Operation {
        let verb = self.rng.weighted(&[
            (10, Verb::Write),
            (2, Verb::Zero),
            (2, Verb::Discard),
            (5, Verb::Read),
            (1, Verb::Flush),
        ]);
        let mut names = oracle.volumes();
        if matches!(verb, Verb::Read) {
            names.extend(oracle.snapshots(None));
        }
        let name = self.rng.pick(&names).to_string();
        let range = self.range(oracle.size(&name));
        match verb {
            Verb::Write => Operation::Write { name, range },
            Verb::Zero => {
                let may_unmap = self.rng.chance(1, 2);
                Operation::Zero { name, range, may_unmap }
            }
            Verb::Discard => Operation::Discard { name, range },
            Verb::Read => Operation::Read { name, range },
            Verb::Flush => Operation::Flush { name },
        }
    }

    /// A range inside `size`: single sectors, whole blocks, and stretches that begin and end
    /// anywhere.
    fn range(&mut self, size: ByteCount) -> ByteRange {
        let (size, block) = (size.get(), self.shape.block.get());
        let (unit, most) = self.rng.weighted(&[
            (4, (SECTOR, 8)),
            (3, (block, 1)),
            (2, (block, 8)),
            (3, (SECTOR, 4 * block / SECTOR)),
        ]);
        let unit = unit.min(size);
        let start = self.rng.within(0..size / unit) * unit;
        let len = self.rng.within(1..most + 1) * unit;
        let len = len.min(size - start);
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }
}

/// Does `count` operations of `workload` on `volumes`, compares what is read, and in the end all.
///
/// # Errors
/// At the first operation that fails or reads something wrong.
pub fn run(
    volumes: &mut dyn Volumes,
    oracle: &mut Oracle,
    workload: &mut Workload,
    count: usize,
) -> std::result::Result<(), Failure> {
    let mut last = Vec::new();
    for number in 0..count {
        let operation = workload.next(oracle);
        last.push(format!("{number}: {operation:?}"));
        if last.len() > TOLD {
            last.remove(0);
        }
        if let Err(problem) = perform(volumes, oracle, workload, &operation) {
            return Err(Failure { last, problem });
        }
    }
    compare_all(volumes, oracle).map_err(|problem| Failure { last, problem })
}

/// Compares every volume and snapshot whole.
///
/// # Errors
/// The first cell that is not right, in words.
pub fn compare_all(
    volumes: &mut dyn Volumes,
    oracle: &mut Oracle,
) -> std::result::Result<(), String> {
    let names = [oracle.volumes(), oracle.snapshots(None)].concat();
    let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
    for name in names {
        let device = volumes.device(&name).map_err(|error| error.to_string())?;
        oracle.compare_device(&name, &*device).map_err(|mismatch| mismatch.to_string())?;
    }
    Ok(())
}

/// Does one operation, and tells the oracle.
fn perform(
    volumes: &mut dyn Volumes,
    oracle: &mut Oracle,
    workload: &Workload,
    operation: &Operation,
) -> std::result::Result<(), String> {
    let size = workload.shape.size;
    let done = match operation {
        Operation::Create { name } => {
            volumes.create(name, size).map(|()| oracle.create(name, size))
        }
        Operation::Snapshot { origin, name } => {
            volumes.snapshot(origin, name).map(|()| oracle.snapshot(origin, name))
        }
        Operation::Clone { snapshot, name } => {
            volumes.clone_volume(snapshot, name).map(|()| oracle.clone_volume(snapshot, name))
        }
        Operation::Rollback { volume, snapshot } => {
            volumes.rollback(volume, snapshot).map(|()| oracle.rollback(volume, snapshot))
        }
        Operation::Delete { name } => volumes.delete(name).map(|()| oracle.delete(name)),
        Operation::Write { name, .. }
        | Operation::Zero { name, .. }
        | Operation::Discard { name, .. }
        | Operation::Read { name, .. }
        | Operation::Flush { name } => {
            let device = volumes.device(name).map_err(|error| error.to_string())?;
            return request(&*device, oracle, operation);
        }
    };
    done.map_err(|error| error.to_string())
}

/// Sends one request to a device, and tells the oracle how it went.
///
/// # Errors
/// In words, if it failed or read something wrong. The oracle then knows what may be there.
pub fn request(
    device: &dyn BlockDevice,
    oracle: &mut Oracle,
    operation: &Operation,
) -> std::result::Result<(), String> {
    let done = match operation {
        Operation::Write { name, range } => {
            let (stamp, bytes) = oracle.content(*range);
            let done = device.write_at(&bytes, range.start);
            tell(oracle, name, *range, stamp, done)
        }
        Operation::Zero { name, range, may_unmap } => {
            let mode = ZeroMode { may_unmap: *may_unmap, only_if_fast: false };
            let done = device.zero(*range, mode);
            tell(oracle, name, *range, Stamp::ZERO, done)
        }
        Operation::Discard { name, range } => {
            let done = device.discard(*range);
            oracle.discarded(name, *range);
            done
        }
        Operation::Read { name, range } => {
            let mut bytes = vec![0; range.len.as_usize()];
            device.read_at(&mut bytes, range.start).map_err(|error| error.to_string())?;
            return oracle
                .compare(name, range.start, &bytes)
                .map_err(|mismatch| mismatch.to_string());
        }
        Operation::Flush { name } => device.flush().map(|()| oracle.flushed(name)),
        other => panic!("{other:?} is no request to a device"),
    };
    done.map_err(|error| error.to_string())
}

/// Tells the oracle how a write went.
fn tell(
    oracle: &mut Oracle,
    name: &str,
    range: ByteRange,
    stamp: Stamp,
    done: Result<()>,
) -> Result<()> {
    match &done {
        Ok(()) => oracle.wrote(name, range, stamp),
        Err(_) => oracle.failed_to_write(name, range, stamp),
    }
    done
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nafter\n{}", self.problem, self.last.join("\n"))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests;
