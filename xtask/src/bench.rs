//! `bench`: two contenders in turn, on the same files, in the same state of the page cache.
//!
//! A single run says little on a shared machine; so every row is measured in rounds of A and B (the
//! order changes from round to round), and what counts is the ratio within a round: its median,
//! with the smallest and the largest. CPU per request is the server's alone and the steadier
//! figure.

mod cache;
mod client;
mod contender;
mod control;
mod cow;
mod cpu;
mod fio;
mod first;
mod gates;
mod hollow;
mod lab;
mod memory;
mod metadata;
mod notes;
mod pairs;
mod report;
mod rows;
mod stall;
mod table;
mod tools;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::step;
use contender::Contender;
use lab::Lab;
use report::Line;
use rows::ROWS;

const HELP: &str = "\
usage: cargo xtask bench [OPTIONS]

Without contenders: Firn against everyone whom it has to hold a target against, what snapshots
cost, and the tools for metadata (rows 'pool ...') against thin-provisioning-tools 1.x, if those are
the first on the PATH; with the targets beside what was reached.

  --write             write docs/benchmarks.md; rows that are not measured keep their lines
  --a NAME --b NAME   two contenders instead (firn, qemu-nbd-raw); one or more for b, with commas
                      firn, qemu-nbd-raw, qemu-nbd-qcow2, nbdkit, bare, command; firn-aged has
                      1,000 snapshots, firn-scattered the same blocks without them
  --command LINE      what 'command' starts: {socket} and {file} are put in, {cache} becomes
                      none or writeback
  --rows WORD         only rows whose names contain WORD
  --rounds N          rounds of A and B (5)
  --seconds S         length of one measurement (1)
  --size SIZE         size of the disk (1G)
  --aio NAME          qemu-nbd's engine: io_uring, threads, native (io_uring)
  --folder DIR        where the disks go (target/bench); they stay there for the next run
  --list              the rows";

/// What the command line asks for.
#[derive(Clone, Debug)]
struct Options {
    a: Option<String>,
    b: Option<Vec<String>>,
    command: Option<String>,
    rows: String,
    rounds: usize,
    length: Duration,
    size: u64,
    aio: String,
    folder: PathBuf,
    write: bool,
}

/// Runs the benchmarks, in a release build of this program.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    match words {
        ["--help" | "-h"] => println!("{HELP}"),
        ["--list"] => {
            let names = ROWS.iter().map(|row| row.name).chain(gates::trials());
            names.map(str::to_owned).chain(tools::names()).for_each(|name| println!("{name}"));
        }
        _ if cfg!(debug_assertions) => {
            // The client's own cost counts: it has to be an optimised one.
            let release = ["run", "--quiet", "--release", "--package", "xtask", "--", "bench"];
            return step::run(step::cargo(&[&release, words].concat()));
        }
        _ => {
            let options = Options::parse(words)?;
            let pairs = options.a.is_some() || options.b.is_some();
            return if pairs { compare(&options, words) } else { measure(&options, words) };
        }
    }
    Ok(())
}

/// Measures everything that has a target.
fn measure(options: &Options, words: &[&str]) -> Result<()> {
    let lab = Lab::new(options)?;
    let peers = gates::peers(&lab, options);
    let promises = gates::promises(&lab, options);
    let tables = [peers, promises, tools::run(&lab, options)];
    ensure!(tables.iter().any(|lines| !lines.is_empty()), "no row contains '{}'", options.rows);
    let texts = tables.each_ref().map(|lines| lines.iter().map(Line::text).collect());
    println!("{}", report::render(words, &texts));
    if options.write {
        report::write(&step::root().join("docs/benchmarks.md"), words, &tables)?;
    }
    Ok(())
}

/// Compares contenders and shows one table per opponent.
fn compare(options: &Options, words: &[&str]) -> Result<()> {
    ensure!(!options.write, "--write is for the rows with targets, without --a and --b");
    let lab = Lab::new(options)?;
    let a = Contender::named(options.a.as_deref().unwrap_or("firn"), options)?;
    let mut text = table::head(words);
    let opponents = options.b.clone().unwrap_or_else(|| vec!["qemu-nbd-raw".to_owned()]);
    for opponent in &opponents {
        let b = Contender::named(opponent, options)?;
        let mut lines = Vec::new();
        for row in ROWS.iter().filter(|row| row.name.contains(&options.rows)) {
            if !(a.plays(row) && b.plays(row)) {
                continue;
            }
            let result = pairs::play(&a, &b, row, &lab, options)
                .with_context(|| format!("{}: {} against {}", row.name, a.name(), b.name()))?;
            eprintln!("{}", table::line(row, &result));
            lines.push(table::line(row, &result));
        }
        text += &table::render(&a, &b, &lines);
    }
    println!("{text}");
    Ok(())
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            a: None,
            b: None,
            command: None,
            rows: String::new(),
            rounds: 5,
            length: Duration::from_secs(1),
            size: 1 << 30,
            aio: "io_uring".to_owned(),
            folder: step::root().join("target/bench"),
            write: false,
        };
        let mut words = words.iter();
        while let Some(&option) = words.next() {
            if option == "--write" {
                options.write = true;
                continue;
            }
            let value =
                words.next().with_context(|| format!("{option}: lacks its value\n{HELP}"))?;
            options.set(option, value).with_context(|| format!("{option} {value}"))?;
        }
        ensure!(options.rounds > 0, "no rounds");
        Ok(options)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--a" => self.a = Some(value.to_owned()),
            "--b" => self.b = Some(value.split(',').map(str::to_owned).collect()),
            "--command" => self.command = Some(value.to_owned()),
            "--rows" => value.clone_into(&mut self.rows),
            "--rounds" => self.rounds = value.parse()?,
            "--seconds" => self.length = Duration::from_secs_f64(value.parse()?),
            "--size" => self.size = parse_size(value)?,
            "--aio" => value.clone_into(&mut self.aio),
            "--folder" => self.folder = value.into(),
            _ => bail!("no such option\n{HELP}"),
        }
        Ok(())
    }
}

/// A size in whole mebibytes.
fn parse_size(text: &str) -> Result<u64> {
    let size = block_types::parse_size(text)?.get();
    ensure!(size > 0 && size.is_multiple_of(1 << 20), "not a multiple of 1 MiB");
    Ok(size)
}
