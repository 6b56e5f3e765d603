//! Consumers at the end of a partition: by subscription, or fetch by fetch.
//!
//! A producer stays at most 16 batches before the slowest consumer, so that all of
//! them are at the tail, whatever the client's core can take. A latency is from when a batch was handed
//! to QUIC until a consumer has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustmq_client::Consumer;
use rustmq_protocol::{
    Credit, ErrorCode, Fetch, FetchResponse, ListOffsets, ListOffsetsResponse, Offset, OffsetAt,
    RequestKind, Subscribe, batches,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::drive::{Period, Producer, Tally};
use super::wire::{Link, Target};

/// How far the producer may be before the slowest consumer: 1 MiB in batches of 64 KiB.
const BATCHES_AHEAD_MAX: usize = 16;

/// Bytes that a subscription may be sent before it is given more, half of it at a time.
const CREDIT_BYTES: u32 = 4 << 20;

/// Bytes of an answer, of a fetch or of a subscription.
const ANSWER_BYTES: u32 = 1 << 20;

/// How long a fetch waits at the end.
const FETCH_WAIT_MS: u32 = 500;

/// How consumers ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Once, and then for credit.
    Subscription,
    /// For each answer.
    Fetch,
}

/// What all tasks of a run share.
struct Shared {
    state: Mutex<State>,
    moved: Notify,
    /// The offset of the first batch; each has one record.
    base: Offset,
    begin: Instant,
}

struct State {
    /// When each batch was sent.
    sent: Vec<Instant>,
    /// How many batches each consumer has.
    received: Vec<usize>,
    tally: Tally,
}

impl State {
    /// Does every consumer have every batch?
    fn is_delivered(&self) -> bool {
        self.received.iter().all(|received| *received == self.sent.len())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Produces for a time, with consumers beside; a tally of all deliveries. `answers` counts those
/// outside of the time measured as well.
pub async fn run(
    producer: Producer,
    consumers: Vec<Link>,
    target: Target,
    by: By,
    period: Period,
) -> Result<Tally> {
    beside(producer, consumers, target, period, move |link, index, shared| async move {
        match by {
            By::Subscription => follow(link, &target, index, &shared).await,
            By::Fetch => fetch(link, &target, index, &shared).await,
        }
    })
    .await
}

/// The same with consumers of the Rust SDK, which read this partition alone and nothing yet.
pub async fn run_sdk(
    producer: Producer,
    consumers: Vec<Consumer>,
    target: Target,
    period: Period,
) -> Result<Tally> {
    beside(producer, consumers, target, period, receive).await
}

async fn beside<C, F: Future<Output = Result<()>> + Send + 'static>(
    producer: Producer,
    consumers: Vec<C>,
    target: Target,
    period: Period,
    consume: impl Fn(C, usize, Arc<Shared>) -> F,
) -> Result<Tally> {
    let mut producer = producer;
    let base = end_of(&mut producer.link, &target).await?;
    let begin = Instant::now() + period.warm_up;
    let state = State {
        sent: Vec::new(),
        received: vec![0; consumers.len()],
        tally: Tally { elapsed: period.measured, ..Tally::new() },
    };
    let shared = Shared { state: Mutex::new(state), moved: Notify::new(), base, begin };
    let shared = Arc::new(shared);
    let mut consuming = JoinSet::new();
    for (index, consumer) in consumers.into_iter().enumerate() {
        consuming.spawn(consume(consumer, index, Arc::clone(&shared)));
    }
    let delivered = async {
        produce(producer, begin + period.measured, &shared).await?;
        while !shared.lock().is_delivered() {
            shared.moved.notified().await;
        }
        anyhow::Ok(())
    };
    // A consumer ends with an error, or when all is delivered and nobody waits for it.
    tokio::select! {
        delivered = delivered => delivered?,
        Some(ended) = consuming.join_next() => ended.context("a consumer panicked")??,
    }
    let tally = shared.lock().tally.clone();
    Ok(tally)
}

/// Where a partition ends.
pub(super) async fn end_of(link: &mut Link, target: &Target) -> Result<Offset> {
    let head = &target.head;
    let ask = ListOffsets {
        topic: head.topic,
        partition: head.partition,
        leader_epoch: head.leader_epoch,
        at: OffsetAt::Latest,
    };
    let body = link.call(RequestKind::ListOffsets, |out| ask.encode(out)).await?;
    Ok(ListOffsetsResponse::decode(body)?.offset)
}

/// Sends as long as it may; acknowledgements are taken as they come.
async fn produce(producer: Producer, end: Instant, shared: &Shared) -> Result<()> {
    let Producer { link, mut frame } = producer;
    let Link { mut sender, mut receiver } = link;
    let acknowledged = async {
        while receiver.receive().await?.is_some() {}
        anyhow::Ok(())
    };
    let write = async {
        while Instant::now() < end {
            let waited = shared.moved.notified();
            let has_room = {
                let mut state = shared.lock();
                let slowest = state.received.iter().copied().min().unwrap_or(usize::MAX);
                let has_room = state.sent.len() < slowest.saturating_add(BATCHES_AHEAD_MAX);
                if has_room {
                    state.sent.push(Instant::now());
                }
                has_room
            };
            match has_room {
                true => sender.send(frame.next_batch().1).await?,
                false => waited.await,
            }
        }
        sender.finish()
    };
    tokio::try_join!(acknowledged, write)?;
    Ok(())
}

async fn receive(mut consumer: Consumer, index: usize, shared: Arc<Shared>) -> Result<()> {
    let mut next = shared.base;
    while let Some(record) = consumer.receive().await {
        let record = record?;
        let now = Instant::now();
        let mut state = shared.lock();
        arrived(&mut state, &shared, index, record.offset, record.offset, &mut next, now)?;
        drop(state);
        shared.moved.notify_one();
    }
    Ok(())
}

/// Counts the batches of an answer; `next` becomes the offset behind the last.
fn take(shared: &Shared, index: usize, body: &[u8], next: &mut Offset) -> Result<()> {
    let response = FetchResponse::decode(body)?;
    let now = Instant::now();
    let mut state = shared.lock();
    for batch in batches(response.batches) {
        let (header, _) = batch?;
        let (first, last) = (header.base_offset, header.last_offset());
        arrived(&mut state, shared, index, first, last, next, now)?;
    }
    shared.moved.notify_one();
    Ok(())
}

/// Counts one batch.
fn arrived(
    state: &mut State,
    shared: &Shared,
    index: usize,
    first: Offset,
    last: Offset,
    next: &mut Offset,
    now: Instant,
) -> Result<()> {
    ensure!(first == *next, "{first} came, {next} is next");
    let number = (next.0 - shared.base.0) as usize;
    *next = Offset(last.0 + 1);
    let sent = *state.sent.get(number).context("a batch that was not sent")?;
    match shared.begin <= sent {
        true => state.tally.record(now - sent),
        false => state.tally.answers += 1,
    }
    state.received[index] = number + 1;
    Ok(())
}

async fn follow(mut link: Link, target: &Target, index: usize, shared: &Shared) -> Result<()> {
    let head = &target.head;
    let mut next = shared.base;
    let ask = Subscribe {
        topic: head.topic,
        partition: head.partition,
        leader_epoch: head.leader_epoch,
        offset: next,
        credit: CREDIT_BYTES,
        bytes_max: ANSWER_BYTES,
    };
    link.send(RequestKind::Subscribe, |out| ask.encode(out)).await?;
    let mut used = 0;
    loop {
        let header = link.receiver.receive().await?.context("the stream ended")?;
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        let body = link.receiver.body();
        used += body.len();
        take(shared, index, body, &mut next)?;
        if CREDIT_BYTES as usize / 2 <= used {
            let more = Credit::More { bytes: used as u32 };
            link.send(RequestKind::Credit, |out| more.encode(out)).await?;
            used = 0;
        }
    }
}

async fn fetch(mut link: Link, target: &Target, index: usize, shared: &Shared) -> Result<()> {
    let head = &target.head;
    let mut next = shared.base;
    loop {
        let ask = Fetch {
            topic: head.topic,
            partition: head.partition,
            leader_epoch: head.leader_epoch,
            offset: next,
            wait_ms_max: FETCH_WAIT_MS,
            bytes_min: 1,
            bytes_max: ANSWER_BYTES,
        };
        let body = link.call(RequestKind::Fetch, |out| ask.encode(out)).await?;
        take(shared, index, body, &mut next)?;
    }
}
