//! What each block of each device may hold: a number in its first sector, and zeros.

use std::collections::{BTreeMap, BTreeSet};

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};
use dm_thin::{Change, Pool};
use testkit::rng::Rng;

use crate::common::{BLOCK, id};

/// Blocks of each device.
const BLOCKS: u64 = 600;
/// Devices at once, where there is space for them.
const DEVICES: usize = 60;

/// A block.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// What it reads as, unless a request to it has failed.
    now: u64,
    /// What else a pool may come back with that was not closed.
    before: Vec<u64>,
    doubtful: bool,
}

type Cells = Vec<Cell>;

/// A change that was asked for, and failed in a way that does not say whether it was done.
#[derive(Clone, Debug)]
enum Unsure {
    Made(u32, Cells),
    Deleted(u32),
}

/// The devices of a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    devices: BTreeMap<u32, Cells>,
    unsure: Option<Unsure>,
    values: u64,
}

impl Cell {
    fn set(&mut self, value: u64, done: bool) {
        self.before.push(std::mem::replace(&mut self.now, value));
        self.doubtful = !done;
    }

    fn may_be(&self, value: u64) -> bool {
        self.now == value || self.before.contains(&value)
    }

    fn settle(&mut self) {
        if !self.doubtful {
            self.before.clear();
        }
    }
}

impl Oracle {
    /// Uses space: what `step` does, but hardly anything goes.
    pub(super) fn fill(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        match rng.within(0..100) {
            0..96 => self.write(pool, rng),
            _ => self.make(pool, rng),
        }
    }

    /// Does something, and notes it. Fails as the pool does.
    pub(super) fn step(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        match rng.within(0..100) {
            0..60 => self.write(pool, rng),
            60..70 => self.discard(pool, rng),
            70..78 => self.flush(pool, rng),
            78..92 => self.make(pool, rng),
            _ => self.delete(pool, rng),
        }
    }

    fn pick(&self, rng: &mut Rng) -> Option<u32> {
        let ids: Vec<u32> = self.devices.keys().copied().collect();
        (!ids.is_empty()).then(|| *rng.pick(&ids))
    }

    fn write(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        let Some(device) = self.pick(rng) else { return self.make(pool, rng) };
        let block = rng.within(0..BLOCKS);
        self.values += 1;
        let bytes = self.values.to_le_bytes().repeat(64);
        let done = volume(pool, device)
            .and_then(|volume| volume.write_at(&bytes, ByteOffset::new(block * BLOCK)));
        let value = self.values;
        self.cell(device, block).set(value, done.is_ok());
        done
    }

    fn discard(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        let Some(device) = self.pick(rng) else { return Ok(()) };
        let first = rng.within(0..BLOCKS);
        let count = rng.within(1..20).min(BLOCKS - first);
        let range = ByteRange::new(ByteOffset::new(first * BLOCK), ByteCount::new(count * BLOCK));
        let done = volume(pool, device).and_then(|volume| volume.discard(range));
        (first..first + count).for_each(|block| self.cell(device, block).set(0, done.is_ok()));
        done
    }

    fn flush(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        let Some(device) = self.pick(rng) else { return Ok(()) };
        volume(pool, device)?.flush()?;
        self.devices.get_mut(&device).into_iter().flatten().for_each(Cell::settle);
        Ok(())
    }

    /// A new device, or a snapshot.
    fn make(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        let free = (0..DEVICES as u32).find(|number| !self.devices.contains_key(number));
        let Some(number) = free else { return self.delete(pool, rng) };
        let origin = self.pick(rng).filter(|_| rng.chance(9, 10));
        let (change, cells) = match origin {
            Some(origin) => {
                let change = Change::CreateSnapshot { id: id(number), origin: id(origin) };
                (change, self.devices[&origin].clone())
            }
            None => (Change::CreateThin(id(number)), vec![Cell::default(); BLOCKS as usize]),
        };
        self.change(pool, change, Unsure::Made(number, cells))
    }

    fn delete(&mut self, pool: &Pool, rng: &mut Rng) -> Result<()> {
        let Some(device) = self.pick(rng).filter(|_| self.devices.len() > 2) else {
            return Ok(());
        };
        self.change(pool, Change::Delete(id(device)), Unsure::Deleted(device))
    }

    fn change(&mut self, pool: &Pool, change: Change, outcome: Unsure) -> Result<()> {
        match pool.change(&[change]) {
            Ok(()) => {
                self.apply(outcome);
                // Its commit made everything durable that was answered before.
                self.settle();
                Ok(())
            }
            // A pool that goes on has not done it; of one that stopped, the disk will tell.
            Err(error) => {
                let stopped = pool.status().read_only.is_some();
                if stopped && error.kind() != ErrorKind::OutOfSpace && self.unsure.is_none() {
                    self.unsure = Some(outcome);
                }
                Err(error)
            }
        }
    }

    fn apply(&mut self, outcome: Unsure) {
        match outcome {
            Unsure::Made(number, cells) => drop(self.devices.insert(number, cells)),
            Unsure::Deleted(number) => drop(self.devices.remove(&number)),
        }
    }

    fn cell(&mut self, device: u32, block: u64) -> &mut Cell {
        &mut self.devices.get_mut(&device).expect("a device")[block as usize]
    }

    /// Everything that was answered is durable.
    pub(super) fn settle(&mut self) {
        self.devices.values_mut().flatten().for_each(Cell::settle);
    }

    /// Holds a pool that is open against what was done to it.
    pub(super) fn compare(&self, pool: &Pool) {
        for (device, cells) in &self.devices {
            for (block, (found, cell)) in read(pool, *device).into_iter().zip(cells).enumerate() {
                let right = if cell.doubtful { cell.may_be(found) } else { cell.now == found };
                assert!(right, "device {device}, block {block}: {found} instead of {cell:?}");
            }
        }
    }

    /// Takes over what a pool has that was opened again, if that is possible.
    pub(super) fn survive(&mut self, pool: &Pool) -> std::result::Result<(), String> {
        let found: BTreeSet<u32> = pool.devices().iter().map(|(id, _)| id.get()).collect();
        if found != self.devices.keys().copied().collect()
            && let Some(unsure) = self.unsure.take()
        {
            self.apply(unsure);
        }
        self.unsure = None;
        let known: BTreeSet<u32> = self.devices.keys().copied().collect();
        if found != known {
            return Err(format!("devices {found:?} are there, expected were {known:?}"));
        }
        for (device, cells) in &mut self.devices {
            for (block, (found, cell)) in read(pool, *device).into_iter().zip(cells).enumerate() {
                if !cell.may_be(found) {
                    return Err(format!("device {device}, block {block}: {found} for {cell:?}"));
                }
                *cell = Cell { now: found, ..Cell::default() };
            }
        }
        Ok(())
    }
}

fn volume(pool: &Pool, device: u32) -> Result<dm_thin::ThinVolume> {
    pool.open_volume(id(device), "thin", ByteCount::new(BLOCKS * BLOCK), false)
}

/// The number in each block.
fn read(pool: &Pool, device: u32) -> Vec<u64> {
    let volume = volume(pool, device).expect("opened");
    let mut bytes = [0; 1024];
    (0..BLOCKS)
        .map(|block| {
            volume.read_at(&mut bytes, ByteOffset::new(block * BLOCK)).expect("read");
            let (first, behind) = bytes.split_at(512);
            let number: [u8; 8] = first[..8].try_into().expect("8 bytes");
            assert!(first.chunks(8).all(|word| word == number), "block {block} is torn");
            assert!(behind.iter().all(|&byte| byte == 0), "block {block} has another's bytes");
            u64::from_le_bytes(number)
        })
        .collect()
}
