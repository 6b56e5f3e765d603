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
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint, Event, ServerConfig,
    StreamEvent, StreamId,
};
use rustmq_protocol::requests::produce::{PRODUCE_HEAD_BYTES, PRODUCE_RESPONSE_BYTES};
use rustmq_protocol::{
    Credit, ErrorCode, FRAME_HEADER_BYTES, FetchResponseHead, FrameHeader, LeaderEpoch,
    ListOffsetsResponse, Offset, RequestKind, Subscribe, TimestampMs, batches,
};
use rustmq_sys::clock;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};
use rustmq_sys::udp::{self, ReceiveBuffers, UdpSocket};

use super::bare;
use super::mtu::Mtu;
use super::quic::{self, RECEIVE_BYTES, TRAIN_BYTES_MAX};
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
    let config = bare::server_config(certs, mtu)?;
    let socket = quic::bind()?;
    let address = socket.local_addr()?;
    let (report, ended) = mpsc::sync_channel(1);
    thread::Builder::new().name("bare-transfer".to_owned()).spawn(move || {
        let doorbell = Doorbell::new().expect("an eventfd");
        let ran = runtime::run(runtime, doorbell, async {
            let server = Rc::new(RefCell::new(Server::new(config, mtu, socket, value_bytes)));
            drop(report.send(Ok(())));
            serve(server).await;
        });
        // Only a start that fails comes here.
        drop(report.send(ran));
    })?;
    ended.recv().context("the transfer server ended at once")??;
    Ok(address)
}

/// The endpoint and its connections.
struct Server {
    socket: Rc<UdpSocket>,
    quic: Endpoint,
    peers: BTreeMap<ConnectionHandle, Peer>,
    dirty: Vec<ConnectionHandle>,
    buffer: Vec<u8>,
    relay: Relay,
}

/// What is sent to subscriptions.
struct Relay {
    /// Of the next batch of the producer.
    next: Offset,
    /// Batches of the producer that subscriptions have not been given.
    produced: Vec<(Offset, Bytes)>,
    /// Batches of partition [`ENDLESS`], one after another, and how long each is.
    memory: Bytes,
    batch_bytes: usize,
}

struct Peer {
    quic: Connection,
    /// When its timers are due.
    deadline: Option<Instant>,
    streams: BTreeMap<StreamId, Stream>,
    dirty: bool,
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
    /// Of partition [`ENDLESS`], the next offset.
    endless: Option<Offset>,
}

type Shared = Rc<RefCell<Server>>;

async fn serve(server: Shared) {
    let socket = Rc::clone(&server.borrow().socket);
    let mut buffers = ReceiveBuffers::new(RECEIVE_BYTES);
    loop {
        let deadline = server.borrow().deadline();
        quic::readable_or_at(&socket, deadline).await;
        let mut server = server.borrow_mut();
        let now = clock::refresh();
        let received = socket.recv_trains(&mut buffers, |meta, mut train| {
            while !train.is_empty() {
                let datagram = train.split_to(meta.stride.clamp(1, train.len()));
                server.take(now, &meta, datagram);
            }
        });
        // What cannot be read is lost, and QUIC sends it again.
        drop(received);
        server.expire(now);
        server.drive(now);
    }
}

impl Server {
    fn new(config: ServerConfig, mtu: Mtu, socket: UdpSocket, value_bytes: usize) -> Self {
        let mut endpoint = mtu.endpoint();
        endpoint.rng_seed(None);
        Self {
            socket: Rc::new(socket),
            quic: Endpoint::new(Arc::new(endpoint), Some(Arc::new(config)), true, None),
            peers: BTreeMap::new(),
            dirty: Vec::new(),
            buffer: Vec::with_capacity(TRAIN_BYTES_MAX + 1),
            relay: Relay::new(value_bytes),
        }
    }

    fn take(&mut self, now: Instant, meta: &udp::DatagramMeta, datagram: BytesMut) {
        self.buffer.clear();
        let ecn = EcnCodepoint::from_bits(meta.ecn);
        let event =
            self.quic.handle(now, meta.remote, meta.local_ip, ecn, datagram, &mut self.buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(peer) = self.peers.get_mut(&handle) {
                    peer.quic.handle_event(event);
                    mark(&mut self.dirty, handle, peer);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.buffer.clear();
                if let Ok((handle, quic)) = self.quic.accept(incoming, now, &mut self.buffer, None)
                {
                    let (streams, deadline) = (BTreeMap::new(), None);
                    let mut peer = Peer { quic, deadline, streams, dirty: false };
                    mark(&mut self.dirty, handle, &mut peer);
                    self.peers.insert(handle, peer);
                }
            }
            // Nobody here needs a stateless answer.
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.peers.values().filter_map(|peer| peer.deadline).min()
    }

    fn expire(&mut self, now: Instant) {
        for (handle, peer) in &mut self.peers {
            if peer.deadline.is_some_and(|at| at <= now) {
                peer.quic.handle_timeout(now);
                mark(&mut self.dirty, *handle, peer);
            }
        }
    }

    fn drive(&mut self, now: Instant) {
        while let Some(handle) = self.dirty.pop() {
            let Some(peer) = self.peers.get_mut(&handle) else { continue };
            peer.dirty = false;
            peer.serve(&mut self.relay);
            self.hand_on();
            self.transmit(handle, now);
        }
    }

    /// Gives what was produced to every subscription that waits for it.
    fn hand_on(&mut self) {
        let mut produced = std::mem::take(&mut self.relay.produced);
        for (offset, batch) in produced.drain(..) {
            for (handle, peer) in &mut self.peers {
                let mut has_more = false;
                for stream in peer.streams.values_mut() {
                    has_more |= stream.give(offset, &batch);
                }
                if has_more {
                    peer.write_all(&self.relay);
                    mark(&mut self.dirty, *handle, peer);
                }
            }
        }
        self.relay.produced = produced;
    }

    fn transmit(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let mut drained = false;
        while let Some(event) = peer.quic.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self.quic.handle_event(handle, event) {
                peer.quic.handle_event(event);
            }
        }
        let segments_max = self.socket.max_gso_segments();
        loop {
            let segments = segments_max.min(TRAIN_BYTES_MAX / usize::from(peer.quic.current_mtu()));
            self.buffer.clear();
            let Some(transmit) = peer.quic.poll_transmit(now, segments.max(1), &mut self.buffer)
            else {
                break;
            };
            // A full socket loses it, and QUIC sends it again.
            drop(self.socket.try_send(&udp::Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
                contents: &self.buffer[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            }));
        }
        peer.deadline = peer.quic.poll_timeout();
        if drained {
            self.peers.remove(&handle);
        }
    }
}

fn mark(dirty: &mut Vec<ConnectionHandle>, handle: ConnectionHandle, peer: &mut Peer) {
    if !std::mem::replace(&mut peer.dirty, true) {
        dirty.push(handle);
    }
}

impl Relay {
    fn new(value_bytes: usize) -> Relay {
        let batch = fixtures::batch(1, value_bytes);
        let memory = batch.repeat(ENDLESS_BYTES / batch.len());
        Relay {
            next: Offset(0),
            produced: Vec::new(),
            memory: memory.into(),
            batch_bytes: batch.len(),
        }
    }

    /// The batch without end at this offset, but for its base offset.
    fn endless(&self, offset: Offset) -> Bytes {
        let count = (self.memory.len() / self.batch_bytes) as u64;
        let begin = (offset.0 % count) as usize * self.batch_bytes;
        self.memory.slice(begin + OFFSET_BYTES..begin + self.batch_bytes)
    }
}

impl Peer {
    fn serve(&mut self, relay: &mut Relay) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(id) = self.quic.streams().accept(Dir::Bi) {
                        self.streams.insert(id, Stream::default());
                        self.read(id, relay);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(id, relay),
                Event::Stream(StreamEvent::Writable { id }) => self.write(id, relay),
                Event::Stream(StreamEvent::Stopped { id, .. } | StreamEvent::Finished { id }) => {
                    self.streams.remove(&id);
                }
                Event::ConnectionLost { .. } => self.streams.clear(),
                _ => {}
            }
        }
    }

    fn read(&mut self, id: StreamId, relay: &mut Relay) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut ended = false;
        let mut incoming = self.quic.recv_stream(id);
        let Ok(mut chunks) = incoming.read(true) else { return };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => stream.take(chunk.bytes, relay),
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        // The next poll_transmit sends what follows from it.
        let _ = chunks.finalize();
        self.write(id, relay);
        if ended {
            // It fails only when the peer has stopped the stream.
            let _ = self.quic.send_stream(id).finish();
        }
    }

    fn write_all(&mut self, relay: &Relay) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.write(id, relay);
        }
    }

    fn write(&mut self, id: StreamId, relay: &Relay) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut outgoing = self.quic.send_stream(id);
        loop {
            while !stream.out.is_empty() {
                let Ok(written) = outgoing.write_chunks(stream.out.make_contiguous()) else {
                    return;
                };
                stream.out.drain(..written.chunks);
            }
            if !stream.go_on(relay) {
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
                let mut batch = body.split_off(PRODUCE_HEAD_BYTES);
                batch[..OFFSET_BYTES].copy_from_slice(&relay.next.0.to_le_bytes());
                let end = batches(&batch).next().and_then(Result::ok);
                let end = end.map_or(relay.next.0, |(header, _)| header.last_offset().0 + 1);
                relay.produced.push((relay.next, batch.freeze()));
                relay.next = Offset(end);
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
                    endless: (ask.partition.0 == ENDLESS).then_some(ask.offset),
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

    /// Queues a produced batch as an answer; false if nobody here waits for it.
    fn give(&mut self, offset: Offset, batch: &Bytes) -> bool {
        let Some(subscription) = &self.subscription else { return false };
        if subscription.endless.is_some() {
            return false;
        }
        debug_assert_eq!(batch[..OFFSET_BYTES], offset.0.to_le_bytes());
        let answer = subscription.front(batch.len());
        self.out.extend([answer.into(), batch.clone()]);
        true
    }

    /// Queues another answer of batches without end, if there is credit for it.
    fn go_on(&mut self, relay: &Relay) -> bool {
        let Some(subscription) = &mut self.subscription else { return false };
        let Some(mut offset) = subscription.endless.filter(|_| 0 < subscription.credit) else {
            return false;
        };
        let bytes_max = subscription.bytes_max.min(subscription.credit as usize);
        let count = (bytes_max / relay.batch_bytes).max(1);
        let mut front = subscription.front(count * relay.batch_bytes);
        for _ in 0..count {
            front.extend_from_slice(&offset.0.to_le_bytes());
            self.out.extend([std::mem::take(&mut front).into(), relay.endless(offset)]);
            offset = Offset(offset.0 + 1);
        }
        subscription.endless = Some(offset);
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
