//! A job as the outside sees it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use block_types::{ByteCount, Error};
use serde_json::Value;

/// The number of a job, unique in its registry and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    /// The job with this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It works.
    Running,
    /// It waits until it is resumed.
    Paused,
    /// It keeps what it has made up to date, and waits for the word to complete.
    Ready,
    /// It has ended well.
    Done,
    /// It has ended with an error.
    Failed,
    /// It has ended because somebody asked it to.
    Cancelled,
}

impl JobState {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job at one moment.
#[derive(Clone, Debug)]
pub struct JobReport {
    /// Its number.
    pub id: JobId,
    /// What is done: "commit", "stream", ...
    pub kind: String,
    /// To what.
    pub object: String,
    /// Where it is in its life.
    pub state: JobState,
    /// Bytes that it covers.
    pub total: ByteCount,
    /// Bytes dealt with.
    pub done: ByteCount,
    /// Bytes that it may move in a second, if there is a limit.
    pub rate: Option<ByteCount>,
    /// When it began.
    pub started: SystemTime,
    /// How long it has run, or ran.
    pub elapsed: Duration,
    /// Why it failed or was cancelled.
    pub error: Option<Arc<Error>>,
    /// What it found or did, once it is done, where it has anything to tell.
    pub result: Option<Value>,
}
