//! A log read to the end that it had when the reading began.

use anyhow::{Context, Result, ensure};
use rustmq_checker::{Partition, Value};
use rustmq_client::{Client, Offset, OffsetAt, PartitionId, Partitions, Start};

use super::client::bounded;
use super::history::{CONSUMER, Recorder};
use super::load::{Load, Round};

/// What a partition held.
pub(crate) struct Reading {
    /// Its log start when the reading began.
    pub(crate) from: u64,
    /// Every record from there to the end.
    pub(crate) records: Vec<ReadRecord>,
}

/// A record that was read.
pub(crate) struct ReadRecord {
    /// Its offset.
    pub(crate) offset: u64,
    /// Its value.
    pub(crate) value: Vec<u8>,
}

/// Reads a partition from its log start to its end, and writes it down.
pub(crate) async fn read(
    client: &Client,
    topic: &str,
    partition: u32,
    recorder: &Recorder,
) -> Result<Reading> {
    let id = PartitionId(partition);
    let from = offset_at(client, topic, id, OffsetAt::Earliest).await?;
    recorder.lock().log_start(Partition(partition), from);
    // In this order: what is acknowledged from here on may be past the end.
    let reader = recorder.lock().assign(CONSUMER, Partition(partition), from);
    let end = offset_at(client, topic, id, OffsetAt::Latest).await?;
    ensure!(from <= end, "{topic}/{partition} ends at {end} and begins at {from}");
    let mut records = Vec::new();
    if from < end {
        let consumer = client
            .consumer(topic)
            .partitions(Partitions::Some(vec![id]))
            .start(Start::Offset(Offset(from)));
        let mut consumer = bounded("a consumer", consumer.build()).await??;
        while records.len() < (end - from) as usize {
            let what =
                || format!("{topic}/{partition}: record {} of {end}", from + records.len() as u64);
            let record = bounded(&what(), consumer.receive()).await?;
            let record = record.with_context(what)?.with_context(what)?;
            ensure!(record.partition == id, "{}: it is of another partition", what());
            let offset = record.offset.0;
            let value = record.value.map(Vec::from).unwrap_or_default();
            recorder.lock().read(reader, offset, Value::of(&value));
            records.push(ReadRecord { offset, value });
        }
    }
    recorder.lock().read_to_end(reader, end);
    Ok(Reading { from, records })
}

/// Reads every partition of a topic after a crash, while `round` is the last that was produced: no
/// log start may have passed where it began. The load filled a WAL before, so that one is above 0.
pub(crate) async fn read_after_crash(
    client: &Client,
    topic: &str,
    partitions: u32,
    load: &Load,
    round: &Round,
) -> Result<()> {
    let mut dropped = false;
    for partition in 0..partitions {
        let read = read(client, topic, partition, load.recorder()).await?;
        let begun_at = round.begun_at(partition);
        ensure!(
            read.from <= begun_at,
            "{topic}/{partition} begins at {}; {begun_at} was written after the last check and \
             must be there",
            read.from
        );
        dropped |= 0 < read.from;
    }
    ensure!(dropped, "{topic}: the log never dropped a segment: the test is too small");
    Ok(())
}

/// Where a partition begins or ends.
pub(crate) async fn offset_at(
    client: &Client,
    topic: &str,
    id: PartitionId,
    at: OffsetAt,
) -> Result<u64> {
    let found = bounded("an offset", client.list_offsets(topic, &[id], at)).await??;
    Ok(found.first().context("one answer")?.offset.0)
}
