//! Where a run took place: numbers without it mean nothing.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustmq_sys::{cpu, probe};
use serde_json::{Value, json};

/// Wake-ups and writes that are measured for the description.
const PROBES: usize = 2000;

/// The host, as far as it matters to a latency.
#[derive(Debug, Clone)]
pub struct Machine {
    kernel: String,
    processor: String,
    cores: Vec<usize>,
    file_system: String,
    disk: String,
    wake_up: probe::Percentiles,
    durable_write: probe::Percentiles,
}

/// Which core does what; `None` where there are not enough to pin anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// Of the client, and of the broker's control thread.
    pub client: Option<usize>,
    /// Of the broker's shard, the echo server and the device reference.
    pub server: Option<usize>,
}

impl Cores {
    /// The cores that the broker itself chooses with one shard: control on the first, the shard on
    /// the second.
    pub fn choose() -> Cores {
        match cpu::available_cores().as_slice() {
            [client, server, ..] => Cores { client: Some(*client), server: Some(*server) },
            _ => Cores { client: None, server: None },
        }
    }
}

impl Machine {
    /// Asks the host, and measures a little in `folder`.
    pub fn examine(folder: &Path) -> Result<Machine> {
        let host = probe::host();
        let storage = probe::storage(folder).context("asking about the disk")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':']))
        });
        let known = |fact: Option<bool>, yes: &str, no: &str| {
            fact.map_or("unknown", |fact| if fact { yes } else { no }).to_owned()
        };
        let disk = storage.device.map_or_else(
            || "not one disk".to_owned(),
            |device| {
                format!(
                    "{}, cache {}, FUA {}",
                    device.name,
                    known(device.volatile_cache, "volatile (write back)", "write through"),
                    known(device.force_unit_access, "yes", "no"),
                )
            },
        );
        Ok(Machine {
            kernel: host.kernel.unwrap_or_else(|| "unknown".to_owned()),
            processor: model.unwrap_or("unknown").to_owned(),
            cores: cpu::available_cores(),
            file_system: storage.file_system,
            disk,
            wake_up: probe::wake_up(PROBES).context("measuring a wake-up")?,
            durable_write: probe::durable_write(folder, PROBES)
                .context("measuring a durable write")?,
        })
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "processor": self.processor,
            "cores": self.cores,
            "file_system": self.file_system,
            "disk": self.disk,
            "wake_up_us": microseconds(&self.wake_up),
            "durable_write_us": microseconds(&self.durable_write),
        })
    }
}

fn microseconds(percentiles: &probe::Percentiles) -> Value {
    json!({
        "p50": percentiles.p50.as_nanos() as f64 / 1e3,
        "p99": percentiles.p99.as_nanos() as f64 / 1e3,
    })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel     Linux {}", self.kernel)?;
        writeln!(f, "processor  {}, cores {:?}", self.processor, self.cores)?;
        writeln!(f, "disk       {} on {}", self.file_system, self.disk)?;
        writeln!(
            f,
            "probes     waking a thread {:.1?} (p99 {:.1?}), blocking durable write of 4 KiB {:.1?} \
             (p99 {:.1?})",
            self.wake_up.p50, self.wake_up.p99, self.durable_write.p50, self.durable_write.p99
        )
    }
}
