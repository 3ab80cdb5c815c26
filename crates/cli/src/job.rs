//! `firn job`: the long work that a daemon is doing.

use std::path::PathBuf;
use std::time::Duration;

use block_types::{ByteCount, Result, format_size};
use clap::{Args, Subcommand};
use daemon::{JobAccess, JobInfo};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress;
use crate::size::size;
use crate::table::{Table, moment};

/// The verbs of jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    List(List),
    /// Show one job.
    #[command(after_long_help = "EXAMPLE\n  firn job show lab 3")]
    Show(One),
    /// Have a job wait, once its requests in flight are done.
    #[command(after_long_help = "EXAMPLE\n  firn job pause lab 3")]
    Pause(One),
    /// Let a job go on.
    #[command(after_long_help = "EXAMPLE\n  firn job resume lab 3")]
    Resume(One),
    /// Have a job end early. What it works on reads as before, and it can be begun again.
    #[command(after_long_help = "EXAMPLE\n  firn job cancel lab 3")]
    Cancel(One),
    /// Have a job that is ready do its last step.
    #[command(after_long_help = "EXAMPLE\n  firn job complete disk.qcow2 3")]
    Complete(One),
    Rate(Rate),
    Wait(Wait),
}

/// List the jobs of a daemon: those that run, and the latest that did.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn job list lab")]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
}

/// What is served.
#[derive(Args, Debug)]
struct Target {
    /// What a daemon serves: a pool's directory, an image, or an origin.
    #[arg(value_name = "TARGET")]
    path: PathBuf,
}

/// A job.
#[derive(Args, Debug)]
pub(crate) struct One {
    #[command(flatten)]
    target: Target,

    /// The job's number.
    #[arg(value_name = "ID")]
    id: u64,
}

/// Limit what a job moves in a second.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn job rate lab 3 50M")]
pub(crate) struct Rate {
    #[command(flatten)]
    job: One,

    /// Bytes in a second; 0 for no limit.
    #[arg(value_name = "SIZE", value_parser = size)]
    rate: ByteCount,
}

/// Wait for the end of a job, or of all, and fail if it failed.
///
/// Shows how far it is. Ctrl-C ends the waiting only.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn job wait lab 3\n  firn job wait lab")]
pub(crate) struct Wait {
    #[command(flatten)]
    target: Target,

    /// The job's number; all that run, if none is said.
    #[arg(value_name = "ID")]
    id: Option<u64>,
}

/// Does what a verb says.
pub(crate) fn run(verb: &JobVerb, output: Output) -> Outcome {
    match verb {
        JobVerb::List(list) => list.run(output),
        JobVerb::Show(one) => {
            let job = one.jobs()?.show(one.id)?;
            output.result(&job, || details(&job))?;
            Ok(DONE)
        }
        JobVerb::Pause(one) => one.tell(output, |jobs| jobs.pause(one.id)),
        JobVerb::Resume(one) => one.tell(output, |jobs| jobs.resume(one.id)),
        JobVerb::Cancel(one) => one.tell(output, |jobs| {
            jobs.cancel(one.id)?;
            over(jobs, one.id)
        }),
        JobVerb::Complete(one) => one.tell(output, |jobs| jobs.complete(one.id)),
        JobVerb::Rate(rate) => {
            rate.job.tell(output, |jobs| jobs.set_rate(rate.job.id, rate.rate.get()))
        }
        JobVerb::Wait(wait) => wait.run(output),
    }
}

/// Waits until a job that was cancelled is over, whatever it came to.
fn over(jobs: &dyn JobAccess, id: u64) -> Result<JobInfo> {
    loop {
        let job = jobs.show(id)?;
        if job.is_over() {
            return Ok(job);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl List {
    fn run(&self, output: Output) -> Outcome {
        let jobs = daemon::jobs(&self.target.path)?.list()?;
        output.result(&jobs, || table(&jobs))?;
        Ok(DONE)
    }
}

impl One {
    fn jobs(&self) -> Result<Box<dyn JobAccess>> {
        daemon::jobs(&self.target.path)
    }

    fn tell(
        &self,
        output: Output,
        work: impl FnOnce(&dyn JobAccess) -> Result<JobInfo>,
    ) -> Outcome {
        let job = work(&*self.jobs()?)?;
        output.done(&job, || sentence(&job))?;
        Ok(DONE)
    }
}

impl Wait {
    fn run(&self, output: Output) -> Outcome {
        let jobs = daemon::jobs(&self.target.path)?;
        let ids = match self.id {
            Some(id) => vec![id],
            None => {
                let running = jobs.list()?.into_iter().filter(|job| !job.is_over());
                running.map(|job| job.id).collect()
            }
        };
        let mut ended = Vec::new();
        for id in ids {
            let kind = jobs.show(id)?.kind;
            ended.push(progress::watch(&*jobs, id, &kind, output)?);
        }
        output.done(&ended, || ended.iter().map(sentence).collect::<Vec<_>>().join("\n"))?;
        Ok(DONE)
    }
}

/// The state of a job in a sentence.
fn sentence(job: &JobInfo) -> String {
    let mut text = format!("job {}, {} of {}: {}", job.id, job.kind, job.object, job.state);
    if let Some(rate) = job.rate {
        text += &format!(", at most {}/s", format_size(ByteCount::new(rate)));
    }
    text
}

/// How far a job is.
fn share(job: &JobInfo) -> String {
    // Nothing to do is done.
    let share = (u128::from(job.done) * 100).checked_div(u128::from(job.total)).unwrap_or(100);
    format!("{}%", share.min(100))
}

fn table(jobs: &[JobInfo]) -> String {
    let headings = ["ID", "KIND", "OBJECT", "STATE", "DONE", "OF", "STARTED"];
    let mut table = Table::new(&headings, &[0, 4, 5]);
    for job in jobs {
        table.add([
            job.id.to_string(),
            job.kind.clone(),
            job.object.clone(),
            job.state.clone(),
            share(job),
            format_size(ByteCount::new(job.total)),
            moment(Some(&job.started)),
        ]);
    }
    table.render()
}

fn details(job: &JobInfo) -> String {
    let size = |bytes| format_size(ByteCount::new(bytes));
    let mut lines = vec![
        ("job", job.id.to_string()),
        ("kind", job.kind.clone()),
        ("object", job.object.clone()),
        ("state", job.state.clone()),
        ("done", format!("{} of {} ({})", size(job.done), size(job.total), share(job))),
        ("started", moment(Some(&job.started))),
        ("running for", format!("{}.{:03} s", job.elapsed / 1000, job.elapsed % 1000)),
    ];
    if let Some(rate) = job.rate {
        lines.push(("at most", format!("{}/s", size(rate))));
    }
    if let Some(error) = job.failure() {
        lines.push(("error", error.to_string()));
    }
    if let Some(result) = &job.result {
        lines.push(("result", result.to_string()));
    }
    lines.iter().map(|(name, value)| format!("{:<13}{value}\n", format!("{name}:"))).collect()
}
