//! A pool that is open in this process.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use jobs::{JobId, Registry};
use volume::{
    ChangedRange, CheckReport, DeviceId, EventList, Message, NodeName, OriginSource, PoolDirectory,
    PoolReport, Settings, SnapshotInfo, SnapshotName, VolumeInfo, VolumeName,
};

use crate::access::PoolAccess;
use crate::job::{self, JobAccess, JobInfo};
use crate::keeper::Keeper;
use crate::report::ExportInfo;
use crate::trim;

/// Access to a pool of our own.
pub(crate) struct LocalPool {
    pool: Arc<PoolDirectory>,
    jobs: Registry,
    /// Where the pool grows by itself.
    _keeper: Option<Keeper>,
}

impl LocalPool {
    pub(crate) fn new(pool: Arc<PoolDirectory>, read_only: bool) -> Result<Self> {
        let grows = !read_only && pool.settings().autogrow.is_some();
        let keeper = if grows { Some(Keeper::start(&pool)?) } else { None };
        Ok(Self { pool, jobs: Registry::new(), _keeper: keeper })
    }
}

impl PoolAccess for LocalPool {
    fn status(&self) -> Result<PoolReport> {
        Ok(self.pool.status())
    }

    fn status_line(&self) -> Result<String> {
        self.pool.status_line()
    }

    fn message(&self, message: Message) -> Result<()> {
        self.pool.message(message)
    }

    fn grow(&self, size: ByteCount) -> Result<PoolReport> {
        self.pool.grow(size)
    }

    fn grow_metadata(&self, size: ByteCount) -> Result<PoolReport> {
        self.pool.grow_metadata(size)
    }

    fn settings(&self) -> Result<Settings> {
        Ok(self.pool.settings())
    }

    fn configure(&self, settings: &Settings) -> Result<Settings> {
        self.pool.configure(settings)
    }

    fn events(&self, _after: u64, _wait: u64) -> Result<EventList> {
        Err(not_served(&self.pool))
    }

    fn trim(&self) -> Result<u64> {
        trim::start(&self.jobs, &self.pool).map(JobId::get)
    }

    fn check(&self) -> Result<CheckReport> {
        self.pool.check()
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        Ok(self.pool.volumes())
    }

    fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.pool.volume(name)
    }

    fn volume_status_line(&self, name: &VolumeName) -> Result<String> {
        self.pool.volume_status_line(name)
    }

    fn rename_volume(&self, name: &VolumeName, new: &VolumeName) -> Result<VolumeInfo> {
        self.pool.rename_volume(name, new)
    }

    fn name_device(&self, id: DeviceId, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        self.pool.name_device(id, name, size)
    }

    fn create_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        self.pool.create_volume(name, size)
    }

    fn create_volume_over(
        &self,
        name: &VolumeName,
        size: Option<ByteCount>,
        origin: &OriginSource,
    ) -> Result<VolumeInfo> {
        self.pool.create_volume_over(name, size, origin)
    }

    fn hydrate(&self, name: &VolumeName, family: bool, rate: Option<ByteCount>) -> Result<JobInfo> {
        job::hydrate(&self.jobs, &self.pool, name, family, rate)
    }

    fn merge(&self, name: &VolumeName, force: bool, rate: Option<ByteCount>) -> Result<JobInfo> {
        let merge = self.pool.merge(name, force)?;
        let object = format!("{}/{name}", self.pool.path().display());
        let id = self.jobs.start("merge", &object, merge.total(), move |monitor| {
            monitor.set_rate(rate);
            jobs::merge(merge, monitor)
        })?;
        JobAccess::show(&self.jobs, id.get())
    }

    fn delete_volume(&self, name: &VolumeName, with_snapshots: bool) -> Result<()> {
        self.pool.delete_volume(name, with_snapshots)?;
        // Nobody else would give the space back before the pool is opened again.
        self.pool.reclaim()
    }

    fn delete_volume_by_force(&self, name: &VolumeName, with_snapshots: bool) -> Result<()> {
        self.pool.delete_volume(name, with_snapshots)?;
        // Nobody else would give the space back before the pool is opened again.
        self.pool.reclaim()
    }

    fn resize_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        self.pool.resize_volume(name, size)
    }

    fn create_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
    ) -> Result<SnapshotInfo> {
        self.pool.create_snapshot(volume, snapshot)
    }

    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.pool.delete_snapshot(volume, snapshot)?;
        self.pool.reclaim()
    }

    fn delete_snapshot_by_force(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.pool.delete_snapshot(volume, snapshot)?;
        self.pool.reclaim()
    }

    fn rollback(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.pool.rollback(volume, snapshot)?;
        self.pool.reclaim()
    }

    fn clone_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
        new: &VolumeName,
    ) -> Result<VolumeInfo> {
        self.pool.clone_snapshot(volume, snapshot, new)
    }

    fn diff(
        &self,
        from: &NodeName,
        to: &NodeName,
        each: &mut dyn FnMut(ChangedRange) -> Result<()>,
    ) -> Result<()> {
        self.pool.diff(from, to, each)
    }

    fn open_metadata(&self) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(self.pool.hold_metadata()?))
    }

    fn exports(&self) -> Result<Vec<ExportInfo>> {
        Err(not_served(&self.pool))
    }

    fn open_device(&self, node: &NodeName, read_only: bool) -> Result<Arc<dyn BlockDevice>> {
        self.pool.open_node(node, read_only)
    }

    fn jobs(&self) -> &dyn JobAccess {
        &self.jobs
    }

    fn close(&self) -> Result<()> {
        if !self.jobs.shutdown(job::PATIENCE) {
            let problem = "a job does not end, though it was cancelled";
            return Err(Error::new(ErrorKind::Busy, "pool", problem));
        }
        self.pool.close()
    }
}

/// The answer to what only a daemon knows.
fn not_served(pool: &PoolDirectory) -> Error {
    let pool = pool.path().display();
    Error::new(ErrorKind::Unsupported, pool.to_string(), "is not being served")
        .advise(format!("serve it with 'firn serve {pool}'"))
}
