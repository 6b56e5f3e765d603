//! Every case in every round, and what the rounds say together.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::bench::Bench;
use super::cases::Case;
use super::drive::Period;
use super::meter::Meter;
use super::sample::{Figure, Sample};

/// Attempts at one case in one round; after that the round has no value for it.
const TRIES_MAX: u32 = 4;

/// How long the host is watched before it counts as quiet again.
const QUIET: Duration = Duration::from_secs(1);

/// What may be done about others who use the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The part of the processors that they may use; an attempt with more is thrown away.
    pub foreign_max: f64,
    /// How long to wait for them to be done, before each further attempt.
    pub patience: Duration,
}

/// A number over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// None without values.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Spread { median, min, max })
    }
}

/// One case over all rounds.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// By round; none where every attempt was disturbed.
    pub(super) samples: Vec<Option<Sample>>,
    /// Attempts thrown away.
    pub thrown_away: u32,
}

impl Series {
    /// Rounds that count.
    pub fn clean(&self) -> usize {
        self.samples.iter().flatten().count()
    }

    /// A number over the rounds that have it.
    pub fn spread(&self, figure: Figure) -> Option<Spread> {
        Spread::of(self.samples.iter().flatten().filter_map(|sample| sample.get(figure)).collect())
    }
}

/// All cases over all rounds, in the order in which they were asked.
#[derive(Debug, Clone, Default)]
pub struct Results(pub Vec<(Case, Series)>);

impl Results {
    /// What a case came to in a round.
    pub fn get(&self, case: &str, round: usize, figure: Figure) -> Option<f64> {
        let (_, series) = self.0.iter().find(|(of, _)| of.name == case)?;
        series.samples.get(round)?.as_ref()?.get(figure)
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.0.iter().map(|(_, series)| series.samples.len()).max().unwrap_or(0)
    }
}

/// Asks every case in every round. `tell` hears how far it is.
pub fn run(
    bench: &mut Bench,
    cases: &[Case],
    rounds: u32,
    period: Period,
    tolerance: Tolerance,
    mut tell: impl FnMut(&str),
) -> Result<Results> {
    let mut results = Results(cases.iter().map(|case| (*case, Series::default())).collect());
    for round in 1..=rounds {
        for (case, series) in &mut results.0 {
            tell(&format!("round {round} of {rounds}: {}", case.name));
            let mut kept = None;
            for _ in 0..TRIES_MAX {
                bench.prepare(*case)?;
                let meter = Meter::start(&bench.processes())?;
                let sample = bench.run(*case, period)?;
                if meter.read()?.foreign <= tolerance.foreign_max {
                    kept = Some(sample);
                    break;
                }
                series.thrown_away += 1;
                wait_until_quiet(bench, tolerance)?;
            }
            series.samples.push(kept);
        }
    }
    Ok(results)
}

fn wait_until_quiet(bench: &Bench, tolerance: Tolerance) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < tolerance.patience {
        let meter = Meter::start(&bench.processes())?;
        thread::sleep(QUIET);
        if meter.read()?.foreign <= tolerance.foreign_max {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_sorted_values() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
