//! Waits for long work, shows how far it is, and has Ctrl-C cancel it.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use block_types::{ByteCount, Error, ErrorKind, Result};
use daemon::{JobAccess, JobInfo, on_interrupt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jobs::{CopyJob, CopyReport, Monitor, Registry};

use crate::output::Output;

/// How often the bar is drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// How soon a job is asked again whether it is over: short ones should not seem long.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// Runs `job` to its end, with a bar called `what` where somebody watches. Ctrl-C cancels it.
pub(crate) fn run(job: CopyJob, what: &str, output: Output) -> Result<CopyReport> {
    let total = job.monitor().total();
    here(what, "copy", total, output, move |monitor| job.run_under(monitor))
}

/// Does `work` over `total` bytes of `object` in this process, with a bar called `what` where
/// somebody watches. Ctrl-C cancels it.
pub(crate) fn here<R: Send + 'static>(
    what: &str,
    object: &str,
    total: ByteCount,
    output: Output,
    work: impl FnOnce(&Monitor) -> Result<R> + Send + 'static,
) -> Result<R> {
    let registry = Registry::new();
    let (send, receive) = channel();
    let id = registry.start(what, object, total, move |monitor| {
        // Fails only where nobody waits for the job any more.
        let _ = send.send(work(monitor)?);
        Ok(())
    })?;
    attend(&registry, id.get(), what, output)?;
    Ok(receive.recv().expect("a job that is done has sent its result"))
}

/// Waits for the end of the job `id`, here or in a daemon, with a bar called `what` where somebody
/// watches. Ctrl-C cancels the job.
///
/// # Errors
/// Why the job failed or was cancelled.
pub(crate) fn attend(jobs: &dyn JobAccess, id: u64, what: &str, output: Output) -> Result<JobInfo> {
    let (interrupted, interrupt) = channel();
    // Fails only where nobody waits any more.
    let _interrupt = on_interrupt(move || {
        let _ = interrupted.send(());
    })?;
    follow(jobs, id, what, output, |interval| match interrupt.recv_timeout(interval) {
        Ok(()) => cancel(jobs, id),
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => {
            std::thread::sleep(interval);
            Ok(())
        }
    })
}

/// The same, but Ctrl-C ends this command and leaves the job alone.
pub(crate) fn watch(jobs: &dyn JobAccess, id: u64, what: &str, output: Output) -> Result<JobInfo> {
    follow(jobs, id, what, output, |interval| {
        std::thread::sleep(interval);
        Ok(())
    })
}

/// Waits for the end of a job; `pause` is what it does between two looks.
fn follow(
    jobs: &dyn JobAccess,
    id: u64,
    what: &str,
    output: Output,
    pause: impl Fn(Duration) -> Result<()>,
) -> Result<JobInfo> {
    let bar = output.shows_progress().then(|| bar(what));
    let mut interval = FIRST_LOOK;
    loop {
        let job = jobs.show(id)?;
        if let Some(bar) = &bar {
            draw(bar, job.done, job.total);
        }
        if job.is_over() {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return job.failure().map_or(Ok(job), Err);
        }
        pause(interval)?;
        interval = (interval * 2).min(INTERVAL);
    }
}

/// Cancels a job, unless it is over by now.
fn cancel(jobs: &dyn JobAccess, id: u64) -> Result<()> {
    match jobs.cancel(id) {
        Err(error) if error.kind() != ErrorKind::Invalid => {
            Err(Error::new(error.kind(), error.object(), "the job could not be cancelled")
                .because(error))
        }
        _ => Ok(()),
    }
}

fn draw(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}

/// A bar whose length is still to be said.
pub(crate) fn bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}",
    )
    .expect("the template is fixed and sound")
    .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    bar.with_style(style).with_message(what.to_owned())
}
