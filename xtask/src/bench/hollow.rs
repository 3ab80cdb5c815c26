//! Pools with mappings and without data: a tebibyte that is mapped all over takes a few hundred
//! mebibytes of metadata, and seconds instead of hours.
//!
//! The engine itself fills them, over a data device that swallows what is written; then the same
//! metadata is served over a sparse file, where every block reads as zeros.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use block_io::{BlockDevice, CacheMode, FileOptions, HostFile, Limits, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent};
use testkit::rng::Rng;
use volume::{CreateOptions, PoolDevices, PoolDirectory, SnapshotName, VolumeName};

use super::lab::{Lab, POOL_DATA, VOLUME};

/// The block size of the pools.
pub(super) const BLOCK: u64 = 64 << 10;

/// Written at once while a pool is filled.
const STRIDE: u64 = 64 << 20;

/// Blocks that are written between two snapshots, so that their trees differ.
const BETWEEN: u64 = 4;

/// A pool of one volume, mapped all over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hollow {
    /// Bytes of the volume.
    pub(super) size: u64,
    /// Snapshots of it that exist, blocks of the volume written after each.
    pub(super) snapshots: u32,
}

impl Hollow {
    /// A fresh copy of the pool in `folder`, over a data file without data.
    pub(super) fn copy_to(self, folder: &Path, lab: &Lab) -> Result<PathBuf> {
        let template = lab.made(&format!("hollow-{}-{}", self.size, self.snapshots), |path| {
            self.make(path).with_context(|| "filling a hollow pool")
        })?;
        let pool = folder.join("pool");
        fs::create_dir(&pool)?;
        for name in ["metadata", "names"] {
            fs::copy(template.join(name), pool.join(name))?;
        }
        let size = fs::metadata(template.join(POOL_DATA))?.len();
        File::create(pool.join(POOL_DATA))?.set_len(size)?;
        Ok(pool)
    }

    fn make(self, path: &Path) -> Result<()> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        // Room for what snapshots keep, here and while they are measured.
        let capacity = ByteCount::new(self.size + self.size / 4 + (64 << 30));
        let options = CreateOptions { size: capacity, block_size: ByteCount::new(BLOCK) };
        PoolDirectory::create(path, &options)?;
        let devices = PoolDevices {
            metadata: Arc::new(Hurried::open(&path.join("metadata"))?),
            data: Arc::new(Swallowing { size: capacity }),
            names: Some(Arc::new(Hurried::open(&path.join("names"))?)),
        };
        let pool = PoolDirectory::open_devices(path, devices, dm_thin::OpenOptions::default())?;
        self.fill(&pool)?;
        pool.close()?;
        drop(pool);
        ["metadata", "names"]
            .iter()
            .try_for_each(|name| Ok(File::open(path.join(name))?.sync_all()?))
    }

    fn fill(self, pool: &PoolDirectory) -> Result<()> {
        let name = VolumeName::parse(VOLUME)?;
        pool.create_volume(&name, ByteCount::new(self.size))?;
        let node = volume::NodeName { volume: name.clone(), snapshot: None };
        let disk = pool.open_node(&node, false)?;
        let bytes = vec![0; STRIDE as usize];
        for start in (0..self.size).step_by(STRIDE as usize) {
            disk.write_at(&bytes, ByteOffset::new(start))?;
        }
        let mut rng = Rng::new(1);
        for snapshot in 0..self.snapshots {
            pool.create_snapshot(&name, &SnapshotName::parse(&format!("old{snapshot}"))?)?;
            for _ in 0..BETWEEN {
                let block = rng.within(0..self.size / BLOCK);
                disk.write_at(&bytes[..BLOCK as usize], ByteOffset::new(block * BLOCK))?;
            }
        }
        Ok(())
    }
}

/// A data device that keeps nothing and reads as zeros.
pub(super) struct Swallowing {
    pub(super) size: ByteCount,
}

impl BlockDevice for Swallowing {
    fn name(&self) -> &str {
        "nowhere"
    }

    fn size(&self) -> ByteCount {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(1),
            preferred: ByteCount::new(4096),
            read_only: false,
            discards: false,
            zeroes_fast: true,
        }
    }

    fn read_at(&self, buffer: &mut [u8], _: ByteOffset) -> block_types::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> block_types::Result<()> {
        Ok(())
    }

    fn zero(&self, _: ByteRange, _: ZeroMode) -> block_types::Result<()> {
        Ok(())
    }

    fn discard(&self, _: ByteRange) -> block_types::Result<()> {
        Ok(())
    }

    fn flush(&self) -> block_types::Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> block_types::Result<()> {
        let state = block_types::ExtentState::Hole;
        // One extent is all there is to say.
        let _ = each(Extent { range, state });
        Ok(())
    }
}

/// A file whose flushes do nothing: who fills a pool syncs it once, at the end.
struct Hurried(HostFile);

impl Hurried {
    fn open(path: &Path) -> block_types::Result<Self> {
        let options = FileOptions { cache: CacheMode::Cached, read_only: false };
        HostFile::open(path, options).map(Self)
    }
}

impl BlockDevice for Hurried {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn size(&self) -> ByteCount {
        self.0.size()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> block_types::Result<()> {
        self.0.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> block_types::Result<()> {
        self.0.write_at(bytes, at)
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> block_types::Result<()> {
        self.0.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> block_types::Result<()> {
        self.0.discard(range)
    }

    fn flush(&self) -> block_types::Result<()> {
        Ok(())
    }

    fn provision(&self, range: ByteRange) -> block_types::Result<()> {
        self.0.provision(range)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> block_types::Result<()> {
        self.0.extents(range, each)
    }

    fn resize(&self, size: ByteCount) -> block_types::Result<()> {
        self.0.resize(size)
    }
}
