//! `rustmq consume`: records to text.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::Poll;

use anyhow::Context;
use clap::Args;
use futures_core::Stream;
use rustmq_client::{
    Client, ClientError, Consumer, ConsumerRecord, Offset, OffsetAt, OutOfRange, PartitionId,
    Partitions, TimestampMs,
};

use crate::cli::connect::ConnectArgs;
use crate::cli::format::{Fields, Format};
use crate::cli::output::{Output, reader_gone};
use crate::cli::start::From;

/// Bytes of text that are written together while records keep coming. What there is, is written as
/// soon as no record is waiting.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Args, Debug)]
pub(crate) struct ConsumeArgs {
    /// Topic
    topic: String,
    /// Where to begin: start, end, an offset, -N for the last N records of each partition, @TIME in
    /// RFC 3339 or in milliseconds since 1970
    #[arg(long, value_name = "FROM", default_value = "start", allow_hyphen_values = true)]
    from: From,
    /// Stops after so many records
    #[arg(short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Stops at the end of each partition as it is now
    #[arg(long)]
    until_end: bool,
    /// How a record is written: %v value, %k key, %t topic, %p partition, %o offset, %T timestamp in
    /// ms, %h headers, %%, \n, \t, \r, \\
    #[arg(
        short = 'f',
        long = "format",
        value_name = "FORMAT",
        default_value = r"%v\n",
        allow_hyphen_values = true
    )]
    format: Format,
    /// Reads this partition alone
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: &ConsumeArgs) -> anyhow::Result<()> {
    let client = args.connect.client().await?;
    let topic = || format!("topic {}", args.topic);
    let partitions = partitions(&client, args).await.with_context(topic)?;
    let ends = offsets(&client, &args.topic, &partitions, OffsetAt::Latest).await;
    let ends = ends.with_context(topic)?;
    let starts = starts(&client, args, &partitions, &ends).await.with_context(topic)?;
    let consumer = consumer(&client, args, &starts).await.with_context(topic)?;

    let stop = Stop::new(args, &starts, ends);
    let output = Output::stdout();
    let read = tokio::select! {
        read = copy(consumer, &args.format, stop, &output) => read,
        // While there is nothing to write, nothing else would tell.
        () = reader_gone() => Ok(()),
    };
    output.finish()?;
    client.close().await;
    read.with_context(topic)
}

type Offsets = BTreeMap<PartitionId, Offset>;

async fn partitions(client: &Client, args: &ConsumeArgs) -> Result<Vec<PartitionId>, ClientError> {
    let topic = client.describe_topic(&args.topic).await?;
    let all = topic.partitions.iter().map(|info| info.partition);
    let Some(partition) = args.partition.map(PartitionId) else { return Ok(all.collect()) };
    let count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    if all.clone().any(|known| known == partition) {
        Ok(vec![partition])
    } else {
        Err(ClientError::NoSuchPartition { partition, count })
    }
}

async fn offsets(
    client: &Client,
    topic: &str,
    partitions: &[PartitionId],
    at: OffsetAt,
) -> Result<Offsets, ClientError> {
    let found = client.list_offsets(topic, partitions, at).await?;
    Ok(partitions.iter().copied().zip(found.iter().map(|found| found.offset)).collect())
}

/// The first offset to read in each partition.
async fn starts(
    client: &Client,
    args: &ConsumeArgs,
    partitions: &[PartitionId],
    ends: &Offsets,
) -> Result<Offsets, ClientError> {
    let at = |at| offsets(client, &args.topic, partitions, at);
    match args.from {
        From::Start => at(OffsetAt::Earliest).await,
        From::End => Ok(ends.clone()),
        From::TimestampMs(ms) => at(OffsetAt::Timestamp(TimestampMs(ms))).await,
        From::Offset(offset) => {
            Ok(partitions.iter().map(|partition| (*partition, Offset(offset))).collect())
        }
        From::Last(count) => {
            let mut starts = at(OffsetAt::Earliest).await?;
            for (partition, start) in &mut starts {
                let end = ends.get(partition).copied().unwrap_or_default();
                *start = (*start).max(Offset(end.0.saturating_sub(count)));
            }
            Ok(starts)
        }
    }
}

async fn consumer(
    client: &Client,
    args: &ConsumeArgs,
    starts: &Offsets,
) -> Result<Consumer, ClientError> {
    let out_of_range = match args.from {
        // Who names an offset wants that one or an error.
        From::Offset(_) => OutOfRange::Fail,
        // Retention may take records away between looking and reading.
        _ => OutOfRange::Earliest,
    };
    let mut consumer = client
        .consumer(&args.topic)
        .partitions(Partitions::Some(starts.keys().copied().collect()))
        .out_of_range(out_of_range)
        .build()
        .await?;
    for (partition, offset) in starts {
        consumer.seek(*partition, *offset)?;
    }
    Ok(consumer)
}

/// Writes records until it is time to stop, or stdout is closed.
async fn copy(
    mut consumer: Consumer,
    format: &Format,
    mut stop: Stop,
    output: &Output,
) -> Result<(), ClientError> {
    let mut piece = Vec::new();
    while !stop.is_now() {
        let record = match next_ready(&mut consumer).await {
            Poll::Ready(record) => record,
            Poll::Pending => {
                if !piece.is_empty() && output.write(std::mem::take(&mut piece)).await.is_err() {
                    return Ok(());
                }
                consumer.receive().await
            }
        };
        let Some(record) = record.transpose()? else { break };
        if stop.takes(record.partition, record.offset) {
            write(format, &record, &mut piece);
        }
        if PIECE_BYTES <= piece.len() && output.write(std::mem::take(&mut piece)).await.is_err() {
            return Ok(());
        }
    }
    // Closed or not, there is nothing more to write.
    let _ = output.write(piece).await;
    Ok(())
}

/// The next record, if it is here already.
async fn next_ready(consumer: &mut Consumer) -> Poll<Option<Result<ConsumerRecord, ClientError>>> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *consumer).poll_next(context))).await
}

fn write(format: &Format, record: &ConsumerRecord, out: &mut Vec<u8>) {
    let fields = Fields {
        topic: &record.topic,
        partition: record.partition.0,
        offset: record.offset.0,
        timestamp_ms: record.timestamp.0,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
    };
    let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
    format.write(fields, headers, out);
}

/// When to stop reading.
#[derive(Debug)]
struct Stop {
    /// Records that may still be written.
    count: u64,
    /// The partitions that are not at their end yet, and that end; none to read on for ever.
    ends: Option<Offsets>,
}

impl Stop {
    fn new(args: &ConsumeArgs, starts: &Offsets, mut ends: Offsets) -> Stop {
        // A start past the end stays, so that the broker says that it is out of range.
        ends.retain(|partition, end| starts.get(partition) != Some(end));
        Stop { count: args.count.unwrap_or(u64::MAX), ends: args.until_end.then_some(ends) }
    }

    fn is_now(&self) -> bool {
        self.count == 0 || self.ends.as_ref().is_some_and(Offsets::is_empty)
    }

    /// Counts a record; false if it lies past the end of its partition.
    fn takes(&mut self, partition: PartitionId, offset: Offset) -> bool {
        if let Some(ends) = &mut self.ends {
            let Some(end) = ends.get(&partition).copied() else { return false };
            if Some(end) <= offset.checked_add(1) {
                ends.remove(&partition);
            }
            if end <= offset {
                return false;
            }
        }
        self.count -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(offsets: &[(u32, u64)]) -> Offsets {
        offsets
            .iter()
            .map(|(partition, offset)| (PartitionId(*partition), Offset(*offset)))
            .collect()
    }

    #[test]
    fn reading_until_the_end_stops_when_every_partition_is_there() {
        let mut stop = Stop { count: u64::MAX, ends: Some(offsets(&[(0, 2), (1, 1)])) };
        assert!(stop.takes(PartitionId(0), Offset(1)));
        assert!(!stop.is_now());
        assert!(!stop.takes(PartitionId(0), Offset(2)), "it came later");
        assert!(stop.takes(PartitionId(1), Offset(0)));
        assert!(stop.is_now());
    }

    #[test]
    fn a_record_past_an_end_that_was_compacted_away_stops_its_partition() {
        let mut stop = Stop { count: u64::MAX, ends: Some(offsets(&[(0, 2)])) };
        assert!(!stop.takes(PartitionId(0), Offset(5)));
        assert!(stop.is_now());
    }

    #[test]
    fn a_count_of_zero_reads_nothing_and_others_count_what_is_written() {
        assert!(Stop { count: 0, ends: None }.is_now());
        let mut stop = Stop { count: 1, ends: Some(offsets(&[(0, 1), (1, 9)])) };
        assert!(!stop.takes(PartitionId(0), Offset(1)));
        assert!(!stop.is_now());
        assert!(stop.takes(PartitionId(1), Offset(1)));
        assert!(stop.is_now());
    }
}
