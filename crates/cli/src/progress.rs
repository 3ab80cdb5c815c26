//! Runs a copy, and shows how far it is.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use block_types::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jobs::{CopyJob, CopyReport, Monitor};

use crate::output::Output;

/// How often the bar is drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs `job` to its end, with a bar called `what` where somebody watches.
pub(crate) fn run(job: CopyJob, what: &str, output: Output) -> Result<CopyReport> {
    if !output.shows_progress() {
        return job.run();
    }
    let monitor = job.monitor();
    let (done, waiting) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || done.send(job.run()));
        let bar = bar(&monitor, what);
        loop {
            match waiting.recv_timeout(INTERVAL) {
                Ok(result) => {
                    bar.finish_and_clear();
                    return result;
                }
                Err(RecvTimeoutError::Timeout) => bar.set_position(monitor.done().get()),
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the job's thread sends its result before it ends")
                }
            }
        }
    })
}

fn bar(monitor: &Monitor, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}",
    )
    .expect("the template is fixed and sound")
    .progress_chars("=> ");
    let bar =
        ProgressBar::with_draw_target(Some(monitor.total().get()), ProgressDrawTarget::stderr());
    bar.with_style(style).with_message(what.to_owned())
}
