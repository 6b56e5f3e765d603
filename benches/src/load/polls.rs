//! Each runtime with each thing that a shard can do when it has nothing to do: what a client sees of it,
//! and what the shard takes at rest.
//!
//! A broker that never sleeps keeps its core from all others, so each has the core for itself: it is
//! started, asked everything, and ended.

use std::fmt::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustmq_config::Poll;
use rustmq_sys::runtime::Polling;

use super::broker::Broker;
use super::drive::Period;
use super::machine::Cores;
use super::meter;
use super::producers::{self, WAL_SETS};
use super::rounds::Spread;
use super::sample::{Figure, Sample};
use super::shape::{Shape, shape};

/// What is asked, by the number of its goal.
const LOADS: [(&str, Shape, &[Figure]); 4] = [
    ("#1", shape(1, 1, 1 << 10, 1), &[Figure::P50Us, Figure::P99Us]),
    ("#2", shape(8, 1, 1 << 10, 1), &[Figure::RecordsPerS]),
    ("#4", shape(2, 1, 64 << 10, 8), &[Figure::MbPerS]),
    ("#5", shape(1, 1, 1 << 10, 256), &[Figure::RequestsPerS]),
];

const POLLS: [Poll; 3] = [Poll::Adaptive, Poll::Sleep, Poll::Busy];

/// What a broker does after its start, or after a load, is over by then.
const SETTLED: Duration = Duration::from_millis(500);

/// The threads of shards, by the beginning of their names.
const SHARD_THREADS: &str = "shard-";

/// A runtime with what its shard does when idle, and one number by column and round.
#[derive(Debug)]
struct Entrant {
    runtime: String,
    poll: Poll,
    columns: Vec<Vec<f64>>,
}

/// All of them.
#[derive(Debug)]
pub struct Polls {
    entrants: Vec<Entrant>,
    started: usize,
}

impl Polls {
    /// Nothing is started before the first round.
    pub fn new(runtimes: &[String]) -> Polls {
        let entrants = runtimes.iter().flat_map(|runtime| {
            POLLS.map(|poll| Entrant { runtime: runtime.clone(), poll, columns: Vec::new() })
        });
        Polls { entrants: entrants.collect(), started: 0 }
    }

    /// Asks each of them everything.
    pub fn round(&mut self, binary: &Path, dir: &Path, cores: Cores, period: Period) -> Result<()> {
        for entrant in &mut self.entrants {
            self.started += 1;
            let dir = dir.join(self.started.to_string());
            let row = ask(binary, &dir, cores, &entrant.runtime, entrant.poll, period)
                .with_context(|| format!("on {} {}", entrant.runtime, entrant.poll.word()))?;
            entrant.columns.resize_with(row.len(), Vec::new);
            entrant.columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
            // Its log is as large as the next one's.
            std::fs::remove_dir_all(&dir)?;
        }
        Ok(())
    }

    /// Medians over the rounds with least and greatest.
    pub fn report(&self) -> String {
        let mut text = String::from("| runtime | poll |");
        for (number, _, figures) in LOADS {
            for figure in figures {
                let _ = write!(text, " {number} {} |", figure.name());
            }
        }
        let columns: usize = LOADS.iter().map(|(_, _, figures)| figures.len()).sum();
        text += " at rest, % of a core |\n|---|---|---|";
        text += &"---|".repeat(columns);
        for entrant in &self.entrants {
            let _ = write!(text, "\n| {} | {} |", entrant.runtime, entrant.poll.word());
            for column in &entrant.columns {
                let _ = write!(text, " {} |", shown(Spread::of(column.clone())));
            }
        }
        text.push('\n');
        text
    }
}

/// One broker, from its start to its end: a number for each column.
fn ask(
    binary: &Path,
    dir: &Path,
    cores: Cores,
    runtime: &str,
    poll: Poll,
    period: Period,
) -> Result<Vec<f64>> {
    let (backend, poll) =
        (format!("runtime.backend={runtime}"), format!("runtime.poll={}", poll.word()));
    let mut sets = WAL_SETS.to_vec();
    sets.extend([backend.as_str(), poll.as_str()]);
    let broker = Broker::start(binary, dir, &sets)?;
    let targets = producers::create_topic(&broker, cores)?;
    producers::fill(&broker, &targets, cores)?;
    let mut row = Vec::new();
    for (_, shape, figures) in LOADS {
        let client = producers::client_runtime(cores, Polling::Adaptive);
        let tally = producers::closed_loop(&broker, &targets, shape, period, cores, client)?;
        let sample = Sample::of(&tally, shape);
        row.extend(figures.iter().filter_map(|figure| sample.get(*figure)));
    }
    thread::sleep(SETTLED);
    let (begun, before) = (Instant::now(), meter::threads_time(broker.process(), SHARD_THREADS)?);
    thread::sleep(period.measured.max(Duration::from_secs(2)));
    let took = meter::threads_time(broker.process(), SHARD_THREADS)? - before;
    row.push(took.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0);
    Ok(row)
}

fn shown(spread: Option<Spread>) -> String {
    let Some(Spread { median, min, max }) = spread else { return String::new() };
    let digits = match median {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{median:.digits$} [{min:.digits$}-{max:.digits$}]")
}
