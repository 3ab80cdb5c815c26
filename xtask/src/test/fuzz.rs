//! `fuzz`: every target for a while, from the seeds in `fuzz/corpus`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step;

/// Seconds for all targets together, unless `FIRN_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 60;

/// What the targets are built for; the kernel runner knows no other machine, either.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Runs `[TARGET [SECONDS]]`, or all targets.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let targets = targets()?;
    let (targets, seconds) = match words {
        [] => {
            let each = total_seconds()?.div_ceil(targets.len() as u64);
            (targets, each)
        }
        [target, rest @ ..] if rest.len() <= 1 => {
            ensure!(targets.iter().any(|known| known == target), "no fuzz target {target}");
            let seconds = rest.first().map_or(Ok(SECONDS), |word| word.parse())?;
            (vec![(*target).to_owned()], seconds)
        }
        _ => bail!("usage: cargo xtask fuzz [TARGET [SECONDS]]"),
    };
    // 0 would mean for ever.
    ensure!(seconds > 0, "not even a second");
    build()?;
    targets.iter().try_for_each(|target| run_target(target, seconds))
}

/// The targets, which `fuzz/Cargo.toml` lists as binaries.
fn targets() -> Result<Vec<String>> {
    let path = step::root().join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let manifest: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    let binaries = manifest.get("bin").and_then(toml::Value::as_array);
    let names = binaries.into_iter().flatten().filter_map(|bin| bin.get("name")?.as_str());
    let targets: Vec<String> = names.map(str::to_owned).collect();
    ensure!(!targets.is_empty(), "{} lists no targets", path.display());
    Ok(targets)
}

fn total_seconds() -> Result<u64> {
    match std::env::var("FIRN_FUZZ_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("FIRN_FUZZ_SECONDS={text}")),
        Err(_) => Ok(SECONDS),
    }
}

fn run_target(target: &str, seconds: u64) -> Result<()> {
    let root = step::root();
    // libFuzzer writes what it finds into the first folder; the seeds stay as they are.
    let found = root.join("fuzz/target/found").join(target);
    let artifacts = root.join("fuzz/artifacts").join(target);
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let seeds = root.join("fuzz/corpus").join(target);
    ensure!(seeds.is_dir(), "{} lacks seeds", seeds.display());
    // Not by `cargo fuzz run`, which on a failure prints the input byte by byte.
    let mut command =
        Command::new(root.join("fuzz/target").join(TRIPLE).join("release").join(target));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.args(["-max_len=131072", "-rss_limit_mb=2048", "-timeout=10", "-verbosity=0"]);
    command.arg(found).arg(seeds).current_dir(root);
    step::run(command)
}

/// Builds all targets. Coverage of the pinned compiler is enough here, and its flags are unlocked
/// by the variable; the address sanitizer alone would need a nightly compiler, for parsers without
/// unsafe code.
fn build() -> Result<()> {
    let words = ["fuzz", "build", "--sanitizer", "none", "--target", TRIPLE];
    let mut command = step::cargo(&words);
    command.env("RUSTC_BOOTSTRAP", "1");
    step::run(command)
}
