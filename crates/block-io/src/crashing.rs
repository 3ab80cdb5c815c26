//! Devices that lose power together, for tests; deterministic by a seed.
//!
//! A world counts the changes of all its devices. The power fails during the one that was chosen:
//! that one and all later calls fail. What the disks hold then is everything that was flushed, plus
//! any part of what was not, in sectors of 512 bytes and in no order: see [`CrashWorld::images`].

use std::ops::ControlFlow;
use std::sync::Arc;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result, SECTOR};
use parking_lot::Mutex;

use crate::memory::memory_extents;
use crate::random::Random;
use crate::request::{indices, request_range};
use crate::{BlockDevice, Limits, ZeroMode, check_range};

/// The stream of numbers that decides what discards leave; the draws have those from 0 on.
const DISCARDS: u64 = u64::MAX;

/// Devices that share one power supply.
#[derive(Debug)]
pub struct CrashWorld {
    seed: u64,
    state: Mutex<World>,
}

/// A device in memory whose unflushed changes may be lost.
#[derive(Debug)]
pub struct CrashDevice {
    name: String,
    world: Arc<CrashWorld>,
    /// Its place among the disks of the world.
    index: usize,
}

#[derive(Debug)]
struct World {
    ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    discards: Random,
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    name: String,
    /// What reads see.
    live: Vec<u8>,
    /// What was there at the last flush.
    durable: Vec<u8>,
    /// What has changed since, in order.
    pending: Vec<Change>,
}

/// A change that is not durable yet.
#[derive(Debug)]
enum Change {
    /// Bytes written, or zeros without any.
    Write { range: ByteRange, bytes: Option<Vec<u8>> },
    /// A new size.
    Resize(ByteCount),
}

/// How much of what was not flushed a draw keeps.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Nothing,
    Everything,
    /// Each change is lost, kept or torn; of a torn one, each sector is lost or kept.
    Mixed,
}

impl CrashWorld {
    /// A world without devices, with the power on.
    pub fn new(seed: u64) -> Arc<Self> {
        let discards = Random::new(seed, DISCARDS);
        let world = World { ops: 0, crash_at: None, crashed: false, discards, disks: Vec::new() };
        Arc::new(Self { seed, state: Mutex::new(world) })
    }

    /// Adds a device that holds `bytes`, all of them durable.
    pub fn device(self: &Arc<Self>, name: impl Into<String>, bytes: Vec<u8>) -> Arc<CrashDevice> {
        let name = name.into();
        let mut world = self.state.lock();
        let index = world.disks.len();
        let durable = bytes.clone();
        world.disks.push(Disk { name: name.clone(), live: bytes, durable, pending: Vec::new() });
        Arc::new(CrashDevice { name, world: Arc::clone(self), index })
    }

    /// Has the power fail during operation `op`, counted as [`ops`](Self::ops) does, from 1. It and
    /// every later call fail with [`ErrorKind::Stopped`].
    pub fn crash_at(&self, op: u64) {
        self.state.lock().crash_at = Some(op);
    }

    /// Writes, zeroings, discards, resizes and flushes so far, of all devices, the one during which
    /// the power failed included.
    pub fn ops(&self) -> u64 {
        self.state.lock().ops
    }

    /// Whether the power has failed.
    pub fn crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// What the devices hold after the crash: the first draw of [`images`](Self::images).
    pub fn after_crash(&self) -> Vec<(String, Vec<u8>)> {
        self.images(0)
    }

    /// What the devices hold after the crash, or would if the power failed now, in the order in
    /// which they were made. Every draw is another outcome, the same one for the same seed and
    /// draw: few keep nothing that was not flushed, few keep everything, most a mixture in which a
    /// later change may survive an earlier one. The change during which the power failed takes
    /// part.
    pub fn images(&self, draw: u64) -> Vec<(String, Vec<u8>)> {
        let mut random = Random::new(self.seed, draw);
        let luck = match random.next() % 8 {
            0 => Luck::Nothing,
            1 => Luck::Everything,
            _ => Luck::Mixed,
        };
        let world = self.state.lock();
        let image = |disk: &Disk| (disk.name.clone(), disk.image(luck, &mut random));
        world.disks.iter().map(image).collect()
    }
}

impl Disk {
    /// What is left after a crash.
    fn image(&self, luck: Luck, random: &mut Random) -> Vec<u8> {
        let mut image = self.durable.clone();
        for change in &self.pending {
            match luck {
                Luck::Nothing => {}
                Luck::Everything => change.apply(&mut image),
                Luck::Mixed => match random.next() % 3 {
                    0 => {}
                    1 => change.apply(&mut image),
                    _ => change.tear(&mut image, random),
                },
            }
        }
        image
    }

    /// Makes a change visible, and remembers that it is not durable.
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    fn flush(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }
}

impl Change {
    /// Makes the whole change.
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Resize(size) => image.resize(size.as_usize(), 0),
            Self::Write { .. } => self.write_sectors(image, || true),
        }
    }

    /// Makes a part of the change: some sectors of a write; a resize is whole or not at all.
    fn tear(&self, image: &mut Vec<u8>, random: &mut Random) {
        match self {
            Self::Resize(_) => {
                if random.chance(1, 2) {
                    self.apply(image);
                }
            }
            Self::Write { .. } => self.write_sectors(image, || random.chance(1, 2)),
        }
    }

    /// Makes a write in those sectors that `keep` picks, as far as they lie inside the image: a
    /// write behind an end that was moved, where the move was lost, is lost with it.
    fn write_sectors(&self, image: &mut [u8], mut keep: impl FnMut() -> bool) {
        let Self::Write { range, bytes } = self else {
            return;
        };
        let inside = ByteRange::new(ByteOffset::ZERO, ByteCount::of(image));
        for sector in range.pieces(ByteCount::new(SECTOR)) {
            let sector = sector.intersect(inside);
            if !keep() || sector.is_empty() {
                continue;
            }
            let target = &mut image[indices(sector)];
            match bytes {
                None => target.fill(0),
                Some(bytes) => {
                    let from = sector.start.since(range.start).as_usize();
                    target.copy_from_slice(&bytes[from..from + target.len()]);
                }
            }
        }
    }
}

impl World {
    /// Counts an operation on the device called `name`, unless the power is off; says whether it
    /// holds until the operation is done.
    fn count(&mut self, name: &str) -> Result<bool> {
        self.check_power(name)?;
        self.ops += 1;
        self.crashed = self.crash_at.is_some_and(|op| self.ops >= op);
        Ok(!self.crashed)
    }

    fn check_power(&self, name: &str) -> Result<()> {
        if self.crashed {
            return Err(Error::new(ErrorKind::Stopped, name, "power lost"));
        }
        Ok(())
    }
}

impl CrashDevice {
    /// Makes and counts a change. The one during which the power fails may be there afterwards.
    fn change(&self, change: Change) -> Result<()> {
        let mut world = self.world.state.lock();
        world.count(&self.name)?;
        world.disks[self.index].change(change);
        world.check_power(&self.name)
    }
}

impl BlockDevice for CrashDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> ByteCount {
        ByteCount::of(&self.world.state.lock().disks[self.index].live)
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(1),
            preferred: ByteCount::new(4096),
            read_only: false,
            discards: true,
            zeroes_fast: true,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = request_range(self, buffer.len(), at)?;
        let world = self.world.state.lock();
        world.check_power(&self.name)?;
        buffer.copy_from_slice(&world.disks[self.index].live[indices(range)]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = request_range(self, bytes.len(), at)?;
        self.change(Change::Write { range, bytes: Some(bytes.to_vec()) })
    }

    fn zero(&self, range: ByteRange, _mode: ZeroMode) -> Result<()> {
        check_range(self, range)?;
        self.change(Change::Write { range, bytes: None })
    }

    /// Leaves zeros, or what was there: the seed decides, once for each discard.
    fn discard(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)?;
        let mut world = self.world.state.lock();
        world.count(&self.name)?;
        if world.discards.chance(1, 2) {
            world.disks[self.index].change(Change::Write { range, bytes: None });
        }
        world.check_power(&self.name)
    }

    fn flush(&self) -> Result<()> {
        let mut world = self.world.state.lock();
        if world.count(&self.name)? {
            world.disks[self.index].flush();
        }
        world.check_power(&self.name)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        // A copy, so that `each` may use the world.
        let bytes = {
            let world = self.world.state.lock();
            world.check_power(&self.name)?;
            world.disks[self.index].live[indices(range)].to_vec()
        };
        memory_extents(&bytes, range, each);
        Ok(())
    }

    fn resize(&self, size: ByteCount) -> Result<()> {
        self.change(Change::Resize(size))
    }
}

#[cfg(test)]
mod tests;
