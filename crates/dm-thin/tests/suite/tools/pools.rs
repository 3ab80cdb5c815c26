//! Random pools, made by a pool: devices, runs and holes, snapshots, deletions, discards.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, MemoryDevice, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, ExtentState, Result};
use dm_thin::{BlockSize, Change, DeviceId, OpenOptions, Pool, ThinVolume};
use testkit::rng::Rng;

use crate::common::{BLOCK, id};

/// Blocks of the data device.
pub(crate) const DATA: u64 = 40_000;
/// Blocks of each volume.
pub(crate) const VOLUME: u64 = 20_000;
/// The longest run that is written at once.
const RUN: u64 = 64;

/// A device that forgets what is written to it, and cannot grow.
pub(super) struct Void(pub(super) ByteCount);

impl BlockDevice for Void {
    fn name(&self) -> &str {
        "void"
    }

    fn size(&self) -> ByteCount {
        self.0
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

    fn read_at(&self, buffer: &mut [u8], _at: ByteOffset) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _at: ByteOffset) -> Result<()> {
        Ok(())
    }

    fn zero(&self, range: ByteRange, _mode: ZeroMode) -> Result<()> {
        check_range(self, range)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = each(Extent { range, state: ExtentState::Zero });
        Ok(())
    }
}

/// The metadata of the pool that `seed` names.
pub(crate) fn generate(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let metadata = Arc::new(MemoryDevice::new("metadata", ByteCount::new(2 << 20)));
    let data: Arc<dyn BlockDevice> = Arc::new(Void(ByteCount::new(DATA * BLOCK)));
    let device: Arc<dyn BlockDevice> = metadata.clone();
    let block_size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&device, &*data, block_size).expect("formatted");
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("pool", device, data, options).expect("opened");
    let mut maker =
        Maker { pool: &pool, devices: Vec::new(), buffer: vec![1; (RUN * BLOCK) as usize] };
    maker.create(&mut rng);
    for _ in 0..rng.within(2..60) {
        maker.step(&mut rng);
    }
    pool.close().expect("closed");
    drop(pool);
    metadata.to_bytes()
}

struct Maker<'p> {
    pool: &'p Pool,
    devices: Vec<DeviceId>,
    buffer: Vec<u8>,
}

impl Maker<'_> {
    fn step(&mut self, rng: &mut Rng) {
        let device = *rng.pick(&self.devices);
        match rng.within(0..100) {
            0..50 => self.write(device, rng),
            50..58 => self.fill(device, rng),
            58..66 => self.discard(device, rng),
            66..70 => self.create(rng),
            70..90 => self.snapshot(device, rng),
            90..96 if self.devices.len() > 2 => self.delete(device),
            _ => self.pool.commit().expect("committed"),
        }
    }

    fn unused(&self, rng: &mut Rng) -> DeviceId {
        loop {
            let number = if rng.chance(1, 8) { rng.within(0..1 << 24) } else { rng.within(0..40) };
            let id = id(number as u32);
            if !self.devices.contains(&id) {
                return id;
            }
        }
    }

    fn create(&mut self, rng: &mut Rng) {
        let id = self.unused(rng);
        self.pool.change(&[Change::CreateThin(id)]).expect("created");
        self.devices.push(id);
    }

    fn snapshot(&mut self, origin: DeviceId, rng: &mut Rng) {
        let id = self.unused(rng);
        let current = self.pool.transaction();
        let advance = Change::SetTransaction { current, new: current + 1 };
        let changes = [Change::CreateSnapshot { id, origin }, advance];
        self.pool.change(&changes).expect("taken");
        self.devices.push(id);
    }

    fn delete(&mut self, id: DeviceId) {
        self.pool.change(&[Change::Delete(id)]).expect("deleted");
        self.devices.retain(|device| *device != id);
    }

    fn volume(&self, id: DeviceId) -> ThinVolume {
        let size = ByteCount::new(VOLUME * BLOCK);
        self.pool.open_volume(id, "thin", size, false).expect("opened")
    }

    fn write(&self, id: DeviceId, rng: &mut Rng) {
        // Most of it happens at the beginning of a device, so that mappings lie close.
        let area = *rng.pick(&[100, 2_000, VOLUME - RUN]);
        let run = rng.within(1..RUN.min(20));
        self.write_run(&self.volume(id), rng.within(0..area), run);
    }

    /// Writes some hundred blocks side by side, with holes now and then.
    fn fill(&self, id: DeviceId, rng: &mut Rng) {
        let volume = self.volume(id);
        let mut at = rng.within(0..2_000);
        for _ in 0..rng.within(1..20) {
            let run = rng.within(1..RUN);
            self.write_run(&volume, at, run);
            at += run + if rng.chance(1, 3) { rng.within(1..4) } else { 0 };
        }
    }

    fn write_run(&self, volume: &ThinVolume, from: u64, blocks: u64) {
        let bytes = &self.buffer[..(blocks * BLOCK) as usize];
        volume.write_at(bytes, ByteOffset::new(from * BLOCK)).expect("written");
    }

    fn discard(&self, id: DeviceId, rng: &mut Rng) {
        let start = ByteOffset::new(rng.within(0..2_000) * BLOCK);
        let range = ByteRange::new(start, ByteCount::new(rng.within(1..400) * BLOCK));
        self.volume(id).discard(range).expect("discarded");
    }
}
