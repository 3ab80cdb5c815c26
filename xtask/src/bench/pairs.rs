//! Rounds of A and B, and what they come to.

use anyhow::Result;

use super::Options;
use super::contender::Contender;
use super::lab::Lab;
use super::rows::{Figure, Row, Sample};

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// What a row came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) a: Spread,
    pub(super) b: Spread,
    /// A divided by B, round by round.
    pub(super) ratio: Spread,
    pub(super) cpu_a: Spread,
    pub(super) cpu_b: Spread,
    pub(super) cpu_ratio: Spread,
}

/// Measures `row` in rounds; both contenders run all the time, each idle while the other is
/// measured.
pub(super) fn play(
    a: &Contender,
    b: &Contender,
    row: &Row,
    lab: &Lab,
    options: &Options,
) -> Result<Outcome> {
    let a = a.start(lab, row.cache, options)?;
    let b = b.start(lab, row.cache, options)?;
    // Once each: caches, allocations and connections of the first run are nobody's figure.
    (row.run)(a.target(), options.length)?;
    (row.run)(b.target(), options.length)?;
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let mut run_a = || (row.run)(a.target(), options.length).map(|sample| of_a.push(sample));
        let mut run_b = || (row.run)(b.target(), options.length).map(|sample| of_b.push(sample));
        // Whoever comes second finds another disk than the first; neither always does.
        if round % 2 == 0 {
            run_a()?;
            run_b()?;
        } else {
            run_b()?;
            run_a()?;
        }
    }
    Ok(conclude(row.figure, row.block, &of_a, &of_b))
}

/// What the rounds' samples come to, in `unit` of requests of `block` bytes.
pub(super) fn conclude(unit: Figure, block: u32, a: &[Sample], b: &[Sample]) -> Outcome {
    let figure = |sample: &Sample| unit.of(sample, block);
    let cpu = |sample: &Sample| sample.cpu_us;
    Outcome {
        a: spread(a.iter().map(figure)),
        b: spread(b.iter().map(figure)),
        ratio: spread(a.iter().zip(b).map(|(a, b)| figure(a) / figure(b))),
        cpu_a: spread(a.iter().map(cpu)),
        cpu_b: spread(b.iter().map(cpu)),
        cpu_ratio: spread(a.iter().zip(b).map(|(a, b)| cpu(a) / cpu(b))),
    }
}

/// Median (of an even number: the mean of the middle two), least and most.
pub(super) fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
    Spread { median, least, most }
}

#[cfg(test)]
mod tests {
    use super::{Spread, conclude, spread};
    use crate::bench::rows::{Figure, Sample};

    #[test]
    fn medians() {
        let expected = Spread { median: 2.5, least: 1.0, most: 9.0 };
        assert_eq!(spread([9.0, 2.0, 1.0, 3.0].into_iter()), expected);
        assert!((spread([7.0].into_iter()).median - 7.0).abs() < 1e-9);
    }

    /// The machine slows down to a half in the second round: the figures spread, the ratio does
    /// not.
    #[test]
    fn ratios_are_taken_within_a_round() {
        let sample = |per_second| Sample { requests: 1, per_second, median_us: 1.0, cpu_us: 1.0 };
        let (a, b) = ([sample(8000.0), sample(4000.0)], [sample(4000.0), sample(2000.0)]);
        let outcome = conclude(Figure::KiloIops, 4096, &a, &b);
        assert_eq!(outcome.ratio, Spread { median: 2.0, least: 2.0, most: 2.0 });
        assert_eq!(outcome.a, Spread { median: 6.0, least: 4.0, most: 8.0 });
    }
}
