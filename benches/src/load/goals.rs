//! What the figures are held against, and how near they have to come.

use std::fmt;

use super::rounds::{Results, Spread};
use super::sample::Figure;

/// How a ratio has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtMost(bound) => write!(f, "<= {bound}"),
            Bound::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

/// One goal.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Its number in `docs/performance.md`.
    pub number: &'static str,
    /// What is measured.
    pub what: &'static str,
    /// What it is divided by.
    pub reference: &'static str,
    /// How the ratio has to be.
    pub bound: Bound,
    of_round: fn(&Round<'_>) -> Option<f64>,
}

/// What a start may take.
const START_US: f64 = 50_000.0;

/// All goals that the load generator can judge.
pub const GOALS: [Goal; 50] = [
    Goal {
        number: "0",
        what: "the bare server, 1 KiB one at a time, p50",
        reference: "quinn on tokio",
        bound: Bound::AtMost(0.9),
        of_round: |round| Some(round.p50("bare/1x1KiB")? / round.p50("quinn/1x1KiB")?),
    },
    Goal {
        number: "0",
        what: "the bare server, 2 x 64 KiB, MB/s",
        reference: "quinn on tokio",
        bound: Bound::AtLeast(1.3),
        of_round: |round| {
            Some(round.rate("bare/2x64KiB_window_8")? / round.rate("quinn/2x64KiB_window_8")?)
        },
    },
    Goal {
        number: "1",
        what: "produce 1 KiB, one at a time, p50",
        reference: "durable 4 KiB + bare QUIC",
        bound: Bound::AtMost(1.25),
        of_round: |round| {
            let floor = round.device("4KiB", Figure::P50Us)? + round.p50("bare/1x1KiB")?;
            Some(round.p50("produce/1x1KiB")? / floor)
        },
    },
    Goal {
        number: "1",
        what: "produce 1 KiB, one at a time, p99",
        reference: "the sum of their p99",
        bound: Bound::AtMost(1.5),
        of_round: |round| {
            let p99 = |case| round.get(case, Figure::P99Us);
            let floor = round.device("4KiB", Figure::P99Us)? + p99("bare/1x1KiB")?;
            Some(p99("produce/1x1KiB")? / floor)
        },
    },
    Goal {
        number: "2",
        what: "8 producers of 1 KiB, acks/s",
        reference: "8 / (durable 4 KiB + bare QUIC, 8 clients)",
        bound: Bound::AtLeast(0.7),
        of_round: |round| {
            let floor_us = round.device("4KiB", Figure::P50Us)? + round.p50("bare/8x1KiB")?;
            Some(round.rate("produce/8x1KiB")? / (8e6 / floor_us))
        },
    },
    Goal {
        number: "3",
        what: "8 producers of 10 x 1 KiB, batches/s",
        reference: "8 / (durable 88 KiB + bare QUIC, 8 clients)",
        bound: Bound::AtLeast(0.7),
        of_round: |round| {
            let floor_us = round.device("88KiB", Figure::P50Us)? + round.p50("bare/8x10x1KiB")?;
            Some(round.rate("produce/8x10x1KiB")? / (8e6 / floor_us))
        },
    },
    Goal {
        number: "4",
        what: "2 producers of 64 KiB, MB/s",
        reference: "the lower of bare QUIC and durable 1 MiB",
        bound: Bound::AtLeast(0.85),
        of_round: |round| {
            let floor = round.mb("bare/2x64KiB_window_8")?.min(round.device_mb()?);
            Some(round.mb("produce/2x64KiB_window_8")? / floor)
        },
    },
    Goal {
        number: "4",
        what: "2 producers of 1 MiB, MB/s",
        reference: "the lower of bare QUIC and durable 1 MiB",
        bound: Bound::AtLeast(0.85),
        of_round: |round| {
            let floor = round.mb("bare/2x1MiB_window_2")?.min(round.device_mb()?);
            Some(round.mb("produce/2x1MiB_window_2")? / floor)
        },
    },
    Goal {
        number: "4",
        what: "2 producers of 64 KiB, MB/s, datagrams of 65,507 bytes",
        reference: "the lower of bare QUIC, the same datagrams, and durable 1 MiB",
        bound: Bound::AtLeast(0.85),
        of_round: |round| {
            let floor = round.mb("bare/2x64KiB_window_8_loopback")?.min(round.device_mb()?);
            Some(round.mb("produce/2x64KiB_window_8_loopback")? / floor)
        },
    },
    Goal {
        number: "4",
        what: "2 producers of 1 MiB, MB/s, datagrams of 65,507 bytes",
        reference: "the lower of bare QUIC, the same datagrams, and durable 1 MiB",
        bound: Bound::AtLeast(0.85),
        of_round: |round| {
            let floor = round.mb("bare/2x1MiB_window_2_loopback")?.min(round.device_mb()?);
            Some(round.mb("produce/2x1MiB_window_2_loopback")? / floor)
        },
    },
    Goal {
        number: "5",
        what: "256 requests of 1 KiB in flight, requests/s",
        reference: "the lower of 0.6 of bare QUIC and 0.9 of the UDP floor",
        bound: Bound::AtLeast(1.0),
        of_round: |round| {
            let quic = 0.6 * round.rate("bare/1x1KiB_window_256")?;
            let floor = 0.9 * round.rate("floor/1x1KiB_window_256")?;
            Some(round.rate("produce/1x1KiB_window_256")? / quic.min(floor))
        },
    },
    Goal {
        number: "5",
        what: "the same",
        reference: "quinn on tokio",
        bound: Bound::AtLeast(0.6),
        of_round: |round| {
            Some(round.rate("produce/1x1KiB_window_256")? / round.rate("quinn/1x1KiB_window_256")?)
        },
    },
    Goal {
        number: "6",
        what: "a subscription at the tail, batches of 64 KiB, MB/s",
        reference: "bare QUIC, handed on as it comes",
        bound: Bound::AtLeast(0.85),
        of_round: |round| Some(round.mb("consume/tail")? / round.mb("bare/tail")?),
    },
    Goal {
        number: "6",
        what: "the same, datagrams of 65,507 bytes to the consumer and 6,500 from the producer",
        reference: "bare QUIC, the same datagrams",
        bound: Bound::AtLeast(0.85),
        of_round: |round| {
            Some(round.mb("consume/tail_loopback")? / round.mb("bare/tail_loopback")?)
        },
    },
    Goal {
        number: "7",
        what: "catching up with one partition, cold, MB/s",
        reference: "the lower of bare QUIC and the device, sequential",
        bound: Bound::AtLeast(0.9),
        of_round: |round| {
            let floor = round.mb("bare/transfer")?.min(round.mb("device/sequential_4MiB")?);
            Some(round.mb("consume/catch_up")? / floor)
        },
    },
    Goal {
        number: "7",
        what: "catching up with one of 100 partitions of 1 KiB records, bytes read from the disk",
        reference: "bytes delivered",
        bound: Bound::AtMost(8.0),
        of_round: |round| round.get("consume/catch_up_1_of_100", Figure::DiskBytesPerByte),
    },
    Goal {
        number: "9",
        what: "from 8 producers of 1 KiB at half their rate to a consumer, p50",
        reference: "produce 1 KiB, one at a time + 1.5 x bare QUIC",
        bound: Bound::AtMost(1.0),
        of_round: |round| {
            let floor = round.p50("produce/1x1KiB")? + 1.5 * round.p50("bare/1x1KiB")?;
            Some(round.p50("open_loop/8x1KiB_consumed")? / floor)
        },
    },
    Goal {
        number: "8",
        what: "10 subscriptions at the tail, broker CPU per byte delivered",
        reference: "one subscription",
        bound: Bound::AtMost(1.1),
        of_round: |round| {
            let ns = |case| round.get(case, Figure::BrokerNsPerByte);
            Some(ns("consume/tail_x10")? / ns("consume/tail")?)
        },
    },
    Goal {
        number: "8",
        what: "10 subscriptions at the tail, broker CPU per byte delivered, consuming alone",
        reference: "one subscription",
        bound: Bound::AtMost(1.1),
        of_round: |round| {
            let one = round.consume_ns("consume/tail", 1.0)?;
            Some(round.consume_ns("consume/tail_x10", 10.0)? / one)
        },
    },
    Goal {
        number: "-",
        what: "a subscription at the tail, broker CPU per byte delivered, consuming alone",
        reference: "a fetch for each answer",
        bound: Bound::AtMost(1.0),
        of_round: |round| {
            let fetch = round.consume_ns("consume/tail_fetch", 1.0)?;
            Some(round.consume_ns("consume/tail", 1.0)? / fetch)
        },
    },
    Goal {
        number: "10",
        what: "1,000 partitions, records to 8 of them: broker CPU per record",
        reference: "one partition",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("partitions/8_of_1000", "partitions/1"),
    },
    Goal {
        number: "10",
        what: "1,000 partitions, records to all: broker CPU per record",
        reference: "one partition",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("partitions/1000", "partitions/1"),
    },
    Goal {
        number: "10",
        what: "10,000 partitions, records to 8 of them: broker CPU per record",
        reference: "one partition",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("partitions/8_of_10000", "partitions/1"),
    },
    Goal {
        number: "10",
        what: "10,000 partitions, records to all: broker CPU per record",
        reference: "one partition",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("partitions/10000", "partitions/1"),
    },
    Goal {
        number: "11",
        what: "1,000 silent connections: broker CPU per record of 8 others",
        reference: "one silent connection",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("connections/1000", "connections/1"),
    },
    Goal {
        number: "11",
        what: "10,000 silent connections: broker CPU per record of 8 others",
        reference: "one silent connection",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("connections/10000", "connections/1"),
    },
    Goal {
        number: "11",
        what: "as many silent connections as --silent says: broker CPU per record of 8 others",
        reference: "one silent connection",
        bound: Bound::AtMost(1.2),
        of_round: |round| round.cpu_ratio("connections/silent", "connections/1"),
    },
    Goal {
        number: "12",
        what: "a batch of 64 KiB a block: bytes written to the disk",
        reference: "bytes produced",
        bound: Bound::AtMost(1.07),
        of_round: |round| round.get("produce/1x64KiB", Figure::WrittenBytesPerByte),
    },
    Goal {
        number: "12",
        what: "the same: writes of the disk",
        reference: "blocks",
        bound: Bound::AtMost(1.0),
        of_round: |round| round.get("produce/1x64KiB", Figure::WritesPerBlock),
    },
    Goal {
        number: "12",
        what: "the same: flushes of the disk",
        reference: "blocks",
        bound: Bound::AtMost(1.0),
        of_round: |round| round.get("produce/1x64KiB", Figure::FlushesPerBlock),
    },
    Goal {
        number: "13",
        what: "from the start to the first acknowledgement, p50",
        reference: "50 ms",
        bound: Bound::AtMost(1.0),
        of_round: |round| Some(round.p50("start/one_topic")? / START_US),
    },
    Goal {
        number: "13",
        what: "the same with 1,000 topics and a log, p50",
        reference: "50 ms",
        bound: Bound::AtMost(1.0),
        of_round: |round| Some(round.p50("start/1000_topics")? / START_US),
    },
    Goal {
        number: "14",
        what: "memory at rest with 2 shards, MiB",
        reference: "1",
        bound: Bound::AtMost(64.0),
        of_round: |round| Some(round.get("memory/2_shards", Figure::MemoryKib)? / 1024.0),
    },
    Goal {
        number: "14",
        what: "memory of an idle partition, KiB",
        reference: "1",
        bound: Bound::AtMost(4.0),
        of_round: |round| round.get("memory/partition", Figure::MemoryKib),
    },
    Goal {
        number: "14",
        what: "memory of a silent connection, KiB",
        reference: "1",
        bound: Bound::AtMost(48.0),
        of_round: |round| round.get("memory/connection", Figure::MemoryKib),
    },
    Goal {
        number: "15",
        what: "a shard at rest, adaptive: per cent of a core",
        reference: "1",
        bound: Bound::AtMost(0.5),
        of_round: |round| round.get("idle/adaptive", Figure::ShardCpuPercent),
    },
    Goal {
        number: "15",
        what: "a shard at rest, sleep: per cent of a core",
        reference: "1",
        bound: Bound::AtMost(0.5),
        of_round: |round| round.get("idle/sleep", Figure::ShardCpuPercent),
    },
    Goal {
        number: "16",
        what: "a request forwarded to another shard and back, p50",
        reference: "a ring and a doorbell there and back",
        bound: Bound::AtMost(1.3),
        of_round: |round| Some(round.p50("hop/forward")? / round.p50("hop/raw")?),
    },
    Goal {
        number: "18",
        what: "a scrape, processor time of the shard, us",
        reference: "1",
        bound: Bound::AtMost(200.0),
        of_round: |round| round.get("scrape/each", Figure::ShardCpuUs),
    },
    Goal {
        number: "18",
        what: "a slice of a scrape, p99, us",
        reference: "1",
        bound: Bound::AtMost(50.0),
        of_round: |round| round.get("scrape/each", Figure::P99Us),
    },
    Goal {
        number: "19",
        what: "1 KiB one at a time, beside a producer of 1 MiB: what its p99 grows by",
        reference: "durable 1 MiB",
        bound: Bound::AtMost(1.5),
        of_round: |round| {
            let p99 = |case| round.get(case, Figure::P99Us);
            let grown = p99("produce/1x1KiB_beside_1MiB")? - p99("produce/1x1KiB_alone")?;
            Some(grown / round.device("1MiB", Figure::P50Us)?)
        },
    },
    Goal {
        number: "-",
        what: "8 producers of 1 KiB, flush 1 ms longer: batches/flush",
        reference: "1",
        bound: Bound::AtLeast(6.0),
        of_round: |round| round.get("slow_flush/8x1KiB", Figure::BatchesPerFlush),
    },
    Goal {
        number: "SDK",
        what: "1 KiB, one at a time, requests/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.rate_ratio("sdk/1x1KiB", "produce/1x1KiB"),
    },
    Goal {
        number: "SDK",
        what: "8 producers of 1 KiB, acks/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.rate_ratio("sdk/8x1KiB", "produce/8x1KiB"),
    },
    Goal {
        number: "SDK",
        what: "8 producers of 10 x 1 KiB, batches/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.rate_ratio("sdk/8x10x1KiB", "produce/8x10x1KiB"),
    },
    Goal {
        number: "SDK",
        what: "2 producers of 64 KiB, MB/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.mb_ratio("sdk/2x64KiB_window_8", "produce/2x64KiB_window_8"),
    },
    Goal {
        number: "SDK",
        what: "2 producers of 1 MiB, MB/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.mb_ratio("sdk/2x1MiB_window_2", "produce/2x1MiB_window_2"),
    },
    Goal {
        number: "SDK",
        what: "256 records of 1 KiB in flight, records/s",
        reference: "the load generator's client",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.rate_ratio("sdk/1x1KiB_window_256", "produce/1x1KiB_window_256"),
    },
    Goal {
        number: "SDK",
        what: "a consumer at the tail, batches of 64 KiB, MB/s",
        reference: "the load generator's subscription, on quinn",
        bound: Bound::AtLeast(0.85),
        of_round: |round| round.mb_ratio("sdk/tail", "consume/tail"),
    },
    Goal {
        number: "SDK",
        what: "record after record of 100 bytes, batches as they are by default, records/s",
        reference: "the best of other sizes and lingering",
        bound: Bound::AtLeast(0.9),
        of_round: |round| {
            let others = ["16KiB", "256KiB", "1MiB", "64KiB_1ms", "64KiB_5ms", "256KiB_5ms"];
            let rates = others.map(|other| round.rate(&format!("sdk_many/{other}")));
            let best = rates.into_iter().flatten().reduce(f64::max)?;
            Some(round.rate("sdk_many/64KiB")? / best)
        },
    },
];

/// The cases of one round.
struct Round<'a> {
    results: &'a Results,
    round: usize,
}

impl Round<'_> {
    fn get(&self, case: &str, figure: Figure) -> Option<f64> {
        self.results.get(case, self.round, figure)
    }

    fn p50(&self, case: &str) -> Option<f64> {
        self.get(case, Figure::P50Us)
    }

    fn rate(&self, case: &str) -> Option<f64> {
        self.get(case, Figure::RequestsPerS)
    }

    fn mb(&self, case: &str) -> Option<f64> {
        self.get(case, Figure::MbPerS)
    }

    /// Requests of a case, over those of another.
    fn rate_ratio(&self, case: &str, to: &str) -> Option<f64> {
        Some(self.rate(case)? / self.rate(to)?)
    }

    /// Bytes of a case, over those of another.
    fn mb_ratio(&self, case: &str, to: &str) -> Option<f64> {
        Some(self.mb(case)? / self.mb(to)?)
    }

    /// The broker's time for each request of a case, over that of another.
    fn cpu_ratio(&self, case: &str, to: &str) -> Option<f64> {
        let cpu = |case| self.get(case, Figure::BrokerCpuUs);
        Some(cpu(case)? / cpu(to)?)
    }

    /// What consuming takes by itself: the broker's time for each byte delivered, less that of
    /// producing it once for so many consumers.
    fn consume_ns(&self, case: &str, consumers: f64) -> Option<f64> {
        let produce_us = self.get("produce/1x64KiB_window_8", Figure::BrokerCpuUs)?;
        let produce_ns = produce_us * 1e3 / f64::from(64 << 10) / consumers;
        Some(self.get(case, Figure::BrokerNsPerByte)? - produce_ns)
    }

    /// A durable write, by whichever of ring and system call is faster here.
    fn device(&self, bytes: &str, figure: Figure) -> Option<f64> {
        let ring = self.get(&format!("device/ring_{bytes}"), figure)?;
        let blocking = self.get(&format!("device/blocking_{bytes}"), figure)?;
        Some(ring.min(blocking))
    }

    fn device_mb(&self) -> Option<f64> {
        Some(self.mb("device/ring_1MiB")?.max(self.mb("device/blocking_1MiB")?))
    }
}

impl Goal {
    /// The ratio over all rounds that have what it needs; none if no round has.
    pub fn ratio(&self, results: &Results) -> Option<Spread> {
        let rounds = (0..results.rounds()).map(|round| Round { results, round });
        Spread::of(rounds.filter_map(|round| (self.of_round)(&round)).collect())
    }

    /// Is it as it has to be?
    pub fn is_reached(&self, ratio: f64) -> bool {
        match self.bound {
            Bound::AtMost(bound) => ratio <= bound,
            Bound::AtLeast(bound) => bound <= ratio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::CASES;
    use super::super::rounds::Series;
    use super::super::sample::Sample;
    use super::*;

    fn results(samples: impl Fn(&str) -> Vec<Option<Sample>>) -> Results {
        let series = |name| Series { samples: samples(name), thrown_away: 0 };
        Results(CASES.iter().map(|case| (*case, series(case.name))).collect())
    }

    fn sample(value: f64) -> Option<Sample> {
        let mut sample = Sample::default();
        for figure in [
            Figure::P50Us,
            Figure::P99Us,
            Figure::RequestsPerS,
            Figure::MbPerS,
            Figure::BatchesPerFlush,
            Figure::BrokerCpuUs,
            Figure::BrokerNsPerByte,
            Figure::DiskBytesPerByte,
            Figure::WrittenBytesPerByte,
            Figure::WritesPerBlock,
            Figure::FlushesPerBlock,
            Figure::MemoryKib,
            Figure::ShardCpuPercent,
            Figure::ShardCpuUs,
        ] {
            sample.set(figure, value);
        }
        Some(sample)
    }

    #[test]
    fn every_goal_is_judged_by_cases_that_there_are() {
        let all = results(|_| vec![sample(2.0)]);
        for goal in GOALS {
            assert!(goal.ratio(&all).is_some(), "{} {}", goal.number, goal.what);
        }
    }

    #[test]
    fn the_ratio_is_taken_within_a_round_and_left_out_where_one_is_missing() {
        let results = results(|name| match name {
            "produce/1x1KiB" => vec![sample(300.0), sample(300.0)],
            "device/ring_4KiB" => vec![sample(100.0), None],
            "device/blocking_4KiB" => vec![sample(150.0), sample(150.0)],
            _ => vec![sample(50.0), sample(50.0)],
        });
        let ratio = GOALS[2].ratio(&results).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 2.0, 2.0));
        assert!(!GOALS[2].is_reached(ratio.median));
    }
}
