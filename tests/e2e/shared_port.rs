//! The port of the first contact, which every shard serves, and clients whose addresses change in the
//! middle of their work, as behind a NAT that forgets.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quinn::Endpoint;
use rustmq_client::TopicInfo;
use rustmq_protocol::{ErrorCode, ProducerStamp};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::random::Random;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

const SHARDS: u16 = 3;
const PARTITIONS: u32 = 6;
const CONNECTIONS: usize = 64;

/// Requests of each connection, and those that are under way at once.
const REQUESTS: usize = 48;
const IN_FLIGHT: usize = 4;

/// How often each client's address changes.
const REBINDINGS: usize = 2;

/// From the port of the first contact to that of shard 0.
const SHARD_PORT_OFFSET: u16 = 100;

const PASSED_ON: &str = "rustmq_datagrams_passed_on_total";

/// Which port clients dial.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialled {
    Shared,
    /// Each shard's own, in turn.
    Own,
}

fn node(backend: Backend) -> Result<Node> {
    Ok(Node::new(backend)?.shards(SHARDS).set("wal.capacity_bytes", "64MiB"))
}

on_each_backend! {
    fn rebound_clients_go_on_at_the_shared_port(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = node(backend)?.on_a_fixed_port()?;
        let broker = rebind_under_load(&node, Dialled::Shared)?;
        ensure!(broker.metric(PASSED_ON)? == 0, "the kernel steers");
        for shard in 0..SHARDS {
            let label = format!("shard=\"{shard}\"");
            let done = broker.metric_with("rustmq_handshakes_completed_total", &label)?;
            ensure!(0 < done, "shard {shard} serves nobody at the shared port");
        }
        broker.stop()
    }
}

on_each_backend! {
    /// Where addresses choose the shard, most of what a rebound client sends comes to a wrong one.
    fn rebound_clients_go_on_by_what_shards_hand_to_one_another(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = node(backend)?.on_a_fixed_port()?.set("test.steering", "false");
        let broker = rebind_under_load(&node, Dialled::Shared)?;
        let (passed_on, lost) =
            (broker.metric(PASSED_ON)?, broker.metric("rustmq_datagrams_passed_on_lost_total")?);
        machine::note(&format!(
            "rebinding without steering, {}: {passed_on} datagrams handed on, {lost} lost",
            backend.name()
        ));
        ensure!(0 < passed_on, "nothing was handed from shard to shard");
        ensure!(broker.output().contains("served by every shard, by address"), "it does not say so");
        broker.stop()
    }
}

on_each_backend! {
    fn rebound_clients_go_on_at_the_shards_own_ports(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = node(backend)?.on_a_fixed_port()?;
        let broker = rebind_under_load(&node, Dialled::Own)?;
        ensure!(broker.metric(PASSED_ON)? == 0, "on its own port nobody looks for others");
        broker.stop()
    }
}

/// Every connection goes on, and every request is answered and in the log once.
fn rebind_under_load(node: &Node, dialled: Dialled) -> Result<Broker> {
    let broker = node.start()?;
    let cli = Cli::new(node.data_dir());
    cli.create_topic("rebound", PARTITIONS)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(node.data_dir(), "rebound").await?;
        let shared = raw::address(node.data_dir())?;
        let (answered, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let (mut endpoints, mut connections) = (Vec::new(), Vec::new());
        for client in 0..CONNECTIONS {
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let address = match dialled {
                Dialled::Shared => shared,
                Dialled::Own => {
                    let shard = client as u16 % SHARDS;
                    SocketAddr::new(shared.ip(), shared.port() + SHARD_PORT_OFFSET + shard)
                }
            };
            let config = raw::good_client(node.data_dir())?;
            let raw = Raw::greeted_at(&endpoint, address, config).await?;
            endpoints.push(endpoint);
            connections.push(raw.connection.clone());
            let frames = (0..REQUESTS).map(|request| frame(&topic, client, request));
            let frames = frames.collect::<Result<Vec<_>>>()?;
            tasks.spawn(work(raw, frames, Arc::clone(&answered)));
        }
        for change in 1..=REBINDINGS {
            let enough = CONNECTIONS * REQUESTS * change / (REBINDINGS + 1);
            let reached = async {
                while answered.load(Ordering::Relaxed) < enough {
                    if let Some(ended) = tasks.try_join_next() {
                        ended??;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                anyhow::Ok(())
            };
            client::bounded("answers before a change of addresses", reached).await??;
            for endpoint in &endpoints {
                let before = endpoint.local_addr()?;
                endpoint.rebind(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
                ensure!(endpoint.local_addr()? != before, "the address is the same");
            }
        }
        let rest = async {
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        };
        client::bounded("the rest of the answers", rest).await?.with_context(|| broker.state())?;
        let ended = connections.iter().filter(|one| one.close_reason().is_some()).count();
        ensure!(ended == 0, "{ended} of {CONNECTIONS} connections ended");
        let answered = answered.load(Ordering::Relaxed);
        ensure!(answered == CONNECTIONS * REQUESTS, "{answered} answers");
        anyhow::Ok(())
    })?;
    let read = cli.consume("rebound")?;
    let mut read: Vec<&str> = read.lines().collect();
    read.sort_unstable();
    let mut sent: Vec<String> = (0..CONNECTIONS * REQUESTS)
        .map(|number| value(number / REQUESTS, number % REQUESTS))
        .collect();
    sent.sort_unstable();
    ensure!(read == sent, "{} records of {} are there, or others", read.len(), sent.len());
    Ok(broker)
}

fn value(client: usize, request: usize) -> String {
    format!("client {client} request {request}")
}

/// Partitions of every shard, so that most requests cross from shard to shard, too.
fn frame(topic: &TopicInfo, client: usize, request: usize) -> Result<Vec<u8>> {
    let batch = raw::batch(&[&value(client, request)], ProducerStamp::NONE);
    raw::produce_frame(topic, (client + request) as u32 % PARTITIONS, &batch)
}

/// Sends all requests, a few at a time, and takes an answer for each.
async fn work(raw: Raw, frames: Vec<Vec<u8>>, answered: Arc<AtomicUsize>) -> Result<()> {
    let (mut send, mut receive) = raw.split();
    let places = Semaphore::new(IN_FLIGHT);
    let sending = async {
        for frame in &frames {
            places.acquire().await?.forget();
            send.send(frame).await?;
        }
        anyhow::Ok(())
    };
    let receiving = async {
        for _ in &frames {
            let (header, _) = receive.answer().await?;
            ensure!(header.error_code() == ErrorCode::Ok, "refused with {}", header.error_code());
            places.add_permits(1);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// The keys of a broker that starts here. Of 16 million ids one passes without the key: with the same
/// keys and the same noise, none of it does, in every run.
fn keep_keys(data_dir: &Path) -> Result<()> {
    std::fs::create_dir_all(data_dir)?;
    let keys = format!(
        "rustmq node keys 1\nreset {0}\ntoken {0}\nconnection-id {1}\n",
        "5a".repeat(64),
        "5a".repeat(8)
    );
    Ok(std::fs::write(data_dir.join("node.keys"), keys)?)
}

on_each_backend! {
    /// Whoever has no key cannot make one shard work for another.
    fn noise_is_not_handed_from_shard_to_shard(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = node(backend)?.set("test.steering", "false");
        keep_keys(node.data_dir())?;
        let broker = node.start()?;
        let address = raw::address(node.data_dir())?;
        let mut random = Random::new(7);
        for _ in 0..8 {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            for number in 0..500 {
                // A header of either kind, the long one with an id of the broker's length.
                let head: &[u8] = if number % 2 == 0 { &[0x40] } else { &[0xc0, 0, 0, 0, 1, 8] };
                let length = random.below(64) as usize;
                let datagram = [head, &random.bytes(length)].concat();
                // What the kernel has no room for is lost like on any network.
                let _ = socket.send_to(&datagram, address);
            }
        }
        Cli::new(node.data_dir()).check_health("after")?;
        ensure!(broker.metric(PASSED_ON)? == 0, "noise was handed on");
        broker.stop()
    }
}

on_each_backend! {
    fn two_brokers_of_several_shards_collide(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let first = node(backend)?.on_a_fixed_port()?;
        let mut broker = first.start()?;
        let port = raw::address(first.data_dir())?.port();
        let said = node(backend)?.on_port(port).refusal()?;
        ensure!(said.contains(&port.to_string()) && said.contains("first contact"), "{said}");
        ensure!(broker.is_running()?, "the first broker ended");
        Cli::new(first.data_dir()).check_health("after")?;
        broker.stop()
    }
}

on_each_backend! {
    fn where_the_kernel_does_not_steer_shard_0_serves_the_first_contact(
        backend: Backend
    ) -> Result<()> {
        let _machine = machine::shared();
        let node = node(backend)?;
        let mut broker = launch_without_steering(&node)?;
        broker.until_ready()?;
        ensure!(broker.output().contains("served by shard 0 alone"), "{}", broker.output());
        for number in 0..4 {
            Cli::new(node.data_dir()).check_health(&format!("topic-{number}"))?;
        }
        let done = broker.metric_with("rustmq_handshakes_completed_total", "shard=\"0\"")?;
        // Each command dials the first contact, and there are three for each topic.
        ensure!(12 <= done, "{done} handshakes at shard 0");
        broker.stop()
    }
}

/// Starts a broker on a thread that may not attach programs to shared ports; a child inherits that.
fn launch_without_steering(node: &Node) -> Result<Broker> {
    const EPERM: u32 = 1;
    const SO_ATTACH_REUSEPORT_CBPF: u64 = 51;
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let setsockopt = if matches!(arch, TargetArch::x86_64) { 54 } else { 208 };
    let option = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        SO_ATTACH_REUSEPORT_CBPF,
    )?;
    let rules = [(setsockopt, vec![SeccompRule::new(vec![option])?])].into();
    let denied = SeccompAction::Errno(EPERM);
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()?;
    std::thread::scope(|scope| {
        let launched = scope.spawn(|| {
            seccompiler::apply_filter(&filter)?;
            node.launch()
        });
        launched.join().unwrap_or_else(|_| anyhow::bail!("the thread panicked"))
    })
}
