//! `firn repo gc`.

use block_types::{ByteCount, format_size};
use clap::Args;
use repository::CollectOptions;
use serde_json::Value;

use super::Target;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress;
use crate::size::size;

/// Remove what nobody needs, and merge what can be merged.
///
/// A row of hidden nodes becomes one, in one pass, into whichever of them costs least; several rows
/// at once. It can be interrupted at any time, and goes on where it was. A served repository is
/// collected by its daemon, which also does it by itself after every deletion.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn repo gc sr --merges 4")]
pub(crate) struct Gc {
    #[command(flatten)]
    target: Target,

    /// Merges at once.
    #[arg(long, value_name = "N", default_value_t = 2)]
    merges: usize,

    /// Bytes to copy in a second at most.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<ByteCount>,
}

impl Gc {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let dir = &self.target.dir;
        let access = daemon::repository_access(dir, false)?;
        let report = match access.local() {
            Some(repository) => {
                let (merges, rate) = (self.merges, self.rate);
                let here = std::sync::Arc::clone(&repository);
                let object = dir.display().to_string();
                let total = ByteCount::ZERO;
                let done = progress::here("collect", &object, total, output, move |monitor| {
                    monitor.set_rate(rate);
                    here.collect(&CollectOptions { merges }, monitor)
                });
                let closed = repository.close();
                let done = done?;
                closed?;
                serde_json::to_value(done).unwrap_or(Value::Null)
            }
            None => {
                let jobs = daemon::jobs(dir)?;
                let Some(job) = access.begin_collecting()? else { return Ok(DONE) };
                let job = progress::attend(&*jobs, job.id, "collect", output)?;
                job.result.unwrap_or(Value::Null)
            }
        };
        output.done(&report, || {
            let count = |key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0);
            let copied = format_size(ByteCount::new(count("copied")));
            format!(
                "{}: {} merges, {copied} copied, {} files removed, {} merges put off",
                dir.display(),
                count("merges"),
                count("removed"),
                count("put-off")
            )
        })?;
        Ok(DONE)
    }
}
