//! Producers, in a closed or an open loop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustmq_client::{Client, PartitionId, Producer, ProducerRecord};
use rustmq_protocol::BATCH_BYTES_MAX;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinSet;

use super::pace::{self, Schedule};
use super::report::{Report, Tally};
use super::{BenchArgs, show_progress};

/// Bytes at the beginning of a record that say when it was due, in nanoseconds since the run's
/// origin.
pub(super) const STAMP_BYTES: usize = 8;

/// Bytes that a record has in a batch beside its value, at most.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// How long a batch is tried. 30 s: a run ends even if its broker does not come back.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// Batches of a producer on their way at once in an open loop, unless told otherwise. At the limit
/// a batch waits, and the wait counts.
const IN_FLIGHT_OPEN: u32 = 1024;

/// Due batches that wait for a producer at the limit. Beyond it the pace waits; due times stay.
const DUE_WAITING_MAX: usize = 1 << 16;

/// A pause after a batch that failed: an error at once must not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What all producers of a run share.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) batch: u32,
    pub(super) size: usize,
    pub(super) in_flight: u32,
    pub(super) rate: Option<u64>,
    pub(super) time: Duration,
    /// Bytes at which producers stop before the time is over.
    pub(super) bytes_max: u64,
    /// Since when the stamps in the records count.
    pub(super) origin: Instant,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    pub(super) fn new(args: &BenchArgs) -> Load {
        let in_flight = if args.rate.is_some() { IN_FLIGHT_OPEN } else { 1 };
        Load {
            batch: args.batch,
            size: args.size as usize,
            in_flight: args.in_flight.unwrap_or(in_flight),
            rate: args.rate,
            time: args.time(),
            bytes_max: u64::MAX,
            origin: Instant::now(),
            tally: Arc::new(Mutex::new(Tally::new())),
        }
    }

    /// What was acknowledged until now.
    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole of `bench produce`.
pub(super) async fn produce(args: &BenchArgs, topic: &str) -> anyhow::Result<Report> {
    let producers = connect(args, topic).await?;
    let load = Load::new(args);
    let begun_at = Instant::now();
    tokio::select! {
        () = run(&load, producers) => {}
        () = show_progress(load.time, "producing") => {}
    }
    let tally = load.tally().clone();
    Ok(tally.report(begun_at))
}

/// Producers, warmed up: each has sent a record to every partition. They share as many clients as asked
/// for.
pub(super) async fn connect(args: &BenchArgs, topic: &str) -> anyhow::Result<Vec<Producer>> {
    let mut producers = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..args.clients.min(args.producers) {
        clients.push(args.client().await?);
    }
    for (_, client) in (0..args.producers).zip(clients.iter().cycle()) {
        producers.push(producer(args, client, topic).await?);
    }
    Ok(producers)
}

async fn producer(args: &BenchArgs, client: &Client, topic: &str) -> anyhow::Result<Producer> {
    let wanted = args.batch as usize * (args.size as usize + RECORD_OVERHEAD_BYTES);
    let producer = client
        .producer(topic)
        .acks(args.acks.into())
        .batch_bytes(wanted.clamp(64 << 10, BATCH_BYTES_MAX))
        .delivery_timeout(DELIVERY_TIMEOUT)
        .build()
        .await?;
    let partitions = (0..producer.partition_count()).map(PartitionId);
    // Without a stamp, so that nobody takes it for a part of the run.
    let warm_up = partitions.map(|partition| ProducerRecord::value("").with_partition(partition));
    producer.send_batch(warm_up.collect()).await?;
    Ok(producer)
}

/// Sends until the time is over, then waits for what is on its way.
pub(super) async fn run(load: &Load, producers: Vec<Producer>) {
    let end = Instant::now() + load.time;
    match load.rate {
        None => run_closed(load, producers, end).await,
        Some(rate) => run_open(load, producers, rate, end).await,
    }
}

async fn run_closed(load: &Load, producers: Vec<Producer>, end: Instant) {
    let mut loops = JoinSet::new();
    for (index, producer) in (0..).zip(producers) {
        for slot in 0..load.in_flight {
            let mut source = Source::new(load.clone(), producer.clone(), index + slot);
            loops.spawn(async move {
                while Instant::now() < end && source.load.tally().bytes < source.load.bytes_max {
                    let due_at = Instant::now();
                    let batch = source.next_batch(due_at);
                    source.send(batch, due_at).await;
                }
            });
        }
    }
    while loops.join_next().await.is_some() {}
}

async fn run_open(load: &Load, producers: Vec<Producer>, rate: u64, end: Instant) {
    pace::sleep_exactly();
    let schedule = Schedule::new(Instant::now(), rate, load.batch);
    let mut loops = JoinSet::new();
    let mut due = Vec::new();
    for (index, producer) in (0..).zip(producers) {
        let (sender, receiver) = mpsc::channel(DUE_WAITING_MAX);
        due.push(sender);
        loops.spawn(send_when_due(Source::new(load.clone(), producer, index), receiver, end));
    }
    // Not joined: it ends with the receivers.
    std::thread::spawn(move || pace::run(schedule, end, &due));
    while loops.join_next().await.is_some() {}
}

async fn send_when_due(mut source: Source, mut due: Receiver<Instant>, end: Instant) {
    let in_flight = Arc::new(Semaphore::new(source.load.in_flight as usize));
    let mut sends = JoinSet::new();
    while let Some(due_at) = due.recv().await {
        let place = Arc::clone(&in_flight).acquire_owned().await;
        if end <= Instant::now() {
            // The broker did not keep up with the rate; the latencies say by how much.
            break;
        }
        let batch = source.next_batch(due_at);
        let source = source.clone();
        sends.spawn(async move {
            source.send(batch, due_at).await;
            drop(place);
        });
        while sends.try_join_next().is_some() {}
    }
    while sends.join_next().await.is_some() {}
}

/// Where batches of one producer come from: each goes to the next partition.
#[derive(Clone, Debug)]
struct Source {
    load: Load,
    producer: Producer,
    partition_next: u32,
}

impl Source {
    fn new(load: Load, producer: Producer, partition_first: u32) -> Source {
        let partition_next = partition_first % producer.partition_count().max(1);
        Source { load, producer, partition_next }
    }

    fn next_batch(&mut self, due_at: Instant) -> Vec<ProducerRecord> {
        let partition = PartitionId(self.partition_next);
        self.partition_next = (self.partition_next + 1) % self.producer.partition_count().max(1);
        let value = stamped(self.load.size, due_at.duration_since(self.load.origin));
        let record = ProducerRecord::value(value).with_partition(partition);
        vec![record; self.load.batch as usize]
    }

    async fn send(&self, batch: Vec<ProducerRecord>, due_at: Instant) {
        let records = batch.len() as u64;
        match self.producer.send_batch(batch).await {
            Ok(_) => {
                let (now, bytes) = (Instant::now(), records * self.load.size as u64);
                self.load.tally().arrived(records, bytes, now.duration_since(due_at), now);
            }
            Err(error) => {
                self.load.tally().failed(records, error);
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// A value of this size that says when it was due, as far as that fits into it.
fn stamped(size: usize, due: Duration) -> Bytes {
    let stamp = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
    let mut value = BytesMut::with_capacity(size);
    value.extend(stamp.iter().take(size));
    value.resize(size, b'x');
    value.freeze()
}

/// When a record was due; none if it has no stamp.
pub(super) fn due_of(value: &[u8]) -> Option<Duration> {
    let stamp = value.first_chunk::<STAMP_BYTES>()?;
    Some(Duration::from_nanos(u64::from_le_bytes(*stamp)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_from_a_value_of_the_size_asked_for() {
        let due = Duration::from_nanos(1_234_567_890_123);
        for size in [STAMP_BYTES, 9, 1024] {
            let value = stamped(size, due);
            assert_eq!((value.len(), due_of(&value)), (size, Some(due)));
        }
        for size in [0, 7] {
            let value = stamped(size, due);
            assert_eq!((value.len(), due_of(&value)), (size, None));
        }
    }
}
