//! An image that a daemon serves, reached through its control socket.

use std::path::Path;
use std::time::Duration;

use block_types::Result;
use hyper::Method;
use volume::{BackingPolicy, ChainImage, ImageOptions, ImageSnapshot};

use crate::api::{CommitImage, RebaseImage, SnapshotOfImage, StreamImage};
use crate::client::Client;
use crate::image_access::{ImageAccess, control_path};
use crate::job::{JobAccess, JobInfo};
use crate::remote_jobs::RemoteJobs;

/// How long a daemon that is well may take to answer.
const GREETING: Duration = Duration::from_secs(5);

/// Access to an image through its daemon.
pub(crate) struct RemoteImage {
    client: Client,
    jobs: RemoteJobs,
}

impl RemoteImage {
    /// Connects to the daemon that serves the image at `path`.
    ///
    /// # Errors
    /// If there is none that answers.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let socket = control_path(path);
        let client = Client::new(&socket)?;
        let _: Vec<ChainImage> = client.get_within("/v1/image", GREETING)?;
        Ok(Self { client, jobs: RemoteJobs::new(Client::new(&socket)?) })
    }
}

/// A path as a process elsewhere has to name it.
fn text(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}

impl ImageAccess for RemoteImage {
    fn chain(&self) -> Result<Vec<ChainImage>> {
        self.client.ask(Method::GET, "/v1/image")
    }

    fn stream(&self, base: Option<&Path>) -> Result<JobInfo> {
        let body = StreamImage { base: base.map(text) };
        self.client.send(Method::POST, "/v1/image/stream", &body)
    }

    fn commit(&self, top: Option<&Path>, base: Option<&Path>) -> Result<JobInfo> {
        let body = CommitImage { top: top.map(text), base: base.map(text) };
        self.client.send(Method::POST, "/v1/image/commit", &body)
    }

    fn rebase(&self, backing: &Path, options: &ImageOptions) -> Result<JobInfo> {
        let folders = match &options.backing {
            BackingPolicy::Folders(folders) => folders.iter().map(|folder| text(folder)).collect(),
            BackingPolicy::SameFolder | BackingPolicy::Any => Vec::new(),
        };
        let body = RebaseImage {
            backing: text(backing),
            format: options.format.map(|format| format.qemu_name().to_owned()),
            allow_folders: folders,
            allow_any: options.backing == BackingPolicy::Any,
        };
        self.client.send(Method::POST, "/v1/image/rebase", &body)
    }

    fn snapshots(&self) -> Result<Vec<ImageSnapshot>> {
        self.client.ask(Method::GET, "/v1/image/snapshots")
    }

    fn create_snapshot(&self, name: &str) -> Result<ImageSnapshot> {
        let body = SnapshotOfImage { name: name.to_owned() };
        self.client.send(Method::POST, "/v1/image/snapshots", &body)
    }

    fn delete_snapshot(&self, name: &str) -> Result<()> {
        let body = SnapshotOfImage { name: name.to_owned() };
        self.client.send(Method::POST, "/v1/image/snapshots/delete", &body)
    }

    fn revert_to_snapshot(&self, name: &str) -> Result<()> {
        let body = SnapshotOfImage { name: name.to_owned() };
        self.client.send(Method::POST, "/v1/image/snapshots/revert", &body)
    }

    fn is_served(&self) -> bool {
        true
    }

    fn jobs(&self) -> &dyn JobAccess {
        &self.jobs
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
