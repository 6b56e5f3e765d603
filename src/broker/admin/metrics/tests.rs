use super::*;
use rustmq_protocol::ShardId;
use rustmq_server::metrics::{Counters, EndpointCounters, Gauges, empty_stages};
use rustmq_sys::runtime::Stats;

/// What a shard measured that did nothing yet.
pub(in crate::broker) fn snapshot(shard: u16) -> ShardSnapshot {
    ShardSnapshot {
        shard: ShardId(shard),
        stages: empty_stages(),
        counters: Counters::default(),
        endpoint: EndpointCounters::default(),
        gauges: Gauges::default(),
        runtime: Stats::default(),
    }
}

fn scrape() -> Scrape {
    let (mut first, second) = (snapshot(0), snapshot(1));
    first.counters.records_produced = 7;
    first.counters.cache_hits = 3;
    first.counters.cache_misses = 1;
    first.counters.refused.insert("THROTTLED", 2);
    let produce = &mut first.stages[Stage::Produce as usize];
    for ns in [1, 5_000, 60_000, 1_500_000_000, 59_000_000_000] {
        produce.record(ns).unwrap();
    }
    Scrape { snapshots: vec![first, second], silent: vec![ShardId(2)] }
}

/// The lines of a metric whose label set contains all of these.
fn values<'a>(text: &'a str, name: &str, labels: &[&str]) -> Vec<&'a str> {
    text.lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect()
}

#[test]
fn every_shard_has_its_line_and_a_silent_one_is_down() {
    let text = encode(&scrape(), true, Duration::from_secs(9));
    assert_eq!(values(&text, "rustmq_ready", &[]), ["1"]);
    assert_eq!(values(&text, "rustmq_uptime_seconds", &[]), ["9"]);
    assert_eq!(values(&text, "rustmq_shard_up", &[]), ["1", "1", "0"]);
    assert_eq!(values(&text, "rustmq_messages_produced_total", &[]), ["7", "0"]);
    assert_eq!(values(&text, "rustmq_cache_hit_ratio", &[]), ["0.75", "0"]);
    assert_eq!(values(&text, "rustmq_requests_refused_total", &["THROTTLED"]), ["2"]);
}

#[test]
fn buckets_are_cumulative_and_end_in_the_count() {
    let text = encode(&scrape(), true, Duration::ZERO);
    let labels = ["shard=\"0\"", "stage=\"produce\""];
    let buckets = values(&text, "rustmq_stage_latency_seconds_bucket", &labels);
    let buckets: Vec<u64> = buckets.iter().map(|count| count.parse().unwrap()).collect();
    assert_eq!(buckets.len(), BOUNDS_NS.len() + 1);
    assert!(buckets.is_sorted());
    let at = |le: &str| {
        let le = format!("le=\"{le}\"");
        values(&text, "rustmq_stage_latency_seconds_bucket", &[labels[0], labels[1], &le])
    };
    assert_eq!(at("0.000005"), ["2"]);
    assert_eq!(at("0.00005"), ["2"]);
    assert_eq!(at("0.0001"), ["3"]);
    assert_eq!(at("2"), ["4"]);
    assert_eq!(at("10"), ["4"]);
    assert_eq!(at("+Inf"), ["5"]);
    assert_eq!(values(&text, "rustmq_stage_latency_seconds_count", &labels), ["5"]);
    let sum = values(&text, "rustmq_stage_latency_seconds_sum", &labels);
    let sum: f64 = sum[0].parse().unwrap();
    assert!((sum / 60.5 - 1.0).abs() < 0.01, "{sum}");
}

#[test]
fn the_text_has_the_shape_that_scrapers_read() {
    let text = encode(&scrape(), false, Duration::ZERO);
    assert!(text.ends_with('\n'));
    let mut typed: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let name = head.split(' ').next().unwrap();
            assert!(!typed.contains(&name), "{name} comes twice");
            typed.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let current = typed.last().unwrap();
            assert!(name.starts_with(current), "{name} is not under its head");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn the_page_for_operators_has_every_name_and_stage() {
    let page = include_str!("../../../../docs/operations/metrics.md");
    let text = encode(&scrape(), true, Duration::ZERO);
    let heads = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut names: Vec<String> = Stage::ALL.iter().map(|stage| stage.name().to_owned()).collect();
    names.extend(heads.map(|head| head.split(' ').next().unwrap().to_owned()));
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/operations/metrics.md");
    }
}
