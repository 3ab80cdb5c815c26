//! A model of a pool: what every sector of every device may hold.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use dm_thin::{BlockSize, Change, DeviceId, OpenOptions, Pool, ThinVolume};
use testkit::rng::Rng;

/// Bytes of a block of the pools here.
pub(crate) const BLOCK: u64 = 64 << 10;
/// Bytes of what the model tells apart: what a disk writes whole or not at all.
pub(crate) const SECTOR: u64 = 512;
/// Blocks of each volume here.
pub(crate) const BLOCKS: u64 = 8;
const SECTORS: usize = (BLOCKS * BLOCK / SECTOR) as usize;

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
    fn empty() -> Self {
        let possible = vec![vec![0]; SECTORS];
        Self { live: vec![0; SECTORS], possible, doubtful: BTreeSet::new() }
    }

    fn set(&mut self, sectors: Range<u64>, value: u64) {
        for sector in sectors {
            self.doubtful.remove(&sector);
            self.live[sector as usize] = value;
            self.possible[sector as usize].push(value);
        }
    }

    /// Everything that was answered is durable.
    fn settle(&mut self) {
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
        self.live = read;
        self.doubtful.clear();
        self.settle();
        Ok(())
    }
}

/// The devices of a pool, and one whose making a crash may have cut short.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) devices: BTreeMap<DeviceId, Content>,
    /// A change of devices that was asked for and not answered.
    pub(crate) unsure: Option<Change>,
    next_value: u64,
}

pub(crate) fn id(number: u32) -> DeviceId {
    DeviceId::new(number).expect("24 bits")
}

pub(crate) fn formatted(metadata: u64, data_blocks: u64) -> (Vec<u8>, Vec<u8>) {
    let meta = Arc::new(MemoryDevice::new("metadata", ByteCount::new(metadata)));
    let data = MemoryDevice::new("data", ByteCount::new(data_blocks * BLOCK));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    let device: Arc<dyn BlockDevice> = meta.clone();
    Pool::format(&device, &data, size).expect("formatted");
    (meta.to_bytes(), data.to_bytes())
}

/// Opens a pool without threads of its own.
pub(crate) fn open(
    metadata: Arc<dyn BlockDevice>,
    data: Arc<dyn BlockDevice>,
) -> Result<Arc<Pool>> {
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    Pool::open("pool", metadata, data, options)
}

pub(crate) fn volume(pool: &Pool, id: DeviceId) -> Result<ThinVolume> {
    pool.open_volume(id, &format!("thin {id}"), ByteCount::new(BLOCKS * BLOCK), false)
}

/// The value of each sector; a sector that is not one value throughout was never written like that.
pub(crate) fn contents(device: &dyn BlockDevice) -> Vec<u64> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
        .chunks(SECTOR as usize)
        .enumerate()
        .map(|(sector, chunk)| {
            let value = u64::from_le_bytes(chunk[..8].try_into().expect("8 bytes"));
            let whole = chunk.chunks(8).all(|word| word == value.to_le_bytes());
            assert!(whole, "sector {sector} of {} is torn", device.name());
            value
        })
        .collect()
}

/// An open pool, and those of its devices that somebody has open.
pub(crate) struct Session {
    pub(crate) pool: Arc<Pool>,
    open: BTreeMap<DeviceId, ThinVolume>,
}

impl Session {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool, open: BTreeMap::new() }
    }

    fn volume(&mut self, id: DeviceId) -> Result<&ThinVolume> {
        Ok(match self.open.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(volume(&self.pool, id)?),
        })
    }
}

impl Model {
    /// Does something random to the pool and notes it. Fails as the pool does.
    pub(crate) fn step(&mut self, session: &mut Session, rng: &mut Rng) -> Result<()> {
        if self.devices.is_empty() {
            return self.change(session, Change::CreateThin(id(0)));
        }
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        let device = *rng.pick(&ids);
        match rng.within(0..100) {
            0..45 => self.write(session, device, rng),
            45..55 => self.discard(session, device, rng),
            55..60 => self.zero(session, device, rng),
            60..72 => self.flush(session, device),
            72..84 => self.snapshot(session, device),
            84..88 => {
                self.change(session, Change::Rollback { id: device, source: *rng.pick(&ids) })
            }
            88..93 => self.delete(session, device),
            93..97 => {
                session.open.remove(&device);
                Ok(())
            }
            _ => session.pool.commit(),
        }
    }

    fn write(&mut self, session: &mut Session, device: DeviceId, rng: &mut Rng) -> Result<()> {
        let (start, len) = some_sectors(rng);
        self.next_value += 1;
        let value = self.next_value;
        let bytes = value.to_le_bytes().repeat((len * SECTOR / 8) as usize);
        self.content(device).set(start..start + len, value);
        let done = session
            .volume(device)
            .and_then(|volume| volume.write_at(&bytes, ByteOffset::new(start * SECTOR)));
        self.doubt(device, start..start + len, done)
    }

    /// Notes that a request which failed may have come any way.
    fn doubt(&mut self, device: DeviceId, sectors: Range<u64>, done: Result<()>) -> Result<()> {
        done.inspect_err(|_| self.content(device).doubtful.extend(sectors))
    }

    fn discard(&mut self, session: &mut Session, device: DeviceId, rng: &mut Rng) -> Result<()> {
        let (start, len) = some_sectors(rng);
        let per_block = BLOCK / SECTOR;
        let whole = start.next_multiple_of(per_block)..(start + len) / per_block * per_block;
        self.content(device).set(whole.clone(), 0);
        let range = ByteRange::new(ByteOffset::new(start * SECTOR), ByteCount::new(len * SECTOR));
        let done = session.volume(device).and_then(|volume| volume.discard(range));
        self.doubt(device, whole, done)
    }

    fn zero(&mut self, session: &mut Session, device: DeviceId, rng: &mut Rng) -> Result<()> {
        let (start, len) = some_sectors(rng);
        self.content(device).set(start..start + len, 0);
        let range = ByteRange::new(ByteOffset::new(start * SECTOR), ByteCount::new(len * SECTOR));
        let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
        let done = session.volume(device).and_then(|volume| volume.zero(range, mode));
        self.doubt(device, start..start + len, done)
    }

    fn flush(&mut self, session: &mut Session, device: DeviceId) -> Result<()> {
        session.volume(device)?.flush()?;
        self.content(device).settle();
        Ok(())
    }

    fn snapshot(&mut self, session: &mut Session, origin: DeviceId) -> Result<()> {
        match (0..6).map(id).find(|id| !self.devices.contains_key(id)) {
            Some(id) => self.change(session, Change::CreateSnapshot { id, origin }),
            None => Ok(()),
        }
    }

    fn delete(&mut self, session: &mut Session, device: DeviceId) -> Result<()> {
        if self.devices.len() < 3 {
            return Ok(());
        }
        session.open.remove(&device);
        self.change(session, Change::Delete(device))
    }

    fn change(&mut self, session: &mut Session, change: Change) -> Result<()> {
        self.unsure = Some(change);
        session.pool.change(&[change])?;
        self.unsure = None;
        self.apply(change);
        // The commit of the change made everything durable that was answered before it.
        self.devices.values_mut().for_each(Content::settle);
        Ok(())
    }

    /// Notes a change of devices.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::CreateThin(id) => {
                self.devices.insert(id, Content::empty());
            }
            Change::CreateSnapshot { id, origin } => {
                let content = self.devices[&origin].clone();
                self.devices.insert(id, content);
            }
            Change::Rollback { id, source } => {
                let content = self.devices[&source].clone();
                self.devices.insert(id, content);
            }
            Change::Delete(id) => {
                self.devices.remove(&id);
            }
            Change::SetTransaction { .. }
            | Change::ReserveMetadataSnapshot
            | Change::ReleaseMetadataSnapshot => {}
        }
    }

    /// Holds a pool that is running against the model.
    pub(crate) fn compare_live(&self, pool: &Pool) {
        let found: Vec<DeviceId> = pool.devices().iter().map(|(id, _)| *id).collect();
        let expected: Vec<DeviceId> = self.devices.keys().copied().collect();
        assert_eq!(found, expected);
        for (id, content) in &self.devices {
            let read = contents(&volume(pool, *id).expect("opened"));
            assert!(read == content.live, "device {id}: {}", difference(&read, &content.live));
        }
    }

    /// Holds a pool that was opened after a crash against the model, and goes on from what it
    /// finds.
    pub(crate) fn survive(&mut self, pool: &Pool) -> std::result::Result<(), String> {
        let found: BTreeSet<DeviceId> = pool.devices().iter().map(|(id, _)| *id).collect();
        let known: BTreeSet<DeviceId> = self.devices.keys().copied().collect();
        if let Some(change) = self.unsure.take() {
            let mut with = self.clone();
            with.apply(change);
            let done = match change {
                // Only the content tells: it is one or the other, not a mixture.
                Change::Rollback { .. } => {
                    let read = contents(&volume(pool, rollback_target(change)).expect("opened"));
                    let content = &mut with.devices.get_mut(&rollback_target(change));
                    content.as_mut().is_some_and(|content| content.clone().survive(read).is_ok())
                }
                _ => found != known,
            };
            if done {
                *self = with;
            }
        }
        let known: BTreeSet<DeviceId> = self.devices.keys().copied().collect();
        if found != known {
            return Err(format!("devices {found:?} are there, expected were {known:?}"));
        }
        for (id, content) in &mut self.devices {
            let read = contents(&volume(pool, *id).expect("opened"));
            content.survive(read).map_err(|error| format!("device {id}: {error}"))?;
        }
        Ok(())
    }

    fn content(&mut self, device: DeviceId) -> &mut Content {
        self.devices.get_mut(&device).expect("a device of the model")
    }
}

/// Where two contents first differ.
pub(crate) fn difference(read: &[u64], expected: &[u64]) -> String {
    let place = read.iter().zip(expected).position(|(one, other)| one != other);
    place.map_or_else(String::new, |sector| {
        let (read, expected) = (read[sector], expected[sector]);
        format!("sector {sector} reads {read} where {expected} was written")
    })
}

fn rollback_target(change: Change) -> DeviceId {
    match change {
        Change::Rollback { id, .. } => id,
        _ => id(0),
    }
}

/// A random run of sectors: small, large, or whole blocks.
fn some_sectors(rng: &mut Rng) -> (u64, u64) {
    let all = SECTORS as u64;
    let block = BLOCK / SECTOR;
    match rng.within(0..3) {
        0 => {
            let start = rng.within(0..all);
            (start, rng.within(1..9).min(all - start))
        }
        1 => {
            let start = rng.within(0..all);
            (start, rng.within(1..3 * block).min(all - start))
        }
        _ => {
            let start = rng.within(0..BLOCKS);
            (start * block, rng.within(1..4).min(BLOCKS - start) * block)
        }
    }
}
