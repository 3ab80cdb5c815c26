//! The jobs of a process: [`Registry`].

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde_json::Value;

use crate::{JobId, JobReport, JobState, Monitor};

/// Jobs that are over are remembered up to this number, the latest ones.
const REMEMBERED: usize = 100;

/// As good as without end, and still a time that a clock can show.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// The jobs that run in this process, each on a thread of its own, and the latest that did.
///
/// Dropping it cancels all jobs and waits for their ends.
#[derive(Debug, Default)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    /// A job has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    latest: u64,
    closed: bool,
    all: BTreeMap<JobId, Job>,
}

#[derive(Debug)]
struct Job {
    kind: String,
    object: String,
    monitor: Arc<Monitor>,
    started: SystemTime,
    clock: Instant,
    /// Until it has been joined.
    thread: Option<JoinHandle<()>>,
    end: Option<End>,
}

/// How a job ended.
#[derive(Debug)]
struct End {
    elapsed: Duration,
    outcome: std::result::Result<Value, Arc<Error>>,
}

impl Registry {
    /// A registry without jobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins `work` on a thread of its own: a job of this `kind` on `object`, over `total` bytes
    /// as far as is known yet. What it returns is kept as the result of the job; `()` for nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Stopped`] after [`Registry::shutdown`]; [`ErrorKind::Io`] if there are no more
    /// threads.
    pub fn start<R: Serialize>(
        &self,
        kind: &str,
        object: &str,
        total: ByteCount,
        work: impl FnOnce(&Monitor) -> Result<R> + Send + 'static,
    ) -> Result<JobId> {
        let monitor = Arc::new(Monitor::new(total));
        let mut jobs = self.shared.jobs.lock();
        if jobs.closed {
            let problem = format!("cannot {kind}: everything is being stopped");
            return Err(Error::new(ErrorKind::Stopped, object, problem));
        }
        let id = JobId::new(jobs.latest + 1);
        let run = {
            let (shared, monitor) = (Arc::clone(&self.shared), Arc::clone(&monitor));
            let object = object.to_owned();
            move || {
                let outcome = outcome(&object, || work(&monitor));
                shared.end(id, outcome);
            }
        };
        let thread = std::thread::Builder::new().name(format!("{kind} {id}"));
        let thread = thread
            .spawn(run)
            .map_err(|error| Error::io(object, format!("no thread can be had to {kind}"), error))?;
        jobs.latest = id.get();
        jobs.all.insert(
            id,
            Job {
                kind: kind.to_owned(),
                object: object.to_owned(),
                monitor,
                started: SystemTime::now(),
                clock: Instant::now(),
                thread: Some(thread),
                end: None,
            },
        );
        jobs.forget();
        Ok(id)
    }

    /// All jobs, the oldest first.
    pub fn list(&self) -> Vec<JobReport> {
        self.shared.jobs.lock().all.iter().map(|(id, job)| job.report(*id)).collect()
    }

    /// One job.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn show(&self, id: JobId) -> Result<JobReport> {
        self.shared.jobs.lock().all.get(&id).map(|job| job.report(id)).ok_or_else(|| unknown(id))
    }

    /// The hands on a job that is not over.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Invalid`] if it is over.
    pub fn monitor(&self, id: JobId) -> Result<Arc<Monitor>> {
        let jobs = self.shared.jobs.lock();
        let job = jobs.all.get(&id).ok_or_else(|| unknown(id))?;
        match job.end {
            None => Ok(Arc::clone(&job.monitor)),
            Some(_) => {
                let problem = format!("is over: it is {}", job.state().name());
                Err(Error::new(ErrorKind::Invalid, format!("job {id}"), problem))
            }
        }
    }

    /// Waits until a job is over, for at most `patience`, and says how it stands.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn wait(&self, id: JobId, patience: Duration) -> Result<JobReport> {
        let until = Instant::now() + patience;
        let mut jobs = self.shared.jobs.lock();
        loop {
            let job = jobs.all.get(&id).ok_or_else(|| unknown(id))?;
            if job.end.is_some() || Instant::now() >= until {
                return Ok(job.report(id));
            }
            self.shared.ended.wait_until(&mut jobs, until);
        }
    }

    /// Starts no more jobs, cancels all, and waits for their ends, for at most `patience`; whether
    /// all have ended. One that has not goes on by itself.
    pub fn shutdown(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut jobs = self.shared.jobs.lock();
        jobs.closed = true;
        for job in jobs.all.values() {
            job.monitor.cancel();
        }
        while jobs.all.values().any(|job| job.end.is_none()) {
            if self.shared.ended.wait_until(&mut jobs, until).timed_out() {
                break;
            }
        }
        let ended = jobs.all.values_mut().filter(|job| job.end.is_some());
        let threads: Vec<_> = ended.filter_map(|job| job.thread.take()).collect();
        let orderly = jobs.all.values().all(|job| job.end.is_some());
        drop(jobs);
        for thread in threads {
            // A panic of the job's was caught, and is how it ended.
            let _ = thread.join();
        }
        orderly
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shutdown(FOREVER);
    }
}

impl Shared {
    /// Notes how the job `id` ended.
    fn end(&self, id: JobId, outcome: std::result::Result<Value, Arc<Error>>) {
        // The job is entered under the same lock that it was started under.
        let mut jobs = self.jobs.lock();
        if let Some(job) = jobs.all.get_mut(&id) {
            job.end = Some(End { elapsed: job.clock.elapsed(), outcome });
        }
        drop(jobs);
        self.ended.notify_all();
    }
}

impl Jobs {
    /// Forgets the oldest of those that are over, where there are too many.
    fn forget(&mut self) {
        let over = self.all.iter().filter(|(_, job)| job.end.is_some());
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        for id in &over[..over.len().saturating_sub(REMEMBERED)] {
            self.all.remove(id);
        }
    }
}

impl Job {
    fn state(&self) -> JobState {
        match &self.end {
            Some(End { outcome: Ok(_), .. }) => JobState::Done,
            Some(End { outcome: Err(error), .. }) if error.kind() == ErrorKind::Cancelled => {
                JobState::Cancelled
            }
            Some(_) => JobState::Failed,
            None if self.monitor.is_paused() => JobState::Paused,
            None if self.monitor.is_ready() => JobState::Ready,
            None => JobState::Running,
        }
    }

    fn report(&self, id: JobId) -> JobReport {
        let (result, error) = match self.end.as_ref().map(|end| &end.outcome) {
            Some(Ok(value)) => (Some(value.clone()).filter(|value| !value.is_null()), None),
            Some(Err(error)) => (None, Some(Arc::clone(error))),
            None => (None, None),
        };
        JobReport {
            id,
            kind: self.kind.clone(),
            object: self.object.clone(),
            state: self.state(),
            total: self.monitor.total(),
            done: self.monitor.done(),
            rate: self.monitor.rate(),
            started: self.started,
            elapsed: self.end.as_ref().map_or_else(|| self.clock.elapsed(), |end| end.elapsed),
            error,
            result,
        }
    }
}

/// What `work` comes to, whatever it does.
fn outcome<R: Serialize>(
    object: &str,
    work: impl FnOnce() -> Result<R>,
) -> std::result::Result<Value, Arc<Error>> {
    // What a panic may have left half done belongs to the job, and nobody looks at it again.
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::new(ErrorKind::Io, object, format!("the job panicked: {}", words(&*panic))))
    });
    let value = result.and_then(|result| {
        serde_json::to_value(result).map_err(|error| {
            Error::new(ErrorKind::Invalid, object, "the job's result has no JSON form")
                .because(error)
        })
    });
    value.map_err(Arc::new)
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

fn unknown(id: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("job {id}"), "there is no such job")
        .advise("'firn job list' shows what there is")
}

#[cfg(test)]
mod tests;
