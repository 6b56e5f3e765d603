//! The client: as little of one as there can be, so that the server is what is measured. QUIC on the
//! shards' runtime. In closed loop each connection keeps so many requests in flight; in open loop
//! requests are due at even distances, whatever the server does.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId};
use rustmq_protocol::{CorrelationId, ErrorCode, FrameHeader, Offset, RequestKind};
use rustmq_sys::clock;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};

use super::drive::{Period, Tally};
use super::end_to_end::Consumer;
use super::mtu::{Mtu, Sender};
use super::quic::{self, Driver, FrameReader, Peer};
use super::race::Race;
use super::wire::{self, ProduceFrame, Target};
use super::{device, tls};

/// What one connection sends, and where to.
#[derive(Debug, Clone)]
pub struct Producer {
    /// A partition and its shard.
    pub target: Target,
    /// What is sent.
    pub frame: ProduceFrame,
    /// A broker wants to be greeted; an echo server does not understand it.
    pub says_hello: bool,
    /// Its answers count. Otherwise it is there for what it does to the others.
    pub counts: bool,
}

/// Every producer, with a connection of its own, keeps `window` requests in flight.
pub fn closed_loop(
    certs: &Path,
    runtime: RuntimeConfig,
    producers: Vec<Producer>,
    window: usize,
    mtu: Mtu,
    period: Period,
) -> Result<Tally> {
    run(certs, runtime, producers, Vec::new(), Pace::closed(window), mtu, period)
}

/// All producers together are due to send `rate_per_s` requests, at even distances, one producer after the
/// other. A latency counts from when its request was due until it is answered; with a consumer, until
/// that has the record.
pub fn open_loop(
    certs: &Path,
    runtime: RuntimeConfig,
    producers: Vec<Producer>,
    consumed: Vec<(Target, Offset)>,
    rate_per_s: f64,
    period: Period,
) -> Result<Tally> {
    run(certs, runtime, producers, consumed, Pace::open(rate_per_s), Mtu::default(), period)
}

fn run(
    certs: &Path,
    runtime: RuntimeConfig,
    producers: Vec<Producer>,
    consumed: Vec<(Target, Offset)>,
    pace: Pace,
    mtu: Mtu,
    period: Period,
) -> Result<Tally> {
    let config = tls::client(certs, mtu, Sender::ByHand)?;
    let socket = quic::bind()?;
    device::on_core(runtime.core, || {
        let doorbell = Doorbell::new()?;
        runtime::run(runtime, doorbell, async {
            let mut driver = Driver::client(socket, mtu);
            let count = producers.len();
            let connections = count + usize::from(!consumed.is_empty());
            let Pace { window, rate_per_s } = pace;
            let race = Rc::new(Race::new(period, rate_per_s, count, connections));
            let is_consumed = !consumed.is_empty();
            if let Some((target, _)) = consumed.first() {
                let to = target.address;
                let consumer = Consumer::new(consumed, Rc::clone(&race));
                driver.connect(config.clone(), to, Side::Consumer(consumer))?;
            }
            for (number, producer) in producers.into_iter().enumerate() {
                let to = producer.target.address;
                let pipeline = Pipeline::new(producer, number, window, Rc::clone(&race));
                driver.connect(config.clone(), to, Side::Producer(pipeline))?;
            }
            let mut all = Tally { elapsed: period.measured, ..Tally::new() };
            for side in driver.run().await {
                match side {
                    Side::Producer(Pipeline { failure: Some(error), .. })
                    | Side::Consumer(Consumer { failure: Some(error), .. }) => return Err(error),
                    Side::Producer(producer) if is_consumed => {
                        all.late.add(&producer.tally.late)?
                    }
                    Side::Producer(producer) if !producer.counts => {}
                    Side::Producer(producer) => all.merge(&producer.tally)?,
                    Side::Consumer(consumer) => all.merge(&consumer.tally)?,
                }
            }
            Ok(all)
        })?
    })
}

/// Requests that one producer may have in flight in open loop; what is due beyond waits here, with
/// its time running. As many as a broker allows an idempotent producer.
const OPEN_LOOP_WINDOW: usize = 8;

/// How producers send.
#[derive(Clone, Copy)]
struct Pace {
    /// Requests in flight.
    window: usize,
    /// Of all producers together; in closed loop as many as get through.
    rate_per_s: Option<f64>,
}

impl Pace {
    fn closed(window: usize) -> Self {
        Self { window, rate_per_s: None }
    }

    fn open(rate_per_s: f64) -> Self {
        Self { window: OPEN_LOOP_WINDOW, rate_per_s: Some(rate_per_s) }
    }
}

/// Who is at this end of a connection.
enum Side {
    Producer(Pipeline),
    Consumer(Consumer),
}

impl Peer for Side {
    fn serve(&mut self, quic: &mut Connection) {
        match self {
            Self::Producer(producer) => producer.serve(quic),
            Self::Consumer(consumer) => consumer.serve(quic),
        }
    }

    fn wakes_at(&self) -> Option<Instant> {
        match self {
            Self::Producer(producer) => producer.wakes_at(),
            Self::Consumer(_) => None,
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Producer(producer) => producer.is_done(),
            Self::Consumer(consumer) => consumer.is_done(),
        }
    }
}

/// One connection and its stream.
struct Pipeline {
    frame: ProduceFrame,
    counts: bool,
    /// Which of the producers it is, and how many requests it has begun.
    number: usize,
    begun: u64,
    window: usize,
    race: Rc<Race>,
    stream: Option<StreamId>,
    hello: Vec<u8>,
    /// The broker may be sent requests.
    is_open: bool,
    /// Bytes of the frame at hand that QUIC has not taken yet.
    unsent: usize,
    /// Requests not answered, and since when.
    in_flight: VecDeque<(CorrelationId, Instant)>,
    answers: FrameReader,
    tally: Tally,
    failure: Option<anyhow::Error>,
}

impl Pipeline {
    fn new(producer: Producer, number: usize, window: usize, race: Rc<Race>) -> Self {
        let Producer { frame, says_hello, counts, .. } = producer;
        let hello = if says_hello { wire::hello_frame() } else { Vec::new() };
        Self {
            frame,
            counts,
            number,
            begun: 0,
            window,
            race,
            stream: None,
            is_open: false,
            hello,
            unsent: 0,
            in_flight: VecDeque::with_capacity(window),
            answers: FrameReader::default(),
            tally: Tally::new(),
            failure: None,
        }
    }

    fn open(&mut self) {
        self.is_open = true;
        self.race.handle_open();
    }

    fn read(&mut self, quic: &mut Connection, id: StreamId) -> Result<()> {
        let mut headers = Vec::new();
        let mut stream = quic.recv_stream(id);
        let mut chunks = stream.read(true).context("reading answers")?;
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.answers.take(&chunk.bytes, |header| headers.push(header));
        }
        // The next poll_transmit sends what follows from it.
        let _ = chunks.finalize();
        let now = Instant::now();
        headers.into_iter().try_for_each(|header| self.take_answer(header, now))
    }

    fn take_answer(&mut self, header: FrameHeader, now: Instant) -> Result<()> {
        let code = header.error_code();
        ensure!(code == ErrorCode::Ok, "the broker answers {}", code.name());
        if header.kind == RequestKind::Hello as u16 {
            self.open();
            return Ok(());
        }
        // Nearly always the first.
        let place = self.in_flight.iter().position(|(sent, _)| *sent == header.correlation);
        let (_, since) = place
            .and_then(|place| self.in_flight.remove(place))
            .context("an answer to a request that was not sent")?;
        match self.race.is_measured(since) {
            true => self.tally.record(now.saturating_duration_since(since)),
            false => self.tally.answers += 1,
        }
        Ok(())
    }

    fn write(&mut self, quic: &mut Connection, id: StreamId) -> Result<()> {
        let mut stream = quic.send_stream(id);
        while !self.hello.is_empty() {
            let Ok(count) = stream.write(&self.hello) else { return Ok(()) };
            self.hello.drain(..count);
        }
        while self.is_open {
            if self.unsent == 0 {
                let Some(since) = self.next_since(Instant::now()) else { return Ok(()) };
                let (correlation, bytes) = self.frame.next_batch();
                self.unsent = bytes.len();
                self.begun += 1;
                self.in_flight.push_back((correlation, since));
            }
            let bytes = self.frame.bytes();
            // Blocked: it goes on when the stream is writable.
            let Ok(count) = stream.write(&bytes[bytes.len() - self.unsent..]) else {
                return Ok(());
            };
            self.unsent -= count;
        }
        Ok(())
    }

    /// Since when the next request's latency counts, if it may be sent now.
    fn next_since(&mut self, now: Instant) -> Option<Instant> {
        if self.window <= self.in_flight.len() {
            return None;
        }
        if self.race.is_closed_loop() {
            return (!self.race.is_over(now)).then_some(now);
        }
        let due = self.race.due(self.number, self.begun).filter(|due| *due <= now)?;
        if self.race.is_over(due) {
            return None;
        }
        if self.race.is_measured(due) {
            self.tally.record_late(now - due);
        }
        Some(due)
    }

    fn handle(&mut self, quic: &mut Connection, event: Event) -> Result<()> {
        match event {
            Event::Connected => {
                self.stream = Some(quic.streams().open(Dir::Bi).context("opening a stream")?);
                if self.hello.is_empty() {
                    self.open();
                }
            }
            Event::Stream(StreamEvent::Readable { id }) => self.read(quic, id)?,
            Event::ConnectionLost { reason } => {
                return Err(anyhow!(reason).context("the connection was lost"));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Peer for Pipeline {
    fn serve(&mut self, quic: &mut Connection) {
        let mut served = Ok(());
        while let Some(event) = quic.poll() {
            served = served.and_then(|()| self.handle(quic, event));
        }
        if let Some(stream) = self.stream {
            served = served.and_then(|()| self.write(quic, stream));
        }
        if let Err(error) = served {
            self.failure.get_or_insert(error);
            self.race.fail();
        }
    }

    fn wakes_at(&self) -> Option<Instant> {
        let due = self.race.due(self.number, self.begun)?;
        let may_send = self.in_flight.len() < self.window && !self.race.is_over(due);
        may_send.then_some(due)
    }

    fn is_done(&self) -> bool {
        self.race.has_failed() || self.race.is_over(clock::now()) && self.in_flight.is_empty()
    }
}
