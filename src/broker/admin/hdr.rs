//! The raw histograms, as HdrHistogram's interval log: one line, from the start until now.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use rustmq_server::metrics::Stage;

use crate::broker::control::Scrape;

/// The log's last column is in seconds; the histogram itself holds nanoseconds.
const NS_PER_SECOND: f64 = 1e9;

/// The stage with this name.
pub(super) fn stage(name: &str) -> Option<Stage> {
    Stage::ALL.into_iter().find(|stage| stage.name() == name)
}

/// The names of all stages.
pub(super) fn names() -> Vec<&'static str> {
    Stage::ALL.into_iter().map(Stage::name).collect()
}

/// The histogram of a stage over all shards.
pub(super) fn encode(
    scrape: &Scrape,
    stage: Stage,
    started_at: SystemTime,
    uptime: Duration,
) -> Result<Vec<u8>> {
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("rustmq stage {}, in nanoseconds", stage.name()))
        .with_start_time(started_at)
        .with_base_time(started_at)
        .with_max_value_divisor(NS_PER_SECOND)
        .begin_log_with(&mut log, &mut serializer)
        .context("writing the log's head")?;
    let histogram = merged(scrape, stage)?;
    writer
        .write_histogram(&histogram, Duration::ZERO, uptime, None)
        .map_err(|error| anyhow!("writing the histogram: {error}"))?;
    Ok(log)
}

fn merged(scrape: &Scrape, stage: Stage) -> Result<Histogram<u64>> {
    let mut histograms =
        scrape.snapshots.iter().filter_map(|snapshot| snapshot.stages.get(stage as usize));
    let Some(first) = histograms.next() else {
        return Histogram::new(2).context("making an empty histogram");
    };
    let mut merged = first.clone();
    for histogram in histograms {
        merged.add(histogram).context("shards measure with the same bounds")?;
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::admin::metrics::tests::snapshot;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn shards_are_merged_into_one_interval() {
        let mut scrape = Scrape::default();
        for shard in 0..3 {
            let mut snapshot = snapshot(shard);
            snapshot.stages[Stage::WalFlush as usize].record(2_000_000_000).unwrap();
            scrape.snapshots.push(snapshot);
        }
        let flushes = merged(&scrape, Stage::WalFlush).unwrap();
        assert_eq!(flushes.len(), 3);
        assert_eq!(merged(&scrape, Stage::Fetch).unwrap().len(), 0);
        assert_eq!(merged(&Scrape::default(), Stage::Fetch).unwrap().len(), 0);

        let uptime = Duration::from_secs(5);
        let log = encode(&scrape, Stage::WalFlush, SystemTime::now(), uptime).unwrap();
        let intervals: Vec<_> = IntervalLogIterator::new(&log)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => Some((interval.duration(), interval.max())),
                _ => None,
            })
            .collect();
        let [(duration, max)] = intervals[..] else { panic!("{intervals:?}") };
        assert_eq!(duration, uptime);
        assert!((max - 2.0).abs() < 0.02, "{max}");
    }

    #[test]
    fn stages_are_found_by_name() {
        for name in names() {
            assert_eq!(stage(name).map(Stage::name), Some(name));
        }
        assert_eq!(stage("nothing"), None);
    }
}
