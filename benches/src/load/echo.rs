//! QUIC by itself: a server that reads requests and answers each with as many bytes as the broker
//! would. Built on quinn, as most services are, so the broker has to stand beside a known thing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustmq_protocol::requests::produce::PRODUCE_RESPONSE_BYTES;
use rustmq_protocol::{ErrorCode, FRAME_HEADER_BYTES, FrameHeader};
use rustmq_sys::cpu;

use super::tls;

/// Starts the server on a thread of its own that ends with the process, and says where it listens.
pub fn start(certs: &Path, core: Option<usize>) -> Result<SocketAddr> {
    let config = tls::server(certs)?;
    let (report, started) = mpsc::sync_channel(1);
    thread::Builder::new().name("echo".to_owned()).spawn(move || {
        if let Some(core) = core
            && let Err(error) = cpu::pin_current(core)
        {
            // Nobody waits any longer only if the process ends.
            drop(report.send(Err(anyhow!("pinning to core {core}: {error}"))));
            return;
        }
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(serve(config, &report)),
            Err(error) => drop(report.send(Err(error.into()))),
        }
    })?;
    started.recv().context("the echo server ended at once")?
}

async fn serve(config: quinn::ServerConfig, report: &mpsc::SyncSender<Result<SocketAddr>>) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let bound = Endpoint::server(config, listen)
        .and_then(|endpoint| Ok((endpoint.local_addr()?, endpoint)));
    let endpoint = match bound {
        Ok((address, endpoint)) => {
            drop(report.send(Ok(address)));
            endpoint
        }
        Err(error) => return drop(report.send(Err(error.into()))),
    };
    while let Some(incoming) = endpoint.accept().await {
        if let Ok(connection) = incoming.await {
            tokio::spawn(serve_connection(connection));
        }
    }
}

async fn serve_connection(connection: Connection) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        // A client that goes away ends its streams; the next case opens others.
        tokio::spawn(async move { drop(answer(send, recv).await) });
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream) -> Result<()> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let mut body = Vec::new();
    let mut answer = Vec::new();
    while recv.read_exact(&mut bytes).await.is_ok() {
        let header = FrameHeader::decode(&bytes)?;
        body.resize(header.body_bytes(), 0);
        recv.read_exact(&mut body).await?;
        answer.clear();
        header.response(ErrorCode::Ok).encode_frame(&mut answer, |out| {
            out.extend_from_slice(&[0; PRODUCE_RESPONSE_BYTES]);
        });
        send.write_all(&answer).await?;
    }
    send.finish()?;
    Ok(())
}
