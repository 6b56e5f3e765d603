//! A log read to the end that it had when the reading began.

use anyhow::{Context, Result, ensure};
use rustmq_client::{Client, Offset, OffsetAt, PartitionId, Partitions, Start};

use super::client::bounded;
use super::history::ReadRecord;

/// What a partition held.
pub(crate) struct Reading {
    /// Its log start when the reading began, or where the reading was told to begin.
    pub(crate) from: u64,
    /// Every record from there to the end.
    pub(crate) records: Vec<ReadRecord>,
}

/// Reads a partition from `from`, or from its log start if that is later, to its end.
pub(crate) async fn read(
    client: &Client,
    topic: &str,
    partition: u32,
    from: u64,
) -> Result<Reading> {
    let id = PartitionId(partition);
    let start = offset_at(client, topic, id, OffsetAt::Earliest).await?;
    let end = offset_at(client, topic, id, OffsetAt::Latest).await?;
    let from = from.max(start);
    ensure!(
        from <= end,
        "{topic}/{partition} ends at {end}, before {from}, which was acknowledged"
    );
    let mut records = Vec::new();
    if from == end {
        return Ok(Reading { from, records });
    }
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
        records.push(ReadRecord {
            partition: record.partition.0,
            offset: record.offset.0,
            value: record.value.map(Vec::from).unwrap_or_default(),
        });
    }
    Ok(Reading { from, records })
}

async fn offset_at(client: &Client, topic: &str, id: PartitionId, at: OffsetAt) -> Result<u64> {
    let found = bounded("an offset", client.list_offsets(topic, &[id], at)).await??;
    Ok(found.first().context("one answer")?.offset.0)
}
