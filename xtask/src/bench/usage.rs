//! How long a program takes, and how much memory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testkit::peer::find;

/// What a program took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) seconds: f64,
    /// The most memory it had at once, in KiB.
    pub(super) peak: f64,
}

/// Runs a program to its end, its output into `output`.
pub(super) fn of(program: &PathBuf, words: &[String], output: File) -> Result<Usage> {
    // GNU time asks the kernel at the end: who looks from outside never sees the last moment.
    let peak = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(find("time")?);
    command.args(["-q", "-f", "%M", "-o"]).arg(peak.path()).arg(program).args(words);
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    let begun = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let output = child.wait_with_output()?;
    let seconds = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    let peak = fs::read_to_string(peak.path())?;
    Ok(Usage { seconds, peak: peak.trim().parse().context(peak.clone())? })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    #[test]
    fn tells_time_and_memory() {
        let run = |script: &str| {
            let words = ["-c", script].map(str::to_owned);
            super::of(&PathBuf::from("sh"), &words, tempfile::tempfile().unwrap())
        };
        let usage = run("x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 0.1").unwrap();
        assert!(usage.seconds >= 0.1, "{usage:?}");
        assert!(usage.peak >= 20_000_000.0 / 1024.0, "{usage:?}");
        let error = run("echo broken >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }
}
