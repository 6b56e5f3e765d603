//! The task that reads one partition ahead of the consumer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustmq_protocol::{
    ErrorCode, Fetch, FetchResponse, Offset, OffsetAt, PartitionId, RequestKind, TopicId, batches,
    records, verify_crc,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::{OutOfRange, Start};
use crate::backoff::Backoff;
use crate::client::look_up_offset;
use crate::cluster::{Cluster, Route};
use crate::config::RouteMode;
use crate::connection::Lane;
use crate::error::ClientError;

/// Responses of one partition on their way to the consumer. Two: one is read while the next is
/// fetched.
const RESPONSES_AHEAD_MAX: usize = 2;

/// What all partitions of a consumer have in common.
#[derive(Debug)]
pub(super) struct FetchSettings {
    pub(super) cluster: Arc<Cluster>,
    pub(super) topic_name: Arc<str>,
    pub(super) topic: TopicId,
    pub(super) wait: Duration,
    pub(super) bytes_min: u32,
    pub(super) bytes_max: u32,
    pub(super) out_of_range: OutOfRange,
}

/// One partition, shared by its task and the consumer. The task ends when the consumer is dropped.
#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) partition: PartitionId,
    place: Mutex<Place>,
    /// The consumer has sought.
    sought: Notify,
}

/// Where the consumer is in a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Counts the seeks: what was fetched before the last one is not delivered.
    pub(super) seeks: u64,
    /// Where the task goes on after a seek.
    pub(super) start: Start,
    /// The next offset to be delivered, once it is known.
    pub(super) position: Option<Offset>,
    /// As of the last answer.
    pub(super) high_watermark: Option<Offset>,
}

impl PartitionState {
    pub(super) fn new(partition: PartitionId, start: Start) -> PartitionState {
        let place = Place { seeks: 0, start, position: None, high_watermark: None };
        PartitionState { partition, place: Mutex::new(place), sought: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seek(&self, offset: Offset) {
        {
            let mut place = self.lock();
            place.seeks += 1;
            place.start = Start::Offset(offset);
            place.position = Some(offset);
        }
        self.sought.notify_one();
    }
}

/// What a task has read.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Index of the partition among those of the consumer.
    pub(super) index: usize,
    /// Of the place that it was fetched for.
    pub(super) seeks: u64,
    pub(super) content: Result<Batches, ClientError>,
}

/// Batches back to back whose checksums are right.
#[derive(Debug)]
pub(super) struct Batches {
    pub(super) bytes: Bytes,
    /// Records before it are not wanted.
    pub(super) from: Offset,
    /// Given back when the consumer has read them.
    pub(super) _ahead: OwnedSemaphorePermit,
}

/// Reads the partition until the consumer is dropped or an error cannot be retried.
pub(super) async fn read_ahead(
    settings: Arc<FetchSettings>,
    state: Arc<PartitionState>,
    index: usize,
    fetched: mpsc::UnboundedSender<Fetched>,
) {
    let backoff = settings.cluster.new_backoff();
    let mut fetcher = Fetcher { settings, state, backoff, stale: None };
    let ahead = Arc::new(Semaphore::new(RESPONSES_AHEAD_MAX));
    loop {
        let Place { seeks, start, .. } = *fetcher.state.lock();
        let sought = {
            let state = Arc::clone(&fetcher.state);
            async move {
                // A permit of an earlier seek wakes up for nothing.
                while state.lock().seeks == seeks {
                    state.sought.notified().await;
                }
            }
        };
        let deliver = |content| fetched.send(Fetched { index, seeks, content }).is_ok();
        tokio::select! {
            biased;
            () = fetched.closed() => return,
            () = sought => {}
            error = fetcher.read_from(start, seeks, &ahead, deliver) => {
                if let Some(error) = error
                    && fetched.send(Fetched { index, seeks, content: Err(error) }).is_err()
                {
                    return;
                }
                // The partition has failed: nothing more until the consumer seeks.
                tokio::select! {
                    () = fetched.closed() => return,
                    () = fetcher.state.sought.notified() => {}
                }
            }
        }
    }
}

struct Fetcher {
    settings: Arc<FetchSettings>,
    state: Arc<PartitionState>,
    backoff: Backoff,
    /// Version of the metadata that led nowhere.
    stale: Option<u64>,
}

impl Fetcher {
    /// Reads from `start` until an error cannot be retried; none if the consumer is gone.
    async fn read_from(
        &mut self,
        start: Start,
        seeks: u64,
        ahead: &Arc<Semaphore>,
        deliver: impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Option<ClientError> {
        let mut offset = None;
        loop {
            // The semaphore is never closed.
            let permit = Arc::clone(ahead).acquire_owned().await.ok()?;
            let result = match offset {
                Some(offset) => self.fetch(offset).await,
                None => match self.resolve(start).await {
                    Ok(found) => {
                        self.note_position(seeks, found);
                        offset = Some(found);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            let bytes = match result {
                Ok(bytes) => bytes,
                Err(error) => {
                    match self.after_error(error).await {
                        AfterError::Again => {}
                        AfterError::From(start) => match self.resolve(start).await {
                            Ok(found) => {
                                self.note_position(seeks, found);
                                offset = Some(found);
                            }
                            // The next fetch meets the same error again and comes back here.
                            Err(error) if error.is_retriable() => {}
                            Err(error) => return Some(error),
                        },
                        AfterError::Fail(error) => return Some(error),
                    }
                    continue;
                }
            };
            let Some(from) = offset else { continue };
            match check(&bytes, from, self.state.partition) {
                Ok(None) => {}
                Ok(Some(next)) => {
                    offset = Some(next);
                    if !deliver(Ok(Batches { bytes, from, _ahead: permit })) {
                        return None;
                    }
                }
                Err(error) => return Some(error),
            }
        }
    }

    async fn resolve(&self, start: Start) -> Result<Offset, ClientError> {
        let at = match start {
            Start::Offset(offset) => return Ok(offset),
            Start::Earliest => OffsetAt::Earliest,
            Start::Latest => OffsetAt::Latest,
            Start::Timestamp(timestamp) => OffsetAt::Timestamp(timestamp),
        };
        let FetchSettings { cluster, topic_name, .. } = &*self.settings;
        Ok(look_up_offset(cluster, topic_name, self.state.partition, at).await?.offset)
    }

    fn note_position(&self, seeks: u64, position: Offset) {
        let mut place = self.state.lock();
        if place.seeks == seeks {
            place.position = Some(position);
        }
    }

    /// One fetch; the batches of the answer.
    async fn fetch(&mut self, offset: Offset) -> Result<Bytes, ClientError> {
        let settings = &*self.settings;
        let cluster = &settings.cluster;
        let route = cluster.route(&settings.topic_name, self.state.partition, self.stale).await?;
        // Should anything fail from here on, this metadata counts as stale.
        self.stale = Some(route.version);
        let Route { topic, partition, leader_epoch, .. } = route;
        if topic != settings.topic {
            let message = format!("topic {} was created anew", settings.topic_name);
            return Err(ClientError::broker(ErrorCode::UnknownTopicId, message));
        }
        let request = Fetch {
            topic,
            partition,
            leader_epoch,
            offset,
            wait_ms_max: settings.wait.as_millis() as u32,
            bytes_min: settings.bytes_min,
            bytes_max: settings.bytes_max,
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        let connection = cluster.connection(&route).await?;
        let patience = settings.wait + cluster.config().request_timeout;
        let lane = Lane::Fetch(topic, partition);
        let reply = connection.request(lane, RequestKind::Fetch, body, patience).await?;
        let moved = reply.moved_to().is_some_and(|shard| shard != route.shard)
            && cluster.config().route == RouteMode::Owner;
        let body = reply.into_body()?;
        let response = FetchResponse::decode(&body)?;
        self.state.lock().high_watermark = Some(response.head.high_watermark);
        self.backoff.reset();
        if !moved {
            self.stale = None;
        }
        Ok(body.slice_ref(response.batches))
    }

    async fn after_error(&mut self, error: ClientError) -> AfterError {
        let (topic, partition) = (&self.settings.topic_name, self.state.partition.0);
        if error.code() == Some(ErrorCode::OffsetOutOfRange) {
            match self.settings.out_of_range {
                OutOfRange::Fail => return AfterError::Fail(error),
                OutOfRange::Earliest | OutOfRange::Latest => {
                    let policy = self.settings.out_of_range;
                    tracing::warn!(%topic, partition, ?policy, %error, "offset is out of range");
                    tokio::time::sleep(self.backoff.pause()).await;
                }
            }
            return AfterError::From(match self.settings.out_of_range {
                OutOfRange::Latest => Start::Latest,
                OutOfRange::Earliest | OutOfRange::Fail => Start::Earliest,
            });
        }
        if !error.is_retriable() {
            return AfterError::Fail(error);
        }
        tracing::debug!(%topic, partition, %error, "fetch is repeated");
        tokio::time::sleep(self.backoff.pause_after(&error)).await;
        AfterError::Again
    }
}

enum AfterError {
    Again,
    From(Start),
    Fail(ClientError),
}

/// Checks the batches of an answer; the offset behind them, or none if there is no batch.
fn check(
    bytes: &[u8],
    from: Offset,
    partition: PartitionId,
) -> Result<Option<Offset>, ClientError> {
    let invalid = |error| ClientError::Batch { partition, offset: from, error };
    let mut next = None;
    for part in batches(bytes) {
        let (_, batch) = part.map_err(invalid)?;
        let header = verify_crc(batch).map_err(invalid)?;
        // Compression that this client does not read is met here, before anything of the answer is
        // delivered.
        records(batch).map_err(invalid)?;
        next = header.last_offset().checked_add(1);
    }
    // A broker that answers with nothing but what is behind us would make us ask for ever.
    Ok(next.filter(|next| from < *next))
}

#[cfg(test)]
mod tests {
    use rustmq_protocol::{
        BatchBuilder, BatchError, LeaderEpoch, ProducerStamp, Record, TimestampMs, stamp,
    };

    use super::*;

    fn batch(base_offset: u64, count: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(1000);
        for _ in 0..count {
            let record = Record { timestamp: TimestampMs(0), key: None, value: None, headers: &[] };
            builder.try_push(&record).unwrap();
        }
        let mut batch = builder.finish(ProducerStamp::NONE).to_vec();
        stamp(&mut batch, Offset(base_offset), LeaderEpoch(0));
        batch
    }

    #[test]
    fn the_next_fetch_begins_behind_the_last_batch() {
        let bytes = [batch(10, 5), batch(15, 1)].concat();
        assert_eq!(check(&bytes, Offset(12), PartitionId(0)).unwrap(), Some(Offset(16)));
        assert_eq!(check(&[], Offset(12), PartitionId(0)).unwrap(), None);
        assert_eq!(check(&bytes, Offset(16), PartitionId(0)).unwrap(), None, "all behind us");
    }

    #[test]
    fn a_damaged_batch_is_an_error_with_its_place() {
        let mut bytes = batch(10, 5);
        *bytes.last_mut().unwrap() ^= 1;
        let error = check(&bytes, Offset(12), PartitionId(7)).unwrap_err();
        assert!(matches!(
            error,
            ClientError::Batch {
                partition: PartitionId(7),
                offset: Offset(12),
                error: BatchError::CrcMismatch { .. }
            }
        ));
    }
}
