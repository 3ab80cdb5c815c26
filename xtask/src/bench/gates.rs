//! What is to be reached: the rows of the tables with the opponents and the targets that they have.

use anyhow::{Context, Result};

use super::Options;
use super::contender::Contender;
use super::lab::{AGE, Lab};
use super::pairs::{self, Outcome};
use super::report::{Line, failed};
use super::rows::{ROWS, Row};
use super::table::{cell, figure};
use super::{cow, first, memory, stall};

/// A comparison of Firn with an opponent in one row.
struct Gate {
    row: &'static str,
    against: &'static [&'static str],
    figure: Option<Bound>,
    cpu: Option<Bound>,
}

/// What a median has to keep.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// So many times as much as the opponent's, at least.
    Least(f64),
    /// So many times as much as the opponent's, at most.
    Most(f64),
    /// So many microseconds more than the opponent's, at most.
    More(f64),
}

const QEMU: &[&str] = &["qemu-nbd-raw", "qemu-nbd-qcow2"];
const NBDKIT: &[&str] = &["nbdkit"];
const BARE: &[&str] = &["bare"];

const READ_FIO: &str = "cached 4K randread qd32, fio";
const READ_LEAN: &str = "cached 4K randread qd32, lean";
const WRITE_FIO: &str = "cached 4K randwrite qd32, fio";
const WRITE_LEAN: &str = "cached 4K randwrite qd32, lean";
const DIRECT_READ_FIO: &str = "direct 4K randread qd32, fio";
const DIRECT_READ_LEAN: &str = "direct 4K randread qd32, lean";
const DIRECT_WRITE_FIO: &str = "direct 4K randwrite qd32, fio";
const DIRECT_WRITE_LEAN: &str = "direct 4K randwrite qd32, lean";
const ALONE: &str = "cached 4K randread qd1, one CPU";
const LARGE_READ: &str = "cached 1M read qd8, lean";
const LARGE_WRITE: &str = "cached 1M write qd8, lean";
const DIRECT_LARGE_READ: &str = "direct 1M read qd8, lean";
const DIRECT_LARGE_WRITE: &str = "direct 1M write qd8, lean";

const GATES: &[Gate] = &[
    gate(READ_FIO, QEMU, 2.2).cpu(0.45),
    gate(READ_FIO, NBDKIT, 1.5).cpu(0.6),
    gate(READ_LEAN, QEMU, 3.0).cpu(0.3),
    gate(READ_LEAN, NBDKIT, 1.5).cpu(0.5),
    gate(READ_LEAN, BARE, 0.6).cpu_more(0.8),
    gate(WRITE_FIO, QEMU, 2.5).cpu(0.3),
    gate(WRITE_FIO, NBDKIT, 1.3),
    gate(WRITE_LEAN, QEMU, 2.5).cpu(0.3),
    gate(WRITE_LEAN, NBDKIT, 1.3),
    Gate { row: WRITE_LEAN, against: BARE, figure: None, cpu: None }.cpu_more(0.8),
    gate(DIRECT_READ_FIO, QEMU, 1.2).cpu(0.4),
    gate(DIRECT_READ_LEAN, QEMU, 1.2).cpu(0.4),
    gate(DIRECT_READ_LEAN, BARE, 0.65).cpu(1.5),
    gate(DIRECT_WRITE_FIO, QEMU, 1.2).cpu(0.4),
    gate(DIRECT_WRITE_LEAN, QEMU, 1.2).cpu(0.4),
    gate(DIRECT_WRITE_LEAN, BARE, 0.65).cpu(1.5),
    Gate { row: ALONE, against: QEMU, figure: Some(Bound::Most(0.75)), cpu: None },
    Gate { row: ALONE, against: NBDKIT, figure: Some(Bound::Most(0.85)), cpu: None },
    gate(LARGE_READ, QEMU, 1.5),
    gate(LARGE_READ, NBDKIT, 0.85),
    gate(LARGE_WRITE, QEMU, 1.3),
    gate(LARGE_WRITE, NBDKIT, 0.85),
    gate(DIRECT_LARGE_READ, QEMU, 0.9),
    gate(DIRECT_LARGE_READ, BARE, 0.7),
    gate(DIRECT_LARGE_WRITE, QEMU, 1.1),
    gate(DIRECT_LARGE_WRITE, BARE, 0.85),
];

/// How many times as fast a volume with snapshots in its past is read.
const AGED: f64 = 0.97;

/// The rows of the second table.
type Trial = fn(&Lab, &Options) -> Result<Vec<Line>>;

const TRIALS: &[(&str, Trial)] = &[
    ("snapshot-stall", stall::run),
    ("snapshot-read", snapshot_read),
    ("first-write", first::run),
    ("cow", cow::run),
    ("memory", memory::run),
];

const fn gate(row: &'static str, against: &'static [&'static str], least: f64) -> Gate {
    Gate { row, against, figure: Some(Bound::Least(least)), cpu: None }
}

impl Gate {
    const fn cpu(self, most: f64) -> Self {
        Self { cpu: Some(Bound::Most(most)), ..self }
    }

    const fn cpu_more(self, most: f64) -> Self {
        Self { cpu: Some(Bound::More(most)), ..self }
    }
}

/// The names of the trials.
pub(super) fn trials() -> impl Iterator<Item = &'static str> {
    TRIALS.iter().map(|(name, _)| *name)
}

/// Measures what `options` ask for of the first table, the peers.
pub(super) fn peers(lab: &Lab, options: &Options) -> Vec<Line> {
    let mut lines = Vec::new();
    for gate in GATES.iter().filter(|gate| gate.row.contains(&options.rows)) {
        for against in gate.against {
            let line = gate.measure(against, lab, options);
            let line = line.unwrap_or_else(|error| failed(gate.row, against, &error));
            eprintln!("{}", line.text());
            lines.push(line);
        }
    }
    lines
}

/// The same of the second table, the engine's own promises.
pub(super) fn promises(lab: &Lab, options: &Options) -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, trial) in TRIALS.iter().filter(|(name, _)| name.contains(&options.rows)) {
        match trial(lab, options) {
            Ok(some) => lines.extend(some),
            Err(error) => lines.push(failed(name, "", &error)),
        }
    }
    lines
}

impl Gate {
    fn measure(&self, against: &str, lab: &Lab, options: &Options) -> Result<Line> {
        let row = row(self.row)?;
        let (a, b) = (Contender::named("firn", options)?, Contender::named(against, options)?);
        let outcome = pairs::play(&a, &b, row, lab, options)?;
        Ok(self.line(row, against, &outcome))
    }

    fn line(&self, row: &Row, against: &str, outcome: &Outcome) -> Line {
        let speed = self.figure.map(|bound| {
            let word = if matches!(bound, Bound::Most(_)) { "median " } else { "" };
            (word, bound, outcome.ratio.median)
        });
        let cpu = self.cpu.map(|bound| {
            let value = match bound {
                Bound::More(_) => outcome.cpu_a.median - outcome.cpu_b.median,
                Bound::Least(_) | Bound::Most(_) => outcome.cpu_ratio.median,
            };
            ("CPU ", bound, value)
        });
        let parts: Vec<_> = [speed, cpu].into_iter().flatten().collect();
        let join = |text: fn(&(&str, Bound, f64)) -> String| {
            parts.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        Line {
            what: self.row.to_owned(),
            against: against.to_owned(),
            target: join(|(word, bound, _)| format!("{word}{}", bound.target())),
            reached: join(|(word, bound, value)| format!("{word}{}", bound.show(*value))),
            figures: compare(row, outcome),
            met: parts.iter().all(|(_, bound, value)| bound.holds(*value)),
        }
    }
}

/// The figures behind a ratio.
fn compare(row: &Row, outcome: &Outcome) -> String {
    format!(
        "ratio {}; {} against {} {}; CPU {} against {} us",
        cell(&outcome.ratio),
        cell(&outcome.a),
        cell(&outcome.b),
        row.figure.unit(),
        figure(outcome.cpu_a.median),
        figure(outcome.cpu_b.median),
    )
}

impl Bound {
    pub(super) fn holds(self, value: f64) -> bool {
        match self {
            Self::Least(least) => value >= least,
            Self::Most(most) | Self::More(most) => value <= most,
        }
    }

    pub(super) fn target(self) -> String {
        match self {
            Self::Least(least) => format!(">= {least}x"),
            Self::Most(most) => format!("<= {most}x"),
            Self::More(more) => format!("<= +{more} us"),
        }
    }

    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Least(_) | Self::Most(_) => format!("{}x", figure(value)),
            Self::More(_) => format!("{value:+.2} us"),
        }
    }
}

fn row(name: &str) -> Result<&'static Row> {
    ROWS.iter().find(|row| row.name == name).with_context(|| format!("no row '{name}'"))
}

/// Random reads of a volume with a long past against the same blocks without one.
fn snapshot_read(lab: &Lab, options: &Options) -> Result<Vec<Line>> {
    let aged = Contender::named("firn-aged", options)?;
    let young = Contender::named("firn-scattered", options)?;
    [("direct", DIRECT_READ_LEAN), ("cached", READ_LEAN)]
        .map(|(mode, name)| {
            let row = row(name)?;
            let outcome = pairs::play(&aged, &young, row, lab, options)?;
            let bound = Bound::Least(AGED);
            let line = Line {
                what: "snapshot-read".to_owned(),
                against: format!("{AGE} snapshots against none, {mode}"),
                target: bound.target(),
                reached: bound.show(outcome.ratio.median),
                figures: compare(row, &outcome),
                met: bound.holds(outcome.ratio.median),
            };
            eprintln!("{}", line.text());
            Ok(line)
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Bound, GATES, row};
    use crate::bench::pairs::conclude;
    use crate::bench::rows::{Figure, Sample};

    #[test]
    fn every_gate_has_its_row() {
        for gate in GATES {
            row(gate.row).unwrap();
        }
    }

    #[test]
    fn bounds() {
        assert!(Bound::Least(2.0).holds(2.0) && !Bound::Least(2.0).holds(1.99));
        assert!(Bound::Most(0.4).holds(0.4) && !Bound::Most(0.4).holds(0.41));
        assert!(Bound::More(0.8).holds(-0.1) && !Bound::More(0.8).holds(0.9));
    }

    #[test]
    fn a_gate_is_missed_by_either_figure() {
        let sample =
            |per_second, cpu_us| Sample { requests: 1, per_second, median_us: 1.0, cpu_us };
        let gate = &GATES[0];
        let met = |a| {
            let outcome = conclude(Figure::KiloIops, 4096, &[a], &[sample(1000.0, 10.0)]);
            gate.line(row(gate.row).unwrap(), "qemu-nbd-raw", &outcome).met
        };
        assert!(met(sample(2300.0, 4.0)));
        assert!(!met(sample(2100.0, 4.0)), "too slow");
        assert!(!met(sample(2300.0, 5.0)), "too much processor time");
    }
}
