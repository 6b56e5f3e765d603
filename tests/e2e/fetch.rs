//! Fetches, as a client meets them that speaks the wire: what they wait for, and what they do not.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quinn::Endpoint;
use rustmq_protocol::{ErrorCode, Fetch, FetchResponse, batches, verify_crc};

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::process::PATIENCE;
use crate::support::raw::{self, Raw};
use crate::support::subscriber::{produce, until_metric};
use crate::support::{client, machine};

/// Bytes of a record's value; a batch has one record.
const VALUE_BYTES: usize = 10_000;

/// Two batches do not fit into one and a half.
const ONE_BATCH_AND_A_HALF: u32 = 15_000;

/// From the port of the first contact to that of shard 0.
const SHARD_PORT_OFFSET: u16 = 100;

/// An answer of a fetch.
struct Fetched {
    /// Where its batches begin and end.
    offsets: Vec<(u64, u64)>,
    bytes: usize,
}

impl Fetched {
    /// One past its last record.
    fn end(&self) -> Result<u64> {
        Ok(self.offsets.last().context("no batch")?.1)
    }
}

/// Takes the answer of a fetch.
async fn fetched(raw: &mut Raw) -> Result<Fetched> {
    let (header, body) = raw.answer().await?;
    ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
    let response = FetchResponse::decode(&body)?;
    let mut offsets = Vec::new();
    for batch in batches(response.batches) {
        let header = verify_crc(batch?.1)?;
        offsets.push((header.base_offset.0, header.last_offset().0 + 1));
    }
    Ok(Fetched { offsets, bytes: response.batches.len() })
}

async fn ask(raw: &mut Raw, fetch: &Fetch) -> Result<Fetched> {
    raw.send(&raw::frame_of(fetch)).await?;
    fetched(raw).await
}

/// How often a fetch has waited for records.
fn waits(broker: &Broker) -> Result<u64> {
    broker.metric_with("rustmq_stage_latency_seconds_count", "stage=\"fetch_wait\"")
}

on_each_backend! {
    /// Where an answer ends before the log does, it comes at once, however little it has: at the end of
    /// a segment, and before a batch that does not fit.
    fn what_lies_beyond_an_answer_is_not_waited_for(backend: Backend) -> Result<()> {
        /// Three segments of 1 MiB.
        const COUNT: u64 = 300;
        const SEGMENT_BYTES: u32 = 1 << 20;
        const WAIT_MS: u32 = 20_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir();
        Cli::new(dir).create_topic("long", 1)?;
        let runtime = client::runtime()?;
        runtime.block_on(async {
            let topic = raw::topic(dir, "long").await?;
            produce(dir, &topic, 0, COUNT as usize, VALUE_BYTES).await?;
            let mut raw = Raw::greeted(dir).await?;
            let bytes_min = ONE_BATCH_AND_A_HALF;
            let fetch = raw::fetch(&topic, 0, COUNT - 3, bytes_min)?;
            let answer = ask(&mut raw, &Fetch { wait_ms_max: WAIT_MS, bytes_min, ..fetch }).await?;
            ensure!(answer.offsets == [(COUNT - 3, COUNT - 2)], "{:?}", answer.offsets);
            ensure!(waits(&broker)? == 0, "it waited although no batch more fits");
            anyhow::Ok(())
        })?;
        broker.stop()?;

        // Nothing is in memory now.
        let broker = node.start()?;
        runtime.block_on(async {
            let topic = raw::topic(dir, "long").await?;
            let mut raw = Raw::greeted(dir).await?;
            let bytes_min = 2 * SEGMENT_BYTES;
            let mut next = 0;
            while next < COUNT / 2 {
                let fetch = raw::fetch(&topic, 0, next, bytes_min)?;
                let fetch = Fetch { wait_ms_max: WAIT_MS, bytes_min, ..fetch };
                let answer = ask(&mut raw, &fetch).await?;
                ensure!(answer.bytes < bytes_min as usize, "an answer is of one segment");
                next = answer.end()?;
            }
            ensure!(next < COUNT, "all was read in one go");
            ensure!(waits(&broker)? == 0, "it waited at the end of a segment");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// At the end of the log a fetch gathers what it was asked to.
    fn at_the_end_a_fetch_waits_until_there_is_enough(backend: Backend) -> Result<()> {
        const WAIT_MS: u32 = 60_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir();
        Cli::new(dir).create_topic("short", 1)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "short").await?;
            produce(dir, &topic, 0, 1, VALUE_BYTES).await?;
            let mut raw = Raw::greeted(dir).await?;
            let fetch = raw::fetch(&topic, 0, 0, 1 << 20)?;
            let bytes_min = 2 * ONE_BATCH_AND_A_HALF;
            raw.send(&raw::frame_of(&Fetch { wait_ms_max: WAIT_MS, bytes_min, ..fetch })).await?;
            produce(dir, &topic, 0, 2, VALUE_BYTES).await?;
            let answer = fetched(&mut raw).await?;
            ensure!(answer.offsets == [(0, 1), (1, 2), (2, 3)], "{:?}", answer.offsets);
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// What comes while a fetch waits is counted; all of it is looked up once, when it is enough.
    fn a_fetch_that_waits_reads_when_there_is_enough(backend: Backend) -> Result<()> {
        const COUNT: u64 = 20;
        const WAIT_MS: u32 = 60_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir();
        Cli::new(dir).create_topic("slow", 1)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "slow").await?;
            let mut raw = Raw::greeted(dir).await?;
            let fetch = raw::fetch(&topic, 0, 0, 1 << 20)?;
            let bytes_min = COUNT as u32 * VALUE_BYTES as u32;
            raw.send(&raw::frame_of(&Fetch { wait_ms_max: WAIT_MS, bytes_min, ..fetch })).await?;
            produce(dir, &topic, 0, COUNT as usize, VALUE_BYTES).await?;
            let offsets: Vec<_> = (0..COUNT).map(|offset| (offset, offset + 1)).collect();
            ensure!(fetched(&mut raw).await?.offsets == offsets, "not all of them");
            // Once more, if the fetch came behind the first records.
            let hits = broker.metric("rustmq_cache_hits_total")?;
            ensure!(hits <= 2, "it was looked up {hits} times");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

/// A client of this shard, at its own port.
async fn greeted_at_shard(dir: &Path, shard: u16) -> Result<Raw> {
    let shared = raw::address(dir)?;
    let address = SocketAddr::new(shared.ip(), shared.port() + SHARD_PORT_OFFSET + shard);
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    Raw::greeted_at(&endpoint, address, raw::tenacious_client(dir)?).await
}

on_each_backend! {
    /// What a client may be answered is for its shard to say, also when another one finds the batches.
    fn a_forwarded_fetch_keeps_to_what_its_client_may_hold(backend: Backend) -> Result<()> {
        const ANSWER_BYTES_MAX: u64 = 32 << 20;
        const HELD_BYTES: u64 = 8 << 20;
        const ASKED_BYTES: u32 = 16 << 20;
        const BATCH_BYTES: usize = 100_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .shards(2)
            .on_a_fixed_port()?
            .set("wal.capacity_bytes", "64MiB")
            .set("cache.hot_bytes", "64MiB")
            .set("network.answer_bytes_max", ANSWER_BYTES_MAX)
            .set("network.stall_timeout_ms", 60_000);
        let broker = node.start()?;
        let dir = node.data_dir();
        Cli::new(dir).create_topic("far", 1)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "far").await?;
            let elsewhere = 1 - topic.partitions.first().context("a partition")?.shard.0;
            produce(dir, &topic, 0, 180, BATCH_BYTES).await?;
            // One client holds a part of the memory: it reads nothing.
            let mut held = greeted_at_shard(dir, elsewhere).await?;
            held.send(&raw::fetch_frame(&topic, 0, 0, 12 << 20)?).await?;
            let begun = Instant::now();
            while broker.metric("rustmq_answer_memory_bytes")? < HELD_BYTES {
                ensure!(begun.elapsed() < PATIENCE, "it is not answered\n{}", broker.state());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let mut raw = greeted_at_shard(dir, elsewhere).await?;
            let answer = ask(&mut raw, &raw::fetch(&topic, 0, 0, ASKED_BYTES)?).await?;
            let allowed = (ANSWER_BYTES_MAX - HELD_BYTES) / 2;
            ensure!(answer.bytes as u64 <= allowed, "{} bytes of {allowed}", answer.bytes);
            ensure!(BATCH_BYTES < answer.bytes, "{} bytes", answer.bytes);
            let forwards = broker.metric_with("rustmq_stage_latency_seconds_count", "\"forward\"")?;
            ensure!(2 <= forwards, "{forwards} were forwarded");
            drop(held);
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// A client may have 1,024 fetches wait. Each is charged for more than its bytes, and costs no more
    /// than that; when they end, so does the charge.
    fn fetches_that_wait_are_charged_what_they_cost(backend: Backend) -> Result<()> {
        const CONNECTIONS: u64 = 16;
        const WAITING: u64 = 1024;
        /// What the broker charges each of them, its body included.
        const CHARGED_BYTES: u64 = 2048 + 48;
        /// What a connection costs, and what an allocator keeps.
        const CONNECTION_BYTES: u64 = 256 << 10;
        const SLACK_BYTES: u64 = 8 << 20;
        const CHARGED: &str = "rustmq_request_memory_bytes";
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir();
        Cli::new(dir).create_topic("idle", 1)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "idle").await?;
            let fetch = raw::fetch(&topic, 0, 0, 1 << 20)?;
            let frame = raw::frame_of(&Fetch { wait_ms_max: 60_000, ..fetch });
            let frames = frame.repeat(WAITING as usize);
            let before = broker.memory()?;
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS {
                let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
                let config = raw::tenacious_client(dir)?;
                let mut raw = Raw::greeted_from(&endpoint, dir, config).await?;
                raw.send(&frames).await?;
                held.push(raw);
            }
            let charged = CONNECTIONS * WAITING * CHARGED_BYTES;
            until_metric(&broker, CHARGED, charged).await?;
            let grown = broker.memory_peak()?.saturating_sub(before);
            let bound = charged + CONNECTIONS * CONNECTION_BYTES + SLACK_BYTES;
            machine::note(&format!(
                "fetches that wait, {}: {} of them, memory grew by {grown}, bound {bound}",
                backend.name(), CONNECTIONS * WAITING
            ));
            ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
            // One record answers them all.
            produce(dir, &topic, 0, 1, 100).await?;
            for raw in &mut held {
                for _ in 0..WAITING {
                    ensure!(fetched(raw).await?.offsets == [(0, 1)], "another record");
                }
            }
            until_metric(&broker, CHARGED, 0).await
        })?;
        broker.stop()
    }
}
