//! QUIC on what the shards run on: their runtime, their sockets, quinn-proto driven by hand. For the
//! bare server and for the client of all measurements; what a peer says is its own matter.

use std::collections::BTreeMap;
use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint,
    ServerConfig, VarInt,
};
use rustmq_protocol::{FRAME_HEADER_BYTES, FrameHeader};
use rustmq_sys::udp::{self, ReceiveBuffers, UdpSocket};
use rustmq_sys::{clock, runtime};

use super::mtu::Mtu;

/// As the broker asks for.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Memory for datagrams that are not read yet: what they carry is read as it comes.
const RECEIVE_BYTES: usize = 8 << 20;

/// The largest payload that IP carries: a train of datagrams has to stay below it.
const TRAIN_BYTES_MAX: usize = 65_507;

/// Trains of up to 64 KiB that one connection sends before the others have their turn.
const TRAINS_A_TURN: usize = 4;

/// One end of a connection.
pub trait Peer {
    /// Takes the connection's events, reads, and writes.
    fn serve(&mut self, quic: &mut Connection);

    /// When it wants to be served next although nothing came.
    fn wakes_at(&self) -> Option<Instant> {
        None
    }

    /// Has it just given the other peers of the driver something to send?
    fn wakes_others(&mut self) -> bool {
        false
    }

    /// Nothing is left to say.
    fn is_done(&self) -> bool;
}

/// A socket with its endpoint and connections.
pub struct Driver<P> {
    socket: UdpSocket,
    quic: Endpoint,
    links: BTreeMap<ConnectionHandle, Link<P>>,
    /// Makes who serves those who come.
    accept: Option<Box<dyn Fn() -> P>>,
    /// Who has to be served.
    dirty: Vec<ConnectionHandle>,
    /// Who has more to send than its share, and is served again in the next turn.
    unfinished: Vec<ConnectionHandle>,
    buffer: Vec<u8>,
}

struct Link<P> {
    quic: Connection,
    peer: P,
    /// When its timers are due.
    deadline: Option<Instant>,
    dirty: bool,
}

impl<P: Peer> Link<P> {
    fn deadline(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.peer.wakes_at()).min()
    }
}

/// A socket on a port of its own on this host.
pub fn bind() -> Result<UdpSocket> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    UdpSocket::bind(any, SOCKET_BUFFER_BYTES).context("binding a socket")
}

impl<P: Peer> Driver<P> {
    /// An endpoint that takes connections.
    pub fn server(
        socket: UdpSocket,
        config: ServerConfig,
        mtu: Mtu,
        accept: impl Fn() -> P + 'static,
    ) -> Self {
        Self::new(socket, mtu, Some(Arc::new(config)), Some(Box::new(accept)))
    }

    /// An endpoint that opens connections.
    pub fn client(socket: UdpSocket, mtu: Mtu) -> Self {
        Self::new(socket, mtu, None, None)
    }

    fn new(
        socket: UdpSocket,
        mtu: Mtu,
        config: Option<Arc<ServerConfig>>,
        accept: Option<Box<dyn Fn() -> P>>,
    ) -> Self {
        let mut endpoint = mtu.endpoint();
        endpoint.rng_seed(None);
        Self {
            socket,
            quic: Endpoint::new(Arc::new(endpoint), config, true, None),
            links: BTreeMap::new(),
            accept,
            dirty: Vec::new(),
            unfinished: Vec::new(),
            buffer: Vec::with_capacity(TRAIN_BYTES_MAX + 1),
        }
    }

    /// Begins a connection.
    pub fn connect(&mut self, config: ClientConfig, to: SocketAddr, peer: P) -> Result<()> {
        let connected = self.quic.connect(clock::now(), config, to, "localhost");
        let (handle, quic) = connected.with_context(|| format!("connecting to {to}"))?;
        self.insert(handle, quic, peer);
        Ok(())
    }

    /// Runs until every peer is done; a server's never are.
    pub async fn run(mut self) -> Vec<P> {
        let mut buffers = ReceiveBuffers::new(RECEIVE_BYTES);
        self.drive(clock::refresh());
        while self.accept.is_some() || !self.links.values().all(|link| link.peer.is_done()) {
            let deadline = self.links.values().filter_map(Link::deadline).min();
            let deadline = if self.dirty.is_empty() { deadline } else { Some(clock::now()) };
            readable_or_at(&self.socket, deadline).await;
            let now = clock::refresh();
            self.receive(&mut buffers, now);
            self.expire(now);
            self.drive(now);
        }
        let now = clock::refresh();
        for (handle, link) in &mut self.links {
            link.quic.close(now, VarInt::from_u32(0), Bytes::new());
            mark(&mut self.dirty, *handle, &mut link.dirty);
        }
        self.drive(now);
        self.links.into_values().map(|link| link.peer).collect()
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers, now: Instant) {
        let Self { socket, quic, links, dirty, buffer, .. } = self;
        let mut arrived = Vec::new();
        let received = socket.recv_trains(buffers, |meta, mut train| {
            while !train.is_empty() {
                let datagram = train.split_to(meta.stride.clamp(1, train.len()));
                if let Some(new) = take(quic, links, dirty, buffer, now, &meta, datagram) {
                    arrived.push(new);
                }
            }
        });
        // What cannot be read is lost, and QUIC sends it again.
        drop(received);
        for (handle, quic) in arrived {
            if let Some(peer) = self.accept.as_ref().map(|accept| accept()) {
                self.insert(handle, quic, peer);
            }
        }
    }

    fn insert(&mut self, handle: ConnectionHandle, quic: Connection, peer: P) {
        let mut link = Link { quic, peer, deadline: None, dirty: false };
        mark(&mut self.dirty, handle, &mut link.dirty);
        self.links.insert(handle, link);
    }

    fn expire(&mut self, now: Instant) {
        for (handle, link) in &mut self.links {
            let is_due = link.deadline.is_some_and(|at| at <= now);
            if is_due {
                link.quic.handle_timeout(now);
            }
            if is_due || link.peer.wakes_at().is_some_and(|at| at <= now) {
                mark(&mut self.dirty, *handle, &mut link.dirty);
            }
        }
    }

    /// Serves whoever had news.
    fn drive(&mut self, now: Instant) {
        while let Some(handle) = self.dirty.pop() {
            let Some(link) = self.links.get_mut(&handle) else { continue };
            link.dirty = false;
            link.peer.serve(&mut link.quic);
            let wakes_others = link.peer.wakes_others();
            let mut drained = false;
            while let Some(event) = link.quic.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = self.quic.handle_event(handle, event) {
                    link.quic.handle_event(event);
                }
            }
            if !send(&self.socket, &mut link.quic, &mut self.buffer, now) {
                mark(&mut self.unfinished, handle, &mut link.dirty);
            }
            link.deadline = link.quic.poll_timeout();
            if drained && self.accept.is_some() {
                self.links.remove(&handle);
            }
            if wakes_others {
                for (handle, link) in &mut self.links {
                    mark(&mut self.dirty, *handle, &mut link.dirty);
                }
            }
        }
        std::mem::swap(&mut self.dirty, &mut self.unfinished);
    }
}

/// Hands a datagram to its connection; gives one that it opens.
fn take<P>(
    endpoint: &mut Endpoint,
    links: &mut BTreeMap<ConnectionHandle, Link<P>>,
    dirty: &mut Vec<ConnectionHandle>,
    buffer: &mut Vec<u8>,
    now: Instant,
    meta: &udp::DatagramMeta,
    datagram: BytesMut,
) -> Option<(ConnectionHandle, Connection)> {
    buffer.clear();
    let ecn = EcnCodepoint::from_bits(meta.ecn);
    match endpoint.handle(now, meta.remote, meta.local_ip, ecn, datagram, buffer) {
        Some(DatagramEvent::ConnectionEvent(handle, event)) => {
            if let Some(link) = links.get_mut(&handle) {
                link.quic.handle_event(event);
                mark(dirty, handle, &mut link.dirty);
            }
            None
        }
        Some(DatagramEvent::NewConnection(incoming)) => {
            buffer.clear();
            endpoint.accept(incoming, now, buffer, None).ok()
        }
        // Nobody here needs a stateless answer.
        Some(DatagramEvent::Response(_)) | None => None,
    }
}

/// Sends what a connection has, [`TRAINS_A_TURN`] at most; false if it may have more.
fn send(socket: &UdpSocket, quic: &mut Connection, buffer: &mut Vec<u8>, now: Instant) -> bool {
    for _ in 0..TRAINS_A_TURN {
        let segments = socket.max_gso_segments();
        let segments = segments.min(TRAIN_BYTES_MAX / usize::from(quic.current_mtu())).max(1);
        buffer.clear();
        let Some(transmit) = quic.poll_transmit(now, segments, buffer) else { return true };
        // A full socket loses it, and QUIC sends it again.
        drop(socket.try_send(&udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
            contents: &buffer[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        }));
    }
    false
}

fn mark(dirty: &mut Vec<ConnectionHandle>, handle: ConnectionHandle, is_dirty: &mut bool) {
    if !std::mem::replace(is_dirty, true) {
        dirty.push(handle);
    }
}

/// Waits until there are datagrams, or until this moment.
async fn readable_or_at(socket: &UdpSocket, at: Option<Instant>) {
    let mut readable = pin!(socket.readable());
    let mut timer = pin!(async {
        match at {
            Some(at) => runtime::sleep_until(at).await,
            None => pending().await,
        }
    });
    poll_fn(|context| match readable.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => timer.as_mut().poll(context),
    })
    .await;
}

/// Tells frames apart as their bytes come.
#[derive(Default)]
pub struct FrameReader {
    header: Vec<u8>,
    /// Bytes of the body that are still to come, behind a whole header.
    body_left: usize,
    /// The body so far, if anybody wants it.
    body: Option<Vec<u8>>,
}

impl FrameReader {
    /// A reader that gathers bodies, too.
    pub fn with_bodies() -> Self {
        Self { body: Some(Vec::new()), ..Self::default() }
    }

    /// Takes bytes, and tells of each frame that is whole now. What is no frame is passed over.
    pub fn take(&mut self, bytes: &[u8], mut whole: impl FnMut(FrameHeader)) {
        self.take_whole(bytes, |header, _| whole(header));
    }

    /// The same, with the frame's body: empty unless it is gathered.
    pub fn take_whole(&mut self, mut bytes: &[u8], mut whole: impl FnMut(FrameHeader, &[u8])) {
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER_BYTES {
                let missing = FRAME_HEADER_BYTES - self.header.len();
                let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(part);
                bytes = rest;
                self.body_left = self.header().map_or(0, |header| header.body_bytes());
            } else {
                let (part, rest) = bytes.split_at(self.body_left.min(bytes.len()));
                if let Some(body) = &mut self.body {
                    body.extend_from_slice(part);
                }
                bytes = rest;
                self.body_left -= part.len();
            }
            if self.header.len() == FRAME_HEADER_BYTES && self.body_left == 0 {
                if let Some(header) = self.header() {
                    whole(header, self.body.as_deref().unwrap_or_default());
                }
                self.header.clear();
                if let Some(body) = &mut self.body {
                    body.clear();
                }
            }
        }
    }

    fn header(&self) -> Option<FrameHeader> {
        FrameHeader::decode(self.header.first_chunk()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_protocol::{CorrelationId, RequestKind};

    #[test]
    fn frames_are_told_apart_however_their_bytes_come() {
        let mut bytes = Vec::new();
        for (number, body) in [(1, 0), (2, 5), (3, 1)] {
            FrameHeader::request(RequestKind::Produce, CorrelationId(number))
                .encode_frame(&mut bytes, |out| out.extend(std::iter::repeat_n(7, body)));
        }
        for part in [1, 3, 19, bytes.len()] {
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(part) {
                reader.take(part, |header| seen.push((header.correlation.0, header.body_bytes())));
            }
            assert_eq!(seen, [(1, 0), (2, 5), (3, 1)]);
        }
    }
}
