//! Repositories for the tests, and what their disks may hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Result};
use disk_image::vhd::BlockSize;
use repository::{Disk, Folder, OpenOptions, Repository};
use testkit::rng::Rng;
use volume::NodeName;

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;

/// A name.
pub(crate) fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

/// How the tests open repositories: with small blocks.
pub(crate) fn options() -> OpenOptions {
    let block_size = BlockSize::new(ByteCount::new(16 << 10)).expect("a block size");
    OpenOptions { block_size: Some(block_size), ..OpenOptions::new("test") }
}

/// Opens the repository in `folder`.
pub(crate) fn open(folder: &Arc<impl Folder + 'static>) -> Result<Arc<Repository>> {
    Repository::open_in(Arc::clone(folder) as Arc<dyn Folder>, &options(), None)
}

/// What a disk may hold: of each sector the values that a crash may leave, the last one written at
/// the end. A sector of a value is full of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sectors(pub(crate) Vec<Vec<u64>>);

impl Sectors {
    pub(crate) fn new(sectors: usize) -> Self {
        Self(vec![vec![0]; sectors])
    }

    /// Everything that was written is durable.
    pub(crate) fn flush(&mut self) {
        self.0.iter_mut().for_each(|values| {
            values.drain(..values.len() - 1);
        });
    }

    /// Writes `value` to `count` sectors at `at` of the disk, and notes that.
    pub(crate) fn write(&mut self, disk: &Disk, at: usize, count: usize, value: u64) -> Result<()> {
        self.0[at..at + count].iter_mut().for_each(|values| values.push(value));
        let bytes = value.to_le_bytes().repeat(count * SECTOR / 8);
        disk.write_at(&bytes, ByteOffset::new((at * SECTOR) as u64))
    }

    /// Checks that `disk` holds what was last written.
    pub(crate) fn check(&self, disk: &Disk) -> Result<()> {
        for (at, value) in read(disk)?.into_iter().enumerate() {
            let last = *self.0[at].last().expect("a value");
            assert_eq!(value, last, "sector {at} of {}", disk.name());
        }
        Ok(())
    }

    /// Checks that `disk` holds what a crash may have left, and takes it for what is there.
    pub(crate) fn recover(&mut self, disk: &Disk) {
        for (at, value) in read(disk).expect("read").into_iter().enumerate() {
            assert!(
                self.0[at].contains(&value),
                "sector {at} of {} is {value:#x}, not one of {:x?}",
                disk.name(),
                self.0[at]
            );
            self.0[at] = vec![value];
        }
    }
}

/// The values of all sectors.
fn read(disk: &Disk) -> Result<Vec<u64>> {
    let mut bytes = vec![0; disk.size().as_usize()];
    disk.read_at(&mut bytes, ByteOffset::ZERO)?;
    Ok(bytes
        .chunks_exact(SECTOR)
        .map(|sector| {
            let value = u64::from_le_bytes(sector[..8].try_into().expect("eight"));
            assert!(sector.chunks_exact(8).all(|eight| eight == value.to_le_bytes()), "torn");
            value
        })
        .collect())
}

/// What the disks of a repository hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model(pub(crate) BTreeMap<NodeName, Sectors>);

impl Model {
    /// Checks all disks that may be read.
    pub(crate) fn check(&self, repository: &Arc<Repository>) -> Result<()> {
        for (name, sectors) in &self.0 {
            sectors.check(&*repository.open_disk(name, false)?)?;
        }
        repository.close_idle()
    }

    /// Any disk.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Option<NodeName> {
        let names: Vec<_> = self.0.keys().collect();
        (!names.is_empty()).then(|| (*rng.pick(&names)).clone())
    }
}
