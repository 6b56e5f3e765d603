//! The Rust SDK in the place of the client of closed loops and of the consumer at the tail: what it
//! costs beside them, on the same core and against the same broker.
//!
//! Its producers send as those of `rustmq bench` do: they share a client, and so connections, and each
//! has `window` tasks, each of which sends a batch and waits for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustmq_client::{
    Client, ClientConfig, Consumer, PartitionId, Partitions, Pem, PollMode, Producer,
    ProducerRecord, Start, Ticket, TlsConfig,
};
use tokio::task::JoinSet;

use super::broker::Broker;
use super::drive::{Period, Tally};
use super::shape::Shape;
use super::wire::Target;

/// How producers share clients, and what these do while they wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    pub(super) poll: PollMode,
    /// All producers have one.
    pub(super) is_shared: bool,
}

impl Clients {
    /// As `rustmq bench` has them.
    pub(super) const ONE: Clients = Clients { poll: PollMode::Adaptive, is_shared: true };
}

/// How a client of the SDK finds the broker.
pub fn config(broker: &Broker, poll: PollMode) -> ClientConfig {
    let file = |name| Pem::File(broker.certs().join(name));
    let (ca, cert, key) = (file("ca.crt"), file("client.crt"), file("client.key"));
    let tls = TlsConfig { ca, cert, key, server_name: None };
    ClientConfig { poll, ..ClientConfig::new(vec![broker.address().to_string()], tls) }
}

/// Every producer, with a partition of its own, keeps `window` batches on their way.
pub(super) async fn closed_loop(
    config: ClientConfig,
    is_shared: bool,
    topic: &str,
    shape: Shape,
    period: Period,
) -> Result<Tally> {
    let mut producers = Vec::with_capacity(shape.producers);
    let mut client = Client::connect(config.clone()).await?;
    for partition in (0..).map(PartitionId).take(shape.producers) {
        if !is_shared && !producers.is_empty() {
            client = Client::connect(config.clone()).await?;
        }
        let producer = client.producer(topic).build().await?;
        // It dials the shard.
        producer.send(ProducerRecord::value("").with_partition(partition)).await?;
        producers.push((producer, partition));
    }
    let begin = Instant::now() + period.warm_up;
    let mut loops = JoinSet::new();
    for (producer, partition) in producers {
        for _ in 0..shape.window {
            let producer = producer.clone();
            loops.spawn(one_after_another(producer, partition, shape, begin, period));
        }
    }
    gather(loops, period).await
}

async fn gather(mut loops: JoinSet<Result<Tally>>, period: Period) -> Result<Tally> {
    let mut all = Tally { elapsed: period.measured, ..Tally::new() };
    while let Some(tally) = loops.join_next().await {
        all.merge(&tally.context("a producer panicked")??)?;
    }
    Ok(all)
}

async fn one_after_another(
    producer: Producer,
    partition: PartitionId,
    shape: Shape,
    begin: Instant,
    period: Period,
) -> Result<Tally> {
    let record = ProducerRecord::value(vec![b'x'; shape.value_bytes]).with_partition(partition);
    let mut tally = Tally::new();
    loop {
        let sent = Instant::now();
        if begin + period.measured <= sent {
            return Ok(tally);
        }
        producer.send_batch(vec![record.clone(); shape.records]).await?;
        match begin <= sent {
            true => tally.record(sent.elapsed()),
            false => tally.answers += 1,
        }
    }
}

/// How a producer gathers records into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Bytes of a full batch.
    pub(super) batch_bytes: usize,
    /// How long one that is not full waits while nothing is on its way.
    pub(super) linger_ms: u64,
}

/// Each producer hands over one record after the other, to whatever partition it picks, and waits for the
/// oldest once `window` are not acknowledged.
pub(super) async fn many(
    config: ClientConfig,
    topic: &str,
    batching: Batching,
    shape: Shape,
    period: Period,
) -> Result<Tally> {
    let mut loops = JoinSet::new();
    for _ in 0..shape.producers {
        let client = Client::connect(config.clone()).await?;
        let linger = Duration::from_millis(batching.linger_ms);
        let builder = client.producer(topic).batch_bytes(batching.batch_bytes).linger(linger);
        loops.spawn(submit(builder.build().await?, shape, period));
    }
    gather(loops, period).await
}

async fn submit(producer: Producer, shape: Shape, period: Period) -> Result<Tally> {
    let record = ProducerRecord::value(vec![b'x'; shape.value_bytes]);
    let begin = Instant::now() + period.warm_up;
    let (mut tally, mut waiting) = (Tally::new(), VecDeque::with_capacity(shape.window));
    loop {
        let now = Instant::now();
        let is_over = begin + period.measured <= now;
        if is_over || shape.window <= waiting.len() {
            let Some((ticket, sent)): Option<(Ticket, Instant)> = waiting.pop_front() else {
                return Ok(tally);
            };
            ticket.await?;
            match begin <= sent {
                true => tally.record(sent.elapsed()),
                false => tally.answers += 1,
            }
        } else {
            waiting.push_back((producer.submit(record.clone()).await?, now));
        }
    }
}

/// Consumers with connections of their own, from the end of a partition on.
pub(super) async fn consumers(
    config: ClientConfig,
    topic: &str,
    count: usize,
    target: &Target,
) -> Result<Vec<Consumer>> {
    let partition = target.head.partition;
    let mut consumers = Vec::with_capacity(count);
    for _ in 0..count {
        let client = Client::connect(config.clone()).await?;
        let end = client.list_offsets(topic, &[partition], rustmq_client::OffsetAt::Latest).await?;
        let end = end.first().context("the topic has the partition")?.offset;
        let builder = client.consumer(topic).partitions(Partitions::Some(vec![partition]));
        consumers.push(builder.start(Start::Offset(end)).build().await?);
    }
    Ok(consumers)
}
