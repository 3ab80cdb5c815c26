//! One image, whoever has it open: [`ImageAccess`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_types::{Error, ErrorKind, Result};
use jobs::{JobId, Monitor, Registry, run_chain_work};
use volume::{ChainImage, DiskImage, ImageOptions, ImageSnapshot, Work};

use crate::job::{self, JobAccess, JobInfo};
use crate::remote_image::RemoteImage;

/// How long an image may be busy before that is told: a daemon that begins or ends takes a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the command may ask of an image that is open: the same answers and the same errors whether
/// it is open in this process or in a daemon. What takes long is begun as a job, and its first
/// state returned.
pub trait ImageAccess: Send + Sync {
    /// The images of the chain, the topmost first.
    fn chain(&self) -> Result<Vec<ChainImage>>;

    /// Begins to pull up what is below, down to `base`; see [`DiskImage::stream`].
    fn stream(&self, base: Option<&Path>) -> Result<JobInfo>;

    /// Begins to commit; see [`DiskImage::commit`].
    fn commit(&self, top: Option<&Path>, base: Option<&Path>) -> Result<JobInfo>;

    /// Begins to put the image on another backing file; see [`DiskImage::rebase`].
    fn rebase(&self, backing: &Path, options: &ImageOptions) -> Result<JobInfo>;

    /// The internal snapshots.
    fn snapshots(&self) -> Result<Vec<ImageSnapshot>>;

    /// Takes an internal snapshot.
    fn create_snapshot(&self, name: &str) -> Result<ImageSnapshot>;

    /// Deletes an internal snapshot.
    fn delete_snapshot(&self, name: &str) -> Result<()>;

    /// Makes the disk what an internal snapshot is.
    fn revert_to_snapshot(&self, name: &str) -> Result<()>;

    /// Whether a daemon has it open, so that its jobs go on without this process.
    fn is_served(&self) -> bool;

    /// The jobs that work on the image.
    fn jobs(&self) -> &dyn JobAccess;

    /// Makes what was changed durable; nothing can be asked afterwards. An image that a daemon
    /// serves stays open there.
    fn close(&self) -> Result<()>;
}

/// Reaches the image at `path`: through the daemon that serves it if there is one, else by opening
/// it here, under its lock.
///
/// # Errors
/// [`ErrorKind::Busy`] where another process has it open, if that does not end soon; else as
/// [`DiskImage::open`].
pub fn access_image(path: &Path, options: &ImageOptions) -> Result<Box<dyn ImageAccess>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let busy = match DiskImage::open(path, options) {
            Ok(image) => return Ok(Box::new(OpenImage::new(Arc::new(image)))),
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
        };
        match RemoteImage::connect(path) {
            Ok(image) => return Ok(Box::new(image)),
            Err(error) => tracing::debug!(%error, "no daemon answers"),
        }
        if Instant::now() >= deadline {
            return Err(busy);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where the daemon that serves the image at `path` is reached.
pub(crate) fn control_path(path: &Path) -> PathBuf {
    let mut socket = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
    socket.push(".control.sock");
    socket.into()
}

/// An image that is open in this process, and the jobs that work on it.
pub(crate) struct OpenImage {
    pub(crate) image: Arc<DiskImage>,
    pub(crate) jobs: Arc<Registry>,
}

impl OpenImage {
    pub(crate) fn new(image: Arc<DiskImage>) -> Self {
        Self { image, jobs: Arc::new(Registry::new()) }
    }

    /// Commits while clients use the disk: not the image that they write to.
    pub(crate) fn commit_live(&self, top: Option<&Path>, base: Option<&Path>) -> Result<JobInfo> {
        let own = self.image.path().canonicalize().ok();
        let is_own = top.is_none_or(|top| top.canonicalize().ok() == own);
        if is_own {
            let object = self.image.path().display().to_string();
            let problem = "is being served, and is not committed while clients write to it";
            return Err(Error::new(ErrorKind::Unsupported, object, problem).advise(
                "name an image below it with --top, stream it, or commit it when it is not served",
            ));
        }
        self.commit(top, base)
    }

    fn begin(&self, kind: &str, work: Box<dyn Work>) -> Result<JobInfo> {
        let object = self.image.path().display().to_string();
        let run = move |monitor: &Monitor| run_chain_work(&*work, monitor);
        let size = self.image.size();
        let id: JobId = self.jobs.start(kind, &object, size, run)?;
        self.jobs.show(id).map(JobInfo::from)
    }
}

impl ImageAccess for OpenImage {
    fn chain(&self) -> Result<Vec<ChainImage>> {
        Ok(self.image.chain())
    }

    fn stream(&self, base: Option<&Path>) -> Result<JobInfo> {
        self.begin("stream", self.image.stream(base)?)
    }

    fn commit(&self, top: Option<&Path>, base: Option<&Path>) -> Result<JobInfo> {
        self.begin("commit", self.image.commit(top, base)?)
    }

    fn rebase(&self, backing: &Path, options: &ImageOptions) -> Result<JobInfo> {
        self.begin("rebase", self.image.rebase(backing, options)?)
    }

    fn snapshots(&self) -> Result<Vec<ImageSnapshot>> {
        self.image.snapshots()
    }

    fn create_snapshot(&self, name: &str) -> Result<ImageSnapshot> {
        self.image.create_snapshot(name)
    }

    fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.image.delete_snapshot(name)
    }

    fn revert_to_snapshot(&self, name: &str) -> Result<()> {
        self.image.revert_to_snapshot(name)
    }

    fn is_served(&self) -> bool {
        false
    }

    fn jobs(&self) -> &dyn JobAccess {
        &*self.jobs
    }

    fn close(&self) -> Result<()> {
        if !self.jobs.shutdown(job::PATIENCE) {
            let object = self.image.path().display().to_string();
            let problem = "a job does not end, though it was cancelled";
            return Err(Error::new(ErrorKind::Busy, object, problem));
        }
        self.image.close()
    }
}
