//! The client of closed loops: as little of a client as there can be, so that the server is what is
//! measured. QUIC on the shards' runtime; each connection keeps so many requests in flight.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId};
use rustmq_protocol::{CorrelationId, ErrorCode, FrameHeader, RequestKind};
use rustmq_sys::clock;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};

use super::drive::{Period, Tally};
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
    period: Period,
) -> Result<Tally> {
    let config = tls::client(certs)?;
    let socket = quic::bind()?;
    let peers = device::on_core(runtime.core, || {
        let doorbell = Doorbell::new()?;
        runtime::run(runtime, doorbell, async {
            let mut driver = Driver::client(socket);
            let begin = clock::refresh() + period.warm_up;
            for producer in producers {
                let to = producer.target.address;
                let pipeline = Pipeline::new(producer, window, begin, begin + period.measured);
                driver.connect(config.clone(), to, pipeline)?;
            }
            Ok(driver.run().await)
        })?
    })?;
    let mut all = Tally { elapsed: period.measured, ..Tally::new() };
    for peer in peers {
        if let Some(error) = peer.failure {
            return Err(error);
        }
        all.merge(&peer.tally)?;
    }
    Ok(all)
}

/// One connection and its stream.
struct Pipeline {
    frame: ProduceFrame,
    window: usize,
    begin: Instant,
    end: Instant,
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
    fn new(producer: Producer, window: usize, begin: Instant, end: Instant) -> Self {
        let Producer { frame, says_hello, .. } = producer;
        let hello = if says_hello { wire::hello_frame() } else { Vec::new() };
        Self {
            frame,
            window,
            begin,
            end,
            stream: None,
            is_open: hello.is_empty(),
            hello,
            unsent: 0,
            in_flight: VecDeque::with_capacity(window),
            answers: FrameReader::default(),
            tally: Tally::new(),
            failure: None,
        }
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
            self.is_open = true;
            return Ok(());
        }
        // Nearly always the first.
        let place = self.in_flight.iter().position(|(sent, _)| *sent == header.correlation);
        let (_, since) = place
            .and_then(|place| self.in_flight.remove(place))
            .context("an answer to a request that was not sent")?;
        match self.begin <= since {
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
                if self.window <= self.in_flight.len() || self.end <= sent {
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
        }
    }

    fn is_done(&self) -> bool {
        let over = self.end <= clock::now() && self.in_flight.is_empty() && self.is_open;
        self.failure.is_some() || over
    }
}
