//! A client over QUIC: one connection to each shard, through the modelled network.
//!
//! It is the product's endpoint that answers: handshake, streams and lost datagrams are real, only
//! the network and the clock are modelled. What is encrypted is random, its sizes and times are not,
//! so the same seed still gives the same trace.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    EndpointEvent, Event, StreamEvent, StreamId, TokenMemoryCache, VarInt,
};
use rustmq_protocol::frame::{FrameHeader, RequestKind, VersionRange};
use rustmq_protocol::limits::FRAME_HEADER_BYTES;
use rustmq_protocol::{CorrelationId, ErrorCode, Hello};
use rustmq_sys::sim::World;
use rustmq_sys::sim::network::ModelledSocket;
use rustmq_sys::udp::Transmit;

use crate::answer::Answer;
use crate::tls::NAME;

/// Where the client is, and where shard 0 is; the others follow it.
const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 2], 40_000);
const SHARD_0: ([u8; 4], u16) = ([10, 0, 0, 1], 9_192);

/// Datagrams taken at once.
const RECEIVES_MAX: usize = 64;

/// Datagrams in one train.
const SEGMENTS_MAX: usize = 8;

/// The correlation of the request that opens a connection; no ticket has it.
const GREETING: CorrelationId = CorrelationId(u32::MAX);

/// Once in so many requests the client goes on in another stream.
const STREAM_CHANGES: u64 = 16;

/// Once in so many it drops a connection whose requests may all be repeated, and begins another.
const ABANDONS: u64 = 256;

/// The client's end of the network.
pub(crate) struct Wire {
    world: World,
    socket: ModelledSocket,
    endpoint: Endpoint,
    config: ClientConfig,
    links: Vec<Link>,
    answers: Vec<(u64, Answer)>,
    buffer: Vec<u8>,
}

/// What leads to one shard.
struct Link {
    address: SocketAddr,
    connection: Option<Box<Open>>,
    /// Frames that wait for the connection.
    queued: Vec<u8>,
    /// Requests that are not answered: by correlation, the ticket and whether it may be repeated.
    waiting: BTreeMap<u32, (u64, bool)>,
}

struct Open {
    handle: ConnectionHandle,
    quic: Connection,
    /// It was told who we are, and has answered.
    greeted: bool,
    /// Where the next request goes.
    current: Option<StreamId>,
    streams: BTreeMap<StreamId, Stream>,
    changed: bool,
    lost: bool,
}

#[derive(Default)]
struct Stream {
    outgoing: VecDeque<Bytes>,
    incoming: Vec<u8>,
    /// Nothing more is sent on it.
    ending: bool,
    finished: bool,
}

/// The address of a shard.
pub(crate) fn address_of(shard: u16) -> SocketAddr {
    (SHARD_0.0, SHARD_0.1 + shard).into()
}

impl Wire {
    /// A client of so many shards, in the world that this thread has entered.
    pub(crate) fn new(world: &World, config: &ClientConfig, shard_count: u16) -> Self {
        let mut endpoint = EndpointConfig::default();
        let mut seed = [0; 32];
        world.choice().fill(&mut seed);
        endpoint.rng_seed(Some(seed));
        // What one broker has given out is not shown to that of another seed.
        let mut config = config.clone();
        config.token_store(Arc::new(TokenMemoryCache::default()));
        let link = |shard| Link {
            address: address_of(shard),
            connection: None,
            queued: Vec::new(),
            waiting: BTreeMap::new(),
        };
        Self {
            world: world.clone(),
            socket: ModelledSocket::bind(CLIENT.into()).expect("one client at a time"),
            endpoint: Endpoint::new(Arc::new(endpoint), None, true, None),
            config,
            links: (0..shard_count).map(link).collect(),
            answers: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Sends a request to a shard, and connects to it first if need be.
    pub(crate) fn send(&mut self, to: usize, kind: RequestKind, ticket: u64, body: &[u8]) {
        let may_abandon = self.links[to].may_abandon();
        if may_abandon && self.world.choice().chance(1, ABANDONS) {
            self.abandon(to);
        }
        let correlation = CorrelationId(ticket as u32);
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
        FrameHeader::request(kind, correlation)
            .in_version(VersionRange::SUPPORTED.max)
            .encode_frame(&mut frame, |out| out.extend_from_slice(body));
        let now = self.world.now();
        let link = &mut self.links[to];
        link.waiting.insert(correlation.0, (ticket, kind == RequestKind::Produce));
        match &mut link.connection {
            Some(open) if open.greeted => {
                let changes = self.world.choice().chance(1, STREAM_CHANGES);
                open.send(Bytes::from(frame), changes);
            }
            Some(_) => link.queued.extend(frame),
            None => {
                link.queued.extend(frame);
                let connected = self.endpoint.connect(now, self.config.clone(), link.address, NAME);
                let (handle, quic) = connected.expect("the settings are good");
                link.connection = Some(Box::new(Open::new(handle, quic)));
            }
        }
    }

    /// When it wants a turn at the latest, in nanoseconds of its world.
    pub(crate) fn next_timer_ns(&mut self) -> Option<u64> {
        let opens = self.links.iter_mut().filter_map(|link| link.connection.as_mut());
        let next = opens.filter_map(|open| open.quic.poll_timeout()).min()?;
        Some(self.world.ns_of(next))
    }

    /// Takes what has arrived, lets every connection do what it has to, and gives what was answered.
    pub(crate) fn turn(&mut self) -> std::vec::Drain<'_, (u64, Answer)> {
        let now = self.world.now();
        self.receive(now);
        for shard in 0..self.links.len() {
            self.drive(shard, now);
        }
        self.answers.drain(..)
    }

    /// The client forgets a connection, with or without a word, and takes its requests for unknown.
    fn abandon(&mut self, shard: usize) {
        let now = self.world.now();
        let says_so = self.world.choice().chance(1, 2);
        self.world.note("abandon", shard as u64, u64::from(says_so), 0);
        let Some(mut open) = self.links[shard].connection.take() else { return };
        if says_so {
            open.quic.close(now, VarInt::from_u32(0), Bytes::new());
            self.transmit(&mut open, now);
        }
        self.forget(shard, &open);
    }

    fn forget(&mut self, shard: usize, open: &Open) {
        self.endpoint.handle_event(open.handle, EndpointEvent::drained());
        let link = &mut self.links[shard];
        link.queued.clear();
        let unknown = || Answer { code: ErrorCode::Interrupted, body: Vec::new() };
        let waiting = std::mem::take(&mut link.waiting);
        self.answers.extend(waiting.into_values().map(|(ticket, _)| (ticket, unknown())));
    }

    fn receive(&mut self, now: Instant) {
        let Self { socket, endpoint, links, buffer, .. } = self;
        loop {
            let count = socket.receive(RECEIVES_MAX, |meta, datagram| {
                buffer.clear();
                let event =
                    endpoint.handle(now, meta.remote, meta.local_ip, None, datagram, buffer);
                let Some(DatagramEvent::ConnectionEvent(handle, event)) = event else { return };
                let opens = links.iter_mut().filter_map(|link| link.connection.as_mut());
                if let Some(open) = opens.into_iter().find(|open| open.handle == handle) {
                    open.quic.handle_event(event);
                    open.changed = true;
                }
            });
            if count < RECEIVES_MAX {
                return;
            }
        }
    }

    fn drive(&mut self, shard: usize, now: Instant) {
        let Some(mut open) = self.links[shard].connection.take() else { return };
        if open.quic.poll_timeout().is_some_and(|at| at <= now) {
            open.quic.handle_timeout(now);
            open.changed = true;
        }
        if open.changed {
            open.changed = false;
            let link = &mut self.links[shard];
            open.serve(link, &mut self.answers);
            while let Some(event) = open.quic.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(open.handle, event) {
                    open.quic.handle_event(event);
                    open.changed = true;
                }
            }
            self.transmit(&mut open, now);
        }
        match open.lost {
            true => {
                self.world.note("connection lost", shard as u64, 0, 0);
                self.forget(shard, &open);
            }
            false => self.links[shard].connection = Some(open),
        }
    }

    fn transmit(&mut self, open: &mut Open, now: Instant) {
        loop {
            self.buffer.clear();
            let transmit = open.quic.poll_transmit(now, SEGMENTS_MAX, &mut self.buffer);
            let Some(transmit) = transmit else { return };
            self.socket.send(&Transmit {
                destination: transmit.destination,
                ecn: 0,
                contents: &self.buffer[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: None,
            });
        }
    }
}

impl Link {
    /// Is the connection up, and may everything that is out be sent again?
    fn may_abandon(&self) -> bool {
        let greeted = self.connection.as_ref().is_some_and(|open| open.greeted);
        greeted && !self.waiting.is_empty() && self.waiting.values().all(|(_, again)| *again)
    }
}

impl Open {
    fn new(handle: ConnectionHandle, quic: Connection) -> Self {
        Self {
            handle,
            quic,
            greeted: false,
            current: None,
            streams: BTreeMap::new(),
            changed: true,
            lost: false,
        }
    }

    /// Sends a frame, on another stream than before if that is wanted and can be.
    fn send(&mut self, frame: Bytes, elsewhere: bool) {
        if elsewhere && let Some(next) = self.quic.streams().open(Dir::Bi) {
            if let Some(stream) = self.current.and_then(|id| self.streams.get_mut(&id)) {
                stream.ending = true;
            }
            self.streams.insert(next, Stream::default());
            self.current = Some(next);
        }
        let stream = self.current.and_then(|id| self.streams.get_mut(&id));
        stream.expect("a greeted connection has a stream").outgoing.push_back(frame);
        self.changed = true;
    }

    fn serve(&mut self, link: &mut Link, answers: &mut Vec<(u64, Answer)>) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected => self.greet(),
                Event::ConnectionLost { .. } => self.lost = true,
                Event::Stream(StreamEvent::Readable { id }) => self.read(id, link, answers),
                _ => {}
            }
        }
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.write(id);
        }
    }

    /// The first request, before any other.
    fn greet(&mut self) {
        let id = self.quic.streams().open(Dir::Bi).expect("a new connection has streams");
        let VersionRange { min, max } = VersionRange::SUPPORTED;
        let hello = Hello { version_min: min, version_max: max, client_name: NAME.to_owned() };
        let mut frame = Vec::new();
        FrameHeader::request(RequestKind::Hello, GREETING)
            .encode_frame(&mut frame, |out| hello.encode(out));
        self.streams.insert(id, Stream::default());
        self.current = Some(id);
        self.send(Bytes::from(frame), false);
    }

    fn write(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut send = self.quic.send_stream(id);
        while let Some(frame) = stream.outgoing.front_mut() {
            match send.write(frame) {
                Ok(bytes) => {
                    let _ = frame.split_to(bytes);
                }
                // It goes on when there is credit again.
                Err(_) => return,
            }
            if frame.is_empty() {
                stream.outgoing.pop_front();
            }
        }
        if stream.ending && !stream.finished {
            stream.finished = true;
            // It fails only when the peer has stopped the stream.
            let _ = send.finish();
        }
    }

    fn read(&mut self, id: StreamId, link: &mut Link, answers: &mut Vec<(u64, Answer)>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut receive = self.quic.recv_stream(id);
        let Ok(mut chunks) = receive.read(true) else { return };
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => stream.incoming.extend_from_slice(&chunk.bytes),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        // What has to be sent is found by the next poll_transmit, which always follows.
        let _ = chunks.finalize();
        let frames = whole_frames(&mut stream.incoming);
        if ended {
            self.streams.remove(&id);
        }
        for (header, body) in frames {
            if header.correlation == GREETING {
                assert!(header.error_code() == ErrorCode::Ok, "the broker speaks our version");
                self.greeted = true;
                let queued = std::mem::take(&mut link.queued);
                if !queued.is_empty() {
                    self.send(Bytes::from(queued), false);
                }
            } else if let Some((ticket, _)) = link.waiting.remove(&header.correlation.0) {
                answers.push((ticket, Answer { code: header.error_code(), body }));
            }
        }
    }
}

/// Takes the whole frames out of what has come so far.
fn whole_frames(bytes: &mut Vec<u8>) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let header = FrameHeader::decode(head).expect("the broker frames its answers");
        let end = at + header.length as usize;
        let Some(body) = bytes.get(at + FRAME_HEADER_BYTES..end) else { break };
        frames.push((header, body.to_vec()));
        at = end;
    }
    bytes.drain(..at);
    frames
}
