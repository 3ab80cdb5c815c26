//! One pool, whoever has it open: [`PoolAccess`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Error, ErrorKind, Result};
use volume::{
    ChangedRange, CheckReport, DeviceId, EventList, Message, NodeName, OpenOptions, OriginSource,
    PoolDirectory, PoolReport, Settings, SnapshotInfo, SnapshotName, VolumeInfo, VolumeName,
};

use crate::job::{JobAccess, JobInfo};
use crate::local::LocalPool;
use crate::remote::RemotePool;
use crate::report::ExportInfo;

/// How long a pool may be busy: commands are short, and a daemon that begins or ends takes a moment
/// between its lock and its socket.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the command may ask of a pool: blocking calls, the same answers and the same errors whether
/// the pool is open in this process or in a daemon.
///
/// Unless something else is said, the methods are those of [`PoolDirectory`].
pub trait PoolAccess: Send + Sync {
    /// How full the pool is, and in what state.
    fn status(&self) -> Result<PoolReport>;

    /// The line that `dmsetup status` would print for the pool.
    fn status_line(&self) -> Result<String>;

    /// Does what a message of the kernel says.
    ///
    /// # Errors
    /// The kernel's, by name; [`ErrorKind::Busy`] for deleting what has clients.
    fn message(&self, message: Message) -> Result<()>;

    /// Makes the pool larger.
    fn grow(&self, size: ByteCount) -> Result<PoolReport>;

    /// Makes room for more metadata.
    fn grow_metadata(&self, size: ByteCount) -> Result<PoolReport>;

    /// How the pool is to behave.
    fn settings(&self) -> Result<Settings>;

    /// Changes how the pool is to behave, now and when it is opened next.
    fn configure(&self, settings: &Settings) -> Result<Settings>;

    /// The events after number `after`; waits for one for `wait` seconds, 30 at most.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if no daemon serves the pool.
    fn events(&self, after: u64, wait: u64) -> Result<EventList>;

    /// Begins to give the space of free blocks back to the file system, and returns the number of
    /// the job that does it.
    fn trim(&self) -> Result<u64>;

    /// Checks the metadata as the last commit left it.
    fn check(&self) -> Result<CheckReport>;

    /// All volumes with their snapshots, by name.
    fn volumes(&self) -> Result<Vec<VolumeInfo>>;

    /// One volume.
    fn volume(&self, name: &VolumeName) -> Result<VolumeInfo>;

    /// The line that `dmsetup status` would print for a volume.
    fn volume_status_line(&self, name: &VolumeName) -> Result<String>;

    /// Gives another name to a volume.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while it, or a snapshot of it, has clients.
    fn rename_volume(&self, name: &VolumeName, new: &VolumeName) -> Result<VolumeInfo>;

    /// Gives name and size to a device that has none.
    fn name_device(&self, id: DeviceId, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo>;

    /// Makes an empty volume.
    fn create_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo>;

    /// Makes a volume over an external origin, as [`OriginSource::locate`] has found it.
    fn create_volume_over(
        &self,
        name: &VolumeName,
        size: Option<ByteCount>,
        origin: &OriginSource,
    ) -> Result<VolumeInfo>;

    /// Begins to free a volume from its external origin, alone or with its whole family; a job,
    /// which copies at most `rate` bytes in a second.
    fn hydrate(&self, name: &VolumeName, family: bool, rate: Option<ByteCount>) -> Result<JobInfo>;

    /// Begins to write a volume back into its external origin; a job, likewise.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a daemon serves the pool.
    fn merge(&self, name: &VolumeName, force: bool, rate: Option<ByteCount>) -> Result<JobInfo>;

    /// Deletes a volume and, if asked to, its snapshots.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while it has clients, with who they are.
    fn delete_volume(&self, name: &VolumeName, with_snapshots: bool) -> Result<()>;

    /// Deletes a volume likewise, after disconnecting its clients.
    fn delete_volume_by_force(&self, name: &VolumeName, with_snapshots: bool) -> Result<()>;

    /// Changes the size of a volume.
    fn resize_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo>;

    /// Takes a snapshot of a volume as it is now.
    fn create_snapshot(&self, volume: &VolumeName, snapshot: &SnapshotName)
    -> Result<SnapshotInfo>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while it has clients, with who they are.
    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()>;

    /// Deletes a snapshot likewise, after disconnecting its clients.
    fn delete_snapshot_by_force(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()>;

    /// Makes a volume what a snapshot of it is.
    fn rollback(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()>;

    /// Makes a new volume that begins as a snapshot is.
    fn clone_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
        new: &VolumeName,
    ) -> Result<VolumeInfo>;

    /// The pool's metadata as a commit left it, for reading as long as it is wanted; writers go on
    /// meanwhile. To be dropped before the access is.
    fn open_metadata(&self) -> Result<Arc<dyn BlockDevice>>;

    /// The number of a volume or a snapshot, and its size.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn node(&self, node: &NodeName) -> Result<(DeviceId, ByteCount)> {
        let volume = self.volume(&node.volume)?;
        let Some(name) = &node.snapshot else {
            return Ok((DeviceId::new(volume.id)?, ByteCount::new(volume.size)));
        };
        let mut snapshots = volume.snapshots.iter();
        let found = snapshots.find(|snapshot| snapshot.name == name.as_str());
        let found = found.ok_or_else(|| no_snapshot(node))?;
        Ok((DeviceId::new(found.id)?, ByteCount::new(found.size)))
    }

    /// Calls `each` with the ranges where `to` holds something else than `from`.
    fn diff(
        &self,
        from: &NodeName,
        to: &NodeName,
        each: &mut dyn FnMut(ChangedRange) -> Result<()>,
    ) -> Result<()>;

    /// What a daemon serves, and to whom.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if no daemon serves the pool.
    fn exports(&self) -> Result<Vec<ExportInfo>>;

    /// Opens a volume or a snapshot: directly, or as a client of the daemon. To be dropped before
    /// the access is.
    fn open_device(&self, node: &NodeName, read_only: bool) -> Result<Arc<dyn BlockDevice>>;

    /// The jobs that work on the pool: those of its daemon, or those that were begun here and end
    /// with [`close`](Self::close).
    fn jobs(&self) -> &dyn JobAccess;

    /// Commits what was changed; nothing can be asked afterwards. A pool that a daemon serves stays
    /// open there.
    fn close(&self) -> Result<()>;
}

/// The answer to who asks for a snapshot that is not there.
pub(crate) fn no_snapshot(node: &NodeName) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {node}"), "there is no such snapshot")
        .advise("'firn snapshot list' shows what there is")
}

/// Reaches the pool in `dir`: through the daemon that serves it if there is one, else by opening it
/// here, under its lock.
///
/// # Errors
/// [`ErrorKind::Busy`] with name and process of who else has it open, if that does not end soon;
/// else as [`PoolDirectory::open`].
pub fn access(dir: &Path, read_only: bool) -> Result<Box<dyn PoolAccess>> {
    access_within(dir, read_only, PATIENCE)
}

/// [`access`], with the time that a busy pool is waited for.
pub(crate) fn access_within(
    dir: &Path,
    read_only: bool,
    patience: Duration,
) -> Result<Box<dyn PoolAccess>> {
    let deadline = Instant::now() + patience;
    let options = OpenOptions { read_only, cache: CacheMode::default(), holder: "firn".to_owned() };
    loop {
        let busy = match PoolDirectory::open(dir, &options) {
            Ok(pool) => return Ok(Box::new(LocalPool::new(pool, read_only)?)),
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
        };
        match RemotePool::connect(dir) {
            Ok(pool) => return Ok(Box::new(pool)),
            Err(error) => tracing::debug!(%error, "no daemon answers"),
        }
        if Instant::now() >= deadline {
            return Err(busy);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
