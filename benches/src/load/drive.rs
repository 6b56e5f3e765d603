//! What clients count, when; and the closed loop of those on quinn and tokio.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustmq_protocol::CorrelationId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::wire::{Link, LinkReceiver, LinkSender, ProduceFrame};

/// The longest time that a histogram tells apart.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Latencies of answers.
#[derive(Debug, Clone)]
pub struct Tally {
    /// In nanoseconds, off by at most 0.1 %.
    pub latency: Histogram<u64>,
    /// For how long they were counted.
    pub elapsed: Duration,
    /// Every answer, those that were not measured included.
    pub answers: u64,
    /// Open loop: how long after its time a request was handed to QUIC.
    pub late: Histogram<u64>,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        Tally { latency: histogram(), elapsed: Duration::ZERO, answers: 0, late: histogram() }
    }

    /// One answer.
    pub fn record(&mut self, took: Duration) {
        self.latency.saturating_record(nanoseconds(took));
        self.answers += 1;
    }

    /// Open loop: a request was sent so long after its time.
    pub fn record_late(&mut self, by: Duration) {
        self.late.saturating_record(nanoseconds(by));
    }

    /// Adds what another connection saw in the same time.
    pub fn merge(&mut self, other: &Tally) -> Result<()> {
        self.latency.add(&other.latency)?;
        self.late.add(&other.late)?;
        self.answers += other.answers;
        Ok(())
    }
}

impl Default for Tally {
    fn default() -> Self {
        Tally::new()
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("constant bounds that the crate allows")
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LATENCY_NS_MAX).max(1)
}

/// A stream and what is sent on it.
#[derive(Debug)]
pub struct Producer {
    /// The stream.
    pub link: Link,
    /// What is sent.
    pub frame: ProduceFrame,
}

/// When requests are sent, and which of them are measured.
#[derive(Debug, Clone, Copy)]
pub struct Period {
    /// Answers to requests sent before are not measured.
    pub warm_up: Duration,
    /// Nothing is sent after so long.
    pub measured: Duration,
}

/// Every producer keeps `window` requests in flight.
pub async fn closed_loop(producers: Vec<Producer>, window: usize, period: Period) -> Result<Tally> {
    let begin = Instant::now() + period.warm_up;
    let mut tasks = JoinSet::new();
    for producer in producers {
        tasks.spawn(in_turn(producer, window, begin, begin + period.measured));
    }
    gather(tasks, period.measured).await
}

async fn in_turn(producer: Producer, window: usize, begin: Instant, end: Instant) -> Result<Tally> {
    let Producer { link, mut frame } = producer;
    let Link { mut sender, receiver } = link;
    let places = Semaphore::new(window);
    let in_flight = InFlight::default();
    let write = async {
        loop {
            places.acquire().await?.forget();
            let now = Instant::now();
            if end <= now {
                return sender.finish();
            }
            send(&mut sender, &mut frame, &in_flight, now).await?;
        }
    };
    let read = read_answers(receiver, &places, &in_flight, begin);
    let ((), tally) = tokio::try_join!(write, read)?;
    Ok(tally)
}

async fn gather(mut tasks: JoinSet<Result<Tally>>, elapsed: Duration) -> Result<Tally> {
    let mut all = Tally { elapsed, ..Tally::new() };
    while let Some(tally) = tasks.join_next().await {
        all.merge(&tally.context("a producer panicked")??)?;
    }
    Ok(all)
}

/// Requests that are not answered yet, and since when. Both halves of a stream run in one task, so
/// the lock is always free; it is there because a task may move between threads.
#[derive(Default)]
pub(super) struct InFlight(Mutex<VecDeque<(CorrelationId, Instant)>>);

impl InFlight {
    pub(super) fn lock(&self) -> MutexGuard<'_, VecDeque<(CorrelationId, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(
    sender: &mut LinkSender,
    frame: &mut ProduceFrame,
    in_flight: &InFlight,
    since: Instant,
) -> Result<()> {
    let (correlation, bytes) = frame.next_batch();
    in_flight.lock().push_back((correlation, since));
    sender.send(bytes).await
}

pub(super) async fn read_answers(
    mut receiver: LinkReceiver,
    places: &Semaphore,
    in_flight: &InFlight,
    begin: Instant,
) -> Result<Tally> {
    let mut tally = Tally::new();
    while let Some(header) = receiver.receive().await? {
        let mut in_flight = in_flight.lock();
        // Answers to one producer come in order, so this looks at the first.
        let place = in_flight.iter().position(|(sent, _)| *sent == header.correlation);
        let place = place.context("an answer to a request that was not sent")?;
        let (_, since) = in_flight.remove(place).expect("just found");
        places.add_permits(1);
        match begin <= since {
            true => tally.record(since.elapsed()),
            false => tally.answers += 1,
        }
    }
    Ok(tally)
}
