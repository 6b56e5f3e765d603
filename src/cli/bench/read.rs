//! Consumers: of what is stored, and of what is being produced.

use std::cell::RefCell;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustmq_client::{Client, Consumer, Offset, OffsetAt, PartitionId, Producer, Start};
use tokio::task::JoinSet;

use super::load::{self, Load, due_of};
use super::report::{Report, Tally};
use super::{BenchArgs, show_progress};
use crate::cli::produce::AcksArg;

/// Bytes that are stored before `bench consume` reads them. 1 GiB: more than caches hold, less than
/// a WAL of the default size.
const PRELOAD_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a batch that is stored before `bench consume`: full ones, whatever `--batch` is.
const PRELOAD_BATCH_BYTES: u32 = 64 << 10;

/// Batches of a producer on their way at once while records are stored.
const PRELOAD_IN_FLIGHT: u32 = 8;

/// How long acknowledged records may take to arrive once nothing is produced any more.
const LAST_ARRIVALS_WAIT: Duration = Duration::from_secs(10);

/// The whole of `bench consume`: stores records, then reads all of them with every consumer, from
/// the beginning again when it is at the end, until the time is over.
pub(super) async fn consume(args: &BenchArgs, topic: &str) -> anyhow::Result<Report> {
    let preload = BenchArgs {
        producers: 1,
        batch: args.batch.max(PRELOAD_BATCH_BYTES / args.size.max(1)).min(8192),
        acks: AcksArg::All,
        ..args.clone()
    };
    let mut load = Load::new(&preload);
    (load.rate, load.in_flight, load.bytes_max) = (None, PRELOAD_IN_FLIGHT, PRELOAD_BYTES_MAX);
    let producers = load::connect(&preload, topic).await?;
    tokio::select! {
        () = load::run(&load, producers) => {}
        () = show_progress(load.time, "storing") => {}
    }
    if let Some(error) = load.tally().first_error.clone() {
        anyhow::bail!("storing records to read: {error}");
    }

    let mut readers = JoinSet::new();
    for _ in 0..args.producers {
        let client = args.client().await?;
        readers.spawn(Reader::new(&client, topic).await?.read_for(args.time()));
    }
    let begun_at = Instant::now();
    let mut tally = Tally::new();
    let read = async {
        while let Some(reader) = readers.join_next().await {
            tally.add(reader.context("a reader ended")??);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        read = read => read?,
        () = show_progress(args.time(), "reading") => {}
    }
    Ok(tally.report(begun_at))
}

/// Reads everything that was stored, over and over.
struct Reader {
    consumer: Consumer,
    partitions: Vec<PartitionId>,
    /// Records in the topic.
    records: u64,
}

impl Reader {
    async fn new(client: &Client, topic: &str) -> anyhow::Result<Reader> {
        let (partitions, ends) = ends(client, topic).await?;
        let records = ends.iter().map(|end| end.0).sum();
        let consumer = client.consumer(topic).start(Start::Earliest).build().await?;
        Ok(Reader { consumer, partitions, records })
    }

    /// A latency is how long the reader waited for its next record.
    async fn read_for(mut self, time: Duration) -> anyhow::Result<Tally> {
        let mut tally = Tally::new();
        let mut asked_at = Instant::now();
        let end = asked_at + time;
        let mut ended = pin!(tokio::time::sleep_until(end.into()));
        let mut records_left = self.records;
        while asked_at < end {
            let record = tokio::select! {
                biased;
                record = self.consumer.receive() => record,
                () = &mut ended => None,
            };
            let Some(record) = record else { break };
            let (record, now) = (record?, Instant::now());
            let bytes = record.value.map_or(0, |value| value.len() as u64);
            tally.arrived(1, bytes, now.duration_since(asked_at), now);
            asked_at = now;
            records_left -= 1;
            if records_left == 0 {
                records_left = self.records;
                for partition in &self.partitions {
                    self.consumer.seek(*partition, Offset::ZERO)?;
                }
            }
        }
        Ok(tally)
    }
}

/// The whole of `bench e2e`: one consumer reads all partitions while they are written.
pub(super) async fn end_to_end(args: &BenchArgs, topic: &str) -> anyhow::Result<Report> {
    let producers = load::connect(args, topic).await?;
    let client = args.client().await?;
    let (partitions, ends) = ends(&client, topic).await?;
    let mut consumer = client.consumer(topic).build().await?;
    for (partition, end) in partitions.into_iter().zip(ends) {
        consumer.seek(partition, end)?;
    }

    let load = Load::new(args);
    let received = RefCell::new(Tally::new());
    let begun_at = Instant::now();
    tokio::select! {
        () = receive_all(consumer, load.origin, &received) => {}
        () = produce_until_received(&load, producers, &received) => {}
        () = show_progress(load.time, "producing and receiving") => {}
    }
    let mut tally = received.into_inner();
    let produced = load.tally();
    if let Some(error) = &produced.first_error {
        tally.failed(produced.errors, error);
    }
    let lost = produced.records.saturating_sub(tally.records);
    if 0 < lost {
        tally.failed(lost, "acknowledged and not received");
    }
    Ok(tally.report(begun_at))
}

/// Receives as long as it is awaited, or until no partition is read on.
async fn receive_all(mut consumer: Consumer, origin: Instant, received: &RefCell<Tally>) {
    while let Some(record) = consumer.receive().await {
        let now = Instant::now();
        match record {
            Ok(record) => {
                let value = record.value.unwrap_or_default();
                let due = due_of(&value).unwrap_or_default();
                let latency = now.duration_since(origin).saturating_sub(due);
                received.borrow_mut().arrived(1, value.len() as u64, latency, now);
            }
            Err(error) => received.borrow_mut().failed(0, error),
        }
    }
}

async fn produce_until_received(load: &Load, producers: Vec<Producer>, received: &RefCell<Tally>) {
    load::run(load, producers).await;
    let end = Instant::now() + LAST_ARRIVALS_WAIT;
    while received.borrow().records < load.tally().records && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The partitions of a topic, and the end of each.
async fn ends(client: &Client, topic: &str) -> anyhow::Result<(Vec<PartitionId>, Vec<Offset>)> {
    let info = client.describe_topic(topic).await?;
    let partitions: Vec<_> = info.partitions.iter().map(|info| info.partition).collect();
    let ends = client.list_offsets(topic, &partitions, OffsetAt::Latest).await?;
    Ok((partitions, ends.iter().map(|end| end.offset).collect()))
}
