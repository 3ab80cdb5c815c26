//! The jobs of a daemon, or of this process: [`JobAccess`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use block_types::{ByteCount, Error, Result};
use jobs::{JobId, Registry};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use volume::{PoolDirectory, VolumeName};

use crate::api::Problem;

/// How long jobs that were cancelled may take for the steps that they are in.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A job at one moment. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// Its number, which no other job of the process ever has.
    pub id: u64,
    /// What is done: `commit`, `stream`, ...
    pub kind: String,
    /// To what.
    pub object: String,
    /// `running`, `paused`, `ready` (to complete), `done`, `failed` or `cancelled`.
    pub state: String,
    /// What it covers; may grow.
    pub total: u64,
    /// What it has dealt with.
    pub done: u64,
    /// What it may move in a second, if there is a limit.
    pub rate: Option<u64>,
    /// When it began, in RFC 3339.
    pub started: String,
    /// How many milliseconds it has run, or ran.
    pub elapsed: u64,
    /// Why it failed or was cancelled.
    pub error: Option<Problem>,
    /// What it found or did, once it is done, where it has anything to tell.
    #[schema(value_type = Object)]
    pub result: Option<Value>,
}

impl JobInfo {
    /// Whether nothing will change any more.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }

    /// Why it ended early, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.error.clone().map(Error::from)
    }
}

impl From<jobs::JobReport> for JobInfo {
    fn from(report: jobs::JobReport) -> Self {
        Self {
            id: report.id.get(),
            kind: report.kind,
            object: report.object,
            state: report.state.name().to_owned(),
            total: report.total.get(),
            done: report.done.get(),
            rate: report.rate.map(ByteCount::get),
            started: moment(report.started),
            elapsed: u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
            error: report.error.map(|error| Problem::from(&*error)),
            result: report.result,
        }
    }
}

/// A moment in RFC 3339.
fn moment(at: SystemTime) -> String {
    // A clock that stands outside the years 0 to 9999 is of no use to anybody.
    jiff::Timestamp::try_from(at).unwrap_or_default().to_string()
}

/// Begins to free a volume of `pool` from its external origin.
pub(crate) fn hydrate(
    jobs: &Registry,
    pool: &Arc<PoolDirectory>,
    name: &VolumeName,
    family: bool,
    rate: Option<ByteCount>,
) -> Result<JobInfo> {
    let hydration = pool.hydration(name, family)?;
    let object = format!("{}/{name}", pool.path().display());
    let total = hydration.total();
    let id = jobs.start("hydrate", &object, total, move |monitor| {
        monitor.set_rate(rate);
        jobs::hydrate(hydration, monitor)
    })?;
    JobAccess::show(jobs, id.get())
}

/// What can be asked of jobs: the same answers, whether they run in this process or in a daemon.
pub trait JobAccess: Send + Sync {
    /// Those that run, and the latest that did, the oldest first.
    fn list(&self) -> Result<Vec<JobInfo>>;

    /// One job.
    fn show(&self, id: u64) -> Result<JobInfo>;

    /// Has it wait, once the requests in flight are done.
    fn pause(&self, id: u64) -> Result<JobInfo>;

    /// Lets it go on.
    fn resume(&self, id: u64) -> Result<JobInfo>;

    /// Has it end as soon as the requests in flight are done.
    fn cancel(&self, id: u64) -> Result<JobInfo>;

    /// Gives it the word to complete.
    fn complete(&self, id: u64) -> Result<JobInfo>;

    /// Limits the bytes that it may move in a second; 0 for no limit.
    fn set_rate(&self, id: u64, rate: u64) -> Result<JobInfo>;
}

/// The jobs of this process.
impl JobAccess for Registry {
    fn list(&self) -> Result<Vec<JobInfo>> {
        Ok(Self::list(self).into_iter().map(JobInfo::from).collect())
    }

    fn show(&self, id: u64) -> Result<JobInfo> {
        Self::show(self, JobId::new(id)).map(JobInfo::from)
    }

    fn pause(&self, id: u64) -> Result<JobInfo> {
        self.monitor(JobId::new(id))?.pause();
        JobAccess::show(self, id)
    }

    fn resume(&self, id: u64) -> Result<JobInfo> {
        self.monitor(JobId::new(id))?.resume();
        JobAccess::show(self, id)
    }

    fn cancel(&self, id: u64) -> Result<JobInfo> {
        self.monitor(JobId::new(id))?.cancel();
        JobAccess::show(self, id)
    }

    fn complete(&self, id: u64) -> Result<JobInfo> {
        self.monitor(JobId::new(id))?.complete();
        JobAccess::show(self, id)
    }

    fn set_rate(&self, id: u64, rate: u64) -> Result<JobInfo> {
        self.monitor(JobId::new(id))?.set_rate(Some(ByteCount::new(rate)));
        JobAccess::show(self, id)
    }
}
