//! What a stop, clean or not, and a start keep.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustmq_checker::{Partition, Value};
use rustmq_client::{ClientError, ErrorCode, NewTopic, ProducerRecord, TopicInfo};
use rustmq_protocol::{
    ProduceResponse, ProducerEpoch, ProducerId, ProducerStamp, RequestKind, Sequence,
};

use crate::corruption;
use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::damage::Damage;
use crate::support::history::{PRODUCER, Recorder};
use crate::support::load::Load;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine, reading};

on_each_backend! {
    /// Ctrl-C and SIGTERM under load: what was acknowledged is there, and the exit code is 0.
    fn a_clean_stop_drains_and_keeps_everything(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.shards(2).on_a_fixed_port()?;
        let runtime = client::runtime()?;
        let mut broker = node.start()?;
        runtime.block_on(client::create_topic(node.data_dir(), "stops", 3))?;
        let mut load = Load::start(node.data_dir(), "stops", 3, 1)?;
        for signal in ["INT", "TERM"] {
            let round = load.begin(1 << 20);
            load.until_acknowledged(&round, 1 << 18)?;
            let output = broker.output();
            let status = broker.end_by(signal)?;
            ensure!(status.code() == Some(0), "SIG{signal} ended it with {status}\n{output}");
            let left = node.data_dir().join("address").exists();
            ensure!(!left, "SIG{signal} left the address file of a broker that is gone");
            broker = node.start()?;
            load.until_idle()?;
            runtime.block_on(async {
                let client = client::connect(node.data_dir()).await?;
                for partition in 0..3 {
                    let read =
                        reading::read(&client, "stops", partition, load.recorder()).await?;
                    ensure!(read.from == 0, "after SIG{signal} it begins at {}", read.from);
                }
                client.close().await;
                load.recorder().check().with_context(|| format!("after SIG{signal}"))
            })?;
        }
        load.stop()?;
        broker.stop()
    }
}

on_each_backend! {
    /// The answer was lost with the broker: the batch is sent again, and is in the log once.
    fn a_batch_sent_again_after_a_kill_keeps_its_offset(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let cli = Cli::new(node.data_dir());
        let runtime = client::runtime()?;
        let told = Recorder::default();
        let broker = node.start()?;
        cli.create_topic("again", 1)?;
        let first = runtime.block_on(async {
            let mut raw = Raw::greeted(node.data_dir()).await?;
            let producer = raw.producer_id().await?;
            let offset = produce(&node, &mut raw, producer, 0, "one", &told).await?;
            anyhow::Ok((producer, offset))
        });
        let (producer, offset) = first?;
        broker.kill_running()?;
        let broker = node.start()?;
        runtime.block_on(async {
            let mut raw = Raw::greeted(node.data_dir()).await?;
            let again = produce(&node, &mut raw, producer, 0, "one", &told).await?;
            ensure!(again == offset, "it was at {offset}, and now is at {again}");
            let next = produce(&node, &mut raw, producer, 1, "two", &told).await?;
            ensure!(next == offset + 1, "the next one is at {next}");
            let client = client::connect(node.data_dir()).await?;
            reading::read(&client, "again", 0, &told).await?;
            client.close().await;
            told.check()
        })?;
        ensure!(cli.consume("again")? == "one\ntwo\n", "{:?}", cli.consume("again")?);
        broker.stop()
    }
}

on_each_backend! {
    /// A deletion is durable, and a topic of the same name made later is another one.
    fn a_deleted_topic_stays_deleted(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.shards(2);
        let cli = Cli::new(node.data_dir());
        let runtime = client::runtime()?;
        let broker = node.start()?;
        for topic in ["goes", "stays"] {
            cli.create_topic(topic, 2)?;
            cli.produce(topic, "a\nb\n")?;
        }
        let old = runtime.block_on(raw::topic(node.data_dir(), "goes"))?;
        cli.ok(&["topic", "delete", "goes"])?;
        broker.kill_running()?;
        let broker = node.start()?;
        let list = String::from_utf8(cli.ok(&["topic", "list"])?)?;
        ensure!(list.contains("stays") && !list.contains("goes"), "{list}");
        cli.create_topic("goes", 2)?;
        ensure!(cli.consume("goes")?.is_empty(), "records of the old topic are in the new one");
        let batch = raw::batch(&["late"], ProducerStamp::NONE);
        let frame = raw::produce_frame(&old, 0, &batch)?;
        let refused = runtime.block_on(async {
            let mut raw = Raw::greeted(node.data_dir()).await?;
            raw.refused(&frame, ErrorCode::UnknownTopicId).await
        });
        refused.context("producing to the id of the deleted topic")?;
        ensure!(cli.consume("stays")?.lines().count() == 2, "the other topic lost records");
        broker.stop()
    }
}

on_each_backend! {
    /// More shards, fewer, and more than there are cores: each finds every record.
    fn the_number_of_shards_may_change_at_every_start(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("wal.capacity_bytes", "32MiB");
        let cli = Cli::new(node.data_dir());
        let mut expected = Vec::new();
        for (round, shards) in [1, 3, 2, 4, 1].into_iter().enumerate() {
            let broker = node.start_with_shards(shards)?;
            let topic = format!("round-{round}");
            cli.create_topic(&topic, 5)?;
            let lines: String = (0..50).map(|line| format!("{round} {line}\n")).collect();
            cli.produce(&topic, &lines)?;
            expected.push((topic, lines));
            for (topic, lines) in &expected {
                let read = cli.consume(topic)?;
                let mut read: Vec<&str> = read.lines().collect();
                let mut sent: Vec<&str> = lines.lines().collect();
                read.sort_unstable();
                sent.sort_unstable();
                ensure!(read == sent, "{topic} with {shards} shards: {read:?}");
            }
            broker.kill_running()?;
        }
        Ok(())
    }
}

on_each_backend! {
    /// A producer that loses its broker for good is told so, and in time.
    fn a_producer_whose_broker_stays_away_is_told(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        client::runtime()?.block_on(async {
            let client = client::connect(node.data_dir()).await?;
            client::bounded("a topic", client.create_topic(NewTopic::new("alone", 1))).await??;
            let timeout = Duration::from_secs(3);
            let producer = client.producer("alone").delivery_timeout(timeout).build().await?;
            producer.send(ProducerRecord::value("there")).await?;
            broker.kill_running()?;
            let sent = producer.send(ProducerRecord::value("gone"));
            let sent = client::bounded("a fate", sent).await?;
            let error = sent.err().context("a dead broker acknowledged a record")?;
            ensure!(
                matches!(error, ClientError::DeliveryTimeout { .. }),
                "it was told {error}"
            );
            Ok(())
        })
    }
}

#[test]
fn refused_batches_leave_one_entry_in_the_log_at_most() -> Result<()> {
    const REFUSED: usize = 20;
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    Cli::new(node.data_dir()).create_topic("again", 1)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(node.data_dir(), "again").await?;
        let mut raw = Raw::greeted(node.data_dir()).await?;
        let mut batch = raw::batch(&["a value"], ProducerStamp::NONE);
        *batch.last_mut().context("a batch")? ^= 1;
        let frame = raw::produce_frame(&topic, 0, &batch)?;
        for _ in 0..REFUSED {
            raw.refused(&frame, ErrorCode::CorruptBatch).await?;
        }
        // Behind it everything before is in the log.
        let producer = raw.producer_id().await?;
        produce(&node, &mut raw, producer, 0, "whole", &Recorder::default()).await?;
        anyhow::Ok(())
    })?;
    let entries = broker.metric("rustmq_wal_written_entries_total")?;
    // That the leader epoch has begun, and the record.
    ensure!(entries == 2, "{entries} entries were written");
    broker.stop()
}

on_each_backend! {
    /// One after another, a log may have had more producers than a checkpoint takes. A start that has to
    /// replay all of them remembers the newest, and so does salvage.
    fn a_log_of_more_producers_than_are_remembered_is_opened_and_salvaged(
        backend: Backend
    ) -> Result<()> {
        let _machine = machine::shared();
        let mut node = Node::new(backend)?
            .set("wal.segment_bytes", "32MiB")
            .set("wal.capacity_bytes", "128MiB")
            .set("producers.per_partition_max", 4096)
            .set("producers.expiry_ms", 1000)
            .set("test.retention_check_ms", 20);
        let dir = node.data_dir().to_owned();
        let broker = node.start()?;
        let runtime = client::runtime()?;
        runtime.block_on(client::create_topic(&dir, "many", 1))?;
        let offset = runtime.block_on(async {
            let topic = raw::topic(&dir, "many").await?;
            let mut raw = Raw::greeted(&dir).await?;
            for first in (0..PRODUCERS).step_by(PRODUCERS_AT_ONCE) {
                let last = PRODUCERS.min(first + PRODUCERS_AT_ONCE as u64);
                append_by(&mut raw, &topic, first..last).await?;
            }
            let offset = append_by(&mut raw, &topic, PRODUCERS..PRODUCERS + 1).await?;
            // All of them are in one segment, and another one follows.
            ensure!(broker.metric("rustmq_wal_sealed_segments_total")? == 0, "it is too small");
            let value = "v".repeat(128 << 10);
            let large = raw::produce_frame(&topic, 0, &raw::batch(&[&value], ProducerStamp::NONE))?;
            while broker.metric("rustmq_wal_sealed_segments_total")? == 0 {
                let (header, _) = raw.ask_bytes(&large).await?;
                ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
            }
            anyhow::Ok(offset)
        })?;
        broker.kill_running()?;
        let segments = corruption::segments(&dir)?;
        let tail = segments.last().context("a tail")?;
        // The state of partitions has to come from all that the segment before holds.
        let flip = Damage::Flip(tail.checkpoint()?.payload.start + 30);
        flip.apply(&dir.join(&tail.file))?;
        let salvaged = dir.with_file_name("salvaged");
        let paths = [&dir, &salvaged].map(|path| path.to_str().context("a path in UTF-8"));
        let [from, to] = paths;
        Cli::new(&dir).ok(&["wal", "salvage", from?, "--out", to?])?;
        node.change("producers.expiry_ms", 86_400_000);
        for dir in [&dir, &salvaged] {
            node = node.in_dir(dir);
            let broker = node.start()?;
            let again = runtime.block_on(async {
                let topic = raw::topic(dir, "many").await?;
                let mut raw = Raw::greeted(dir).await?;
                append_by(&mut raw, &topic, PRODUCERS..PRODUCERS + 1).await
            })?;
            ensure!(again == offset, "the last batch was at {offset}, and is now at {again}");
            broker.stop()?;
        }
        Ok(())
    }
}

/// Producers of one partition: more than a checkpoint takes.
const PRODUCERS: u64 = 5_000;

/// As many of them send side by side.
const PRODUCERS_AT_ONCE: usize = 250;

/// Has each of these producers append its first record, as often as it takes until all are accepted; gives
/// where one of them is.
async fn append_by(raw: &mut Raw, topic: &TopicInfo, producers: Range<u64>) -> Result<u64> {
    let epoch = ProducerEpoch(0);
    let stamp = |id| ProducerStamp { id: ProducerId(id), epoch, base_sequence: Sequence(0) };
    for _ in 0..ACCEPTED_TRIES {
        for id in producers.clone() {
            raw.send(&raw::produce_frame(topic, 0, &raw::batch(&["v"], stamp(id)))?).await?;
        }
        let (mut refused, mut offset) = (false, 0);
        for _ in producers.clone() {
            let (header, body) = raw.answer().await?;
            match header.error_code() {
                ErrorCode::Ok => offset = ProduceResponse::decode(&body)?.base_offset.0,
                // The others are not forgotten yet.
                ErrorCode::LimitExceeded => refused = true,
                code => bail!("answered {code}"),
            }
        }
        if !refused {
            return Ok(offset);
        }
        tokio::time::sleep(ACCEPTED_PAUSE).await;
    }
    bail!("producers {producers:?} are not accepted")
}

/// How often, and after which pause, producers that are refused come again: for a minute, of which they
/// are remembered for a second.
const ACCEPTED_TRIES: u32 = 600;
const ACCEPTED_PAUSE: Duration = Duration::from_millis(100);

/// Sends a batch of one record; its offset.
async fn produce(
    node: &Node,
    raw: &mut Raw,
    producer: (ProducerId, ProducerEpoch),
    sequence: u32,
    value: &str,
    told: &Recorder,
) -> Result<u64> {
    let topic = raw::topic(node.data_dir(), "again").await?;
    let stamp =
        ProducerStamp { id: producer.0, epoch: producer.1, base_sequence: Sequence(sequence) };
    let send = told.lock().begin_send(PRODUCER, Partition(0), Value::of(value.as_bytes()));
    let frame = raw::produce_frame(&topic, 0, &raw::batch(&[value], stamp))?;
    let (header, body) = raw.ask_bytes(&frame).await?;
    ensure!(header.kind == RequestKind::Produce as u16, "{header:?}");
    ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
    let offset = ProduceResponse::decode(&body)?.base_offset.0;
    told.lock().acknowledge(send, Some(offset));
    Ok(offset)
}
