//! QUIC by itself on what the shards run on. A server that reads requests and answers each with as many
//! bytes as a broker would, and does nothing else. What a broker takes beyond it is the broker's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::{Context, Result};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    Connection, Dir, Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
};
use rustmq_protocol::ErrorCode;
use rustmq_protocol::requests::produce::PRODUCE_RESPONSE_BYTES;
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, RuntimeConfig};

use super::mtu::{Mtu, Sender};
use super::quic::{self, Driver, FrameReader, Peer};
use super::tls;

/// The broker's defaults.
const STREAM_WINDOW_BYTES: u32 = 512 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const SEND_WINDOW_BYTES: u64 = 8 << 20;
const STREAMS_MAX: u32 = 64;

/// Starts the server on a thread of its own that ends with the process, and says where it listens.
pub fn start(certs: &Path, runtime: RuntimeConfig, mtu: Mtu) -> Result<SocketAddr> {
    serve("bare-echo", certs, runtime, mtu, || Echo::default)
}

/// Starts a server whose connections are served by what `acceptor`, called on the server's thread, makes.
pub(super) fn serve<P: Peer, A: Fn() -> P + 'static>(
    name: &str,
    certs: &Path,
    runtime: RuntimeConfig,
    mtu: Mtu,
    acceptor: impl FnOnce() -> A + Send + 'static,
) -> Result<SocketAddr> {
    let config = server_config(certs, mtu)?;
    let socket = quic::bind()?;
    let address = socket.local_addr()?;
    let (report, ended) = mpsc::sync_channel(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let doorbell = Doorbell::new().expect("an eventfd");
        let ran = runtime::run(runtime, doorbell, async {
            let driver = Driver::server(socket, config, mtu, acceptor());
            drop(report.send(Ok(())));
            driver.run().await;
        });
        // Only a start that fails comes here.
        drop(report.send(ran));
    })?;
    ended.recv().with_context(|| format!("{name} ended at once"))??;
    Ok(address)
}

fn server_config(certs: &Path, mtu: Mtu) -> Result<ServerConfig> {
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
    mtu.apply(&mut transport, Sender::ByHand);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Answers whatever comes.
#[derive(Default)]
struct Echo {
    streams: BTreeMap<StreamId, Stream>,
}

#[derive(Default)]
struct Stream {
    requests: FrameReader,
    answers: Vec<u8>,
}

impl Peer for Echo {
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
                _ => {}
            }
        }
    }

    fn is_done(&self) -> bool {
        false
    }
}

impl Echo {
    fn read(&mut self, quic: &mut Connection, id: StreamId) {
        let Some(Stream { requests, answers }) = self.streams.get_mut(&id) else { return };
        let mut ended = false;
        let mut stream = quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => requests.take(&chunk.bytes, |header| {
                    header.response(ErrorCode::Ok).encode_frame(answers, |out| {
                        out.extend_from_slice(&[0; PRODUCE_RESPONSE_BYTES]);
                    });
                }),
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
        let Some(Stream { answers, .. }) = self.streams.get_mut(&id) else { return };
        let mut stream = quic.send_stream(id);
        while !answers.is_empty() {
            match stream.write(answers) {
                Ok(count) => drop(answers.drain(..count)),
                Err(_) => return,
            }
        }
    }
}
