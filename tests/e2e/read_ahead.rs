//! What is read from the disk before a subscription asks for it: that it is, that it stays within its
//! memory, and that nothing of it is sent which may not be sent any more.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustmq_client::{ErrorCode, TopicInfo};
use rustmq_protocol::{Credit, ProducerStamp};

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::raw::{self, Raw};
use crate::support::subscriber::{open, produce, told, until_metric};
use crate::support::{client, machine};

/// Bytes of a record's value.
const VALUE_BYTES: usize = 10_000;

/// The memory of one read ahead, as the broker charges it.
const READ_BYTES: u64 = 1 << 20;

/// The most that a client may hold of the 16 MiB: a read is begun while what it holds with it is at
/// most half of what is free.
const CLIENT_BYTES_MAX: u64 = 6 << 20;

const MEMORY: &str = "rustmq_read_ahead_memory_bytes";

/// A record that can be found in the files.
fn value(number: u64) -> String {
    format!("{number:010}").repeat(VALUE_BYTES / 10)
}

async fn fill(dir: &Path, topic: &TopicInfo, count: u64) -> Result<()> {
    let mut raw = Raw::greeted(dir).await?;
    for number in 0..count {
        let batch = raw::batch(&[&value(number)], ProducerStamp::NONE);
        let (header, body) = raw.ask_bytes(&raw::produce_frame(topic, 0, &batch)?).await?;
        if header.status != 0 {
            anyhow::bail!(raw::message(ErrorCode::Ok, &header, &body)?);
        }
    }
    Ok(())
}

/// A broker with a topic of so many records, started anew: none of them is in memory.
fn cold(node: &Node, count: u64) -> Result<Broker> {
    let broker = node.start()?;
    let dir = node.data_dir();
    Cli::new(dir).create_topic("behind", 1)?;
    client::runtime()?.block_on(async {
        let topic = raw::topic(dir, "behind").await?;
        fill(dir, &topic, count).await
    })?;
    broker.stop()?;
    node.start()
}

/// Subscribes from the beginning with credit for one batch, takes that, and waits until what comes
/// behind it was read ahead.
async fn one_batch(raw: &mut Raw, topic: &TopicInfo, broker: &Broker) -> Result<()> {
    open(raw, topic, 1, 0, 1).await?;
    ensure!(told(raw).await?.batches()?.0 == [(0, 1)], "not the first batch");
    until_metric(broker, MEMORY, READ_BYTES).await?;
    // The answer's read and the one ahead.
    until_metric(broker, "rustmq_cache_misses_total", 2).await
}

on_each_backend! {
    /// Answers of 64 KiB come from reads of up to 1 MiB, and hardly a byte is read twice.
    fn many_answers_come_from_one_read(backend: Backend) -> Result<()> {
        const COUNT: u64 = 1000;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = cold(&node, COUNT)?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "behind").await?;
            let mut raw = Raw::subscriber(dir).await?;
            open(&mut raw, &topic, 1, 0, 1 << 30).await?;
            let (mut next, mut answers, mut bytes) = (0, 0, 0);
            while next < COUNT {
                let (offsets, more) = told(&mut raw).await?.batches()?;
                for (base, end) in offsets {
                    ensure!(base == next, "{base} came, {next} is next");
                    next = end;
                }
                answers += 1;
                bytes += more as u64;
            }
            let reads = broker.metric("rustmq_cache_misses_total")?;
            ensure!(4 * reads < answers, "{reads} reads for {answers} answers");
            let read = broker.metric("rustmq_wal_read_bytes_total")?;
            ensure!(read < bytes * 3 / 2, "{read} bytes read for {bytes}");
            until_metric(&broker, MEMORY, 0).await
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// The files that were read ahead are used again: the consumer is told, and gets nothing old.
    fn nothing_is_sent_that_the_log_start_has_passed(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("wal.when_full", "delete_oldest");
        let broker = cold(&node, 300)?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "behind").await?;
            let mut raw = Raw::subscriber(dir).await?;
            one_batch(&mut raw, &topic, &broker).await?;
            // Twice what the log holds.
            produce(dir, &topic, 0, 320, 100_000).await?;
            raw.send(&raw::credit_frame(1, Credit::More { bytes: 1 << 20 })).await?;
            let (code, offset, message) = told(&mut raw).await?.end()?;
            ensure!((code, offset) == (ErrorCode::OffsetOutOfRange, 1), "{code} at {offset}");
            ensure!(message.contains("620"), "{message:?}");
            until_metric(&broker, MEMORY, 0).await
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// However a subscription ends, what was read ahead for it is let go.
    fn the_memory_comes_back_with_the_end(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let dir = node.data_dir();
        let mut broker = cold(&node, 300)?;
        for end in ["credit", "stream", "connection", "topic"] {
            client::runtime()?.block_on(async {
                let topic = raw::topic(dir, "behind").await?;
                let mut raw = Raw::subscriber(dir).await?;
                one_batch(&mut raw, &topic, &broker).await?;
                match end {
                    "credit" => raw.send(&raw::credit_frame(1, Credit::End)).await?,
                    "stream" => raw.stop()?,
                    "connection" => raw.connection.close(0_u32.into(), b"enough"),
                    _ => Cli::new(dir).ok(&["topic", "delete", "behind"]).map(drop)?,
                }
                if let "credit" | "topic" = end {
                    let (code, offset, _) = told(&mut raw).await?.end()?;
                    let expected = match end {
                        "topic" => ErrorCode::UnknownTopicId,
                        _ => ErrorCode::Ok,
                    };
                    ensure!((code, offset) == (expected, 1), "{code} at {offset}");
                }
                until_metric(&broker, MEMORY, 0).await.context(end)
            })?;
            broker.stop()?;
            broker = node.start()?;
        }
        broker.stop()
    }
}

on_each_backend! {
    /// A client with many subscriptions gets a part of the memory for some of them; all are served.
    fn the_memory_has_a_limit_and_all_are_served(backend: Backend) -> Result<()> {
        const COUNT: u64 = 300;
        const SUBSCRIPTIONS: u32 = 20;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = cold(&node, COUNT)?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "behind").await?;
            let mut raw = Raw::subscriber(dir).await?;
            let mut next = Vec::new();
            for number in 0..SUBSCRIPTIONS {
                open(&mut raw, &topic, number, 0, 1).await?;
                ensure!(told(&mut raw).await?.batches()?.0 == [(0, 1)], "not the first batch");
                next.push(1);
                let used = broker.metric(MEMORY)?;
                ensure!(used <= CLIENT_BYTES_MAX, "{used} bytes read ahead");
            }
            until_metric(&broker, MEMORY, 5 * READ_BYTES).await?;
            for number in 0..SUBSCRIPTIONS {
                let more = Credit::More { bytes: 1 << 29 };
                raw.send(&raw::credit_frame(number, more)).await?;
            }
            let mut left = u64::from(SUBSCRIPTIONS) * (COUNT - 1);
            while 0 < left {
                let told = told(&mut raw).await?;
                let number = told.correlation()? as usize;
                let next = next.get_mut(number).context("a subscription")?;
                for (base, end) in told.batches()?.0 {
                    ensure!(base == *next, "{base} came, {next} is next");
                    *next = end;
                    left -= 1;
                }
            }
            until_metric(&broker, MEMORY, 0).await
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// A damaged batch in what is read ahead: all before it come, then its offset and file are named.
    fn damage_is_named_where_it_is(backend: Backend) -> Result<()> {
        const DAMAGED: u64 = 30;
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        cold(&node, 300)?.stop()?;
        let dir = node.data_dir();
        let file = damage(dir, &value(DAMAGED))?;
        let broker = node.start()?;
        client::runtime()?.block_on(async {
            let topic = raw::topic(dir, "behind").await?;
            let mut raw = Raw::subscriber(dir).await?;
            one_batch(&mut raw, &topic, &broker).await?;
            raw.send(&raw::credit_frame(1, Credit::More { bytes: 1 << 29 })).await?;
            let mut next = 1;
            while next < DAMAGED {
                next = told(&mut raw).await?.batches()?.0.last().context("a batch")?.1;
            }
            let (code, offset, message) = told(&mut raw).await?.end()?;
            ensure!((code, offset) == (ErrorCode::StorageCorrupt, DAMAGED), "{code} at {offset}");
            ensure!(message.contains(&file) && message.contains("30"), "{message:?}");
            until_metric(&broker, MEMORY, 0).await?;
            // Behind it all is well.
            open(&mut raw, &topic, 2, DAMAGED + 1, 1 << 29).await?;
            let mut next = DAMAGED + 1;
            while next < 300 {
                for (base, end) in told(&mut raw).await?.batches()?.0 {
                    ensure!(base == next, "{base} came, {next} is next");
                    next = end;
                }
            }
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

/// Changes a bit of this value in the log; the name of the file that has it.
fn damage(dir: &Path, value: &str) -> Result<String> {
    for wal in fs::read_dir(dir)? {
        let wal = wal?.path();
        if !wal.is_dir() {
            continue;
        }
        for file in fs::read_dir(wal)? {
            let path = file?.path();
            let mut bytes = fs::read(&path)?;
            let found = bytes.windows(value.len()).position(|window| window == value.as_bytes());
            let Some(at) = found else { continue };
            let byte = bytes.get_mut(at + value.len() / 2).context("in the file")?;
            *byte ^= 1;
            fs::write(&path, bytes)?;
            let name = path.file_name().and_then(|name| name.to_str());
            return Ok(name.context("a name")?.to_owned());
        }
    }
    anyhow::bail!("the record is in no file")
}
