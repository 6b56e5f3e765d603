//! Every case in every round, and what the rounds say together.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::bench::Bench;
use super::cases::Case;
use super::drive::Period;
use super::meter::Meter;

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

/// One number of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Requests or writes a second.
    RequestsPerS,
    /// Records a second.
    RecordsPerS,
    /// Megabytes of values a second.
    MbPerS,
    /// Latency: half are faster.
    P50Us,
    /// Latency: 99 % are faster.
    P99Us,
    /// Latency: 99.9 % are faster.
    P999Us,
    /// The longest latency.
    MaxUs,
    /// Batches acknowledged for each flush of the device.
    BatchesPerFlush,
    /// Processor time of the broker for each request, all its threads together.
    BrokerCpuUs,
    /// Processor time of the client for each request, what it looks for news included.
    ClientCpuUs,
    /// Processor time of the broker for each byte delivered, in nanoseconds, producing included.
    BrokerNsPerByte,
    /// Bytes read from the disk for each byte of values delivered.
    DiskBytesPerByte,
    /// Bytes written to the disk for each byte of values produced.
    WrittenBytesPerByte,
    /// Requests that wrote to the disk, of everybody, for each block.
    WritesPerBlock,
    /// Flushes of the disk, of everybody, for each block.
    FlushesPerBlock,
    /// Kibibytes in memory: of all, or of each.
    MemoryKib,
    /// Processor time of a shard, as a part of one core in per cent.
    ShardCpuPercent,
    /// Processor time of a shard for one of what was asked.
    ShardCpuUs,
    /// Open loop: requests were handed to QUIC at most so late, but for 1 %.
    LateP99Us,
}

impl Figure {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Figure::RequestsPerS => "requests/s",
            Figure::RecordsPerS => "records/s",
            Figure::MbPerS => "MB/s",
            Figure::P50Us => "p50 us",
            Figure::P99Us => "p99 us",
            Figure::P999Us => "p999 us",
            Figure::MaxUs => "max us",
            Figure::BatchesPerFlush => "batches/flush",
            Figure::BrokerCpuUs => "broker cpu us",
            Figure::ClientCpuUs => "client cpu us",
            Figure::BrokerNsPerByte => "broker cpu ns/byte delivered",
            Figure::DiskBytesPerByte => "bytes read/byte delivered",
            Figure::WrittenBytesPerByte => "bytes written/byte produced",
            Figure::WritesPerBlock => "disk writes/block",
            Figure::FlushesPerBlock => "disk flushes/block",
            Figure::MemoryKib => "memory KiB",
            Figure::ShardCpuPercent => "shard cpu %",
            Figure::ShardCpuUs => "shard cpu us",
            Figure::LateP99Us => "late p99 us",
        }
    }
}

/// What one run of a case came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    figures: BTreeMap<Figure, f64>,
}

impl Sample {
    /// Notes a number.
    pub fn set(&mut self, figure: Figure, value: f64) {
        self.figures.insert(figure, value);
    }

    /// The number, if the case has it.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).copied()
    }
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
