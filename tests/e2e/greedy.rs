//! Clients that ask for a lot with little, and streams that end in every way: what is asked is answered
//! or refused, and costs no more than it may.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use quinn::{ClientConfig, Endpoint, MtuDiscoveryConfig, TransportConfig};
use rustmq_protocol::{
    CorrelationId, ErrorCode, FrameHeader, Metadata, MetadataResponse, RequestKind, TopicSelection,
};

use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

const MIB: u64 = 1 << 20;

/// Memory of each budget in these tests.
const BUDGET_BYTES: u64 = 32 * MIB;

/// What a broker may take beyond its budgets.
const SLACK_BYTES: u64 = 64 * MIB;

/// A broker with small budgets.
fn node(backend: Backend) -> Result<Node> {
    Ok(Node::new(backend)?
        .set("network.request_bytes_max", BUDGET_BYTES)
        .set("network.answer_bytes_max", BUDGET_BYTES)
        .set("network.window_bytes_max", BUDGET_BYTES))
}

/// `count` times the question what topics there are.
fn metadata_frames(count: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    for number in 0..count {
        FrameHeader::request(RequestKind::Metadata, CorrelationId(number as u32))
            .encode_frame(&mut frames, |out| Metadata { topics: TopicSelection::All }.encode(out));
    }
    frames
}

on_each_backend! {
    /// Small questions with large answers, which are not read.
    fn metadata_that_is_not_read_costs_no_more_than_its_budget(backend: Backend) -> Result<()> {
        const CLIENTS: usize = 10;
        const ASKED: usize = 1_000;
        const PARTITIONS: u32 = 2_000;
        let _machine = machine::shared();
        let node = node(backend)?
            .set("wal.segment_bytes", "8MiB")
            .set("wal.capacity_bytes", "64MiB");
        let broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        cli.create_topic("large", PARTITIONS)?;
        cli.create_topic("good", 1)?;
        client::runtime()?.block_on(async {
            let dir = node.data_dir();
            let mut one = Raw::greeted(dir).await?;
            one.send(&metadata_frames(1)).await?;
            let answer = one.answer().await?.1.len() as u64;
            let before = broker.memory()?;
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut held = Vec::new();
            for _ in 0..CLIENTS {
                let mut raw =
                    Raw::greeted_from(&endpoint, dir, raw::tenacious_client(dir)?).await?;
                raw.send(&metadata_frames(ASKED)).await?;
                held.push(raw);
            }
            // Whoever reads is served beside them.
            cli.produce("good", "a\n")?;
            ensure!(cli.consume("good")? == "a\n", "other records came");
            let grown = broker.memory_peak()?.saturating_sub(before);
            let asked = (CLIENTS * ASKED) as u64 * answer;
            machine::note(&format!(
                "metadata not read, {}: {asked} bytes asked for, memory grew by {grown}",
                backend.name()
            ));
            let bound = BUDGET_BYTES + SLACK_BYTES;
            ensure!(2 * bound < asked, "{asked} bytes are too few to tell");
            ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
            // All are answered, once they are read.
            let mut reader = held.pop().expect("as many as there are clients");
            for _ in 0..ASKED {
                let (header, body) = client::bounded("an answer", reader.answer()).await??;
                ensure!(header.error_code() == ErrorCode::Ok, "{header:?}");
                ensure!(MetadataResponse::decode(&body)?.topics.len() == 2, "other topics");
            }
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// Each byte of a request comes in a datagram of its own that is filled up to the largest size.
    fn padding_is_not_kept(backend: Backend) -> Result<()> {
        const BYTES: usize = 6_000;
        const DATAGRAM_BYTES: u16 = 8_500;
        let _machine = machine::shared();
        let node = node(backend)?.set("network.mtu_profile", "datacentre");
        let broker = node.start()?;
        client::runtime()?.block_on(async {
            let dir = node.data_dir();
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(8_952).minimum_change(100);
            let mut transport = TransportConfig::default();
            transport.mtu_discovery_config(Some(discovery)).pad_to_mtu(true);
            transport.keep_alive_interval(Some(Duration::from_millis(10)));
            let mut config: ClientConfig = raw::good_client(dir)?;
            config.transport_config(Arc::new(transport));
            let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
            let mut raw = Raw::greeted_from(&endpoint, dir, config).await?;
            client::bounded("large datagrams", async {
                while raw.connection.stats().path.current_mtu < DATAGRAM_BYTES {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await?;
            let before = broker.memory()?;
            let sent_before = raw.connection.stats().udp_tx.bytes;
            let mut frame = Vec::new();
            FrameHeader::request(RequestKind::Produce, CorrelationId(1))
                .encode_frame(&mut frame, |out| out.resize(2 * BYTES, 7));
            for byte in &frame[..BYTES] {
                let sent = raw.connection.stats().udp_tx.datagrams;
                raw.send(&[*byte]).await?;
                client::bounded("a datagram", async {
                    while raw.connection.stats().udp_tx.datagrams == sent {
                        tokio::task::yield_now().await;
                    }
                })
                .await?;
            }
            let sent = raw.connection.stats().udp_tx.bytes - sent_before;
            let grown = broker.memory_peak()?.saturating_sub(before);
            machine::note(&format!(
                "padding, {}: {sent} bytes for {BYTES} of a request, memory grew by {grown}",
                backend.name()
            ));
            ensure!(BYTES as u64 * u64::from(DATAGRAM_BYTES) <= sent, "{sent} bytes were sent");
            ensure!(4 * grown < sent, "memory grew by {grown}");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// More than may be in flight, and the end of the stream at once.
    fn requests_before_the_end_of_a_stream_are_all_answered(backend: Backend) -> Result<()> {
        const ASKED: usize = 1_500;
        const PARTITIONS: u32 = 70;
        let _machine = machine::shared();
        let node = node(backend)?;
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("some", PARTITIONS)?;
        client::runtime()?.block_on(async {
            let raw = Raw::greeted(node.data_dir()).await?;
            let (mut send, mut receive) = raw.split();
            send.send(&metadata_frames(ASKED)).await?;
            send.finish()?;
            let mut answered = [false; ASKED];
            for count in 0..ASKED {
                let what = format!("answer {count} of {ASKED}");
                let (header, _) = client::bounded(&what, receive.answer()).await??;
                ensure!(header.error_code() == ErrorCode::Ok, "{header:?}");
                answered[header.correlation.0 as usize] = true;
            }
            ensure!(answered.iter().all(|answered| *answered), "one was answered twice");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// A client that sends, ends its side and wants no answer: the next stream is not held back.
    fn streams_whose_answers_nobody_wants_make_room_for_others(backend: Backend) -> Result<()> {
        /// Three times as many as may be open.
        const STREAMS: usize = 192;
        let _machine = machine::shared();
        let node = node(backend)?;
        let broker = node.start()?;
        client::runtime()?.block_on(async {
            let raw = Raw::greeted(node.data_dir()).await?;
            for number in 0..STREAMS {
                let what = format!("stream {number}");
                let mut stream = client::bounded(&what, raw.stream()).await??;
                stream.send(&metadata_frames(3)).await?;
                stream.stop()?;
                stream.finish()?;
            }
            let mut last = client::bounded("a stream", raw.stream()).await??;
            let (header, _) = last.ask_bytes(&metadata_frames(1)).await?;
            ensure!(header.error_code() == ErrorCode::Ok, "{header:?}");
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}
