//! Subscriptions, as a client meets them that speaks the wire: batches come as they are produced,
//! for as long as it gives credit; whatever ends one is said by name.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustmq_client::{ErrorCode, LeaderEpoch, Offset, PartitionId, ShardId, TopicId, TopicInfo};
use rustmq_protocol::{
    CREDIT_BYTES_MAX, CorrelationId, Credit, FrameFlags, FrameHeader, ProducerStamp, RequestKind,
};

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::follower::Follower;
use crate::support::load::Load;
use crate::support::raw::{self, Raw};
use crate::support::subscriber::{Told, open, produce, told, told_half, until_metric};
use crate::support::{client, machine};

/// Subscriptions that one connection may have, as the broker says it.
const PER_CONNECTION_MAX: u32 = 10_000;

/// What the process may grow by for each of them while none has anything to send: what they are
/// charged as, the answers that opened them, and what an allocator keeps.
const MEMORY_EACH_MAX: u64 = 1024;

/// Ends a connection and waits until the broker has forgotten all that it had.
async fn close(raw: Raw, broker: &Broker) -> Result<()> {
    raw.connection.close(0_u32.into(), b"enough");
    until_metric(broker, "rustmq_subscriptions", 0).await?;
    until_metric(broker, "rustmq_request_memory_bytes", 0).await?;
    until_metric(broker, "rustmq_answer_memory_bytes", 0).await
}

on_each_backend! {
    /// A subscriber reads what is behind it from the log, then follows it, over a kill in the middle.
    fn each_record_comes_once_and_in_order(backend: Backend) -> Result<()> {
        const ROUNDS: u64 = 3;
        const BEFORE: u64 = 300;
        const DURING: u64 = 700;
        let _machine = machine::shared();
        // A cache of a tenth of what is there: most of what is behind comes from the disk.
        let node = Node::new(backend)?
            .set("cache.hot_bytes", "1MiB")
            .set("wal.capacity_bytes", "64MiB")
            .on_a_fixed_port()?;
        let mut next = 0;
        for round in 0..ROUNDS {
            let broker = node.start()?;
            let dir = node.data_dir().to_owned();
            if round == 0 {
                Cli::new(&dir).create_topic("tail", 1)?;
            }
            client::runtime()?.block_on(async {
                let topic = raw::topic(&dir, "tail").await?;
                produce(&dir, &topic, 0, BEFORE as usize, 10_000).await?;
                let mut raw = Raw::subscriber(&dir).await?;
                let credit = 100_000;
                open(&mut raw, &topic, 1, next, credit).await?;
                let producing = {
                    let (dir, topic) = (dir.clone(), topic.clone());
                    tokio::spawn(async move { produce(&dir, &topic, 0, DURING as usize, 100).await })
                };
                let until = (round + 1) * (BEFORE + DURING);
                while next < until {
                    let (offsets, bytes) = told(&mut raw).await?.batches()?;
                    ensure!(!offsets.is_empty(), "an answer without a batch");
                    ensure!(bytes <= 64 << 10, "an answer of {bytes} bytes");
                    for (base, end) in offsets {
                        ensure!(base == next, "{base} came, {next} is next");
                        next = end;
                    }
                    let more = Credit::More { bytes: bytes as u32 };
                    raw.send(&raw::credit_frame(1, more)).await?;
                }
                producing.await??;
                anyhow::Ok(())
            })?;
            broker.kill_running()?;
        }
        Ok(())
    }
}

on_each_backend! {
    /// A consumer of the SDK follows a producer through kills, over two shards: each record once and in
    /// order, and none of them was asked for.
    fn a_consumer_lives_through_kills(backend: Backend) -> Result<()> {
        const PARTITIONS: u32 = 3;
        const KILLS: u64 = 4;
        const ROUND_BYTES: u64 = 1 << 20;
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .shards(2)
            .on_a_fixed_port()?
            .set("network.idle_timeout_ms", 5_000);
        let mut broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("followed", PARTITIONS)?;
        let mut load = Load::start(&dir, "followed", PARTITIONS, 1)?;
        let follower = Follower::start(&dir, "followed", PARTITIONS, load.recorder().clone())?;
        for kill in 0..KILLS {
            let round = load.begin(ROUND_BYTES);
            load.until_acknowledged(&round, ROUND_BYTES / 4 * (kill % 3 + 1))?;
            broker.kill_running()?;
            broker = node.start()?;
            load.until_idle().with_context(|| broker.state())?;
        }
        // Some that come while nobody dies, so that what the last start sent is counted.
        let last = load.begin(ROUND_BYTES);
        load.until_acknowledged(&last, ROUND_BYTES)?;
        let recorder = load.recorder().clone();
        let acknowledged = load.stop()?;
        let received = follower.until_end(&recorder).with_context(|| broker.state())?;
        ensure!(acknowledged <= received, "{received} received of {acknowledged}");
        recorder.check()?;
        let subscribed = broker.metric("rustmq_subscription_bytes_total")?;
        ensure!(ROUND_BYTES / 2 < subscribed, "{subscribed} bytes were sent to subscriptions");
        let fetches = broker.metric_with("rustmq_stage_latency_seconds_count", "\"fetch\"")?;
        ensure!(fetches == 0, "{fetches} fetches");
        broker.stop()
    }
}

on_each_backend! {
    /// Without credit nothing is sent and nothing is held; with a byte of it, one batch is.
    fn without_credit_nothing_is_sent(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("held", 1)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(&dir, "held").await?;
            let mut raw = Raw::subscriber(&dir).await?;
            open(&mut raw, &topic, 1, 0, 0).await?;
            produce(&dir, &topic, 0, 400, 10_000).await?;
            ensure!(broker.metric("rustmq_subscription_bytes_total")? == 0, "something was sent");
            until_metric(&broker, "rustmq_answer_memory_bytes", 0).await?;
            ensure!(broker.metric("rustmq_subscriptions")? == 1, "none is open");

            raw.send(&raw::credit_frame(1, Credit::More { bytes: 1 })).await?;
            let (offsets, sent) = told(&mut raw).await?.batches()?;
            ensure!(offsets == [(0, 1)], "{offsets:?}");
            // What was sent beyond the credit has to be made up for first.
            raw.send(&raw::credit_frame(1, Credit::More { bytes: sent as u32 - 1 })).await?;
            raw.send(&raw::credit_frame(1, Credit::More { bytes: 1 })).await?;
            let (offsets, _) = told(&mut raw).await?.batches()?;
            ensure!(offsets == [(1, 2)], "{offsets:?}");

            raw.send(&raw::credit_frame(1, Credit::End)).await?;
            let (code, offset, _) = told(&mut raw).await?.end()?;
            ensure!((code, offset) == (ErrorCode::Ok, 2), "{code} at {offset}");
            // Its number may be used again, and what comes too late for it does nothing.
            raw.send(&raw::credit_frame(1, Credit::More { bytes: 5 })).await?;
            open(&mut raw, &topic, 1, 400, 1 << 20).await?;
            close(raw, &broker).await
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// Subscriptions to 200 partitions share one connection and few streams.
    fn two_hundred_subscriptions_share_a_connection(backend: Backend) -> Result<()> {
        const PARTITIONS: u32 = 200;
        const STREAMS: u32 = 8;
        const ROUNDS: u64 = 3;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("wide", PARTITIONS)?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(&dir, "wide").await?;
            let first = Raw::subscriber(&dir).await?;
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                streams.push(first.stream().await?);
            }
            for partition in 0..PARTITIONS {
                let ask = raw::subscribe(&topic, partition, 0, 1 << 20, 1 << 20)?;
                let stream = &mut streams[(partition % STREAMS) as usize];
                stream.send(&raw::subscribe_frame(partition, &ask)).await?;
            }
            let mut readers = tokio::task::JoinSet::new();
            for (index, mut stream) in (0..).zip(streams) {
                readers.spawn(async move {
                    let own = (0..PARTITIONS).filter(|partition| partition % STREAMS == index);
                    let mut next: BTreeMap<u32, u64> = own.map(|partition| (partition, 0)).collect();
                    while next.values().any(|next| *next < ROUNDS) {
                        let Told::Batches { correlation, offsets, .. } = told(&mut stream).await? else {
                            bail!("one ended");
                        };
                        let next = next.get_mut(&correlation).context("another's answer")?;
                        for (base, end) in offsets {
                            ensure!(base == *next, "{base} came, {next} is next");
                            *next = end;
                        }
                    }
                    anyhow::Ok(stream)
                });
            }
            let mut raw = Raw::greeted(&dir).await?;
            for _ in 0..ROUNDS {
                for partition in 0..PARTITIONS {
                    let batch = raw::batch(&["x"], ProducerStamp::NONE);
                    let (header, _) = raw.ask_bytes(&raw::produce_frame(&topic, partition, &batch)?).await?;
                    ensure!(header.status == 0, "refused with {}", header.error_code());
                }
            }
            let mut streams = Vec::new();
            while let Some(reader) = readers.join_next().await {
                streams.push(reader??);
            }
            ensure!(broker.metric("rustmq_subscriptions")? == u64::from(PARTITIONS), "not all are open");
            // The connection ends, and with it all of them.
            close(first, &broker).await
        })?;
        broker.stop()
    }
}

/// A broker with a topic of one partition and ten records, `known`.
fn with_broker(test: impl AsyncFnOnce(&Path, &Broker, TopicInfo) -> Result<()>) -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let dir = node.data_dir();
    Cli::new(dir).create_topic("known", 1)?;
    // From the second start on there is an older leader epoch.
    broker.stop()?;
    let broker = node.start()?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(dir, "known").await?;
        produce(dir, &topic, 0, 10, 100).await?;
        test(dir, &broker, topic).await
    })?;
    broker.stop()
}

#[test]
fn what_cannot_be_opened_is_refused_by_name_and_the_stream_goes_on() -> Result<()> {
    with_broker(async |dir, _, topic| {
        let good = raw::subscribe(&topic, 0, 0, 100, 100)?;
        let mut raw = Raw::subscriber(dir).await?;
        let epoch = |by: i64| LeaderEpoch((i64::from(good.leader_epoch.0) + by) as u32);
        let refused = [
            (ErrorCode::FencedLeaderEpoch, "epoch", {
                rustmq_protocol::Subscribe { leader_epoch: epoch(-1), ..good }
            }),
            (ErrorCode::UnknownLeaderEpoch, "epoch", {
                rustmq_protocol::Subscribe { leader_epoch: epoch(1), ..good }
            }),
            (ErrorCode::UnknownTopicId, "id", {
                rustmq_protocol::Subscribe { topic: TopicId::from_bytes([9; 16]), ..good }
            }),
            (ErrorCode::UnknownPartition, "1 partitions", {
                rustmq_protocol::Subscribe { partition: PartitionId(77), ..good }
            }),
            (ErrorCode::OffsetOutOfRange, "0 to 10", {
                rustmq_protocol::Subscribe { offset: Offset(11), ..good }
            }),
            (ErrorCode::LimitExceeded, "1073741824", {
                rustmq_protocol::Subscribe { credit: CREDIT_BYTES_MAX + 1, ..good }
            }),
        ];
        for (code, word, ask) in refused {
            let said = raw.refused(&raw::subscribe_frame(1, &ask), code).await?;
            ensure!(said.contains(word), "{code}: {said:?}");
        }
        // A body that is not as long as it has to be.
        for change in [-1_i32, 1] {
            let mut frame = raw::subscribe_frame(1, &good);
            frame.resize((frame.len() as i32 + change) as usize, 0);
            let length = (frame.len() as u32).to_le_bytes();
            frame[..4].copy_from_slice(&length);
            raw.refused(&frame, ErrorCode::MalformedFrame).await?;
        }
        // A flag that only answers have.
        let mut frame = raw::subscribe_frame(1, &good);
        frame[7] = FrameFlags::MORE.bits();
        raw.refused(&frame, ErrorCode::MalformedFrame).await?;

        open(&mut raw, &topic, 1, 10, 100).await?;
        let said = raw.refused(&raw::subscribe_frame(1, &good), ErrorCode::InvalidRequest).await?;
        ensure!(said.contains("correlation id"), "{said:?}");
        // What is wrong with a credit is said to the credit; the subscription goes on.
        let too_much = raw::credit_frame(1, Credit::More { bytes: CREDIT_BYTES_MAX });
        let (header, body) = raw.ask_bytes(&too_much).await?;
        ensure!(header.kind == RequestKind::Credit as u16, "an answer of kind {}", header.kind);
        raw::message(ErrorCode::LimitExceeded, &header, &body)?;
        let mut unknown = raw::credit_frame(1, Credit::End);
        unknown[16] = 7;
        raw.refused(&unknown, ErrorCode::MalformedFrame).await?;
        produce(dir, &topic, 0, 1, 10).await?;
        ensure!(told(&mut raw).await?.batches()?.0 == [(10, 11)], "it did not go on");
        Ok(())
    })
}

#[test]
fn before_version_2_there_are_no_subscriptions() -> Result<()> {
    with_broker(async |dir, _, topic| {
        let ask = raw::subscribe(&topic, 0, 0, 100, 100)?;
        let mut frame = Vec::new();
        FrameHeader::request(RequestKind::Subscribe, CorrelationId(1))
            .in_version(1)
            .encode_frame(&mut frame, |out| ask.encode(out));
        let said = Raw::greeted(dir).await?.refused(&frame, ErrorCode::UnknownRequest).await?;
        ensure!(said.contains("version"), "{said:?}");
        Ok(())
    })
}

#[test]
fn a_subscription_at_the_wrong_shard_is_told_the_right_one() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?.shards(2);
    let broker = node.start()?;
    let dir = node.data_dir();
    Cli::new(dir).create_topic("spread", 2)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(dir, "spread").await?;
        let mut raw = Raw::subscriber(dir).await?;
        let mut owners = Vec::new();
        for partition in 0..2 {
            let ask = raw::subscribe(&topic, partition, 0, 100, 100)?;
            let (header, body) = raw.ask_bytes(&raw::subscribe_frame(partition, &ask)).await?;
            if header.error_code() == ErrorCode::Ok {
                continue;
            }
            let said = raw::message(ErrorCode::NotLeader, &header, &body)?;
            ensure!(header.flags.contains(FrameFlags::MOVED), "it is not said where");
            ensure!(said.contains(&header.shard.to_string()), "{said:?}");
            owners.push((partition, header.shard));
        }
        let expected = |(partition, shard): &(u32, ShardId)| {
            topic.partitions.get(*partition as usize).is_some_and(|info| info.shard == *shard)
        };
        ensure!(owners.len() == 1 && owners.iter().all(expected), "{owners:?}");
        anyhow::Ok(())
    })?;
    broker.stop()
}

#[test]
fn a_connection_has_so_many_subscriptions_and_no_more() -> Result<()> {
    with_broker(async |dir, broker, topic| {
        let before = broker.memory()?;
        let (mut send, mut receive) = Raw::subscriber(dir).await?.split();
        let ask = raw::subscribe(&topic, 0, 10, 1000, 1000)?;
        let sending = tokio::spawn(async move {
            for number in 0..=PER_CONNECTION_MAX {
                send.send(&raw::subscribe_frame(number, &ask)).await?;
            }
            anyhow::Ok(send)
        });
        for number in 0..PER_CONNECTION_MAX {
            let Told::Batches { correlation, .. } = told_half(&mut receive).await? else {
                bail!("{number} is refused");
            };
            ensure!(correlation == number, "{correlation} comes before {number}");
        }
        let (header, body) = receive.answer().await?;
        let said = raw::message(ErrorCode::LimitExceeded, &header, &body)?;
        ensure!(said.contains("10000"), "{said:?}");
        let open = broker.metric("rustmq_subscriptions")?;
        ensure!(open == u64::from(PER_CONNECTION_MAX), "{open} are open");
        let grown = broker.memory()?.saturating_sub(before);
        machine::note(&format!("{open} subscriptions: memory grew by {grown}"));
        ensure!(grown < u64::from(PER_CONNECTION_MAX) * MEMORY_EACH_MAX, "memory grew by {grown}");
        // One record more reaches all of them.
        produce(dir, &topic, 0, 1, 10).await?;
        for _ in 0..PER_CONNECTION_MAX {
            ensure!(told_half(&mut receive).await?.batches()?.0 == [(10, 11)], "not the record");
        }
        drop(sending.await??);
        Ok(())
    })
}

#[test]
fn a_deleted_topic_ends_its_subscriptions() -> Result<()> {
    with_broker(async |dir, broker, topic| {
        let mut raw = Raw::subscriber(dir).await?;
        open(&mut raw, &topic, 1, 10, 100).await?;
        open(&mut raw, &topic, 2, 10, 0).await?;
        Cli::new(dir).ok(&["topic", "delete", "known"])?;
        for _ in 0..2 {
            let (code, offset, message) = told(&mut raw).await?.end()?;
            ensure!((code, offset) == (ErrorCode::UnknownTopicId, 10), "{code} at {offset}");
            ensure!(message.contains("deleted"), "{message:?}");
        }
        until_metric(broker, "rustmq_subscriptions", 0).await
    })
}

#[test]
fn the_end_of_a_stream_ends_its_subscriptions() -> Result<()> {
    with_broker(async |dir, broker, topic| {
        let raw = Raw::subscriber(dir).await?;
        let mut ended = raw.stream().await?;
        let mut stays = raw.stream().await?;
        open(&mut ended, &topic, 1, 10, 100).await?;
        open(&mut stays, &topic, 1, 10, 10_000).await?;
        // Another one and the end of the stream, in one go.
        let (mut send, mut receive) = ended.split();
        let ask = raw::subscribe(&topic, 0, 10, 100, 100)?;
        send.send(&raw::subscribe_frame(2, &ask)).await?;
        send.finish()?;
        let mut ends = 0;
        while ends < 2 {
            match told_half(&mut receive).await? {
                Told::Batches { offsets, .. } => ensure!(offsets.is_empty(), "{offsets:?}"),
                Told::End { code, offset, .. } => {
                    ensure!((code, offset) == (ErrorCode::Ok, 10), "{code} at {offset}");
                    ends += 1;
                }
            }
        }
        ensure!(receive.answer().await.is_err(), "the stream goes on");
        until_metric(broker, "rustmq_subscriptions", 1).await?;
        // The other stream's goes on.
        produce(dir, &topic, 0, 1, 10).await?;
        ensure!(told(&mut stays).await?.batches()?.0 == [(10, 11)], "it did not go on");
        Ok(())
    })
}

#[test]
fn a_stopped_stream_forgets_its_subscriptions() -> Result<()> {
    with_broker(async |dir, broker, topic| {
        let raw = Raw::subscriber(dir).await?;
        let mut stopped = raw.stream().await?;
        open(&mut stopped, &topic, 1, 10, 100).await?;
        until_metric(broker, "rustmq_subscriptions", 1).await?;
        stopped.stop()?;
        until_metric(broker, "rustmq_subscriptions", 0).await?;
        produce(dir, &topic, 0, 1, 10).await
    })
}

#[test]
fn a_stop_ends_subscriptions_and_says_where_they_were() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let dir = node.data_dir().to_owned();
    Cli::new(&dir).create_topic("stops", 1)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(&dir, "stops").await?;
        produce(&dir, &topic, 0, 3, 10).await?;
        let mut raw = Raw::subscriber(&dir).await?;
        open(&mut raw, &topic, 1, 0, 1 << 20).await?;
        let mut next = 0;
        while next < 3 {
            next = told(&mut raw).await?.batches()?.0.last().context("a batch")?.1;
        }
        let stopping = tokio::task::spawn_blocking(move || broker.stop());
        let (code, offset, message) = told(&mut raw).await?.end()?;
        ensure!((code, offset) == (ErrorCode::ShuttingDown, 3), "{code} at {offset}");
        ensure!(!message.is_empty(), "without a word");
        stopping.await?
    })
}

#[test]
fn a_subscription_that_the_log_start_has_passed_ends_and_says_what_is_there() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?.set("wal.when_full", "delete_oldest");
    let broker = node.start()?;
    let dir = node.data_dir().to_owned();
    Cli::new(&dir).create_topic("short", 1)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(&dir, "short").await?;
        let mut raw = Raw::subscriber(&dir).await?;
        open(&mut raw, &topic, 1, 0, 0).await?;
        // Twice what the log holds.
        produce(&dir, &topic, 0, 320, 100_000).await?;
        raw.send(&raw::credit_frame(1, Credit::More { bytes: 1 })).await?;
        let (code, offset, message) = told(&mut raw).await?.end()?;
        ensure!((code, offset) == (ErrorCode::OffsetOutOfRange, 0), "{code} at {offset}");
        ensure!(message.contains("320"), "{message:?}");
        anyhow::Ok(())
    })?;
    broker.stop()
}
