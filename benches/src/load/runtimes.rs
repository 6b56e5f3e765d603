//! The same requests to brokers that differ in their runtime, in turn, and how they compare.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::broker::Broker;
use super::drive::Period;
use super::machine::Cores;
use super::meter::{self, Meter};
use super::producers::{self, WAL_SETS};
use super::rounds::Spread;
use super::sample::{Figure, Sample};
use super::shape::shape;
use super::wire::Target;

/// Requests in flight of the one producer.
const DEPTHS: [usize; 2] = [1, 16];

/// What is told of each.
const FIGURES: [Figure; 4] =
    [Figure::P50Us, Figure::P99Us, Figure::RecordsPerS, Figure::BrokerCpuUs];

/// A broker on one runtime, with what was measured of it.
#[derive(Debug)]
struct Entrant {
    runtime: String,
    broker: Broker,
    targets: Vec<Target>,
    /// By depth, then by round.
    samples: [Vec<Sample>; DEPTHS.len()],
    /// The most that others used of the processors in a round, as a part.
    foreign_max: f64,
}

/// Brokers on each of the runtimes, alike in everything else.
#[derive(Debug)]
pub struct Runtimes {
    cores: Cores,
    entrants: Vec<Entrant>,
}

impl Runtimes {
    /// Starts a broker of one shard on each runtime and brings its WAL to where it recycles.
    pub fn start(binary: &Path, dir: &Path, cores: Cores, runtimes: &[String]) -> Result<Runtimes> {
        let mut entrants = Vec::new();
        for runtime in runtimes {
            let backend = format!("runtime.backend={runtime}");
            let mut sets = WAL_SETS.to_vec();
            sets.push(&backend);
            let broker = Broker::start(binary, &dir.join(runtime), &sets)
                .with_context(|| format!("on {runtime}"))?;
            let targets = producers::create_topic(&broker, cores)?;
            producers::fill(&broker, &targets, cores)?;
            let (runtime, samples) = (runtime.clone(), Default::default());
            entrants.push(Entrant { runtime, broker, targets, samples, foreign_max: 0.0 });
        }
        Ok(Runtimes { cores, entrants })
    }

    /// Measures every depth on every runtime, one after the other.
    pub fn round(&mut self, measured: Duration, warm_up: Duration) -> Result<()> {
        let processes: Vec<u32> = self.entrants.iter().map(|it| it.broker.process()).collect();
        for (index, depth) in DEPTHS.into_iter().enumerate() {
            let shape = shape(1, 1, 1 << 10, depth);
            for entrant in &mut self.entrants {
                let process = [entrant.broker.process()];
                let meter = Meter::start(&processes)?;
                let before = meter::processes_s(&process)?;
                let period = Period { warm_up, measured };
                let (broker, targets) = (&entrant.broker, &entrant.targets);
                let tally = producers::produce(broker, targets, shape, period, self.cores)?;
                let used = meter::processes_s(&process)? - before;
                let mut sample = Sample::of(&tally, shape);
                sample.set(Figure::BrokerCpuUs, used * 1e6 / tally.answers as f64);
                entrant.samples[index].push(sample);
                entrant.foreign_max = entrant.foreign_max.max(meter.read()?.foreign);
            }
        }
        Ok(())
    }

    /// Medians over the rounds with least and greatest; ratios to the first runtime, round by round.
    pub fn report(&self) -> String {
        let mut text = String::from("| depth | runtime |");
        for figure in FIGURES {
            let _ = write!(text, " {} | / first |", figure.name());
        }
        text += "\n|---|---|";
        text += &"---|---|".repeat(FIGURES.len());
        for (index, depth) in DEPTHS.into_iter().enumerate() {
            for entrant in &self.entrants {
                let _ = write!(text, "\n| {depth} | {} |", entrant.runtime);
                for figure in FIGURES {
                    let (values, ratios) = self.compared(entrant, index, figure);
                    let _ = write!(text, " {} | {} |", shown(values, 1), shown(ratios, 2));
                }
            }
        }
        let foreign = self.entrants.iter().map(|entrant| entrant.foreign_max).fold(0.0, f64::max);
        let _ = writeln!(text, "\n\nOthers used at most {:.0} % of the processors.", foreign * 1e2);
        text
    }

    fn compared(&self, entrant: &Entrant, depth: usize, figure: Figure) -> (Spreads, Spreads) {
        let values = |of: &Entrant| -> Vec<f64> {
            of.samples[depth].iter().filter_map(|sample| sample.get(figure)).collect()
        };
        let (mine, first) = (values(entrant), self.entrants.first().map(values));
        let ratios = mine.iter().zip(first.unwrap_or_default()).map(|(mine, first)| mine / first);
        let ratios = Spread::of(ratios.collect());
        (Spread::of(mine), ratios)
    }
}

type Spreads = Option<Spread>;

fn shown(spread: Spreads, digits: usize) -> String {
    spread.map_or_else(String::new, |Spread { median, min, max }| {
        format!("{median:.digits$} [{min:.digits$}-{max:.digits$}]")
    })
}
