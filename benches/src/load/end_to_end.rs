//! From producers to a consumer: how long after a record was due does the consumer have it?
//!
//! Producers in open loop, each with a partition of its own, and one consumer that has subscribed to all
//! of them on one connection. Records are due in turn, so partition and offset say when.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId};
use rustmq_protocol::frame::PROTOCOL_VERSION_MAX;
use rustmq_protocol::{
    CorrelationId, Credit, ErrorCode, FetchResponse, FrameHeader, Offset, RequestKind, Subscribe,
    batches,
};
use rustmq_sys::clock;

use super::drive::Tally;
use super::quic::{FrameReader, Peer};
use super::race::Race;
use super::wire::{self, Target};

/// Bytes that each subscription may be sent before it is given more, half of it at a time.
const CREDIT_BYTES: u32 = 4 << 20;

/// Bytes of an answer.
const ANSWER_BYTES: u32 = 1 << 20;

/// One partition as its consumer sees it.
struct Place {
    target: Target,
    base: Offset,
    next: Offset,
    used: usize,
    is_open: bool,
}

/// The consumer of all producers' partitions. Latencies are from when a record was due until it is here.
pub(super) struct Consumer {
    race: Rc<Race>,
    places: Vec<Place>,
    stream: Option<StreamId>,
    /// Frames that QUIC has not taken yet.
    unsent: Vec<u8>,
    answers: FrameReader,
    pub(super) tally: Tally,
    pub(super) failure: Option<anyhow::Error>,
}

impl Consumer {
    /// A consumer of partitions from these offsets on, the producers' in their order.
    pub(super) fn new(partitions: Vec<(Target, Offset)>, race: Rc<Race>) -> Self {
        let place = |(target, base)| Place { target, base, next: base, used: 0, is_open: false };
        Self {
            race,
            places: partitions.into_iter().map(place).collect(),
            stream: None,
            unsent: wire::hello_frame(),
            answers: FrameReader::with_bodies(),
            tally: Tally::new(),
            failure: None,
        }
    }

    fn handle(&mut self, quic: &mut Connection, event: Event) -> Result<()> {
        match event {
            Event::Connected => {
                self.stream = Some(quic.streams().open(Dir::Bi).context("opening a stream")?);
            }
            Event::Stream(StreamEvent::Readable { id }) => self.read(quic, id)?,
            Event::ConnectionLost { reason } => {
                return Err(anyhow!(reason).context("the consumer's connection was lost"));
            }
            _ => {}
        }
        Ok(())
    }

    fn read(&mut self, quic: &mut Connection, id: StreamId) -> Result<()> {
        let mut answers = std::mem::take(&mut self.answers);
        let mut taken = Ok(());
        let mut stream = quic.recv_stream(id);
        let mut chunks = stream.read(true).context("reading records")?;
        let now = Instant::now();
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            answers.take_whole(&chunk.bytes, |header, body| {
                if taken.is_ok() {
                    taken = self.take_answer(header, body, now);
                }
            });
        }
        // The next poll_transmit sends what follows from it.
        let _ = chunks.finalize();
        self.answers = answers;
        taken
    }

    fn take_answer(&mut self, header: FrameHeader, body: &[u8], now: Instant) -> Result<()> {
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        if header.kind == RequestKind::Hello as u16 {
            self.subscribe();
            return Ok(());
        }
        let number = header.correlation.0 as usize;
        let place = self.places.get_mut(number).context("an answer that was not asked for")?;
        if !std::mem::replace(&mut place.is_open, true)
            && self.places.iter().all(|place| place.is_open)
        {
            self.race.handle_open();
        }
        let place = self.places.get_mut(number).context("it was just there")?;
        place.used += body.len();
        for batch in batches(FetchResponse::decode(body)?.batches) {
            let (batch, _) = batch?;
            ensure!(batch.base_offset == place.next, "{} came", batch.base_offset);
            let due = self.race.due(number, place.next.0 - place.base.0);
            let due = due.context("a record that nobody was due to send")?;
            place.next = Offset(batch.last_offset().0 + 1);
            match self.race.is_measured(due) {
                true => self.tally.record(now.saturating_duration_since(due)),
                false => self.tally.answers += 1,
            }
        }
        if CREDIT_BYTES as usize / 2 <= place.used {
            let more = Credit::More { bytes: place.used as u32 };
            place.used = 0;
            self.ask(RequestKind::Credit, number, |out| more.encode(out));
        }
        Ok(())
    }

    fn subscribe(&mut self) {
        for number in 0..self.places.len() {
            let Place { target, base, .. } = &self.places[number];
            let ask = Subscribe {
                topic: target.head.topic,
                partition: target.head.partition,
                leader_epoch: target.head.leader_epoch,
                offset: *base,
                credit: CREDIT_BYTES,
                bytes_max: ANSWER_BYTES,
            };
            self.ask(RequestKind::Subscribe, number, |out| ask.encode(out));
        }
    }

    fn ask(&mut self, kind: RequestKind, number: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        FrameHeader::request(kind, CorrelationId(number as u32))
            .in_version(PROTOCOL_VERSION_MAX)
            .encode_frame(&mut self.unsent, encode);
    }

    fn write(&mut self, quic: &mut Connection, id: StreamId) {
        let mut stream = quic.send_stream(id);
        while !self.unsent.is_empty() {
            // Blocked: it goes on when the stream is writable.
            let Ok(count) = stream.write(&self.unsent) else { return };
            self.unsent.drain(..count);
        }
    }
}

impl Peer for Consumer {
    fn serve(&mut self, quic: &mut Connection) {
        let mut served = Ok(());
        while let Some(event) = quic.poll() {
            served = served.and_then(|()| self.handle(quic, event));
        }
        if let Some(stream) = self.stream {
            self.write(quic, stream);
        }
        if let Err(error) = served {
            self.failure.get_or_insert(error);
            self.race.fail();
        }
    }

    /// Everything that was due is here.
    fn is_done(&self) -> bool {
        let has_all = |(number, place): (usize, &Place)| {
            let due = self.race.due(number, place.next.0 - place.base.0);
            due.is_some_and(|due| self.race.is_over(due))
        };
        self.race.has_failed()
            || self.race.is_over(clock::now()) && self.places.iter().enumerate().all(has_all)
    }
}
