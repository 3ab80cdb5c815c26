//! fio: the client that everybody knows, and the bare file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::peer;

use super::rows::{Access, Cache, Load, Sample};

/// Runs `load` against an NBD export by fio's own engine.
pub(super) fn over_nbd(uri: &str, load: Load, length: Duration) -> Result<Sample> {
    run(&["--ioengine=nbd".to_owned(), format!("--uri={uri}")], load, length)
}

/// Runs `load` against the bare file: by blocking calls on cached data, else through io_uring.
pub(super) fn on_file(file: &Path, load: Load, cache: Cache, length: Duration) -> Result<Sample> {
    let engine = match cache {
        Cache::Small => ["--ioengine=psync", "--direct=0"],
        Cache::Direct => ["--ioengine=io_uring", "--direct=1"],
    };
    let mut target = engine.map(str::to_owned).to_vec();
    // A dropped cache would be filled again in another state.
    target.extend(["--invalidate=0".to_owned(), format!("--filename={}", file.display())]);
    run(&target, load, length)
}

fn run(target: &[String], load: Load, length: Duration) -> Result<Sample> {
    let access = match load.access {
        Access::Read => "randread",
        Access::Write => "randwrite",
    };
    let outcome = peer::Peer::find("fio")?
        .args(["--name=bench", "--thread", "--time_based", "--output-format=json", "--norandommap"])
        .arg(format!("--rw={access}"))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--runtime={}ms", length.as_millis()))
        .args(target)
        .limit(length + Duration::from_secs(60))
        .run();
    ensure!(outcome.code() == Some(0), "{outcome}");
    parse(&outcome.text(), load.access).with_context(|| outcome.to_string())
}

/// The figures in fio's report; the processor time is fio's own, which is the whole cost where
/// there is no server.
fn parse(report: &str, access: Access) -> Result<Sample> {
    // Warnings may stand before the report.
    let start = report.find('{').context("no report")?;
    let report: Value = serde_json::from_str(&report[start..])?;
    let job = &report["jobs"][0];
    let side = match access {
        Access::Read => &job["read"],
        Access::Write => &job["write"],
    };
    let number = |value: &Value, name: &str| value[name].as_f64().with_context(|| name.to_owned());
    let requests = number(side, "total_ios")?;
    ensure!(requests > 0.0, "no request was completed");
    let busy = (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0;
    let run_us = number(side, "runtime")? * 1000.0;
    Ok(Sample {
        requests: requests as u64,
        per_second: number(side, "iops")?,
        median_us: number(&side["clat_ns"]["percentile"], "50.000000")? / 1000.0,
        cpu_us: busy * run_us / requests,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::bench::rows::Access;

    #[test]
    fn reads_the_report() {
        let report = r#"fio: a warning
            {"jobs": [{"usr_cpu": 10.0, "sys_cpu": 40.0, "write": {}, "read": {"total_ios": 1000,
             "iops": 2000.0, "runtime": 500, "clat_ns": {"percentile": {"50.000000": 7000}}}}]}"#;
        let sample = parse(report, Access::Read).unwrap();
        assert_eq!(sample.requests, 1000);
        assert!((sample.cpu_us - 250.0).abs() < 1e-9);
        assert!((sample.median_us - 7.0).abs() < 1e-9);
        assert!(parse(report, Access::Write).is_err());
    }
}
