//! The topic of a broker, what fills it, and the producers of a shape.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::{Endpoint, TokioRuntime};
use rustmq_protocol::{Offset, ProducerStamp};
use rustmq_sys::runtime::{FlushPlan, Polling, RuntimeConfig};
use tokio::runtime;

use super::broker::Broker;
use super::drive::{Period, Producer, Tally};
use super::machine::Cores;
use super::mtu::{Mtu, Sender};
use super::shape::{Shape, shape};
use super::tail;
use super::wire::{self, Link, NO_BROKER, ProduceFrame, Target};
use super::{client, device, tls};

/// The topic of every broker.
pub(super) const TOPIC: &str = "load";

/// Partitions of the topic: one for each producer.
const PARTITIONS: u32 = 8;

/// A WAL this small has recycled all its segments soon, as one that has run for days.
pub(super) const WAL_SETS: [&str; 2] = ["wal.capacity_bytes=1GiB", "wal.when_full=delete_oldest"];

/// Bytes written before the first round: a little more than the WAL holds.
const FILL_BYTES: u64 = 1280 << 20;

/// Batches that an idempotent producer may have in flight; who wants more is none.
pub(super) const IDEMPOTENT_WINDOW: usize = 8;

/// Writes until every segment of the broker's WAL was used once.
pub(super) fn fill(broker: &Broker, targets: &[Target], cores: Cores) -> Result<()> {
    let shape = shape(1, 16, 64 << 10, 8);
    let slice = Period { warm_up: Duration::ZERO, measured: Duration::from_millis(500) };
    let batch_bytes = (shape.records * shape.value_bytes) as u64;
    let mut written = 0;
    while written < FILL_BYTES {
        let tally = produce(broker, targets, shape, slice, cores)?;
        written += tally.answers * batch_bytes;
    }
    Ok(())
}

/// Writes so many bytes of values to all partitions in turn, batch by batch.
pub(super) fn fill_evenly(
    broker: &Broker,
    targets: &[Target],
    shape: Shape,
    bytes: u64,
    cores: Cores,
) -> Result<()> {
    on_client(cores, || async {
        let endpoint = client_endpoint(&broker.certs())?;
        let address = targets.first().context("the topic has a partition")?.address;
        let connection = wire::connect(&endpoint, address).await?;
        let mut link = Link::to_broker(&connection).await?;
        let frame = |target| {
            ProduceFrame::new(target, ProducerStamp::NONE, shape.records, shape.value_bytes)
        };
        let mut frames: Vec<ProduceFrame> = targets.iter().map(frame).collect();
        let in_flight = shape.window.max(frames.len());
        let mut left = bytes.div_ceil((shape.records * shape.value_bytes) as u64);
        while 0 < left {
            for number in 0..in_flight {
                let turn = number % frames.len();
                link.sender.send(frames[turn].next_batch().1).await?;
            }
            for _ in 0..in_flight {
                link.receiver.receive().await?.context("the stream ended")?;
            }
            left = left.saturating_sub(in_flight as u64);
        }
        Ok(())
    })
}

/// Producers in closed loop, each with a connection of its own.
pub(super) fn produce(
    broker: &Broker,
    targets: &[Target],
    shape: Shape,
    period: Period,
    cores: Cores,
) -> Result<Tally> {
    let runtime = client_runtime(cores, Polling::Sleep);
    closed_loop(broker, targets, shape, period, cores, runtime)
}

pub(super) fn closed_loop(
    broker: &Broker,
    targets: &[Target],
    shape: Shape,
    period: Period,
    cores: Cores,
    runtime: RuntimeConfig,
) -> Result<Tally> {
    let producers = senders(broker, targets, shape, cores)?;
    client::closed_loop(&broker.certs(), runtime, producers, shape.window, shape.mtu, period)
}

/// The producers of a shape, each with a partition of its own.
pub(super) fn senders(
    broker: &Broker,
    targets: &[Target],
    shape: Shape,
    cores: Cores,
) -> Result<Vec<client::Producer>> {
    let stamps = match shape.window <= IDEMPOTENT_WINDOW {
        true => init_producers(broker, shape.producers, cores)?,
        false => vec![ProducerStamp::NONE; shape.producers],
    };
    let producers = stamps.into_iter().zip(targets).map(|(stamp, target)| {
        let frame = ProduceFrame::new(target, stamp, shape.records, shape.value_bytes);
        client::Producer { target: *target, frame, says_hello: true, counts: true }
    });
    Ok(producers.collect())
}

/// Where these partitions end now.
pub(super) async fn ends_of(certs: &Path, targets: &[Target]) -> Result<Vec<(Target, Offset)>> {
    let endpoint = client_endpoint(certs)?;
    let mut ends = Vec::with_capacity(targets.len());
    for target in targets {
        let connection = wire::connect(&endpoint, target.address).await?;
        let mut link = Link::to_broker(&connection).await?;
        ends.push((*target, tail::end_of(&mut link, target).await?));
    }
    Ok(ends)
}

/// Ids of new producers.
pub(super) fn init_producers(
    broker: &Broker,
    count: usize,
    cores: Cores,
) -> Result<Vec<ProducerStamp>> {
    on_client(cores, || async {
        let endpoint = client_endpoint(&broker.certs())?;
        let connection = wire::connect(&endpoint, broker.address()).await?;
        let mut link = Link::to_broker(&connection).await?;
        let mut stamps = Vec::with_capacity(count);
        for _ in 0..count {
            stamps.push(link.init_producer().await?);
        }
        Ok(stamps)
    })
}

/// The client of closed loops waits as the broker's shard does.
pub(super) fn client_runtime(cores: Cores, polling: Polling) -> RuntimeConfig {
    device::runtime_config(cores.client, polling, FlushPlan::WriteThrough)
}

/// Runs a client on its own thread and core.
pub(super) fn on_client<F: Future<Output = Result<T>>, T: Send>(
    cores: Cores,
    client: impl FnOnce() -> F + Send,
) -> Result<T> {
    device::on_core(cores.client, || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client())
    })
}

pub(super) fn create_topic(broker: &Broker, cores: Cores) -> Result<Vec<Target>> {
    topic_of(broker, PARTITIONS, cores)
}

/// Makes a topic with so many partitions.
pub(super) fn topic_of(broker: &Broker, partitions: u32, cores: Cores) -> Result<Vec<Target>> {
    on_client(cores, || async {
        let endpoint = client_endpoint(&broker.certs())?;
        let connection = wire::connect(&endpoint, broker.address()).await?;
        let mut link = Link::to_broker(&connection).await?;
        link.create_topic(TOPIC, partitions).await?;
        Target::of_topic(&link.metadata(TOPIC).await?, broker.address())
    })
}

/// The partitions of the topic that was made by [`create_topic`].
pub(super) fn find_topic(broker: &Broker, cores: Cores) -> Result<Vec<Target>> {
    on_client(cores, || async {
        let endpoint = client_endpoint(&broker.certs())?;
        let connection = wire::connect(&endpoint, broker.address()).await?;
        let mut link = Link::to_broker(&connection).await?;
        Target::of_topic(&link.metadata(TOPIC).await?, broker.address())
    })
}

/// Producers with a connection, a stream and a partition each.
pub(super) async fn producers(
    certs: &Path,
    targets: &[Target],
    shape: Shape,
) -> Result<Vec<Producer>> {
    let endpoint = endpoint_for(certs, shape.mtu)?;
    let mut producers = Vec::with_capacity(shape.producers);
    for target in targets.iter().take(shape.producers) {
        let connection = wire::connect(&endpoint, target.address).await?;
        let mut link = Link::to_broker(&connection).await?;
        let stamp = link.init_producer().await?;
        let frame = ProduceFrame::new(target, stamp, shape.records, shape.value_bytes);
        producers.push(Producer { link, frame });
    }
    Ok(producers)
}

/// A producer of the server that is nothing but QUIC.
pub(super) async fn bare_producer(certs: &Path, target: &Target, shape: Shape) -> Result<Producer> {
    let connection = wire::connect(&endpoint_for(certs, shape.mtu)?, target.address).await?;
    let link = Link::open(&connection).await?;
    let frame = ProduceFrame::new(target, NO_BROKER, shape.records, shape.value_bytes);
    Ok(Producer { link, frame })
}

/// A socket from which connections are opened.
pub fn client_endpoint(certs: &Path) -> Result<Endpoint> {
    endpoint_for(certs, Mtu::Internet)
}

pub(super) fn endpoint_for(certs: &Path, mtu: Mtu) -> Result<Endpoint> {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let mut endpoint = Endpoint::new(mtu.endpoint(), None, socket, Arc::new(TokioRuntime))?;
    endpoint.set_default_client_config(tls::client(certs, mtu, Sender::Quinn)?);
    Ok(endpoint)
}
