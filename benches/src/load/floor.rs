//! The least that a durable, acknowledged request over a network can take: datagrams without QUIC, TLS
//! or a protocol, copied into a block, written and flushed together with all others that came
//! meanwhile, and answered. On the shards' runtime, as the broker is.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustmq_sys::buffer::{ALIGN, Buffer, BufferPool};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::file::File;
use rustmq_sys::runtime::{self, FlushPlan, Polling, RuntimeConfig};
use rustmq_sys::udp::{ReceiveBuffers, Transmit, UdpSocket};
use rustmq_sys::{clock, fs};

use super::device::{self, FILE_BYTES};
use super::drive::{Period, Tally};

/// Bytes of a request and of an answer, which carries the request's number alone.
const REQUEST_BYTES: usize = 1024;
const ANSWER_BYTES: usize = 8;

/// The largest block: as the broker's default.
const BLOCK_BYTES: usize = 1 << 20;

/// Requests sent in one train of datagrams; more answers than this fit in one as well.
const TRAIN_MAX: usize = 60;

/// The longest that an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

const SOCKET_BUFFER_BYTES: usize = 4 << 20;
const RECEIVE_BYTES: usize = 8 << 20;

/// Starts the server on a thread of its own that ends with the process, and says where it listens.
/// `file` was made by [`device::prepare`].
pub fn start(file: &Path, runtime: RuntimeConfig) -> Result<SocketAddr> {
    let socket = bind()?;
    let address = socket.local_addr()?;
    let (report, ended) = mpsc::sync_channel(1);
    let file: PathBuf = file.to_owned();
    thread::Builder::new().name("floor".to_owned()).spawn(move || {
        let doorbell = Doorbell::new().expect("an eventfd");
        let ran = runtime::run(runtime, doorbell, async {
            let file = fs::open(file).await?;
            drop(report.send(Ok(())));
            serve(socket, file).await
        });
        drop(report.send(ran.and_then(|served| served)));
    })?;
    ended.recv().context("the server ended at once")??;
    Ok(address)
}

/// A client that keeps so many requests in flight.
pub fn drive(
    server: SocketAddr,
    core: Option<usize>,
    window: usize,
    period: Period,
) -> Result<Tally> {
    device::on_core(core, || {
        let runtime = device::runtime_config(core, Polling::Sleep, FlushPlan::WriteThrough);
        runtime::run(runtime, Doorbell::new()?, send(server, window, period))?
    })
}

fn bind() -> std::io::Result<UdpSocket> {
    UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), SOCKET_BUFFER_BYTES)
}

/// Answers owed once the block that holds their requests is durable: to whom, and their bytes.
type Owed = Vec<(SocketAddr, [u8; ANSWER_BYTES])>;

async fn serve(socket: UdpSocket, file: File) -> std::io::Result<()> {
    let pool = BufferPool::new(4 * BLOCK_BYTES, BLOCK_BYTES);
    let block = || pool.try_get(BLOCK_BYTES).expect("two blocks at a time of four");
    let mut received = ReceiveBuffers::new(RECEIVE_BYTES);
    let (mut open, mut filled, mut owed): (Buffer, usize, Owed) = (block(), 0, Vec::new());
    let mut write: Option<Pin<Box<dyn Future<Output = std::io::Result<()>> + '_>>> = None;
    let (mut waiting, mut position): (Owed, u64) = (Vec::new(), 0);
    loop {
        if write.is_none() && 0 < filled {
            let bytes = filled.next_multiple_of(ALIGN);
            let contents = std::mem::replace(&mut open, block()).split_to(bytes);
            (filled, waiting) = (0, std::mem::take(&mut owed));
            write = Some(Box::pin(file.write_durable(contents, position)));
            position = (position + bytes as u64) % (FILE_BYTES - BLOCK_BYTES as u64);
            position -= position % ALIGN as u64;
        }
        let written = poll_fn(|context| {
            if let Some(writing) = &mut write
                && let Poll::Ready(written) = writing.as_mut().poll(context)
            {
                return Poll::Ready(Some(written));
            }
            pin!(socket.readable()).poll(context).map(|()| None)
        });
        match written.await {
            Some(written) => {
                written?;
                write = None;
                answer(&socket, &waiting)?;
            }
            None => {
                socket.recv_trains(&mut received, |meta, mut train| {
                    while !train.is_empty() {
                        let datagram = train.split_to(meta.stride.clamp(1, train.len()));
                        let Some(number) = datagram.first_chunk::<ANSWER_BYTES>() else { continue };
                        // No more are in flight than a block holds.
                        open[filled..filled + datagram.len()].copy_from_slice(&datagram);
                        filled += datagram.len();
                        owed.push((meta.remote, *number));
                    }
                })?;
            }
        }
    }
}

/// Sends answers: those to one client in one train.
fn answer(socket: &UdpSocket, owed: &Owed) -> std::io::Result<()> {
    for answers in owed.chunk_by(|one, next| one.0 == next.0) {
        for train in answers.chunks(TRAIN_MAX) {
            let contents: Vec<u8> = train.iter().flat_map(|(_, number)| *number).collect();
            transmit(socket, train[0].0, &contents, ANSWER_BYTES)?;
        }
    }
    Ok(())
}

async fn send(server: SocketAddr, window: usize, period: Period) -> Result<Tally> {
    ensure!(window * REQUEST_BYTES <= BLOCK_BYTES, "a block holds all requests in flight");
    let socket = bind()?;
    let mut received = ReceiveBuffers::new(RECEIVE_BYTES);
    let begin = Instant::now() + period.warm_up;
    let end = begin + period.measured;
    let mut tally = Tally { elapsed: period.measured, ..Tally::new() };
    let mut sent: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut number = 0_u64;
    let (mut due, mut ending) = (window, false);
    let mut requests = Vec::with_capacity(TRAIN_MAX * REQUEST_BYTES);
    while !(ending && sent.is_empty()) {
        while 0 < due && !ending {
            requests.clear();
            let now = clock::refresh();
            ending = end <= now;
            for _ in 0..due.min(TRAIN_MAX) {
                requests.extend_from_slice(&number.to_le_bytes());
                requests.resize(requests.len().next_multiple_of(REQUEST_BYTES), 0x5a);
                sent.push_back((number, now));
                number += 1;
                due -= 1;
            }
            transmit(&socket, server, &requests, REQUEST_BYTES)?;
        }
        if !readable_soon(&socket).await {
            // Lost, all of them: they are not counted, and others go instead.
            due += sent.len();
            sent.clear();
        }
        let now = clock::refresh();
        socket.recv_trains(&mut received, |meta, mut train| {
            while !train.is_empty() {
                let answer = train.split_to(meta.stride.clamp(1, train.len()));
                let Some(answered) = answer.first_chunk() else { continue };
                let answered = u64::from_le_bytes(*answered);
                // Answers come in order; one that was lost is not waited for.
                while let Some((number, since)) = sent.pop_front() {
                    due += 1;
                    if number == answered {
                        match begin <= since {
                            true => tally.record(now - since),
                            false => tally.answers += 1,
                        }
                        break;
                    }
                }
            }
        })?;
    }
    Ok(tally)
}

/// Waits until something can be read; false: nothing came for much longer than any answer takes.
async fn readable_soon(socket: &UdpSocket) -> bool {
    let mut limit = pin!(runtime::sleep(ANSWER_MAX));
    poll_fn(|context| {
        if pin!(socket.readable()).poll(context).is_ready() {
            return Poll::Ready(true);
        }
        limit.as_mut().poll(context).map(|()| false)
    })
    .await
}

fn transmit(
    socket: &UdpSocket,
    destination: SocketAddr,
    contents: &[u8],
    bytes: usize,
) -> std::io::Result<()> {
    let segment_size = (bytes < contents.len()).then_some(bytes);
    // The socket's buffer holds all that is in flight.
    socket
        .try_send(&Transmit { destination, ecn: 0, contents, segment_size, src_ip: None })
        .map(drop)
}
