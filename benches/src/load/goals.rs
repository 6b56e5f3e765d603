//! What the figures are held against, and how near they have to come.

use std::fmt;

use super::rounds::{Figure, Results, Spread};

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

/// All goals that the load generator can judge.
pub const GOALS: [Goal; 18] = [
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
        number: "-",
        what: "8 producers of 1 KiB, flush 1 ms longer: batches/flush",
        reference: "1",
        bound: Bound::AtLeast(6.0),
        of_round: |round| round.get("slow_flush/8x1KiB", Figure::BatchesPerFlush),
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
    use super::super::rounds::{Sample, Series};
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
