//! How long a program takes, and how much memory.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::memory::{field, status};

/// How often a program's memory is looked at; its peak only grows.
const POLL: Duration = Duration::from_millis(2);

/// What a program took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) seconds: f64,
    /// The most memory it had at once, in KiB.
    pub(super) peak: f64,
}

/// Runs `command` to its end, its output into `output`.
pub(super) fn of(mut command: Command, output: File) -> Result<Usage> {
    let line = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    let begun = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {line}"))?;
    let (ended, pid) = (AtomicBool::new(false), child.id());
    let (output, seconds, peak) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(pid, &ended));
        let output = Child::wait_with_output(child);
        let seconds = begun.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (output, seconds, watcher.join().expect("the watcher does not panic"))
    });
    let output = output?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}: {said}", output.status);
    Ok(Usage { seconds, peak: peak as f64 })
}

/// The peak of a process's memory, until it has `ended`.
fn watch(pid: u32, ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !ended.load(Ordering::Relaxed) {
        // A process that is gone, or nearly so, has no figure any more.
        if let Ok(now) = status(pid).and_then(|status| field(&status, "VmHWM")) {
            peak = peak.max(now);
        }
        thread::sleep(POLL);
    }
    peak
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn tells_time_and_memory() {
        let output = || tempfile::tempfile().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 0.1; echo $x"]);
        let usage = super::of(command, output()).unwrap();
        assert!(usage.seconds >= 0.1, "{usage:?}");
        assert!(usage.peak >= 20_000_000.0 / 1024.0, "{usage:?}");

        let mut command = Command::new("sh");
        command.args(["-c", "echo broken >&2; exit 3"]);
        let error = super::of(command, output()).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }
}
