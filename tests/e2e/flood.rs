//! Floods of first packets from addresses of others, in network namespaces of their own: what a
//! producer that behaves still gets done, what they cost, and what they are answered.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::hosts::{BROKER, Hosts, can_make_hosts};
use crate::support::machine;
use crate::support::process::{Process, wait_until};
use crate::support::raw;

/// Addresses that the attacker sends from: none of them is its own.
const SOURCES: usize = 256;

const PORT: u16 = 9092;
const SHARD_PORT: u16 = PORT + 100;
const SINK_PORT: u16 = 9999;

/// First packets made beforehand, sent again and again.
const PACKETS: usize = 2048;

/// The attacker's share of one core.
const ATTACKER_SHARE: f64 = 0.2;

/// Seconds of each measurement.
const SECONDS: &str = "1";

/// Measurements without and with the flood, in turn, so that what changes meanwhile meets both; their
/// sums are compared.
const PAIRS: usize = 4;

/// So often they are made, until the producer keeps its pace: something else may run on this machine.
const ATTEMPTS: usize = 3;

on_each_backend! {
    fn a_flood_of_first_packets_leaves_a_producer_most_of_its_pace(backend: Backend) -> Result<()> {
        let _machine = machine::alone();
        if !can_make_hosts("flood::a_flood_of_first_packets") {
            return Ok(());
        }
        let hosts = Hosts::new(backend.name())?;
        let node = Node::new(backend)?
            .set("broker.listen", BROKER)
            .set("wal.capacity_bytes", "128MiB")
            .set("wal.when_full", "delete_oldest")
            .on_port(PORT);
        let mut broker = node.launch_by(machine::ahead(&hosts.on_broker(&node.command())))?;
        broker.until_ready()?;
        let dir = node.data_dir().to_owned();
        let scratch = machine::scratch_dir("flood-")?;
        let attack = |port: u16, name: &str| -> Result<Process> {
            let command = part("attacker", &dir, port);
            Process::start(machine::ahead(&hosts.on_client(&command)), scratch.path(), name)
        };
        let sink = part("sink", &dir, SINK_PORT);
        let mut sink = Process::start(hosts.on_broker(&sink), scratch.path(), "sink")?;
        let produce = || -> Result<f64> {
            let mut bench = Command::new(machine::executable());
            bench.args(["bench", "produce", "--producers", "4", "--batch", "10", "--seconds"]);
            // Clients on the cores that broker and attacker need: they are not to look for answers.
            bench.args([SECONDS, "--clients", "4", "--poll", "sleep"]);
            bench.args(["--format", "json", "--data-dir"]).arg(&dir);
            let output = machine::ahead(&hosts.on_broker(&bench)).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "the producer ended with {}: {said}", output.status);
            let text = String::from_utf8(output.stdout)?;
            let rate = text.split("\"records_per_s\":").nth(1).with_context(|| text.clone())?;
            let rate: String = rate.chars().take_while(|c| !matches!(c, ',' | '}')).collect();
            Ok(rate.trim().parse()?)
        };
        produce()?;
        let before = broker.memory()?;
        let (sent_before, received_before) = hosts.traffic()?;
        let (mut left, mut told) = (0.0, String::new());
        for attempt in 0..ATTEMPTS {
            let (mut beside_sink, mut flooded, mut first_packets) = (0.0, 0.0, 0.0);
            for round in 0..PAIRS {
                let mut flood = attack(SINK_PORT, &format!("to-sink-{attempt}-{round}"))?;
                until_sending(&hosts)?;
                beside_sink += produce()?;
                flood.kill()?;
                let mut flood = attack(SHARD_PORT, &format!("to-broker-{attempt}-{round}"))?;
                until_sending(&hosts)?;
                let (sent, at) = (hosts.traffic()?.0, Instant::now());
                flooded += produce()?;
                first_packets +=
                    (hosts.traffic()?.0 - sent) as f64 / 1242.0 / at.elapsed().as_secs_f64();
                flood.kill()?;
            }
            left = flooded / beside_sink;
            let mean = |sum: f64| sum / PAIRS as f64;
            told = format!(
                "{left:.2} of the pace is left, {:.0} records/s under {:.0} first packets/s, {:.0} when \
                 they go to a sink",
                mean(flooded), mean(first_packets), mean(beside_sink)
            );
            if 0.8 <= left {
                break;
            }
        }
        sink.kill()?;
        let (sent, received) = hosts.traffic()?;
        let answered = (received - received_before) as f64 / (sent - sent_before) as f64;
        let grown = broker.memory_peak()?.saturating_sub(before);
        machine::note(&format!(
            "flood, {}: {told}; {answered:.2} bytes answered for each sent; memory grew by {grown}",
            backend.name()
        ));
        ensure!(0.8 <= left, "{told}");
        ensure!(answered <= 3.0, "{answered:.2} bytes are answered for each sent");
        ensure!(grown < 128 << 20, "memory grew by {grown}");
        let health = Command::new(machine::executable());
        let mut health = hosts.on_broker(&health);
        health.args(["topic", "list", "--data-dir"]).arg(&dir);
        ensure!(health.status()?.success(), "nobody gets in after the flood");
        broker.stop()
    }
}

/// Waits until the flood runs.
fn until_sending(hosts: &Hosts) -> Result<()> {
    let before = hosts.traffic()?.0;
    wait_until(|| Ok((before + 1_000_000 < hosts.traffic()?.0).then_some(())))?
        .context("the attacker sends nothing")
}

/// A process that plays a part: this program again, with one test that does not end.
fn part(name: &str, dir: &Path, port: u16) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--ignored", "--exact", &format!("flood::{name}"), "--nocapture"]);
    command.env("RUSTMQ_FLOOD_PORT", port.to_string()).env("RUSTMQ_FLOOD_DIR", dir);
    command
}

fn asked() -> Result<Option<(u16, PathBuf)>> {
    let (Ok(port), Some(dir)) =
        (std::env::var("RUSTMQ_FLOOD_PORT"), std::env::var_os("RUSTMQ_FLOOD_DIR"))
    else {
        return Ok(None);
    };
    Ok(Some((port.parse()?, dir.into())))
}

/// Takes what is sent to it, as far as the kernel keeps it, and does nothing.
#[test]
#[ignore = "a process of its own, started by the flood"]
fn sink() -> Result<()> {
    let Some((port, _)) = asked()? else { return Ok(()) };
    let _socket = UdpSocket::bind((BROKER, port))?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Sends first packets without end, each valid, from addresses that are not its own.
#[test]
#[ignore = "a process of its own, started by the flood"]
fn attacker() -> Result<()> {
    let Some((port, dir)) = asked()? else { return Ok(()) };
    let target = SocketAddr::new(BROKER.parse()?, port);
    let packets = first_packets(&dir, target)?;
    let mut sockets = Vec::new();
    for number in 0..SOURCES {
        let address = Ipv4Addr::new(10, 232, (number / 200) as u8, (number % 200) as u8 + 1);
        sockets.push(UdpSocket::bind((address, 0))?);
    }
    let (begun, mut sent) = (Instant::now(), 0_usize);
    loop {
        for _ in 0..64 {
            // What the kernel has no room for is lost like on any network.
            let _ = sockets[sent % SOURCES].send_to(&packets[sent % PACKETS], target);
            sent += 1;
        }
        while begun.elapsed().mul_f64(ATTACKER_SHARE) < cpu_time()? {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn first_packets(dir: &Path, target: SocketAddr) -> Result<Vec<Vec<u8>>> {
    let config = Arc::new(quinn_proto::EndpointConfig::default());
    let mut endpoint = quinn_proto::Endpoint::new(config, None, false, None);
    let client = raw::good_client(dir)?;
    let mut packets = Vec::new();
    while packets.len() < PACKETS {
        let now = Instant::now();
        let (_, mut connection) = endpoint.connect(now, client.clone(), target, "localhost")?;
        let mut packet = Vec::new();
        let transmit = connection.poll_transmit(now, 1, &mut packet).context("a first packet")?;
        ensure!(transmit.size == packet.len(), "one packet");
        packets.push(packet);
    }
    Ok(packets)
}

/// What this thread has had of the cores since it began.
fn cpu_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    match text.split(' ').next().and_then(|field| field.parse().ok()) {
        Some(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
        None => bail!("no time in {text:?}"),
    }
}
