//! A pool that a daemon serves, reached through its control socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block_io::{BlockDevice, CacheMode};
use block_types::{ByteCount, Error, ErrorKind, Result};
use hyper::Method;
use nbd::Uri;
use volume::{
    ChangedRange, CheckReport, DeviceId, DeviceOptions, EventList, Message, NodeName, OriginSource,
    PoolReport, Settings, SnapshotInfo, SnapshotName, VolumeInfo, VolumeName,
};

use crate::access::{PoolAccess, no_snapshot};
use crate::api::{
    CreateVolume, HydrateVolume, NewName, NewSize, NewVolume, PoolMessage, StatusLine,
};
use crate::client::Client;
use crate::control;
use crate::exports::METADATA;
use crate::job::{JobAccess, JobInfo};
use crate::remote_jobs::RemoteJobs;
use crate::report::{DaemonInfo, ExportInfo};

/// How long a daemon that is well may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);

/// Access to a pool through its daemon.
pub(crate) struct RemotePool {
    client: Client,
    jobs: RemoteJobs,
    /// The pool's directory as the caller names it; the daemon may stand elsewhere.
    dir: PathBuf,
}

impl RemotePool {
    /// Connects to the daemon that serves the pool in `dir`.
    ///
    /// # Errors
    /// If there is none that answers.
    pub(crate) fn connect(dir: &Path) -> Result<Self> {
        let client = Client::new(&dir.join(control::SOCKET))?;
        let daemon: DaemonInfo = client.get_within("/v1/version", GREETING)?;
        tracing::debug!(pid = daemon.pid, version = daemon.version, "through the daemon");
        let jobs = RemoteJobs::new(Client::new(&dir.join(control::SOCKET))?);
        Ok(Self { client, jobs, dir: dir.to_owned() })
    }

    /// A report that names the pool as the caller does.
    fn localized(&self, report: PoolReport) -> PoolReport {
        PoolReport { path: self.dir.display().to_string(), ..report }
    }

    fn delete(&self, path: &str, with_snapshots: bool, force: bool) -> Result<()> {
        let mut how = Vec::new();
        if with_snapshots {
            how.push("snapshots=true");
        }
        if force {
            how.push("force=true");
        }
        let query = if how.is_empty() { String::new() } else { format!("?{}", how.join("&")) };
        self.client.ask(Method::DELETE, &format!("{path}{query}"))
    }
}

/// The path of a volume. Names hold nothing that a path would have to escape.
fn volume_path(name: &VolumeName) -> String {
    format!("/v1/volumes/{name}")
}

fn snapshot_path(volume: &VolumeName, snapshot: &SnapshotName) -> String {
    format!("{}/snapshots/{snapshot}", volume_path(volume))
}

/// A node as a query has it, where a plus sign would mean a space.
fn parameter(node: &NodeName) -> String {
    node.to_string().replace('+', "%2B")
}

impl PoolAccess for RemotePool {
    fn status(&self) -> Result<PoolReport> {
        self.client.ask(Method::GET, "/v1/pool").map(|report| self.localized(report))
    }

    fn status_line(&self) -> Result<String> {
        let line: StatusLine = self.client.ask(Method::GET, "/v1/pool/status-line")?;
        Ok(line.line)
    }

    fn message(&self, message: Message) -> Result<()> {
        let message = PoolMessage { message: message.to_string() };
        self.client.send(Method::POST, "/v1/pool/message", &message)
    }

    fn grow(&self, size: ByteCount) -> Result<PoolReport> {
        let new = NewSize { size: size.get() };
        self.client.send(Method::POST, "/v1/pool/grow", &new).map(|report| self.localized(report))
    }

    fn grow_metadata(&self, size: ByteCount) -> Result<PoolReport> {
        let new = NewSize { size: size.get() };
        let grown = self.client.send(Method::POST, "/v1/pool/grow-metadata", &new);
        grown.map(|report| self.localized(report))
    }

    fn settings(&self) -> Result<Settings> {
        self.client.ask(Method::GET, "/v1/pool/settings")
    }

    fn configure(&self, settings: &Settings) -> Result<Settings> {
        self.client.send(Method::PUT, "/v1/pool/settings", settings)
    }

    fn events(&self, after: u64, wait: u64) -> Result<EventList> {
        self.client.ask(Method::GET, &format!("/v1/events?after={after}&wait={wait}"))
    }

    fn trim(&self) -> Result<u64> {
        let job: JobInfo = self.client.ask(Method::POST, "/v1/pool/trim")?;
        Ok(job.id)
    }

    fn check(&self) -> Result<CheckReport> {
        self.client.ask(Method::POST, "/v1/pool/check")
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        self.client.ask(Method::GET, "/v1/volumes")
    }

    fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.client.ask(Method::GET, &volume_path(name))
    }

    fn volume_status_line(&self, name: &VolumeName) -> Result<String> {
        let path = format!("{}/status-line", volume_path(name));
        let line: StatusLine = self.client.ask(Method::GET, &path)?;
        Ok(line.line)
    }

    fn rename_volume(&self, name: &VolumeName, new: &VolumeName) -> Result<VolumeInfo> {
        let path = format!("{}/rename", volume_path(name));
        self.client.send(Method::POST, &path, &NewName { name: new.to_string() })
    }

    fn name_device(&self, id: DeviceId, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        let new = NewVolume { name: name.to_string(), size: size.get() };
        self.client.send(Method::POST, &format!("/v1/devices/{id}/name"), &new)
    }

    fn create_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        let (name, size) = (name.to_string(), Some(size.get()));
        let new = CreateVolume { name, size, origin: None };
        self.client.send(Method::POST, "/v1/volumes", &new)
    }

    fn create_volume_over(
        &self,
        name: &VolumeName,
        size: Option<ByteCount>,
        origin: &OriginSource,
    ) -> Result<VolumeInfo> {
        let (name, size) = (name.to_string(), size.map(ByteCount::get));
        let new = CreateVolume { name, size, origin: Some(origin.clone()) };
        self.client.send(Method::POST, "/v1/volumes", &new)
    }

    fn hydrate(&self, name: &VolumeName, family: bool, rate: Option<ByteCount>) -> Result<JobInfo> {
        let path = format!("{}/hydrate", volume_path(name));
        let how = HydrateVolume { family, rate: rate.map(ByteCount::get) };
        self.client.send(Method::POST, &path, &how)
    }

    fn merge(&self, name: &VolumeName, _: bool, _: Option<ByteCount>) -> Result<JobInfo> {
        self.volume(name)?;
        let problem = "cannot be merged while its pool is being served";
        Err(Error::new(ErrorKind::Busy, format!("volume {name}"), problem)
            .advise("stop 'firn serve' first"))
    }

    fn delete_volume(&self, name: &VolumeName, with_snapshots: bool) -> Result<()> {
        self.delete(&volume_path(name), with_snapshots, false)
    }

    fn delete_volume_by_force(&self, name: &VolumeName, with_snapshots: bool) -> Result<()> {
        self.delete(&volume_path(name), with_snapshots, true)
    }

    fn resize_volume(&self, name: &VolumeName, size: ByteCount) -> Result<VolumeInfo> {
        self.client.send(Method::PATCH, &volume_path(name), &NewSize { size: size.get() })
    }

    fn create_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
    ) -> Result<SnapshotInfo> {
        let path = format!("{}/snapshots", volume_path(volume));
        self.client.send(Method::POST, &path, &NewName { name: snapshot.to_string() })
    }

    fn delete_snapshot(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.delete(&snapshot_path(volume, snapshot), false, false)
    }

    fn delete_snapshot_by_force(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.delete(&snapshot_path(volume, snapshot), false, true)
    }

    fn rollback(&self, volume: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.client.ask(Method::POST, &format!("{}/rollback", snapshot_path(volume, snapshot)))
    }

    fn clone_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
        new: &VolumeName,
    ) -> Result<VolumeInfo> {
        let path = format!("{}/clone", snapshot_path(volume, snapshot));
        self.client.send(Method::POST, &path, &NewName { name: new.to_string() })
    }

    fn diff(
        &self,
        from: &NodeName,
        to: &NodeName,
        each: &mut dyn FnMut(ChangedRange) -> Result<()>,
    ) -> Result<()> {
        let path = format!("/v1/diff?from={}&to={}", parameter(from), parameter(to));
        let ranges: Vec<ChangedRange> = self.client.ask(Method::GET, &path)?;
        ranges.into_iter().try_for_each(each)
    }

    fn open_metadata(&self) -> Result<Arc<dyn BlockDevice>> {
        let daemon: DaemonInfo = self.client.ask(Method::GET, "/v1/version")?;
        let server: Uri = daemon.uri.parse()?;
        let uri = Uri { export: METADATA.to_owned(), ..server };
        let client = nbd::Client::connect(&uri)?;
        Ok(Arc::new(client.read_only()))
    }

    fn exports(&self) -> Result<Vec<ExportInfo>> {
        self.client.ask(Method::GET, "/v1/exports")
    }

    fn open_device(&self, node: &NodeName, read_only: bool) -> Result<Arc<dyn BlockDevice>> {
        let name = node.to_string();
        let export = self.exports()?.into_iter().find(|export| export.name == name);
        let Some(export) = export else {
            // The volume's own error where it is the volume that is missing.
            self.volume(&node.volume)?;
            return Err(no_snapshot(node));
        };
        volume::open_device(&export.uri, &DeviceOptions { read_only, cache: CacheMode::default() })
    }

    fn jobs(&self) -> &dyn JobAccess {
        &self.jobs
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
