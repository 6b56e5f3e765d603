//! Latencies, kept as a histogram.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency told apart, in nanoseconds. 10 minutes: a longer one counts as this.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Digits of a latency that are right.
const DIGITS: u8 = 3;

/// Latencies of any number of events, in memory that does not grow with it.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    ns: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Latencies {
        let ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        Latencies { ns: ns.expect("the bounds above are right") }
    }

    /// Adds the latency of so many events.
    pub(crate) fn record(&mut self, latency: Duration, count: u64) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.ns.saturating_record_n(ns, count);
    }

    /// Adds those of another.
    pub(crate) fn add(&mut self, other: &Latencies) {
        self.ns.add(&other.ns).expect("all have the same bounds");
    }

    /// The latency in microseconds that this fraction of events does not exceed.
    pub(crate) fn quantile_us(&self, fraction: f64) -> f64 {
        to_us(self.ns.value_at_quantile(fraction))
    }

    /// The longest latency in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        to_us(self.ns.max())
    }
}

/// Microseconds to one decimal: more is noise.
fn to_us(ns: u64) -> f64 {
    (ns as f64 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_events() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us), 1);
        }
        for (fraction, us) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let quantile = latencies.quantile_us(fraction);
            assert!((quantile - us).abs() <= us / 500.0, "{fraction}: {quantile}");
        }
        assert!((latencies.max_us() - 1000.0).abs() <= 2.0);
    }

    #[test]
    fn no_events_are_zero_and_what_is_too_long_counts_as_the_longest() {
        let mut latencies = Latencies::new();
        assert_eq!((latencies.quantile_us(0.5), latencies.max_us()), (0.0, 0.0));
        latencies.record(Duration::from_secs(3600), 5);
        assert!(599_000_000.0 < latencies.quantile_us(0.5));
    }
}
