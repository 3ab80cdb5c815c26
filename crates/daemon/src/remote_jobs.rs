//! The jobs of a daemon, reached through its control socket.

use std::path::Path;
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use hyper::Method;
use volume::find_snapshots;

use crate::api::JobRate;
use crate::client::Client;
use crate::control;
use crate::image_access::control_path;
use crate::job::{JobAccess, JobInfo};

/// How long a daemon that is well may take to answer.
const GREETING: Duration = Duration::from_secs(5);

/// Jobs behind a control socket.
pub(crate) struct RemoteJobs {
    client: Client,
}

/// The jobs of the daemon that serves `target`: a pool's directory, an image, or an origin with
/// snapshots.
///
/// # Errors
/// [`ErrorKind::NotFound`] if no daemon serves it.
pub fn jobs(target: &Path) -> Result<Box<dyn JobAccess>> {
    let origin = find_snapshots(target, None).ok().and_then(|place| place.control);
    let socket = origin.unwrap_or_else(|| match target.is_dir() {
        true => target.join(control::SOCKET),
        false => control_path(target),
    });
    let client = Client::new(&socket)?;
    let jobs = RemoteJobs::new(client);
    jobs.client.get_within::<Vec<JobInfo>>("/v1/jobs", GREETING).map_err(|error| {
        if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Io) {
            return error;
        }
        let object = target.display().to_string();
        Error::new(ErrorKind::NotFound, object, "no daemon serves it, so it has no jobs")
            .advise("jobs of the command itself end with it; 'firn serve' begins a daemon")
    })?;
    Ok(Box::new(jobs))
}

impl RemoteJobs {
    /// The jobs of the daemon behind `client`.
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    fn tell(&self, id: u64, word: &str) -> Result<JobInfo> {
        self.client.ask(Method::POST, &format!("/v1/jobs/{id}/{word}"))
    }
}

impl JobAccess for RemoteJobs {
    fn list(&self) -> Result<Vec<JobInfo>> {
        self.client.ask(Method::GET, "/v1/jobs")
    }

    fn show(&self, id: u64) -> Result<JobInfo> {
        self.client.ask(Method::GET, &format!("/v1/jobs/{id}"))
    }

    fn pause(&self, id: u64) -> Result<JobInfo> {
        self.tell(id, "pause")
    }

    fn resume(&self, id: u64) -> Result<JobInfo> {
        self.tell(id, "resume")
    }

    fn cancel(&self, id: u64) -> Result<JobInfo> {
        self.tell(id, "cancel")
    }

    fn complete(&self, id: u64) -> Result<JobInfo> {
        self.tell(id, "complete")
    }

    fn set_rate(&self, id: u64, rate: u64) -> Result<JobInfo> {
        self.client.send(Method::PATCH, &format!("/v1/jobs/{id}"), &JobRate { rate })
    }
}
