//! What the shards measured, as Prometheus reads it. The page docs/operations/metrics.md says what
//! each name means.

use std::fmt::{Display, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustmq_server::metrics::{ShardSnapshot, Stage};

use crate::broker::control::Scrape;

/// The text format, as scrapers are told.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets in nanoseconds: 1-2-5 from 5 µs, below a durable write on any device,
/// to 10 s, above any request that is not waiting on purpose.
const BOUNDS_NS: [u64; 20] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// A value that each shard has one of.
struct Series {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    read: fn(&ShardSnapshot) -> f64,
}

macro_rules! series {
    ($( $name:literal $kind:literal $help:literal, $shard:ident => $value:expr; )+) => {
        /// Every series with one value for each shard, in reading order.
        const SERIES: &[Series] = &[
            $( Series { name: $name, help: $help, kind: $kind, read: |$shard| $value }, )+
        ];
    };
}

series! {
    "rustmq_messages_produced_total" "counter" "Records acknowledged.",
        shard => shard.counters.records_produced as f64;
    "rustmq_produced_bytes_total" "counter" "Bytes of the batches acknowledged.",
        shard => shard.counters.bytes_produced as f64;
    "rustmq_messages_consumed_total" "counter" "Records sent to consumers.",
        shard => shard.counters.records_fetched as f64;
    "rustmq_consumed_bytes_total" "counter" "Bytes of the batches sent to consumers.",
        shard => shard.counters.bytes_fetched as f64;
    "rustmq_subscriptions" "gauge" "Subscriptions that are open.",
        shard => shard.gauges.subscriptions as f64;
    "rustmq_subscription_bytes_total" "counter" "Bytes of the batches sent to subscriptions.",
        shard => shard.counters.bytes_subscribed as f64;
    "rustmq_cache_hits_total" "counter" "Fetches, and answers of subscriptions, served from memory.",
        shard => shard.counters.cache_hits as f64;
    "rustmq_cache_misses_total" "counter" "Reads of the disk for them.",
        shard => shard.counters.cache_misses as f64;
    "rustmq_cache_hit_ratio" "gauge" "Hits, of both since the start.",
        shard => hit_ratio(shard.counters.cache_hits, shard.counters.cache_misses);
    "rustmq_cache_bytes" "gauge" "Bytes that the hot cache holds.",
        shard => shard.gauges.cache_bytes as f64;
    "rustmq_buffer_bytes" "gauge" "Bytes of block buffers in use.",
        shard => shard.gauges.buffer_bytes as f64;
    "rustmq_wal_written_blocks_total" "counter" "Blocks written.",
        shard => shard.counters.blocks_written as f64;
    "rustmq_wal_flushed_blocks_total" "counter" "Blocks made durable by a flush of their own.",
        shard => shard.counters.blocks_flushed as f64;
    "rustmq_wal_written_entries_total" "counter" "Entries in the blocks written.",
        shard => shard.counters.entries_written as f64;
    "rustmq_wal_written_bytes_total" "counter" "Bytes of the blocks written.",
        shard => shard.counters.wal_bytes_written as f64;
    "rustmq_wal_read_bytes_total" "counter" "Bytes read for consumers.",
        shard => shard.counters.wal_bytes_read as f64;
    "rustmq_wal_sealed_segments_total" "counter" "Segments sealed.",
        shard => shard.counters.segments_sealed as f64;
    "rustmq_wal_freed_segments_total" "counter" "Segments freed for another use.",
        shard => shard.counters.segments_freed as f64;
    "rustmq_wal_dropped_messages_total" "counter" "Records dropped because the WAL was full.",
        shard => shard.counters.records_dropped_full as f64;
    "rustmq_wal_size_bytes" "gauge" "Bytes that live segments take on disk.",
        shard => shard.gauges.wal_bytes as f64;
    "rustmq_wal_segments" "gauge" "Live segments.",
        shard => shard.gauges.wal_segments as f64;
    "rustmq_wal_stalled_seconds" "gauge" "How long the disk has not answered a write or flush, once that is too long.",
        shard => shard.gauges.stalled_ms as f64 / 1000.0;
    "rustmq_wal_lost_files" "gauge" "Files that were deleted beneath the broker.",
        shard => shard.gauges.lost_files as f64;
    "rustmq_partitions" "gauge" "Partitions led.",
        shard => shard.gauges.partitions as f64;
    "rustmq_connections" "gauge" "Client connections, handshakes included.",
        shard => shard.gauges.connections as f64;
    "rustmq_handshakes" "gauge" "Handshakes that are not over.",
        shard => shard.gauges.handshakes as f64;
    "rustmq_handshakes_total" "counter" "Handshakes begun.",
        shard => shard.endpoint.begun as f64;
    "rustmq_handshakes_completed_total" "counter" "Handshakes that ended well.",
        shard => shard.endpoint.done as f64;
    "rustmq_handshakes_timed_out_total" "counter" "Handshakes that took too long.",
        shard => shard.endpoint.timed_out as f64;
    "rustmq_first_packets_retried_total" "counter" "First packets whose sender was asked to prove its address.",
        shard => shard.endpoint.retried as f64;
    "rustmq_first_packets_refused_total" "counter" "First packets refused: no place, or the broker stops.",
        shard => shard.endpoint.refused as f64;
    "rustmq_first_packets_ignored_total" "counter" "First packets ignored: too many handshakes.",
        shard => shard.endpoint.ignored as f64;
    "rustmq_first_packets_dropped_total" "counter" "First packets dropped unread: strangers had their share of the shard's time.",
        shard => shard.endpoint.dropped as f64;
    "rustmq_path_mtu_bytes" "gauge" "Largest datagram that a client's path has come to take, of all since the start.",
        shard => f64::from(shard.endpoint.path_mtu);
    "rustmq_datagrams_passed_on_total" "counter" "Datagrams for connections of other shards, handed to them.",
        shard => shard.endpoint.passed_on as f64;
    "rustmq_datagrams_passed_on_lost_total" "counter" "Datagrams for connections of other shards, lost because those had too many to look at.",
        shard => shard.endpoint.passed_on_lost as f64;
    "rustmq_connections_closed_no_hello_total" "counter" "Connections closed because no Hello came.",
        shard => shard.endpoint.no_hello as f64;
    "rustmq_connections_closed_half_request_total" "counter" "Connections closed because a request was not finished.",
        shard => shard.endpoint.half_frame as f64;
    "rustmq_connections_closed_unread_total" "counter" "Connections closed because their answers were not read.",
        shard => shard.endpoint.unread as f64;
    "rustmq_request_memory_bytes" "gauge" "Bytes of requests that are not answered.",
        shard => shard.gauges.request_bytes as f64;
    "rustmq_answer_memory_bytes" "gauge" "Bytes of answers that are not acknowledged.",
        shard => shard.gauges.answer_bytes as f64;
    "rustmq_read_ahead_memory_bytes" "gauge" "Bytes of memory for what is read ahead.",
        shard => shard.gauges.read_ahead_bytes as f64;
    "rustmq_window_memory_bytes" "gauge" "Bytes that clients may send beyond what every connection may.",
        shard => shard.gauges.window_bytes as f64;
    "rustmq_forwarded_requests" "gauge" "Requests forwarded to another shard and not answered yet.",
        shard => shard.gauges.forwarded as f64;
    "rustmq_runtime_turns_total" "counter" "Turns of the shard's loop.",
        shard => shard.runtime.turns as f64;
    "rustmq_runtime_enters_total" "counter" "System calls that hand over work or wait for it.",
        shard => shard.runtime.enters as f64;
    "rustmq_runtime_file_operations_total" "counter" "Operations on files.",
        shard => shard.runtime.operations as f64;
    "rustmq_runtime_flushes_total" "counter" "Flushes asked of the device.",
        shard => shard.runtime.flushes as f64;
    "rustmq_runtime_busy_seconds_total" "counter" "Time spent at work.",
        shard => shard.runtime.busy.as_secs_f64();
    "rustmq_runtime_polled_seconds_total" "counter" "Time spent looking for work instead of sleeping.",
        shard => shard.runtime.polled.as_secs_f64();
    "rustmq_runtime_seconds_total" "counter" "Time since the shard started.",
        shard => shard.runtime.running.as_secs_f64();
}

const REFUSED: (&str, &str) = (
    "rustmq_requests_refused_total",
    "Requests refused, and subscriptions that an error ended, by its name.",
);
const LATENCY: (&str, &str) =
    ("rustmq_stage_latency_seconds", "Time in a part of a request's way.");

/// The whole text of a scrape.
pub(super) fn encode(scrape: &Scrape, ready: bool, uptime: Duration) -> String {
    let mut page = Page::default();
    page.head("rustmq_build_info", "gauge", "Always 1; the label tells the version.");
    page.line("rustmq_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1.0);
    page.head("rustmq_ready", "gauge", "1 while every shard serves.");
    page.line("rustmq_ready", &[], f64::from(u8::from(ready)));
    page.head("rustmq_uptime_seconds", "gauge", "Time since the process started.");
    page.line("rustmq_uptime_seconds", &[], uptime.as_secs_f64());

    page.head("rustmq_shard_up", "gauge", "1 if the shard answered this scrape.");
    for shard in &scrape.snapshots {
        page.line("rustmq_shard_up", &[("shard", &shard.shard)], 1.0);
    }
    for shard in &scrape.silent {
        page.line("rustmq_shard_up", &[("shard", shard)], 0.0);
    }
    for series in SERIES {
        page.head(series.name, series.kind, series.help);
        for shard in &scrape.snapshots {
            page.line(series.name, &[("shard", &shard.shard)], (series.read)(shard));
        }
    }
    page.head(REFUSED.0, "counter", REFUSED.1);
    for shard in &scrape.snapshots {
        for (code, count) in &shard.counters.refused {
            page.line(REFUSED.0, &[("shard", &shard.shard), ("code", code)], *count as f64);
        }
    }
    page.head(LATENCY.0, "histogram", LATENCY.1);
    for shard in &scrape.snapshots {
        for (stage, histogram) in Stage::ALL.into_iter().zip(&shard.stages) {
            page.histogram(LATENCY.0, shard, stage, histogram);
        }
    }
    page.text
}

fn hit_ratio(hits: u64, misses: u64) -> f64 {
    match hits + misses {
        0 => 0.0,
        all => hits as f64 / all as f64,
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Label values are numbers and names of ours: none needs escaping.
    fn line(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: f64) {
        self.write(format_args!("{name}"));
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{value}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{after} {value}\n"));
    }

    fn histogram(
        &mut self,
        name: &str,
        shard: &ShardSnapshot,
        stage: Stage,
        histogram: &Histogram<u64>,
    ) {
        let Distribution { at_most, sum_seconds } = Distribution::of(histogram);
        let (shard, stage) = (("shard", &shard.shard as _), ("stage", &stage.name() as _));
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS_NS.iter().zip(at_most) {
            let bound = *bound as f64 / 1e9;
            self.line(&bucket, &[shard, stage, ("le", &bound)], count as f64);
        }
        let count = histogram.len() as f64;
        self.line(&bucket, &[shard, stage, ("le", &"+Inf")], count);
        self.line(&format!("{name}_sum"), &[shard, stage], sum_seconds);
        self.line(&format!("{name}_count"), &[shard, stage], count);
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes everything");
    }
}

/// An HDR histogram in the shape of Prometheus' classic ones.
struct Distribution {
    /// How many values are at most the bound of the same index.
    at_most: [u64; BOUNDS_NS.len()],
    /// The sum of all values, each taken as the middle of its cell: off by at most 1 %.
    sum_seconds: f64,
}

impl Distribution {
    fn of(histogram: &Histogram<u64>) -> Self {
        let (mut at_most, mut sum_ns) = ([0; BOUNDS_NS.len()], 0.0);
        for cell in histogram.iter_recorded() {
            let (value, count) = (cell.value_iterated_to(), cell.count_at_value());
            let lowest = histogram.lowest_equivalent(value);
            sum_ns += count as f64 * (lowest as f64 + value as f64) / 2.0;
            // A cell that a bound cuts counts below it.
            let bucket = BOUNDS_NS.partition_point(|bound| *bound < lowest);
            if let Some(at_most) = at_most.get_mut(bucket) {
                *at_most += count;
            }
        }
        let mut below = 0;
        for count in &mut at_most {
            below += *count;
            *count = below;
        }
        Self { at_most, sum_seconds: sum_ns / 1e9 }
    }
}

#[cfg(test)]
pub(in crate::broker) mod tests;
