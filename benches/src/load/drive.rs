//! Sending over quinn on tokio: in open loop, where requests are due at fixed times whatever the broker
//! does, or in closed loop.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustmq_protocol::CorrelationId;
use rustmq_sys::cpu;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::wire::{Link, LinkReceiver, LinkSender, ProduceFrame};

/// The longest time that a histogram tells apart.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Requests that one producer may have in flight in open loop; what is due beyond waits here, with
/// its time running. As many as a broker allows an idempotent producer.
const OPEN_LOOP_WINDOW: usize = 8;

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

/// All producers together are due to send `rate_per_s` requests, at even distances. A latency counts
/// from when its request was due: the first at `start`, and one producer after the other. `core` is
/// where the thread that keeps the time runs.
pub async fn open_loop(
    producers: Vec<Producer>,
    rate_per_s: f64,
    period: Period,
    start: Instant,
    core: Option<usize>,
) -> Result<Tally> {
    let begin = start + period.warm_up;
    let count = open_loop_count(rate_per_s, period);
    let mut due = Vec::with_capacity(producers.len());
    let mut tasks = JoinSet::new();
    for producer in producers {
        // Room for every request there will be: keeping the time never waits for the broker.
        let (sender, receiver) = mpsc::channel(count + 1);
        due.push(sender);
        tasks.spawn(on_time(producer, receiver, begin));
    }
    let pacer = std::thread::Builder::new()
        .name("pacer".to_owned())
        .spawn(move || pace(&due, start, rate_per_s, count, core))?;
    let tally = gather(tasks, period.measured).await;
    // Its receivers are gone if a producer failed, so it has ended or is about to.
    drop(pacer.join());
    tally
}

/// How many requests that is.
pub fn open_loop_count(rate_per_s: f64, period: Period) -> usize {
    ((period.warm_up + period.measured).as_secs_f64() * rate_per_s) as usize
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

async fn on_time(
    producer: Producer,
    mut due: mpsc::Receiver<Instant>,
    begin: Instant,
) -> Result<Tally> {
    let Producer { link, mut frame } = producer;
    let Link { mut sender, receiver } = link;
    let places = Semaphore::new(OPEN_LOOP_WINDOW);
    let in_flight = InFlight::default();
    let write = async {
        let mut late = histogram();
        while let Some(intended) = due.recv().await {
            places.acquire().await?.forget();
            if begin <= intended {
                late.saturating_record(nanoseconds(intended.elapsed()));
            }
            send(&mut sender, &mut frame, &in_flight, intended).await?;
        }
        sender.finish()?;
        Ok(late)
    };
    let read = read_answers(receiver, &places, &in_flight, begin);
    let (late, tally) = tokio::try_join!(write, read)?;
    Ok(Tally { late, ..tally })
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

/// Hands out each request's time when it has come, to the producers in turn.
fn pace(
    due: &[mpsc::Sender<Instant>],
    start: Instant,
    rate_per_s: f64,
    count: usize,
    core: Option<usize>,
) {
    if let Some(core) = core {
        // Elsewhere it is less exact, and that shows as requests sent late.
        drop(cpu::pin_current(core));
    }
    wake_exactly();
    for (index, sender) in (0..count).zip(due.iter().cycle()) {
        let intended = start + Duration::from_secs_f64(index as f64 / rate_per_s);
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        // A producer that is gone has failed and says so itself.
        if sender.try_send(intended).is_err() {
            return;
        }
    }
}

/// Asks the kernel not to delay the timers of this thread by its usual 50 µs.
fn wake_exactly() {
    let thread = fs::read_link("/proc/thread-self").ok();
    let id = thread.as_deref().and_then(|path| path.file_name()).map(|id| id.to_owned());
    if let Some(id) = id.as_deref().and_then(|id| id.to_str()) {
        // Where that is refused, requests are later, and the report says by how much.
        drop(fs::write(format!("/proc/{id}/timerslack_ns"), "1"));
    }
}
