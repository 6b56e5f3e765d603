//! From the start of the executable until the first durable acknowledgement.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustmq_protocol::ProducerStamp;

use super::broker::Broker;
use super::drive::{Period, Tally};
use super::machine::Cores;
use super::producers::{client_endpoint, create_topic, on_client, produce};
use super::shape::shape;
use super::wire::{self, Link, ProduceFrame, Target};

/// The fewest starts of a run.
const STARTS_MIN: u64 = 10;

/// The topic to which the first record goes.
const TOPIC: &str = "load";

/// A data directory in which a broker served, and was killed.
#[derive(Debug)]
pub(super) struct Stopped {
    binary: PathBuf,
    dir: PathBuf,
    sets: Vec<String>,
}

impl Stopped {
    /// Makes a directory with as many topics, and bytes in its log.
    pub(super) fn prepare(
        binary: &Path,
        dir: &Path,
        sets: &[&str],
        topics: usize,
        bytes: u64,
        cores: Cores,
    ) -> Result<Stopped> {
        let broker = Broker::start(binary, dir, sets)?;
        let targets = create_topic(&broker, cores)?;
        on_client(cores, || async {
            let connection =
                wire::connect(&client_endpoint(&broker.certs())?, broker.address()).await?;
            let mut link = Link::to_broker(&connection).await?;
            for number in 1..topics {
                link.create_topic(&format!("load-{number}"), 1).await?;
            }
            Ok(())
        })?;
        let shape = shape(1, 16, 64 << 10, 8);
        let slice = Period { warm_up: Duration::ZERO, measured: Duration::from_millis(250) };
        let mut written = 0;
        while written < bytes.max(1) {
            let tally = produce(&broker, &targets, shape, slice, cores)?;
            written += tally.answers * (shape.records * shape.value_bytes) as u64;
        }
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        Ok(Stopped { binary: binary.to_owned(), dir: dir.to_owned(), sets })
    }

    /// Starts and kills the broker again and again, for the time given and ten times at least; a latency
    /// is from before the executable is started until the first record is durable and acknowledged.
    pub(super) fn starts(&self, cores: Cores, time: Duration) -> Result<Tally> {
        let sets: Vec<&str> = self.sets.iter().map(String::as_str).collect();
        repeat(time, |tally| {
            // The client is there before the broker: what it needs itself is not measured.
            let (took, broker) = on_client(cores, || async {
                let endpoint = client_endpoint(&self.dir.join("data/certs"))?;
                let begun = Instant::now();
                let broker = Broker::restart(&self.binary, &self.dir, &sets)?;
                let connection = wire::connect(&endpoint, broker.address()).await?;
                let mut link = Link::to_broker(&connection).await?;
                let metadata = link.metadata(TOPIC).await?;
                let targets = Target::of_topic(&metadata, broker.address())?;
                let target = targets.first().context("the topic has a partition")?;
                let mut frame = ProduceFrame::new(target, ProducerStamp::NONE, 1, 1 << 10);
                link.sender.send(frame.next_batch().1).await?;
                link.receiver.receive().await?.context("no acknowledgement")?;
                let took = begun.elapsed();
                Ok((took, broker))
            })?;
            tally.record(took);
            drop(broker);
            Ok(())
        })
    }
}

/// Runs the executable for its version, again and again: what every start costs.
pub(super) fn versions(binary: &Path, time: Duration) -> Result<Tally> {
    repeat(time, |tally| {
        let begun = Instant::now();
        let mut command = Command::new(binary);
        command.arg("--version").stdout(Stdio::null()).stdin(Stdio::null());
        ensure!(command.status()?.success(), "{} --version fails", binary.display());
        tally.record(begun.elapsed());
        Ok(())
    })
}

fn repeat(time: Duration, mut once: impl FnMut(&mut Tally) -> Result<()>) -> Result<Tally> {
    let begun = Instant::now();
    let mut tally = Tally::new();
    while begun.elapsed() < time || tally.answers < STARTS_MIN {
        once(&mut tally)?;
    }
    tally.elapsed = begun.elapsed();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_ten_starts_however_short_the_time() {
        let tally = repeat(Duration::ZERO, |tally| {
            tally.record(Duration::from_millis(1));
            Ok(())
        });
        assert_eq!(tally.unwrap().latency.len(), STARTS_MIN);
        assert!(versions(Path::new("false"), Duration::ZERO).is_err());
    }
}
