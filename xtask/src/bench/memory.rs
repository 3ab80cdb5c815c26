//! The memory of a server that has all mappings of a tebibyte loaded.

use std::fs;

use anyhow::{Context, Result};

use super::Options;
use super::contender::Contender;
use super::hollow::Hollow;
use super::lab::{Lab, POOL_DATA};
use super::report::Line;
use super::rows::Cache;
use super::stall::{connect, load_mappings};

/// The most that is welcome, in KiB.
const TARGET_KIB: u64 = 200 << 10;

/// Serves 1 TiB, reads in every page of its mappings, and looks at the process.
pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Line>> {
    let folder = lab.scratch()?;
    let pool = Hollow { size: 1 << 40, snapshots: 0 }.copy_to(folder.path(), lab)?;
    let firn = Contender::named("firn", options)?;
    let running = firn.start_on(pool.join(POOL_DATA), Cache::Direct, options)?;
    let pid = running.target().server().context("Firn is a server")?;
    let mut client = connect(&running)?;
    let before = status(pid)?;
    load_mappings(&mut client)?;
    let after = status(pid)?;
    let resident = field(&after, "VmRSS")?;
    let line = Line {
        what: "memory".to_owned(),
        against: "1 TiB mapped, 64 KiB blocks".to_owned(),
        target: format!("< {} MiB resident", TARGET_KIB >> 10),
        reached: format!("{} MiB", resident >> 10),
        figures: format!(
            "{} MiB of it anonymous; at most {} MiB so far; {} MiB before the first read",
            field(&after, "RssAnon")? >> 10,
            field(&after, "VmHWM")? >> 10,
            field(&before, "VmRSS")? >> 10,
        ),
        met: resident < TARGET_KIB,
    };
    eprintln!("{}", line.text());
    Ok(vec![line])
}

fn status(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    fs::read_to_string(&path).context(path)
}

/// A figure of proc(5)'s `status`, in KiB.
fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    figure.with_context(|| format!("no {name} in the process's status"))?.parse().context("KiB")
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_status() {
        let status = "Name:\tfirn\nVmRSS:\t  204800 kB\nRssAnon:\t     512 kB\nThreads:\t4\n";
        assert_eq!(super::field(status, "VmRSS").unwrap(), 204_800);
        assert_eq!(super::field(status, "RssAnon").unwrap(), 512);
        assert!(super::field(status, "Rss").is_err());
        assert!(super::field(status, "Threads").is_err());
    }
}
