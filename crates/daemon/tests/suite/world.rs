//! What the tests share: a pool in a temporary folder, a daemon on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, ByteOffset};
use daemon::{Daemon, ServeOptions};
use tempfile::TempDir;
use volume::{CreateOptions, NodeName, PoolDirectory, SnapshotName, VolumeName};

pub(crate) const MIB: u64 = 1 << 20;

/// A pool of 1 GiB in a folder that goes when this goes.
pub(crate) struct World {
    _folder: TempDir,
    pub(crate) pool: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path().join("lab");
        let size = ByteCount::new(1024 * MIB);
        let options = CreateOptions { size, block_size: ByteCount::new(64 << 10) };
        PoolDirectory::create(&pool, &options).unwrap();
        Self { _folder: folder, pool }
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.pool.join("control.sock")
    }

    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.pool.join("nbd.sock")
    }

    /// A daemon in this process.
    pub(crate) fn serve(&self) -> Daemon {
        Daemon::start(&options(&self.pool)).unwrap()
    }
}

pub(crate) fn options(pool: &Path) -> ServeOptions {
    ServeOptions {
        pool: pool.to_owned(),
        cache: CacheMode::Cached,
        read_only: false,
        socket: None,
        tcp: None,
        run: None,
        listen_fds: false,
    }
}

pub(crate) fn mib(count: u64) -> ByteCount {
    ByteCount::new(count * MIB)
}

pub(crate) fn volume(name: &str) -> VolumeName {
    VolumeName::parse(name).unwrap()
}

pub(crate) fn snapshot(name: &str) -> SnapshotName {
    SnapshotName::parse(name).unwrap()
}

pub(crate) fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// Fills `len` bytes at `at` with `byte`.
pub(crate) fn write(device: &Arc<dyn BlockDevice>, at: u64, len: u64, byte: u8) {
    let bytes = vec![byte; usize::try_from(len).unwrap()];
    device.write_at(&bytes, ByteOffset::new(at)).unwrap();
}

/// The byte that fills `len` bytes at `at`.
pub(crate) fn read(device: &Arc<dyn BlockDevice>, at: u64, len: u64) -> u8 {
    let mut bytes = vec![0xEE; usize::try_from(len).unwrap()];
    device.read_at(&mut bytes, ByteOffset::new(at)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "different bytes at {at}");
    bytes[0]
}
