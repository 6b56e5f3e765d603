//! QUIC by itself on what the shards run on: their runtime, their sockets, quinn-proto driven by hand.
//! A server that reads requests and answers each with as many bytes as a broker would, and does
//! nothing else. What a broker takes beyond it is the broker's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
};
use rustmq_protocol::requests::produce::PRODUCE_RESPONSE_BYTES;
use rustmq_protocol::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader};
use rustmq_sys::clock;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};
use rustmq_sys::udp::{self, ReceiveBuffers, UdpSocket};

use super::tls;

/// As the broker asks for.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Memory for datagrams that are not read yet: requests are read as they come.
const RECEIVE_BYTES: usize = 8 << 20;

/// The broker's defaults.
const STREAM_WINDOW_BYTES: u32 = 1024 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const SEND_WINDOW_BYTES: u64 = 8 << 20;
const STREAMS_MAX: u32 = 64;

/// The largest payload that IP carries: a train of datagrams has to stay below it.
const TRAIN_BYTES_MAX: usize = 65_507;

/// Starts the server on a thread of its own that ends with the process, and says where it listens.
pub fn start(certs: &Path, runtime: RuntimeConfig) -> Result<SocketAddr> {
    let config = server_config(certs)?;
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), SOCKET_BUFFER_BYTES)?;
    let address = socket.local_addr()?;
    let (report, ended) = mpsc::sync_channel(1);
    thread::Builder::new().name("bare-echo".to_owned()).spawn(move || {
        let doorbell = Doorbell::new().expect("an eventfd");
        let ran = runtime::run(runtime, doorbell, async {
            let server = Rc::new(RefCell::new(Server::new(config, socket)));
            drop(report.send(Ok(())));
            serve(server).await;
        });
        // Only a start that fails comes here.
        drop(report.send(ran));
    })?;
    ended.recv().context("the echo server ended at once")??;
    Ok(address)
}

fn server_config(certs: &Path) -> Result<ServerConfig> {
    let tls = QuicServerConfig::try_from(tls::server_tls(certs)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The endpoint and its connections.
struct Server {
    socket: Rc<UdpSocket>,
    quic: Endpoint,
    connections: BTreeMap<ConnectionHandle, Peer>,
    dirty: Vec<ConnectionHandle>,
    buffer: Vec<u8>,
}

struct Peer {
    quic: Connection,
    /// When its timers are due.
    deadline: Option<Instant>,
    streams: BTreeMap<StreamId, Frames>,
    dirty: bool,
}

/// How far into its requests a stream is.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the body that are still to come, behind a whole header.
    body_left: usize,
    answers: Vec<u8>,
}

type Shared = Rc<RefCell<Server>>;

async fn serve(server: Shared) {
    let socket = Rc::clone(&server.borrow().socket);
    let mut buffers = ReceiveBuffers::new(RECEIVE_BYTES);
    loop {
        let deadline = server.borrow().deadline();
        readable_or_at(&socket, deadline).await;
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

impl Server {
    fn new(config: ServerConfig, socket: UdpSocket) -> Self {
        let mut endpoint = EndpointConfig::default();
        endpoint.rng_seed(None);
        Self {
            socket: Rc::new(socket),
            quic: Endpoint::new(Arc::new(endpoint), Some(Arc::new(config)), true, None),
            connections: BTreeMap::new(),
            dirty: Vec::new(),
            buffer: Vec::with_capacity(TRAIN_BYTES_MAX + 1),
        }
    }

    fn take(&mut self, now: Instant, meta: &udp::DatagramMeta, datagram: BytesMut) {
        self.buffer.clear();
        let ecn = EcnCodepoint::from_bits(meta.ecn);
        let event =
            self.quic.handle(now, meta.remote, meta.local_ip, ecn, datagram, &mut self.buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(peer) = self.connections.get_mut(&handle) {
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
                    self.connections.insert(handle, peer);
                }
            }
            // Nobody here needs a stateless answer.
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.connections.values().filter_map(|peer| peer.deadline).min()
    }

    fn expire(&mut self, now: Instant) {
        for (handle, peer) in &mut self.connections {
            if peer.deadline.is_some_and(|at| at <= now) {
                peer.quic.handle_timeout(now);
                mark(&mut self.dirty, *handle, peer);
            }
        }
    }

    fn drive(&mut self, now: Instant) {
        while let Some(handle) = self.dirty.pop() {
            let Some(peer) = self.connections.get_mut(&handle) else { continue };
            peer.dirty = false;
            peer.serve();
            let mut drained = false;
            while let Some(event) = peer.quic.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = self.quic.handle_event(handle, event) {
                    peer.quic.handle_event(event);
                }
            }
            let segments_max = self.socket.max_gso_segments();
            loop {
                let segments =
                    segments_max.min(TRAIN_BYTES_MAX / usize::from(peer.quic.current_mtu()));
                self.buffer.clear();
                let Some(transmit) =
                    peer.quic.poll_transmit(now, segments.max(1), &mut self.buffer)
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
                self.connections.remove(&handle);
            }
        }
    }
}

fn mark(dirty: &mut Vec<ConnectionHandle>, handle: ConnectionHandle, peer: &mut Peer) {
    if !std::mem::replace(&mut peer.dirty, true) {
        dirty.push(handle);
    }
}

impl Peer {
    fn serve(&mut self) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(id) = self.quic.streams().accept(Dir::Bi) {
                        self.streams.insert(id, Frames::default());
                        self.read(id);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(id),
                Event::Stream(StreamEvent::Writable { id }) => self.write(id),
                Event::Stream(StreamEvent::Stopped { id, .. } | StreamEvent::Finished { id }) => {
                    self.streams.remove(&id);
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, id: StreamId) {
        let Some(frames) = self.streams.get_mut(&id) else { return };
        let mut ended = false;
        let mut stream = self.quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => frames.take(chunk.bytes),
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        // The next poll_transmit sends what follows from it.
        let _ = chunks.finalize();
        self.write(id);
        if ended {
            // It fails only when the peer has stopped the stream.
            let _ = self.quic.send_stream(id).finish();
        }
    }

    fn write(&mut self, id: StreamId) {
        let Some(frames) = self.streams.get_mut(&id) else { return };
        let mut stream = self.quic.send_stream(id);
        while !frames.answers.is_empty() {
            match stream.write(&frames.answers) {
                Ok(count) => drop(frames.answers.drain(..count)),
                Err(_) => return,
            }
        }
    }
}

impl Frames {
    /// Takes bytes of requests, and adds the answer to each that is whole.
    fn take(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER_BYTES {
                let missing = FRAME_HEADER_BYTES - self.header.len();
                let part = bytes.split_to(missing.min(bytes.len()));
                self.header.extend_from_slice(&part);
                if let Some(header) = self.header() {
                    self.body_left = header.body_bytes();
                }
            } else {
                let part = self.body_left.min(bytes.len());
                drop(bytes.split_to(part));
                self.body_left -= part;
            }
            if self.body_left == 0
                && let Some(header) = self.header()
            {
                header.response(ErrorCode::Ok).encode_frame(&mut self.answers, |out| {
                    out.extend_from_slice(&[0; PRODUCE_RESPONSE_BYTES]);
                });
                self.header.clear();
            }
        }
    }

    fn header(&self) -> Option<FrameHeader> {
        FrameHeader::decode(self.header.first_chunk()?).ok()
    }
}
