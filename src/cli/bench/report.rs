//! The numbers of a run.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::latency::Latencies;

/// Bytes of a megabyte in `mb_per_s`.
const MB: f64 = 1e6;

/// What happened so far.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Records that were not acknowledged, or acknowledged and not received.
    pub(super) errors: u64,
    /// Why the first of them.
    pub(super) first_error: Option<String>,
    pub(super) latencies: Latencies,
    pub(super) last_at: Option<Instant>,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally {
            records: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
            latencies: Latencies::new(),
            last_at: None,
        }
    }

    /// Records that arrived where they should, each after this time.
    pub(super) fn arrived(&mut self, records: u64, bytes: u64, latency: Duration, now: Instant) {
        self.records += records;
        self.bytes += bytes;
        self.latencies.record(latency, records);
        self.last_at = Some(now);
    }

    /// Records that did not.
    pub(super) fn failed(&mut self, records: u64, error: impl ToString) {
        self.errors += records;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    /// Adds what happened elsewhere in the same time.
    pub(super) fn add(&mut self, other: Tally) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies.add(&other.latencies);
        self.last_at = self.last_at.max(other.last_at);
    }

    /// Ends the run that began then.
    pub(super) fn report(self, begun_at: Instant) -> Report {
        let elapsed = self.last_at.map_or(Duration::ZERO, |last| last.duration_since(begun_at));
        Report { tally: self, elapsed }
    }
}

/// What happened, and in what time.
#[derive(Clone, Debug)]
pub(super) struct Report {
    tally: Tally,
    elapsed: Duration,
}

impl Report {
    /// One object on one line.
    pub(super) fn json(&self) -> String {
        let object = json!({
            "records": self.tally.records,
            "bytes": self.tally.bytes,
            "seconds": rounded(self.elapsed.as_secs_f64()),
            "records_per_s": rounded(self.per_second(self.tally.records as f64)),
            "mb_per_s": rounded(self.per_second(self.tally.bytes as f64 / MB)),
            "p50_us": self.tally.latencies.quantile_us(0.5),
            "p99_us": self.tally.latencies.quantile_us(0.99),
            "p999_us": self.tally.latencies.quantile_us(0.999),
            "max_us": self.tally.latencies.max_us(),
            "errors": self.tally.errors,
            "first_error": self.tally.first_error,
        });
        object.to_string() + "\n"
    }

    /// Some lines.
    pub(super) fn text(&self) -> String {
        let Tally { records, errors, latencies, first_error, .. } = &self.tally;
        let mut text = format!(
            "{records} records in {:.3} s: {:.0} records/s, {:.2} MB/s\n\
             latency  p50 {} us  p99 {} us  p99.9 {} us  max {} us\n\
             errors   {errors}\n",
            self.elapsed.as_secs_f64(),
            self.per_second(*records as f64),
            self.per_second(self.tally.bytes as f64 / MB),
            latencies.quantile_us(0.5),
            latencies.quantile_us(0.99),
            latencies.quantile_us(0.999),
            latencies.max_us(),
        );
        if let Some(error) = first_error {
            text += &format!("first error: {error}\n");
        }
        text
    }

    fn per_second(&self, count: f64) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds == 0.0 { 0.0 } else { count / seconds }
    }
}

/// Three decimals: more is noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let begun_at = Instant::now();
        let mut tally = Tally::new();
        for ms in 1..=100 {
            let now = begun_at + Duration::from_millis(20 * ms);
            tally.arrived(10, 10_000, Duration::from_millis(ms), now);
        }
        tally.failed(3, "STORAGE_FULL");
        tally.failed(1, "TIMEOUT");
        tally.report(begun_at)
    }

    #[test]
    fn the_json_is_one_object_with_rates_percentiles_and_errors() {
        let line = report().json();
        assert_eq!(line.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["records"], 1000);
        assert_eq!(json["records_per_s"], 500.0);
        assert_eq!(json["mb_per_s"], 0.5);
        assert_eq!((&json["errors"], &json["first_error"]), (&json!(4), &json!("STORAGE_FULL")));
        for (field, us) in [("p50_us", 5e4), ("p99_us", 9.9e4), ("p999_us", 1e5), ("max_us", 1e5)] {
            let value = json[field].as_f64().unwrap();
            assert!((value - us).abs() <= us / 500.0, "{field}: {value}");
        }
    }

    #[test]
    fn nothing_is_nothing_and_not_a_division_by_zero() {
        let json: serde_json::Value =
            serde_json::from_str(&Tally::new().report(Instant::now()).json()).unwrap();
        assert_eq!((&json["records_per_s"], &json["p50_us"]), (&json!(0.0), &json!(0.0)));
        assert!(report().text().contains("errors   4\nfirst error: STORAGE_FULL"));
    }
}
