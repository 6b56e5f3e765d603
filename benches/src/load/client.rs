//! The client of closed loops: as little of a client as there can be, so that the server is what is
//! measured. QUIC on the shards' runtime; each connection keeps so many requests in flight.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId};
use rustmq_protocol::{CorrelationId, ErrorCode, FrameHeader, RequestKind};
use rustmq_sys::clock;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};

use super::drive::{Period, Tally};
use super::mtu::{Mtu, Sender};
use super::quic::{self, Driver, FrameReader, Peer};
use super::wire::{self, ProduceFrame, Target};
use super::{device, tls};

/// What one connection sends, and where to.
#[derive(Debug)]
pub struct Producer {
    /// A partition and its shard.
    pub target: Target,
    /// What is sent.
    pub frame: ProduceFrame,
    /// A broker wants to be greeted; an echo server does not understand it.
    pub says_hello: bool,
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
    let config = tls::client(certs, mtu, Sender::ByHand)?;
    let socket = quic::bind()?;
    device::on_core(runtime.core, || {
        let doorbell = Doorbell::new()?;
        runtime::run(runtime, doorbell, async {
            let mut driver = Driver::client(socket, mtu);
            let connecting = Cell::new(producers.len());
            let (begin, failed) = (Cell::default(), Cell::default());
            let race = Rc::new(Race { period, connecting, begin, failed });
            for producer in producers {
                let to = producer.target.address;
                let pipeline = Pipeline::new(producer, window, Rc::clone(&race));
                driver.connect(config.clone(), to, pipeline)?;
            }
            let mut all = Tally { elapsed: period.measured, ..Tally::new() };
            for pipeline in driver.run().await {
                match pipeline.failure {
                    Some(error) => return Err(error),
                    None => all.merge(&pipeline.tally)?,
                }
            }
            Ok(all)
        })?
    })
}

/// What all connections of a run share.
struct Race {
    period: Period,
    /// Connections that may not be sent requests yet: a broker under load takes its time to let one in.
    connecting: Cell<usize>,
    /// From when on requests are measured: all are connected, and warm.
    begin: Cell<Option<Instant>>,
    /// One connection has failed, and with it the run.
    failed: Cell<bool>,
}

impl Race {
    fn handle_open(&self) {
        self.connecting.set(self.connecting.get() - 1);
        if self.connecting.get() == 0 {
            self.begin.set(Some(clock::now() + self.period.warm_up));
        }
    }

    /// Was a request that was sent then sent in the time that is measured?
    fn is_measured(&self, sent: Instant) -> bool {
        self.begin.get().is_some_and(|begin| begin <= sent)
    }

    /// Is it too late for another request?
    fn is_over(&self, now: Instant) -> bool {
        self.begin.get().is_some_and(|begin| begin + self.period.measured <= now)
    }
}

/// One connection and its stream.
struct Pipeline {
    frame: ProduceFrame,
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
    fn new(producer: Producer, window: usize, race: Rc<Race>) -> Self {
        let Producer { frame, says_hello, .. } = producer;
        let hello = if says_hello { wire::hello_frame() } else { Vec::new() };
        Self {
            frame,
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
                let sent = Instant::now();
                if self.window <= self.in_flight.len() || self.race.is_over(sent) {
                    return Ok(());
                }
                let (correlation, bytes) = self.frame.next_batch();
                self.unsent = bytes.len();
                self.in_flight.push_back((correlation, sent));
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
            self.race.failed.set(true);
        }
    }

    fn is_done(&self) -> bool {
        self.race.failed.get() || self.race.is_over(clock::now()) && self.in_flight.is_empty()
    }
}
