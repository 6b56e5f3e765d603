//! Clients that hold on to what they were given, and strangers without end. What they cost is bounded,
//! and who behaves is served all the while.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quinn::{ApplicationClose, ConnectionError, Endpoint};
use quinn_proto::{ConnectionHandle, DatagramEvent};
use rustmq_client::Start;
use rustmq_protocol::{
    CorrelationId, ErrorCode, FrameHeader, ProducerStamp, RequestKind, ThrottledBody,
};
use tokio::time::timeout;

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::process::{PATIENCE, wait_until};
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

const MIB: u64 = 1 << 20;

/// The close code of a connection that does not get on.
const CLOSE_STALLED: u32 = 4;

/// What a connection costs beside the budgets: its state, the credit that each has, what quinn-proto
/// keeps of packets on their way, and what the allocator does not give back.
const CONNECTION_BYTES: u64 = 256 * 1024;

/// What a broker may take beyond what a test has counted.
const SLACK_BYTES: u64 = 32 * MIB;

/// Memory of each budget in these tests.
const BUDGET_BYTES: u64 = 32 * MIB;

/// A broker with small budgets that closes connections that do not get on after 3 s.
fn node(backend: Backend) -> Result<Node> {
    Ok(Node::new(backend)?
        .set("wal.capacity_bytes", "64MiB")
        .set("network.request_bytes_max", BUDGET_BYTES)
        .set("network.answer_bytes_max", BUDGET_BYTES)
        .set("network.window_bytes_max", BUDGET_BYTES)
        .set("network.stall_timeout_ms", 3000))
}

/// Starts it, and makes the topic of those who behave.
fn start(node: &Node) -> Result<(Broker, PathBuf)> {
    let broker = node.start()?;
    Cli::new(node.data_dir()).create_topic("good", 1)?;
    Ok((broker, node.data_dir().to_owned()))
}

/// Writes `count` batches of about 100 KB to the topic, each acknowledged.
async fn produce(data_dir: &Path, topic: &str, count: usize) -> Result<()> {
    let info = raw::topic(data_dir, topic).await?;
    let mut raw = Raw::greeted(data_dir).await?;
    let value = "x".repeat(100_000);
    let frame = raw::produce_frame(&info, 0, &raw::batch(&[&value], ProducerStamp::NONE))?;
    let mut left = count;
    while 0 < left {
        let (header, body) = raw.ask_bytes(&frame).await?;
        match header.error_code() {
            ErrorCode::Ok => left -= 1,
            ErrorCode::Throttled => {
                let pause = ThrottledBody::decode(&body)?.retry_after_ms;
                tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
            }
            other => bail!("refused with {other}"),
        }
    }
    Ok(())
}

/// How many connections were closed because they did not get on. One that has half a request and is
/// starved of time may be found not to read first.
fn stalled(broker: &Broker) -> Result<u64> {
    let unread = broker.metric("rustmq_connections_closed_unread_total")?;
    Ok(broker.metric("rustmq_connections_closed_half_request_total")? + unread)
}

/// Each connection has to be closed by the broker, because it does not get on.
async fn until_stalled(clients: &[Raw]) -> Result<()> {
    for client in clients {
        let error = client::bounded("a close", client.connection.closed()).await?;
        if matches!(error, ConnectionError::Reset) {
            // The goodbye was lost on the way; what is sent later is answered by a reset.
            continue;
        }
        let ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) = &error else {
            bail!("ended otherwise: {error}");
        };
        ensure!(error_code.into_inner() == u64::from(CLOSE_STALLED), "closed with {error}");
    }
    Ok(())
}

on_each_backend! {
    /// Slow loris: requests that are begun and never finished, each of many in a train of other bytes.
    fn half_requests_cost_no_more_than_their_budget_and_are_closed(backend: Backend) -> Result<()> {
        const CONNECTIONS: u64 = 150;
        const STREAMS: usize = 4;
        let _machine = machine::shared();
        let node = node(backend)?;
        let (broker, dir) = start(&node)?;
        client::runtime()?.block_on(async {
            produce(&dir, "good", 200).await?;
            let before = broker.memory()?;
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS {
                let config = raw::tenacious_client(&dir)?;
                let raw = Raw::greeted_from(&endpoint, &dir, config).await;
                let raw = raw.with_context(|| broker.state())?;
                for _ in 0..STREAMS {
                    let mut stream = raw.stream().await?;
                    // A whole request first, so that the half one lies in the same train.
                    let mut bytes = Vec::new();
                    raw::hello(1, 1, &mut bytes);
                    FrameHeader::request(RequestKind::Produce, CorrelationId(1))
                        .encode_frame(&mut bytes, |out| out.resize(out.len() + MIB as usize, 7));
                    bytes.truncate(200_000);
                    // As much as the broker takes.
                    let _ = timeout(Duration::from_millis(20), stream.send(&bytes)).await;
                    held.push(stream);
                }
            }
            produce(&dir, "good", 50).await.context("beside them")?;
            let grown = broker.memory_peak()?.saturating_sub(before);
            let bound = 2 * BUDGET_BYTES + CONNECTIONS * CONNECTION_BYTES + SLACK_BYTES;
            machine::note(&format!(
                "half requests, {}: {} of 200 KB, memory grew by {grown}, bound {bound}",
                backend.name(), held.len()
            ));
            ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
            until_stalled(&held).await?;
            let closed = stalled(&broker)?;
            ensure!(CONNECTIONS <= closed, "{closed} were closed\n{}", broker.state());
            ensure!(0 < broker.metric("rustmq_connections_closed_half_request_total")?, "by name");
            produce(&dir, "good", 5).await
        })?;
        wait_until(|| Ok((broker.metric("rustmq_request_memory_bytes")? == 0).then_some(())))?
            .context("the memory of requests is given back")?;
        broker.stop()
    }
}

on_each_backend! {
    /// Consumers that ask for a lot and read nothing.
    fn answers_that_are_not_read_cost_no_more_than_their_budget(backend: Backend) -> Result<()> {
        const CONSUMERS: u64 = 60;
        const ASKED: usize = 50;
        let _machine = machine::shared();
        let node = node(backend)?;
        let (broker, dir) = start(&node)?;
        client::runtime()?.block_on(async {
            produce(&dir, "good", 300).await?;
            // Fills what is kept to read into.
            let warm = read_all(&dir).await?;
            ensure!(warm == 300, "{warm} records");
            let before = broker.memory()?;
            let info = raw::topic(&dir, "good").await?;
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut held = Vec::new();
            for number in 0..CONSUMERS {
                let config = raw::tenacious_client(&dir)?;
                let mut raw = Raw::greeted_from(&endpoint, &dir, config).await?;
                for ask in 0..ASKED {
                    let offset = (number as usize * ASKED + ask) as u64 % 290;
                    raw.send(&raw::fetch_frame(&info, 0, offset, 4 << 20)?).await?;
                }
                held.push(raw);
            }
            let read = read_all(&dir).await.context("beside them")?;
            ensure!(read == 300, "{read} records");
            produce(&dir, "good", 50).await.context("beside them")?;
            let grown = broker.memory_peak()?.saturating_sub(before);
            let bound = BUDGET_BYTES + CONSUMERS * CONNECTION_BYTES + SLACK_BYTES + 64 * MIB;
            machine::note(&format!(
                "answers not read, {}: {} asked of 4 MiB, memory grew by {grown}, bound {bound}",
                backend.name(), CONSUMERS as usize * ASKED
            ));
            ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
            until_stalled(&held).await?;
            let closed = stalled(&broker)?;
            ensure!(CONSUMERS <= closed, "{closed} were closed\n{}", broker.state());
            ensure!(0 < broker.metric("rustmq_connections_closed_unread_total")?, "by name");
            anyhow::Ok(())
        })?;
        wait_until(|| Ok((broker.metric("rustmq_answer_memory_bytes")? == 0).then_some(())))?
            .context("the memory of answers is given back")?;
        broker.stop()
    }
}

/// Reads the topic with the client library; gives how many records came.
async fn read_all(data_dir: &Path) -> Result<usize> {
    let client = client::connect(data_dir).await?;
    let consumer = client.consumer("good").start(Start::Earliest);
    let mut consumer = client::bounded("a consumer", consumer.build()).await??;
    let mut count = 0;
    while count < 300 {
        client::bounded("a record", consumer.receive()).await?.context("it ended")??;
        count += 1;
    }
    client.close().await;
    Ok(count)
}

/// Clients that come at once, in waves of this many.
const WAVE: usize = 20;

on_each_backend! {
    /// Those who only say Hello and show that they are alive do not keep others out: nobody's first
    /// packet is dropped while the shard has nothing else to do.
    fn a_crowd_of_silent_clients_is_let_in_at_once(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.shards(1).set("wal.capacity_bytes", "64MiB");
        let broker = node.start()?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut held = Vec::new();
            for _ in 0..5 {
                let mut coming = Vec::new();
                for _ in 0..WAVE {
                    let (endpoint, dir) = (endpoint.clone(), dir.to_owned());
                    let config = raw::tenacious_client(&dir)?;
                    coming.push(tokio::spawn(async move {
                        Raw::greeted_from(&endpoint, &dir, config).await
                    }));
                }
                for one in coming {
                    held.push(client::bounded("a connection", one).await???);
                }
            }
            let open = broker.metric("rustmq_connections")?;
            ensure!(open == 5 * WAVE as u64, "{open} are connected");
            let dropped = broker.metric("rustmq_first_packets_dropped_total")?;
            ensure!(dropped == 0, "{dropped} first packets were dropped");
            anyhow::Ok(())
        })?;
        // Every scrape says how long its slices kept the shard from these.
        let slices = broker.metric_with("rustmq_stage_latency_seconds_count", "stage=\"scrape\"")?;
        ensure!(2 <= slices, "{slices} slices of two scrapes");
        broker.stop()
    }
}

on_each_backend! {
    fn limits_of_connections_streams_and_silence_hold(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("network.connections_max", 4)
            .set("network.streams_max", 3)
            // Far beyond what a busy machine keeps a client from saying that it is there.
            .set("network.idle_timeout_ms", 5000)
            .set("network.handshake_timeout_ms", 3000);
        let broker = node.start()?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut held = Vec::new();
            for _ in 0..4 {
                let config = raw::tenacious_client(dir)?;
                held.push(Raw::greeted_from(&endpoint, dir, config).await?);
            }
            let fifth = Raw::greeted_from(&endpoint, dir, raw::tenacious_client(dir)?).await;
            let error = fifth.err().context("a fifth connection was let in")?;
            ensure!(format!("{error:#}").contains("refused"), "{error:#}");
            ensure!(1 <= broker.metric("rustmq_first_packets_refused_total")?, "it is counted");

            let mut streams = vec![held[0].stream().await?, held[0].stream().await?];
            let fourth = timeout(Duration::from_millis(300), held[0].stream()).await;
            ensure!(fourth.is_err(), "a fourth stream was opened");
            // A stream that ends makes room for another.
            streams.pop().context("a stream")?.until_finished().await?;
            client::bounded("another stream", held[0].stream()).await??;

            // Who is gone without a word is forgotten; who stays is not.
            let silent = held.pop().context("a connection")?;
            drop(silent);
            let quiet = admitted(|| quiet(&endpoint, dir)).await?;
            let ended = client::bounded("the end", quiet.connection.closed()).await?;
            ensure!(matches!(ended, ConnectionError::TimedOut), "ended otherwise: {ended}");
            for raw in &held {
                ensure!(raw.connection.close_reason().is_none(), "a busy connection was closed");
            }
            // Let in, and then not a word.
            drop(held.pop());
            let mute = admitted(|| mute(dir)).await?;
            until_stalled(std::slice::from_ref(&mute)).await?;
            ensure!(1 == broker.metric("rustmq_connections_closed_no_hello_total")?, "counted");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

/// A client that says hello and nothing more.
async fn quiet(endpoint: &Endpoint, dir: &Path) -> Result<Raw> {
    Raw::greeted_from(endpoint, dir, raw::good_client(dir)?).await
}

/// A client that is let in and says nothing, but that it is there.
async fn mute(dir: &Path) -> Result<Raw> {
    Raw::connect_with(dir, raw::tenacious_client(dir)?).await
}

/// Tries while the broker refuses: a place that came free is seen a moment later.
async fn admitted<F: Future<Output = Result<Raw>>>(connect: impl Fn() -> F) -> Result<Raw> {
    let begun = Instant::now();
    loop {
        match connect().await {
            Err(_) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Many clients without an operating system's help: they begin handshakes and do not go on.
struct Beginners {
    socket: UdpSocket,
    endpoint: quinn_proto::Endpoint,
    config: quinn_proto::ClientConfig,
    broker: SocketAddr,
    begun: Vec<(ConnectionHandle, quinn_proto::Connection)>,
}

impl Beginners {
    fn new(address: Ipv4Addr, data_dir: &Path) -> Result<Beginners> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let config = Arc::new(quinn_proto::EndpointConfig::default());
        Ok(Beginners {
            socket,
            endpoint: quinn_proto::Endpoint::new(config, None, false, None),
            config: raw::good_client(data_dir)?,
            broker: raw::address(data_dir)?,
            begun: Vec::new(),
        })
    }

    /// Sends the first packets of another connection.
    fn begin(&mut self) -> Result<()> {
        let (config, now) = (self.config.clone(), Instant::now());
        let (handle, connection) = self.endpoint.connect(now, config, self.broker, "localhost")?;
        self.begun.push((handle, connection));
        self.send(self.begun.len() - 1)
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let mut buffer = Vec::new();
        let (_, connection) = &mut self.begun[index];
        while connection.poll_transmit(Instant::now(), 1, &mut buffer).is_some() {
            self.socket.send_to(&buffer, self.broker)?;
            buffer.clear();
        }
        Ok(())
    }

    /// Answers those who were asked to prove their address; all else that came is dropped.
    fn prove(&mut self) -> Result<usize> {
        let (mut buffer, mut retried) = ([0; 2048], VecDeque::new());
        while let Ok((bytes, from)) = self.socket.recv_from(&mut buffer) {
            // A long header of type 3 is a Retry (RFC 9000, section 17.2.5).
            if buffer[0] & 0xf0 != 0xf0 {
                continue;
            }
            let datagram = (&buffer[..bytes]).into();
            let (now, mut out) = (Instant::now(), Vec::new());
            let event = self.endpoint.handle(now, from, None, None, datagram, &mut out);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(index) = self.begun.iter().position(|(known, _)| *known == handle)
            {
                self.begun[index].1.handle_event(event);
                retried.push_back(index);
            }
        }
        let count = retried.len();
        retried.into_iter().try_for_each(|index| self.send(index))?;
        Ok(count)
    }
}

on_each_backend! {
    /// The ladder: handshakes begin, then addresses have to be proved, then nobody is answered; those
    /// who are in do not notice, and after the handshake timeout all is as before.
    fn handshakes_that_do_not_go_on_are_bounded_and_given_up(backend: Backend) -> Result<()> {
        const SOURCES: u8 = 14;
        const EACH: usize = 100;
        let _machine = machine::shared();
        let node = node(backend)?.set("network.handshake_timeout_ms", 10_000);
        let (broker, dir) = start(&node)?;
        let before = broker.memory()?;
        let mut beginners = Vec::new();
        for number in 1..=SOURCES {
            beginners.push(Beginners::new(Ipv4Addr::new(127, 0, 7, number), &dir)?);
        }
        let mut proved = 0;
        for source in &mut beginners {
            for _ in 0..EACH / 10 {
                for _ in 0..10 {
                    source.begin()?;
                }
                proved += source.prove()?;
            }
        }
        let retried = broker.metric("rustmq_first_packets_retried_total")?;
        let (begun, held) =
            (broker.metric("rustmq_handshakes_total")?, broker.metric("rustmq_handshakes")?);
        let ignored = broker.metric("rustmq_first_packets_ignored_total")?;
        let grown = broker.memory_peak()?.saturating_sub(before);
        machine::note(&format!(
            "handshakes, {}: of {} begun by clients {retried} had to prove their address, {proved} did, \
             {ignored} were ignored, {held} are held; memory grew by {grown}",
            backend.name(), usize::from(SOURCES) * EACH
        ));
        ensure!(0 < retried && 0 < proved, "nobody had to prove an address");
        ensure!(held <= 1024 && begun < u64::from(SOURCES) * EACH as u64, "{held} of {begun}");
        ensure!(grown < 1024 * CONNECTION_BYTES + SLACK_BYTES, "memory grew by {grown}");
        wait_until(|| Ok((broker.metric("rustmq_handshakes")? == 0).then_some(())))?
            .context("handshakes are given up")?;
        ensure!(0 < broker.metric("rustmq_handshakes_timed_out_total")?, "they are counted");
        client::runtime()?.block_on(produce(&dir, "good", 5))?;
        broker.stop()
    }
}
