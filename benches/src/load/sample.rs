//! What one run of a case came to, as numbers.

use std::collections::BTreeMap;

use super::catch_up::Delivered;
use super::drive::Tally;
use super::shape::Shape;

/// One number of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Requests or writes a second.
    RequestsPerS,
    /// Records a second.
    RecordsPerS,
    /// Megabytes of values a second.
    MbPerS,
    /// Latency: half are faster.
    P50Us,
    /// Latency: 99 % are faster.
    P99Us,
    /// Latency: 99.9 % are faster.
    P999Us,
    /// The longest latency.
    MaxUs,
    /// Batches acknowledged for each flush of the device.
    BatchesPerFlush,
    /// Processor time of the broker for each request, all its threads together.
    BrokerCpuUs,
    /// Processor time of the client for each request, what it looks for news included.
    ClientCpuUs,
    /// Processor time of the broker for each byte delivered, in nanoseconds, producing included.
    BrokerNsPerByte,
    /// Bytes read from the disk for each byte of values delivered.
    DiskBytesPerByte,
    /// Bytes written to the disk for each byte of values produced.
    WrittenBytesPerByte,
    /// Requests that wrote to the disk, of everybody, for each block.
    WritesPerBlock,
    /// Flushes of the disk, of everybody, for each block.
    FlushesPerBlock,
    /// Kibibytes in memory: of all, or of each.
    MemoryKib,
    /// Processor time of a shard, as a part of one core in per cent.
    ShardCpuPercent,
    /// Processor time of a shard for one of what was asked.
    ShardCpuUs,
    /// Open loop: requests were handed to QUIC at most so late, but for 1 %.
    LateP99Us,
}

impl Figure {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Figure::RequestsPerS => "requests/s",
            Figure::RecordsPerS => "records/s",
            Figure::MbPerS => "MB/s",
            Figure::P50Us => "p50 us",
            Figure::P99Us => "p99 us",
            Figure::P999Us => "p999 us",
            Figure::MaxUs => "max us",
            Figure::BatchesPerFlush => "batches/flush",
            Figure::BrokerCpuUs => "broker cpu us",
            Figure::ClientCpuUs => "client cpu us",
            Figure::BrokerNsPerByte => "broker cpu ns/byte delivered",
            Figure::DiskBytesPerByte => "bytes read/byte delivered",
            Figure::WrittenBytesPerByte => "bytes written/byte produced",
            Figure::WritesPerBlock => "disk writes/block",
            Figure::FlushesPerBlock => "disk flushes/block",
            Figure::MemoryKib => "memory KiB",
            Figure::ShardCpuPercent => "shard cpu %",
            Figure::ShardCpuUs => "shard cpu us",
            Figure::LateP99Us => "late p99 us",
        }
    }
}

/// What one run of a case came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    figures: BTreeMap<Figure, f64>,
}

impl Sample {
    /// Of a run whose requests were timed.
    pub(super) fn of(tally: &Tally, shape: Shape) -> Self {
        let rate = tally.latency.len() as f64 / tally.elapsed.as_secs_f64();
        let mut sample = Self::of_rate(rate, shape);
        let quantile = |quantile: f64| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
        sample.set(Figure::P50Us, quantile(0.5));
        sample.set(Figure::P99Us, quantile(0.99));
        sample.set(Figure::P999Us, quantile(0.999));
        sample.set(Figure::MaxUs, tally.latency.max() as f64 / 1e3);
        sample
    }

    /// Of a run in which nobody waited for a single batch.
    pub(super) fn of_delivered(delivered: &Delivered, shape: Shape) -> Self {
        Self::of_rate(delivered.batches as f64 / delivered.elapsed.as_secs_f64(), shape)
    }

    fn of_rate(rate: f64, shape: Shape) -> Self {
        let mut sample = Self::default();
        let value_bytes = shape.records * shape.value_bytes;
        sample.set(Figure::RequestsPerS, rate);
        sample.set(Figure::RecordsPerS, rate * shape.records as f64);
        sample.set(Figure::MbPerS, rate * value_bytes as f64 / 1e6);
        sample
    }

    /// Notes a number.
    pub fn set(&mut self, figure: Figure, value: f64) {
        self.figures.insert(figure, value);
    }

    /// The number, if the case has it.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).copied()
    }
}
