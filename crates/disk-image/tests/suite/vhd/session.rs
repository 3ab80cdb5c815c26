//! Random operations on one image, and what it may hold after each.

use std::sync::Arc;

use crate::vhd::common::{Sectors, filled, id, link, options};
use block_io::{BlockDevice, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::vhd::{
    Content, CreateOptions, Creator, Locator, OpenOptions, Parent, ParentLink, VhdImage,
};
use testkit::rng::Rng;

pub(crate) const BLOCK: u64 = 16 << 10;
/// The disk's size at first, which breaks its last block.
const SIZE: u64 = 12 * BLOCK + 1024;
/// To which it may grow.
const LARGEST: u64 = 20 * BLOCK;
/// The parent is longer than the disk, which must not show when the disk grows.
const PARENT: u64 = 14 * BLOCK;
/// The values of the parent's sectors begin here.
const OLD: u64 = 1 << 32;

/// What an image may hold and say.
#[derive(Clone)]
pub(crate) struct Session {
    sectors: Sectors,
    pub(crate) rng: Rng,
    /// What it was, and what changes that were not answered were to make of it.
    sizes: Vec<ByteCount>,
    hidden: Vec<bool>,
    parents: Vec<ParentLink>,
}

/// What to make for a run.
pub(crate) fn fresh(seed: u64) -> (CreateOptions, Option<Parent>) {
    let differencing = seed.is_multiple_of(2);
    let content =
        if differencing { Content::Differencing(link(9, "parent.vhd")) } else { Content::Dynamic };
    let creator = if seed.is_multiple_of(5) { Creator::WINDOWS } else { Creator::XENSERVER };
    let plain = options(content, 1, SIZE, BLOCK);
    let options = CreateOptions { creator, largest: ByteCount::new(LARGEST), ..plain };
    (options, differencing.then(parent))
}

fn parent() -> Parent {
    let bytes = filled((0..PARENT / 512).map(|sector| OLD + sector));
    Parent { device: Arc::new(MemoryDevice::from_bytes("parent", bytes)), id: Some(id(9)) }
}

/// Opens an image whose file grows in small steps.
pub(crate) fn open(file: Arc<dyn BlockDevice>, parent: Option<Parent>) -> Result<VhdImage> {
    let step = ByteCount::new(3 * BLOCK);
    VhdImage::open(file, parent, OpenOptions { read_only: false, step })
}

impl Session {
    /// The session of a fresh image.
    pub(crate) fn new(seed: u64) -> Self {
        let (_, parent) = fresh(seed);
        let below = |sector| if parent.is_some() { OLD + sector } else { 0 };
        Self {
            sectors: Sectors::new((0..SIZE / 512).map(below).collect()),
            rng: Rng::new(seed),
            sizes: vec![ByteCount::new(SIZE)],
            hidden: vec![false],
            parents: parent.iter().map(|_| link(9, "parent.vhd")).collect(),
        }
    }

    /// Does something random. Fails as the image does.
    pub(crate) fn step(&mut self, image: &VhdImage) -> Result<()> {
        match self.rng.within(0..100) {
            0..50 => self.write(image),
            50..60 => self.zero(image),
            60..65 => self.discard(image),
            65..85 => self.flush(image),
            85..90 => self.hide(image),
            90..95 => self.relink(image),
            _ => self.grow(image),
        }
    }

    fn range(&mut self, image: &VhdImage) -> ByteRange {
        let sectors = image.size().sectors();
        let start = self.rng.within(0..sectors);
        let longest = if self.rng.chance(1, 4) { 2 * BLOCK / 512 } else { 9 };
        let len = self.rng.within(1..longest + 1).min(sectors - start);
        ByteRange::new(ByteOffset::new(start * 512), ByteCount::from_sectors(len))
    }

    fn write(&mut self, image: &VhdImage) -> Result<()> {
        let range = self.range(image);
        let value = self.sectors.next_value();
        let bytes = filled((0..range.len.sectors()).map(|_| value));
        let done = image.write_at(&bytes, range.start);
        self.sectors.wrote(range, value, done.is_ok());
        done
    }

    fn zero(&mut self, image: &VhdImage) -> Result<()> {
        let range = self.range(image);
        let mode = ZeroMode { may_unmap: self.rng.chance(1, 2), only_if_fast: false };
        let done = image.zero(range, mode);
        self.sectors.wrote(range, 0, done.is_ok());
        done
    }

    fn discard(&mut self, image: &VhdImage) -> Result<()> {
        let range = self.range(image);
        let done = image.discard(range);
        self.sectors.discarded(range);
        done
    }

    pub(crate) fn flush(&mut self, image: &VhdImage) -> Result<()> {
        image.flush()?;
        self.sectors.flushed();
        Ok(())
    }

    /// Closes the image.
    pub(crate) fn close(&mut self, image: &VhdImage) -> Result<()> {
        image.close()?;
        self.sectors.flushed();
        Ok(())
    }

    fn hide(&mut self, image: &VhdImage) -> Result<()> {
        let hidden = !self.hidden[0];
        self.hidden.push(hidden);
        image.set_hidden(hidden)?;
        self.hidden = vec![hidden];
        Ok(())
    }

    fn relink(&mut self, image: &VhdImage) -> Result<()> {
        if self.parents.is_empty() {
            return Ok(());
        }
        let link = link(9, &"x".repeat(1 + self.rng.index(40)));
        self.parents.push(link.clone());
        image.relink(&link)?;
        self.parents = vec![link];
        Ok(())
    }

    fn grow(&mut self, image: &VhdImage) -> Result<()> {
        let old = image.size();
        let most = ByteCount::new(LARGEST - old.get()).sectors();
        let size = ByteCount::new(old.get() + 512 * self.rng.within(0..most + 1));
        self.sizes.push(size);
        image.grow(size)?;
        self.sizes = vec![size];
        self.sectors.resize(size);
        Ok(())
    }

    /// Holds an image that is running against what it should hold.
    pub(crate) fn compare(&mut self, image: &VhdImage) -> std::result::Result<(), String> {
        self.sectors.compare(image)?;
        self.compare_heads(image)
    }

    /// Holds an image that was opened after a crash against what may be left, and goes on from
    /// what it finds.
    pub(crate) fn survive(&mut self, image: &VhdImage) -> std::result::Result<(), String> {
        self.sectors.crashed();
        if !self.sizes.contains(&image.size()) {
            return Err(format!("its size is {}, not one of {:?}", image.size(), self.sizes));
        }
        self.sectors.resize(image.size());
        self.sizes = vec![image.size()];
        self.compare(image)?;
        self.hidden = vec![image.is_hidden()];
        Ok(())
    }

    fn compare_heads(&mut self, image: &VhdImage) -> std::result::Result<(), String> {
        if !self.hidden.contains(&image.is_hidden()) {
            return Err(format!("hidden is not one of {:?}", self.hidden));
        }
        let Some(found) = image.parent_info().map_err(|error| error.to_string())? else {
            return if self.parents.is_empty() { Ok(()) } else { Err("the parent is lost".into()) };
        };
        let paths = found.locators.iter().filter_map(Locator::relative_path);
        let named = self.parents.iter().find(|link| link.path == found.name).cloned();
        match named {
            Some(link) if paths.eq(std::iter::repeat_n(found.name.clone(), 3)) => {
                self.parents = vec![link];
                Ok(())
            }
            _ => Err(format!("the parent is {found:?}, not one of {:?}", self.parents)),
        }
    }
}
