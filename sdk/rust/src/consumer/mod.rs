//! Records from a topic.
//!
//! One task per partition (`fetcher`) subscribes at the leader, or keeps a long poll there if the
//! leader does not know subscriptions, and reads ahead, up to a bound in bytes (`ahead`). The
//! consumer takes what has arrived, partition by partition as it came, and skips records before the
//! offset asked for.

mod ahead;
mod fetcher;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use rustmq_protocol::{
    FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX, Offset, PartitionId, TimestampMs, batches, records,
};
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::error::{ClientError, ConfigError};
use fetcher::{Batches, FetchSettings, Fetched, PartitionState, read_ahead};

/// Bytes that a fetch asks for at least when the read-ahead is shared by many partitions. 64 KiB: a
/// full batch.
const FETCH_BYTES_SHARE_MIN: usize = 64 << 10;

/// Which partitions are read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Partitions {
    /// All of the topic.
    #[default]
    All,
    /// These.
    Some(Vec<PartitionId>),
}

/// Where reading starts in each partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// With the oldest record that is there.
    Earliest,
    /// With what is appended from now on.
    #[default]
    Latest,
    /// At this offset.
    Offset(Offset),
    /// With the first record whose timestamp is this or later.
    Timestamp(TimestampMs),
}

/// What happens when the next offset is not in the log any more, or not yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OutOfRange {
    /// The consumer returns the error and the partition is not read on, until a seek.
    #[default]
    Fail,
    /// Reading goes on with the oldest record that is there.
    Earliest,
    /// Reading goes on with what is appended from now on.
    Latest,
}

/// A record that was read. Key and value share the memory that they arrived in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: PartitionId,
    /// Its place in the partition.
    pub offset: Offset,
    /// When it happened, by the producer's clock.
    pub timestamp: TimestampMs,
    /// The key.
    pub key: Option<Bytes>,
    /// The payload; none is a tombstone.
    pub value: Option<Bytes>,
    /// Names and values beside the payload, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// How a consumer works.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    partitions: Partitions,
    start: Start,
    out_of_range: OutOfRange,
    wait: Duration,
    bytes_min: u32,
    prefetch_bytes_max: usize,
}

impl ConsumerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> ConsumerBuilder {
        ConsumerBuilder {
            cluster,
            topic,
            partitions: Partitions::All,
            start: Start::Latest,
            out_of_range: OutOfRange::Fail,
            wait: Duration::from_millis(500),
            bytes_min: 1,
            prefetch_bytes_max: 16 << 20,
        }
    }

    /// Which partitions are read. Default all.
    #[must_use]
    pub fn partitions(self, partitions: Partitions) -> ConsumerBuilder {
        ConsumerBuilder { partitions, ..self }
    }

    /// Where reading starts in each of them. Default at the end.
    #[must_use]
    pub fn start(self, start: Start) -> ConsumerBuilder {
        ConsumerBuilder { start, ..self }
    }

    /// What happens when the next offset is not in the log. Default: the consumer returns the
    /// error.
    #[must_use]
    pub fn out_of_range(self, out_of_range: OutOfRange) -> ConsumerBuilder {
        ConsumerBuilder { out_of_range, ..self }
    }

    /// How long the broker holds a fetch while there is nothing new. Default 500 ms, at most a
    /// minute. Of no meaning where the partition is subscribed to.
    #[must_use]
    pub fn fetch_wait(self, wait: Duration) -> ConsumerBuilder {
        ConsumerBuilder { wait, ..self }
    }

    /// Bytes that end the wait at the end of a partition. Default 1. With more than that every
    /// partition is fetched, as a subscription waits for nothing.
    #[must_use]
    pub fn fetch_bytes_min(self, bytes_min: u32) -> ConsumerBuilder {
        ConsumerBuilder { bytes_min, ..self }
    }

    /// Bytes that are read ahead over all partitions, give or take a batch for each. Default 16
    /// MiB.
    #[must_use]
    pub fn prefetch_bytes_max(self, prefetch_bytes_max: usize) -> ConsumerBuilder {
        ConsumerBuilder { prefetch_bytes_max, ..self }
    }

    /// Looks up the topic and starts reading.
    pub async fn build(self) -> Result<Consumer, ClientError> {
        let topic = self.cluster.fresh_topic(&self.topic).await?.info;
        let partitions = match self.partitions {
            Partitions::All => topic.partitions.iter().map(|info| info.partition).collect(),
            Partitions::Some(partitions) => partitions,
        };
        let known = |partition| topic.partitions.iter().any(|info| info.partition == partition);
        if let Some(partition) = partitions.iter().copied().find(|partition| !known(*partition)) {
            let count = topic.partitions.len() as u32;
            return Err(ClientError::NoSuchPartition { partition, count });
        }
        let wait_max = Duration::from_millis(u64::from(FETCH_WAIT_MS_MAX));
        if self.wait > wait_max {
            return Err(
                ConfigError::TimeOutOfBounds { field: "fetch_wait", time: self.wait }.into()
            );
        }
        let topic_name: Arc<str> = self.topic.into();
        let settings = Arc::new(FetchSettings {
            cluster: self.cluster,
            topic_name: Arc::clone(&topic_name),
            topic: topic.id,
            wait: self.wait,
            bytes_min: self.bytes_min,
            bytes_max: fetch_bytes(self.prefetch_bytes_max, partitions.len()),
            out_of_range: self.out_of_range,
        });
        // Bounded by what each task may read ahead.
        let (fetched_in, fetched) = mpsc::unbounded_channel();
        let mut states = Vec::with_capacity(partitions.len());
        for (index, partition) in partitions.into_iter().enumerate() {
            let state = Arc::new(PartitionState::new(partition, self.start));
            let task =
                read_ahead(Arc::clone(&settings), Arc::clone(&state), index, fetched_in.clone());
            tokio::spawn(task);
            states.push(state);
        }
        Ok(Consumer { topic: topic_name, states, fetched, reading: None, ready: VecDeque::new() })
    }
}

/// Bytes that each fetch may return, so that all partitions together stay within what may be read
/// ahead.
fn fetch_bytes(prefetch_bytes_max: usize, partitions: usize) -> u32 {
    // Each partition has one response that is read and one that is on its way.
    let share = prefetch_bytes_max / (2 * partitions.max(1));
    share.clamp(FETCH_BYTES_SHARE_MIN, FETCH_BYTES_MAX) as u32
}

/// Reads records of a topic, as a [`Stream`] or by [`Consumer::receive`]. Dropping it ends its
/// tasks.
///
/// Records of one partition come in order, once, without gaps but for those that the log itself
/// has. It has no memory across restarts: the program keeps the offsets, or starts by [`Start`].
#[derive(Debug)]
pub struct Consumer {
    topic: Arc<str>,
    states: Vec<Arc<PartitionState>>,
    fetched: mpsc::UnboundedReceiver<Fetched>,
    /// The response that is being read.
    reading: Option<Reading>,
    /// Records of its current batch.
    ready: VecDeque<ConsumerRecord>,
}

#[derive(Debug)]
struct Reading {
    index: usize,
    seeks: u64,
    content: Batches,
}

impl Consumer {
    /// The next record of any partition. An error says that one partition is not read on; the
    /// others are, and a seek sets the partition going again. `None` comes only from a consumer
    /// without partitions.
    pub async fn receive(&mut self) -> Option<Result<ConsumerRecord, ClientError>> {
        std::future::poll_fn(|context| self.poll_receive(context)).await
    }

    /// The next record of this partition will be the one at `offset`.
    pub fn seek(&mut self, partition: PartitionId, offset: Offset) -> Result<(), ClientError> {
        let count = self.states.len() as u32;
        let index = self.states.iter().position(|state| state.partition == partition);
        let index = index.ok_or(ClientError::NoSuchPartition { partition, count })?;
        if self.reading.as_ref().is_some_and(|reading| reading.index == index) {
            self.reading = None;
            self.ready.clear();
        }
        self.states[index].seek(offset);
        Ok(())
    }

    /// The next offset to be received in each partition, where it is known already.
    pub fn positions(&self) -> BTreeMap<PartitionId, Offset> {
        self.places(|place| place.position)
    }

    /// How far each partition could be read when its leader last answered.
    pub fn high_watermarks(&self) -> BTreeMap<PartitionId, Offset> {
        self.places(|place| place.high_watermark)
    }

    /// True if every record that the leaders knew of when they last answered has been received.
    pub fn is_at_end(&self) -> bool {
        self.states.iter().all(|state| {
            let place = state.lock();
            place.high_watermark.is_some_and(|end| place.position.is_some_and(|at| end <= at))
        })
    }

    fn places(
        &self,
        field: impl Fn(&fetcher::Place) -> Option<Offset>,
    ) -> BTreeMap<PartitionId, Offset> {
        let place = |state: &Arc<PartitionState>| Some((state.partition, field(&state.lock())?));
        self.states.iter().filter_map(place).collect()
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ConsumerRecord, ClientError>>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                if let Some(reading) = &self.reading {
                    self.note_position(reading.index, reading.seeks, record.offset);
                }
                return Poll::Ready(Some(Ok(record)));
            }
            if let Some(reading) = &mut self.reading {
                match next_batch(reading, &self.topic, self.states[reading.index].partition) {
                    Ok(Some(records)) => self.ready = records,
                    Ok(None) => self.reading = None,
                    Err(error) => {
                        self.reading = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                continue;
            }
            let Some(Fetched { index, seeks, content }) = ready!(self.fetched.poll_recv(context))
            else {
                return Poll::Ready(None);
            };
            if self.states[index].lock().seeks != seeks {
                continue;
            }
            match content {
                Ok(content) => self.reading = Some(Reading { index, seeks, content }),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn note_position(&self, index: usize, seeks: u64, delivered: Offset) {
        let mut place = self.states[index].lock();
        if place.seeks == seeks {
            place.position = delivered.checked_add(1);
        }
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumerRecord, ClientError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_receive(context)
    }
}

/// Takes the next batch off the response and its records out of it; none if there are no more.
fn next_batch(
    reading: &mut Reading,
    topic: &Arc<str>,
    partition: PartitionId,
) -> Result<Option<VecDeque<ConsumerRecord>>, ClientError> {
    let content = &mut reading.content;
    let from = content.from;
    let invalid = |error| ClientError::Batch { partition, offset: from, error };
    let Some(first) = batches(&content.bytes).next() else { return Ok(None) };
    let (header, _) = first.map_err(invalid)?;
    let batch = content.bytes.split_to(header.length as usize);
    let mut taken = VecDeque::with_capacity(header.record_count as usize);
    for record in records(&batch).map_err(invalid)? {
        let record = record.map_err(invalid)?;
        if record.offset < from {
            continue;
        }
        let share = |bytes: &[u8]| batch.slice_ref(bytes);
        taken.push_back(ConsumerRecord {
            topic: Arc::clone(topic),
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(share),
            value: record.value.map(share),
            headers: record.headers().map(|h| (h.key.to_owned(), h.value.map(share))).collect(),
        });
    }
    Ok(Some(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_share_what_may_be_read_ahead() {
        assert_eq!(fetch_bytes(8 << 20, 1), 4 << 20);
        assert_eq!(fetch_bytes(8 << 20, 4), 1 << 20);
        assert_eq!(fetch_bytes(12 << 20, 10_000), FETCH_BYTES_SHARE_MIN as u32);
        assert_eq!(fetch_bytes(usize::MAX, 1), FETCH_BYTES_MAX as u32);
    }
}
