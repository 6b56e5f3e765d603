//! A broker whose caches are empty: its log was filled once, and it is killed and started anew before
//! each measurement. What it reads comes from the disk, as `O_DIRECT` knows no other cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::broker::Broker;
use super::machine::Cores;
use super::producers;
use super::shape::Shape;
use super::wire::Target;

/// Room for what is filled in, so that nothing of it is dropped.
const SETS: [&str; 1] = ["wal.capacity_bytes=2GiB"];

/// A broker with a topic that nobody writes to any more.
#[derive(Debug)]
pub struct Cold {
    binary: PathBuf,
    dir: PathBuf,
    sets: Vec<String>,
    cores: Cores,
    broker: Broker,
    targets: Vec<Target>,
}

impl Cold {
    /// Starts a broker and fills a topic with so many bytes of values: as many partitions as `shape` has
    /// producers, batch by batch in turn, so that their batches lie mixed.
    pub(super) fn start(
        binary: &Path,
        dir: &Path,
        sets: &[String],
        cores: Cores,
        shape: Shape,
        bytes: u64,
    ) -> Result<Cold> {
        let sets: Vec<String> =
            SETS.iter().map(|set| (*set).to_owned()).chain(sets.iter().cloned()).collect();
        let broker = start(binary, dir, &sets)?;
        let targets = producers::topic_of(&broker, shape.producers as u32, cores)?;
        producers::fill_evenly(&broker, &targets, shape, bytes, cores)?;
        let (binary, dir) = (binary.to_owned(), dir.to_owned());
        Ok(Cold { binary, dir, sets, cores, broker, targets })
    }

    /// Kills the broker and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.broker.kill()?;
        self.broker = start(&self.binary, &self.dir, &self.sets)?;
        // Leader epochs and ports are new.
        self.targets = producers::find_topic(&self.broker, self.cores)?;
        Ok(())
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Its partitions.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The files of its log, but for the one that is written to.
    pub fn segments(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir.join("data"))? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("wal-") && folder.is_dir() {
                for file in fs::read_dir(folder)? {
                    files.push(file?.path());
                }
            }
        }
        files.sort();
        files.pop().context("the log has no file")?;
        Ok(files)
    }
}

fn start(binary: &Path, dir: &Path, sets: &[String]) -> Result<Broker> {
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    Broker::start(binary, dir, &sets)
}
