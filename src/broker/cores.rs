//! Which core runs what, and whether the host has the memory for it.

use std::fmt;

use anyhow::{Result, bail};
use rustmq_config::BrokerConfig;

/// The cores of the control thread and of each shard. `None`: the thread runs where the system
/// puts it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CorePlan {
    pub(super) control: Option<usize>,
    pub(super) shards: Vec<Option<usize>>,
    cores: usize,
}

impl CorePlan {
    /// One core for each shard, and the first for the control thread if there is one more. With
    /// more shards than cores nobody is pinned: two pinned to one core would starve each other.
    pub(super) fn new(available: &[usize], shard_count: u16) -> Self {
        let (shards, cores) = (usize::from(shard_count), available.len());
        let control = available.first().copied().filter(|_| shards < cores);
        let skipped = usize::from(control.is_some());
        let shards = match shards <= cores {
            true => available.iter().skip(skipped).take(shards).copied().map(Some).collect(),
            false => vec![None; shards],
        };
        Self { control, shards, cores }
    }

    /// How many shards there are.
    pub(super) fn shard_count(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("made from a u16")
    }
}

impl fmt::Display for CorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pinned: Vec<usize> = self.shards.iter().copied().flatten().collect();
        let (pinned, shards, cores) = (Ranges(&pinned), self.shards.len(), self.cores);
        match (self.control, pinned.0.is_empty()) {
            (Some(control), _) => write!(f, "control on {control}, shards on {pinned}"),
            (None, false) => write!(f, "shards on {pinned}, control not pinned"),
            (None, true) => write!(f, "nothing is pinned: shards: {shards}, cores: {cores}"),
        }
    }
}

/// Numbers in ascending order, with their runs drawn together.
struct Ranges<'a>(&'a [usize]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.0.chunk_by(|one, next| one + 1 == *next) {
            match run {
                [one] => write!(f, "{separator}{one}")?,
                [first, .., last] => write!(f, "{separator}{first}-{last}")?,
                [] => {}
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Refuses what all shards together may take if the host does not have it.
///
/// Memory is taken as it is used, so without this a broker that is too large would start and be
/// killed when it is busy.
pub(super) fn check_memory(config: &BrokerConfig, shards: u16, host_bytes: u64) -> Result<()> {
    let per_shard = config.cache.hot_bytes + config.cache.index_bytes_max + config.wal.buffer_bytes;
    let all = per_shard.saturating_mul(u64::from(shards));
    if host_bytes < all {
        let mib = |bytes: u64| bytes >> 20;
        bail!(
            "{shards} shards would take {} MiB each (cache.hot_bytes + cache.index_bytes_max + \
             wal.buffer_bytes) and the host has {} MiB: lower one of them, or broker.shards",
            mib(per_shard),
            mib(host_bytes)
        );
    }
    Ok(())
}

/// The memory of the host, as far as it tells.
pub(super) fn host_memory_bytes() -> Option<u64> {
    memory_total(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_thread_has_a_core_of_its_own_when_one_is_left() {
        let plan = CorePlan::new(&[0, 2, 4, 5, 6], 3);
        assert_eq!(plan.control, Some(0));
        assert_eq!(plan.shards, [Some(2), Some(4), Some(5)]);
        assert_eq!(plan.to_string(), "control on 0, shards on 2,4-5");
    }

    #[test]
    fn as_many_shards_as_cores_have_one_each() {
        let plan = CorePlan::new(&[3, 4], 2);
        assert_eq!(plan.control, None);
        assert_eq!(plan.shards, [Some(3), Some(4)]);
        assert_eq!(plan.to_string(), "shards on 3-4, control not pinned");
    }

    #[test]
    fn more_shards_than_cores_are_not_pinned() {
        for cores in [&[][..], &[0], &[0, 1]] {
            let plan = CorePlan::new(cores, 3);
            assert_eq!(plan.control, None);
            assert_eq!(plan.shards, [None; 3]);
            assert_eq!(plan.shard_count(), 3);
            assert!(plan.to_string().starts_with("nothing is pinned"));
        }
    }

    #[test]
    fn shards_that_do_not_fit_into_memory_are_refused() {
        let config = BrokerConfig::load(None, std::iter::empty(), &[]).unwrap();
        let per_shard = (64 + 32 + 64) << 20;
        assert!(check_memory(&config, 4, 4 * per_shard).is_ok());
        let error = check_memory(&config, 5, 4 * per_shard).unwrap_err().to_string();
        assert!(error.contains("5 shards") && error.contains("cache.hot_bytes"), "{error}");
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(memory_total("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16 << 10));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert_eq!(memory_total("MemTotal: many\n"), None);
    }
}
