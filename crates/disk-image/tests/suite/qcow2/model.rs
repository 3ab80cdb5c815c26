//! A model of an image: what every sector of the disk and of every snapshot may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use block_io::{BlockDevice, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::qcow2::{Compression, CreateOptions, Image, OpenOptions, create};
use testkit::rng::Rng;

/// Bytes of what the model tells apart: what a disk writes whole or not at all.
pub(crate) const SECTOR: u64 = 512;

/// What the disk holds: of each sector the value that it reads as now, and those it may come back
/// with after a crash. 0 is a sector of zeros.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) live: Vec<u64>,
    possible: Vec<Vec<u64>>,
    /// Sectors that a request which failed may or may not have reached.
    doubtful: BTreeSet<u64>,
    pub(crate) snapshots: BTreeMap<String, Vec<u64>>,
    /// A change of snapshots that was asked for and not answered.
    unsure: Option<Change>,
    next_value: u64,
    cluster: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Create(String),
    Delete(String),
    Revert(String),
}

/// How an image under test is made.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) options: CreateOptions,
    pub(crate) backing: Option<Arc<dyn BlockDevice>>,
}

impl Setup {
    /// A small image, laid out as the seed says.
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let clusters = [(9, 96), (12, 48), (14, 20), (16, 9)];
        let (bits, count) = *rng.pick(&clusters);
        let cut = rng.within(0..3) * 512 % (1 << bits);
        let mut options = CreateOptions::new(ByteCount::new((count << bits) - cut));
        options.cluster_size = ByteCount::new(1 << bits);
        if rng.chance(1, 6) {
            options.version = 2;
        } else {
            options.extended_l2 = bits >= 14 && rng.chance(1, 2);
            options.refcount_bits = *rng.pick(&[16, 16, 8, 64, 4]);
            options.compression = *rng.pick(&[Compression::Zlib, Compression::Zstd]);
        }
        let backing: Option<Arc<dyn BlockDevice>> = rng.chance(1, 3).then(|| {
            let sectors = options.size.sectors() * 2 / 3;
            let bytes = (0..sectors).flat_map(|at| value_bytes(1_000_000 + at, 1));
            let bytes: Vec<u8> = bytes.collect();
            Arc::new(MemoryDevice::from_bytes("backing", bytes)) as Arc<dyn BlockDevice>
        });
        if backing.is_some() {
            options.backing = Some(("backing".into(), "raw".into()));
        }
        Self { options, backing }
    }

    /// The image as it is made.
    pub(crate) fn image(&self) -> Vec<u8> {
        let memory = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
        let file: Arc<dyn BlockDevice> = memory.clone();
        create(&file, None, &self.options).expect("created");
        memory.to_bytes()
    }

    pub(crate) fn open(&self, file: Arc<dyn BlockDevice>) -> Result<Arc<Image>> {
        Image::open(file, OpenOptions { backing: self.backing.clone(), ..OpenOptions::default() })
    }

    pub(crate) fn model(&self) -> Model {
        let sectors = self.options.size.sectors() as usize;
        let mut live = vec![0; sectors];
        if let Some(backing) = &self.backing {
            let below = values(&super::common::contents(&**backing)).expect("whole");
            live[..below.len()].copy_from_slice(&below);
        }
        Model {
            possible: live.iter().map(|value| vec![*value]).collect(),
            live,
            doubtful: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            unsure: None,
            next_value: 0,
            cluster: self.options.cluster_size.get(),
        }
    }
}

fn value_bytes(value: u64, sectors: u64) -> Vec<u8> {
    value.to_le_bytes().repeat((sectors * SECTOR / 8) as usize)
}

/// The value of each sector.
fn values(bytes: &[u8]) -> std::result::Result<Vec<u64>, String> {
    let value = |(at, sector): (usize, &[u8])| {
        let value = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
        let whole = sector.chunks(8).all(|word| word == value.to_le_bytes());
        whole.then_some(value).ok_or_else(|| format!("sector {at} is torn"))
    };
    bytes.chunks(SECTOR as usize).enumerate().map(value).collect()
}

fn read(device: &dyn BlockDevice) -> std::result::Result<Vec<u64>, String> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).map_err(|error| error.to_string())?;
    values(&bytes)
}

fn range(sectors: &Range<u64>) -> ByteRange {
    let (start, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

impl Model {
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

    /// Does something random to the image and notes it. Fails as the image does.
    pub(crate) fn step(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        match rng.within(0..100) {
            0..50 => self.write(image, rng),
            50..58 => self.write_compressed(image, rng),
            58..66 => self.discard(image, rng),
            66..73 => self.zero(image, rng),
            73..82 => {
                image.flush()?;
                self.settle();
                Ok(())
            }
            82..89 => self.create(image, rng),
            89..93 => self.revert(image, rng),
            93..97 => self.delete(image, rng),
            _ => {
                image.close()?;
                self.settle();
                Ok(())
            }
        }
    }

    fn doubt(&mut self, sectors: Range<u64>, done: Result<()>) -> Result<()> {
        done.inspect_err(|_| self.doubtful.extend(sectors))
    }

    fn write(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let sectors = self.some_sectors(rng);
        self.next_value += 1;
        let value = self.next_value;
        let bytes = value_bytes(value, sectors.end - sectors.start);
        self.set(sectors.clone(), value);
        let done = image.write_at(&bytes, range(&sectors).start);
        self.doubt(sectors, done)
    }

    fn write_compressed(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let per_cluster = self.cluster / SECTOR;
        let all = self.live.len() as u64;
        let start = rng.within(0..all.div_ceil(per_cluster)) * per_cluster;
        let sectors = start..(start + per_cluster).min(all);
        self.next_value += 1;
        let value = self.next_value;
        self.set(sectors.clone(), value);
        let bytes = value_bytes(value, sectors.end - sectors.start);
        let done = image.write_compressed(&bytes, range(&sectors).start);
        self.doubt(sectors, done)
    }

    /// What a discard leaves is what was there, or zeros: it is looked at.
    fn discard(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let sectors = self.some_sectors(rng);
        self.look(image)?;
        let done = image.discard(range(&sectors)).and_then(|()| read_range(image, &sectors));
        let (found, done) = match done {
            Ok(bytes) => (values(&bytes).expect("whole"), Ok(())),
            Err(error) => (vec![0; (sectors.end - sectors.start) as usize], Err(error)),
        };
        for (sector, value) in sectors.clone().zip(found) {
            let before = self.live[sector as usize];
            assert!(value == 0 || value == before, "sector {sector} is {value}, not {before}");
            self.set(sector..sector + 1, value);
        }
        self.doubt(sectors, done)
    }

    fn zero(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let sectors = self.some_sectors(rng);
        self.set(sectors.clone(), 0);
        let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
        let done = image.zero(range(&sectors), mode);
        self.doubt(sectors, done)
    }

    fn create(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let name = format!("s{}", rng.within(0..4));
        if self.snapshots.contains_key(&name) {
            return Ok(());
        }
        self.change(image, &Change::Create(name))
    }

    fn some_snapshot(&self, rng: &mut Rng) -> Option<String> {
        let names: Vec<_> = self.snapshots.keys().cloned().collect();
        (!names.is_empty()).then(|| rng.pick(&names).clone())
    }

    fn delete(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let name = self.some_snapshot(rng);
        name.map_or(Ok(()), |name| self.change(image, &Change::Delete(name)))
    }

    fn revert(&mut self, image: &Image, rng: &mut Rng) -> Result<()> {
        let name = self.some_snapshot(rng);
        name.map_or(Ok(()), |name| self.change(image, &Change::Revert(name)))
    }

    /// Finds out what failed requests have left.
    fn look(&mut self, image: &Image) -> Result<()> {
        for sector in self.doubtful.clone() {
            let found = values(&read_range(image, &(sector..sector + 1))?).expect("whole")[0];
            assert!(self.possible[sector as usize].contains(&found), "sector {sector}: {found}");
            self.live[sector as usize] = found;
        }
        self.doubtful.clear();
        Ok(())
    }

    fn change(&mut self, image: &Image, change: &Change) -> Result<()> {
        self.look(image)?;
        if self.unsure.is_some() {
            return image.flush();
        }
        self.unsure = Some(change.clone());
        match change {
            Change::Create(name) => image.create_snapshot(name, SystemTime::now()).map(drop),
            Change::Delete(name) => image.delete_snapshot(name),
            Change::Revert(name) => image.revert_to_snapshot(name),
        }
        .inspect_err(|_| {
            if !image.limits().read_only {
                // It goes on, so nothing was changed.
                self.unsure = None;
            }
        })?;
        self.unsure = None;
        self.apply(change);
        Ok(())
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(name) => {
                self.snapshots.insert(name.clone(), self.live.clone());
            }
            Change::Delete(name) => {
                self.snapshots.remove(name);
            }
            Change::Revert(name) => {
                self.live = self.snapshots[name].clone();
                self.doubtful.clear();
            }
        }
        self.settle();
    }

    /// A random run of sectors: small, large, or whole clusters.
    fn some_sectors(&self, rng: &mut Rng) -> Range<u64> {
        let all = self.live.len() as u64;
        let block = self.cluster / SECTOR;
        let start = rng.within(0..all);
        match rng.within(0..3) {
            0 => start..(start + rng.within(1..9)).min(all),
            1 => start..(start + rng.within(1..3 * block + 1)).min(all),
            _ => {
                let start = start / block * block;
                start..(start + rng.within(1..4) * block).min(all)
            }
        }
    }

    /// Holds an image that is running against the model.
    pub(crate) fn compare(&self, image: &Arc<Image>) -> std::result::Result<(), String> {
        same(&read(&**image)?, &self.live, "the disk")?;
        self.compare_snapshots(image)
    }

    fn compare_snapshots(&self, image: &Arc<Image>) -> std::result::Result<(), String> {
        let names: BTreeSet<_> = image.snapshots().into_iter().map(|info| info.name).collect();
        let known: BTreeSet<_> = self.snapshots.keys().cloned().collect();
        if names != known {
            return Err(format!("snapshots {names:?} are there, expected were {known:?}"));
        }
        for (name, content) in &self.snapshots {
            let view = image.open_snapshot(name).map_err(|error| error.to_string())?;
            same(&read(&*view)?, content, name)?;
        }
        Ok(())
    }

    /// Holds an image that was opened after a crash against the model, and goes on from what it
    /// finds.
    pub(crate) fn survive(&mut self, image: &Arc<Image>) -> std::result::Result<(), String> {
        let found = read(&**image)?;
        if let Some(change) = self.unsure.take() {
            let done = match &change {
                Change::Create(name) => image.snapshots().iter().any(|info| info.name == *name),
                Change::Delete(name) => image.snapshots().iter().all(|info| info.name != *name),
                Change::Revert(name) => found == self.snapshots[name],
            };
            if let (true, Change::Create(name)) = (done, &change) {
                // Taken of what was there, which the failure of nothing else makes doubtful.
                let view = image.open_snapshot(name).map_err(|error| error.to_string())?;
                let content = read(&*view)?;
                self.check_possible(&content)?;
                self.snapshots.insert(name.clone(), content);
            } else if done {
                self.apply(&change);
            }
        }
        self.check_possible(&found)?;
        self.live = found;
        self.doubtful.clear();
        self.settle();
        self.compare_snapshots(image)
    }

    fn check_possible(&self, found: &[u64]) -> std::result::Result<(), String> {
        for (sector, value) in found.iter().enumerate() {
            let possible = &self.possible[sector];
            if !possible.contains(value) {
                return Err(format!("sector {sector} reads {value}, possible were {possible:?}"));
            }
        }
        Ok(())
    }
}

fn read_range(image: &Image, sectors: &Range<u64>) -> Result<Vec<u8>> {
    let range = range(sectors);
    let mut bytes = vec![0; range.len.as_usize()];
    image.read_at(&mut bytes, range.start)?;
    Ok(bytes)
}

fn same(found: &[u64], expected: &[u64], what: &str) -> std::result::Result<(), String> {
    match found.iter().zip(expected).position(|(one, other)| one != other) {
        None => Ok(()),
        Some(at) => {
            let (found, expected) = (found[at], expected[at]);
            Err(format!("{what}: sector {at} reads {found} where {expected} was written"))
        }
    }
}
