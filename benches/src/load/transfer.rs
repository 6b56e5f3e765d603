//! What QUIC alone takes to bring batches to consumers: a server on the shards' runtime and sockets
//! that speaks as much of the protocol as a subscription needs, and keeps nothing.
//!
//! ```text
//!   partition 0:  a producer's batch ──▶ acknowledged, and sent on to every subscription
//!   partition 1:  batches without end from memory, as long as a subscription gives credit
//! ```
//!
//! What a producer sends is gathered once and its base offset is set, nothing else: no checksum, no
//! disk, no order between partitions.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::{Rc, Weak};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId};
use rustmq_protocol::requests::produce::{PRODUCE_HEAD_BYTES, PRODUCE_RESPONSE_BYTES};
use rustmq_protocol::{
    Credit, ErrorCode, FRAME_HEADER_BYTES, FetchResponseHead, FrameHeader, LeaderEpoch,
    ListOffsetsResponse, Offset, RequestKind, Subscribe, TimestampMs, batches,
};
use rustmq_sys::runtime::RuntimeConfig;

use super::bare;
use super::mtu::Mtu;
use super::quic::Peer;
use crate::fixtures;

/// The partition whose batches come from memory without end.
pub const ENDLESS: u32 = 1;

/// Memory from which they are sent: more than any cache of the processor holds, as what was read from
/// a disk is in none either.
const ENDLESS_BYTES: usize = 64 << 20;

/// Bytes of the base offset, at the front of each batch.
const OFFSET_BYTES: usize = 8;

/// Starts the server on a thread of its own that ends with the process, and says where it listens.
/// Batches without end have one record of `value_bytes`.
pub fn start(
    certs: &Path,
    runtime: RuntimeConfig,
    value_bytes: usize,
    mtu: Mtu,
) -> Result<SocketAddr> {
    bare::serve("bare-transfer", certs, runtime, mtu, move || {
        let relay = Rc::new(RefCell::new(Relay::new(value_bytes)));
        move || Subscriber { relay: Rc::clone(&relay), streams: BTreeMap::new() }
    })
}

/// What is sent to subscriptions.
struct Relay {
    /// Offset of the producer's next batch.
    next: Offset,
    /// Of the subscriptions to what is produced.
    inboxes: Vec<Weak<RefCell<Inbox>>>,
    /// A batch came since somebody asked.
    published: bool,
    /// Batches of partition [`ENDLESS`], one after another, and how long each is.
    memory: Bytes,
    batch_bytes: usize,
}

/// Batches that a subscription has not sent yet.
type Inbox = VecDeque<Bytes>;

/// The serving end of a connection.
struct Subscriber {
    relay: Rc<RefCell<Relay>>,
    streams: BTreeMap<StreamId, Stream>,
}

/// How far into its requests a stream is, and what is to be sent.
#[derive(Default)]
struct Stream {
    header: Vec<u8>,
    body: BytesMut,
    out: VecDeque<Bytes>,
    subscription: Option<Subscription>,
}

struct Subscription {
    header: FrameHeader,
    credit: i64,
    bytes_max: usize,
    source: Source,
}

enum Source {
    /// Partition [`ENDLESS`], from this offset on.
    Endless(Offset),
    Produced(Rc<RefCell<Inbox>>),
}

impl Relay {
    fn new(value_bytes: usize) -> Relay {
        let batch = fixtures::batch(1, value_bytes);
        let memory = batch.repeat(ENDLESS_BYTES / batch.len());
        Relay {
            next: Offset(0),
            inboxes: Vec::new(),
            published: false,
            memory: memory.into(),
            batch_bytes: batch.len(),
        }
    }

    /// Opens an inbox for what is produced from now on.
    fn subscribe(&mut self) -> Rc<RefCell<Inbox>> {
        let inbox = Rc::default();
        self.inboxes.push(Rc::downgrade(&inbox));
        inbox
    }

    /// Gives a producer's batch its offsets and lays it into every inbox.
    fn publish(&mut self, mut batch: BytesMut) {
        batch[..OFFSET_BYTES].copy_from_slice(&self.next.0.to_le_bytes());
        let header = batches(&batch).next().and_then(Result::ok);
        self.next = header.map_or(self.next, |(header, _)| Offset(header.last_offset().0 + 1));
        let batch = batch.freeze();
        self.inboxes.retain(|inbox| match inbox.upgrade() {
            Some(inbox) => {
                inbox.borrow_mut().push_back(batch.clone());
                true
            }
            None => false,
        });
        self.published = true;
    }

    /// The batch without end at this offset, but for its base offset.
    fn endless(&self, offset: Offset) -> Bytes {
        let count = (self.memory.len() / self.batch_bytes) as u64;
        let begin = (offset.0 % count) as usize * self.batch_bytes;
        self.memory.slice(begin + OFFSET_BYTES..begin + self.batch_bytes)
    }
}

impl Peer for Subscriber {
    fn serve(&mut self, quic: &mut Connection) {
        while let Some(event) = quic.poll() {
            match event {
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(id) = quic.streams().accept(Dir::Bi) {
                        self.streams.insert(id, Stream::default());
                        self.read(quic, id);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(quic, id),
                Event::Stream(StreamEvent::Writable { id }) => self.write(quic, id),
                Event::Stream(StreamEvent::Stopped { id, .. } | StreamEvent::Finished { id }) => {
                    self.streams.remove(&id);
                }
                Event::ConnectionLost { .. } => self.streams.clear(),
                _ => {}
            }
        }
        let given = self.streams.iter().filter(|(_, stream)| stream.has_mail());
        let given: Vec<StreamId> = given.map(|(id, _)| *id).collect();
        for id in given {
            self.write(quic, id);
        }
    }

    fn wakes_others(&mut self) -> bool {
        std::mem::take(&mut self.relay.borrow_mut().published)
    }

    fn is_done(&self) -> bool {
        false
    }
}

impl Subscriber {
    fn read(&mut self, quic: &mut Connection, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut ended = false;
        let mut incoming = quic.recv_stream(id);
        let Ok(mut chunks) = incoming.read(true) else { return };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => stream.take(chunk.bytes, &mut self.relay.borrow_mut()),
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        // The next poll_transmit sends what follows from it.
        let _ = chunks.finalize();
        self.write(quic, id);
        if ended {
            // It fails only when the peer has stopped the stream.
            let _ = quic.send_stream(id).finish();
        }
    }

    fn write(&mut self, quic: &mut Connection, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut outgoing = quic.send_stream(id);
        loop {
            while !stream.out.is_empty() {
                let Ok(written) = outgoing.write_chunks(stream.out.make_contiguous()) else {
                    return;
                };
                stream.out.drain(..written.chunks);
            }
            if !stream.go_on(&self.relay.borrow()) {
                return;
            }
        }
    }
}

impl Stream {
    /// Takes bytes of requests, and does what each says that is whole.
    fn take(&mut self, mut bytes: Bytes, relay: &mut Relay) {
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER_BYTES {
                let missing = FRAME_HEADER_BYTES - self.header.len();
                let part = bytes.split_to(missing.min(bytes.len()));
                self.header.extend_from_slice(&part);
            }
            let Some(header) = self.header() else { continue };
            let missing = header.body_bytes() - self.body.len();
            self.body.reserve(missing);
            let part = bytes.split_to(missing.min(bytes.len()));
            self.body.extend_from_slice(&part);
            if self.body.len() == header.body_bytes() {
                let body = std::mem::take(&mut self.body);
                self.serve(header, body, relay);
                self.header.clear();
            }
        }
    }

    fn header(&self) -> Option<FrameHeader> {
        FrameHeader::decode(self.header.first_chunk()?).ok()
    }

    /// One request. What the load generator does not send is not answered.
    fn serve(&mut self, header: FrameHeader, mut body: BytesMut, relay: &mut Relay) {
        let mut out = Vec::new();
        let response = header.response(ErrorCode::Ok);
        match RequestKind::from_u16(header.kind) {
            Some(RequestKind::Produce) => {
                response.encode_frame(&mut out, |out| {
                    out.extend_from_slice(&[0; PRODUCE_RESPONSE_BYTES]);
                });
                relay.publish(body.split_off(PRODUCE_HEAD_BYTES));
            }
            Some(RequestKind::ListOffsets) => {
                let answer = ListOffsetsResponse {
                    offset: relay.next,
                    timestamp: TimestampMs(-1),
                    leader_epoch: LeaderEpoch(0),
                };
                response.encode_frame(&mut out, |out| answer.encode(out));
            }
            Some(RequestKind::Subscribe) => {
                let Ok(ask) = Subscribe::decode(&body) else { return };
                let header = response.with_more();
                header.encode_frame(&mut out, |out| out.extend_from_slice(&head().encode()));
                self.subscription = Some(Subscription {
                    header,
                    credit: i64::from(ask.credit),
                    bytes_max: ask.bytes_max as usize,
                    source: match ask.partition.0 {
                        ENDLESS => Source::Endless(ask.offset),
                        _ => Source::Produced(relay.subscribe()),
                    },
                });
            }
            Some(RequestKind::Credit) => {
                if let (Ok(Credit::More { bytes }), Some(subscription)) =
                    (Credit::decode(&body), &mut self.subscription)
                {
                    subscription.credit += i64::from(bytes);
                }
            }
            _ => {}
        }
        if !out.is_empty() {
            self.out.push_back(out.into());
        }
    }

    /// Has a batch come that is not sent yet?
    fn has_mail(&self) -> bool {
        let source = self.subscription.as_ref().map(|subscription| &subscription.source);
        matches!(source, Some(Source::Produced(inbox)) if !inbox.borrow().is_empty())
    }

    /// Queues what a subscription has to send next; false if that is nothing.
    fn go_on(&mut self, relay: &Relay) -> bool {
        let Some(subscription) = &mut self.subscription else { return false };
        let next = match &subscription.source {
            Source::Produced(inbox) => {
                let Some(batch) = inbox.borrow_mut().pop_front() else { return false };
                self.out.extend([subscription.front(batch.len()).into(), batch]);
                return true;
            }
            Source::Endless(_) if subscription.credit <= 0 => return false,
            Source::Endless(next) => *next,
        };
        // As many as an answer may have, from credit that is left.
        let bytes_max = subscription.bytes_max.min(subscription.credit as usize);
        let count = (bytes_max / relay.batch_bytes).max(1);
        let mut front = subscription.front(count * relay.batch_bytes);
        let end = next.0 + count as u64;
        for offset in next.0..end {
            front.extend_from_slice(&offset.to_le_bytes());
            self.out.extend([std::mem::take(&mut front).into(), relay.endless(Offset(offset))]);
        }
        subscription.source = Source::Endless(Offset(end));
        subscription.credit -= (count * relay.batch_bytes) as i64;
        true
    }
}

impl Subscription {
    /// Headers of an answer with so many bytes of batches.
    fn front(&self, bytes: usize) -> Vec<u8> {
        let head = head().encode();
        let mut front = self.header.with_body_bytes(head.len() + bytes).encode().to_vec();
        front.extend_from_slice(&head);
        front
    }
}

/// A log without an end.
fn head() -> FetchResponseHead {
    let end = Offset(u64::MAX);
    FetchResponseHead { high_watermark: end, log_start_offset: Offset(0), log_end_offset: end }
}
