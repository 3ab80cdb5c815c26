//! The first write to blocks that a snapshot shares: every request copies another block.
//!
//! Firn against qcow2 with internal snapshots, which `qemu-img` takes while nobody serves the
//! image. Both begin every round with a new snapshot, a server just started, and the page cache in
//! the same state; what earlier rounds wrote stays, so both find their space at the end of what
//! they have.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use testkit::peer::Peer;
use testkit::rng::Rng;

use super::Options;
use super::contender::{Contender, set_cache};
use super::hollow::BLOCK;
use super::lab::{Lab, POOL_DATA, VOLUME, copy_pool, run_firn};
use super::pairs::{Outcome, conclude};
use super::report::Line;
use super::rows::{Access, Cache, Figure, Sample, small, with_cpu};
use super::stall::connect;
use super::table::{cell, figure};

/// How many times as fast as qcow2.
const TARGET: f64 = 2.0;

/// A side of the comparison: who serves, and what.
struct Side {
    contender: Contender,
    options: Options,
    disk: PathBuf,
}

/// Measures it past the page cache and through it.
pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (mode, cache) in [("direct", Cache::Direct), ("cached", Cache::Small)] {
        let folder = lab.scratch()?;
        let disk = folder.path().join("disk.qcow2");
        std::fs::copy(lab.qcow2()?, &disk)?;
        let aio = best_aio(&disk, cache, options)?;
        // The search has left snapshots; the rounds begin anew.
        std::fs::copy(lab.qcow2()?, &disk)?;
        let qcow2 = Side::qcow2(disk, aio, options)?;
        let firn = Side::firn(folder.path(), lab, options)?;
        let outcome = play(&firn, &qcow2, cache)?;
        let line = line(&outcome, &format!("qemu-nbd-qcow2, {mode}"), aio);
        eprintln!("{}", line.text());
        lines.push(line);
    }
    Ok(lines)
}

fn play(firn: &Side, qcow2: &Side, cache: Cache) -> Result<Outcome> {
    let (mut of_firn, mut of_qcow2) = (Vec::new(), Vec::new());
    for round in 0..firn.options.rounds {
        let mut run_firn = || firn.round(cache, round).map(|sample| of_firn.push(sample));
        let mut run_qcow2 = || qcow2.round(cache, round).map(|sample| of_qcow2.push(sample));
        if round % 2 == 0 {
            run_firn()?;
            run_qcow2()?;
        } else {
            run_qcow2()?;
            run_firn()?;
        }
    }
    Ok(conclude(Figure::KiloIops, 4096, &of_firn, &of_qcow2))
}

/// qemu-nbd's engine that is fastest here; `native` needs direct I/O.
fn best_aio(disk: &Path, cache: Cache, options: &Options) -> Result<&'static str> {
    let engines: &[&'static str] = match cache {
        Cache::Direct => &["io_uring", "native", "threads"],
        Cache::Small => &["io_uring", "threads"],
    };
    let mut best: Option<(f64, &'static str)> = None;
    for (number, aio) in engines.iter().enumerate() {
        let side = Side::qcow2(disk.to_owned(), aio, options)?;
        let sample = side.round(cache, number).with_context(|| format!("--aio={aio}"))?;
        if best.is_none_or(|(speed, _)| sample.per_second > speed) {
            best = Some((sample.per_second, aio));
        }
    }
    Ok(best.context("there are engines")?.1)
}

impl Side {
    fn qcow2(disk: PathBuf, aio: &str, options: &Options) -> Result<Self> {
        let contender = Contender::named("qemu-nbd-qcow2", options)?;
        let options = Options { aio: aio.to_owned(), ..options.clone() };
        Ok(Self { contender, options, disk })
    }

    /// A copy of the pool that has room for what the rounds write.
    fn firn(folder: &Path, lab: &Lab, options: &Options) -> Result<Self> {
        let pool = folder.join("pool");
        copy_pool(&lab.pool()?, &pool)?;
        let size = options.size * (options.rounds as u64 + 2);
        let name = pool.display().to_string();
        run_firn(&["pool", "grow", &name, "--size", &size.to_string()])?;
        let contender = Contender::named("firn", options)?;
        Ok(Self { contender, options: options.clone(), disk: pool.join(POOL_DATA) })
    }

    /// Takes a snapshot, starts the server and writes.
    fn round(&self, cache: Cache, round: usize) -> Result<Sample> {
        self.snapshot(&format!("round{round}"))?;
        set_cache(&self.disk, cache)?;
        let running = self.contender.start_on(self.disk.clone(), cache, &self.options)?;
        let mut client = connect(&running)?;
        let mut blocks: Vec<u64> = (0..client.size() / BLOCK).collect();
        let mut rng = Rng::new(round as u64);
        for end in (1..=blocks.len()).rev() {
            blocks.swap(rng.index(end), end - 1);
        }
        // A short request somewhere inside its block, so that there is something to copy around it.
        let offsets = blocks.into_iter().map(|block| block * BLOCK + rng.within(0..16) * 4096);
        let deadline = std::time::Instant::now() + 4 * self.options.length;
        let offsets = offsets.take_while(|_| std::time::Instant::now() < deadline);
        let sample = with_cpu(running.target(), || client.each(small(Access::Write), offsets))?;
        drop(client);
        running.stop()?;
        Ok(sample)
    }

    fn snapshot(&self, name: &str) -> Result<()> {
        if self.contender.name() == "firn" {
            let pool = self.disk.parent().context("data lies in a pool")?.display();
            return run_firn(&["snapshot", "create", &format!("{pool}/{VOLUME}@{name}")]);
        }
        let disk = self.disk.display().to_string();
        let outcome = Peer::find("qemu-img")?.args(["snapshot", "-c", name, &disk]).run();
        ensure!(outcome.code() == Some(0), "{outcome}");
        Ok(())
    }
}

fn line(outcome: &Outcome, against: &str, aio: &str) -> Line {
    Line {
        what: "first-write".to_owned(),
        against: against.to_owned(),
        target: format!(">= {TARGET}x"),
        reached: format!("{}x", figure(outcome.ratio.median)),
        figures: format!(
            "ratio {}; {} against {} kIOPS (its --aio={aio}); CPU {} against {} us",
            cell(&outcome.ratio),
            cell(&outcome.a),
            cell(&outcome.b),
            figure(outcome.cpu_a.median),
            figure(outcome.cpu_b.median),
        ),
        met: outcome.ratio.median >= TARGET,
    }
}
