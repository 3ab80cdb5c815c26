//! Processor time of a server, and where it runs.

use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Seconds of processor time, user and system, that process `pid` has used up with all its threads.
pub(super) fn seconds_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).context(path)?;
    let ticks = ticks(&text).context("the process's line of figures")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// utime + stime, fields 14 and 15 of proc(5). The second is the name in brackets, which may hold
/// blanks and brackets itself.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Keeps every thread of process `pid` on processor 0; its later threads inherit that.
pub(super) fn pin(pid: u32) -> Result<()> {
    set(pid, &one())
}

/// Lets the threads of process `pid` run where this thread may.
pub(super) fn unpin(pid: u32) -> Result<()> {
    set(pid, &sched_getaffinity(None)?)
}

/// Keeps this thread on processor 0.
pub(super) fn pin_this_thread() -> Result<()> {
    Ok(sched_setaffinity(None, &one())?)
}

fn one() -> CpuSet {
    let mut set = CpuSet::new();
    set.set(0);
    set
}

fn set(pid: u32, cpus: &CpuSet) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let thread = name.to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw);
        match sched_setaffinity(Some(thread.context("a thread has a number")?), cpus) {
            // It has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_process_line() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 10 0 0 0 123 45 0 0 20 0 1 0 100 1000 10";
        assert_eq!(super::ticks(line), Some(168));
        assert_eq!(super::ticks("7 (a) S 1"), None);
    }

    #[test]
    fn spinning_takes_processor_time() {
        let pid = std::process::id();
        let before = super::seconds_of(pid).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 200 {
            std::hint::black_box(0);
        }
        assert!(super::seconds_of(pid).unwrap() >= before + 0.05);
    }
}
