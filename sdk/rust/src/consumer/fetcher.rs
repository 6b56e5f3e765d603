//! The task that reads one partition ahead of the consumer: through a subscription where the leader
//! offers one, else fetch by fetch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustmq_protocol::{
    ErrorCode, FETCH_BYTES_MAX, Fetch, FetchResponse, FrameFlags, Offset, OffsetAt, PartitionId,
    RequestKind, Subscribe, TopicId, batches, records, verify_crc,
};
use tokio::sync::{Notify, mpsc};

use super::ahead::{Ahead, Granted, Unread};
use super::{OutOfRange, Start};
use crate::backoff::Backoff;
use crate::cluster::{Cluster, Route};
use crate::config::RouteMode;
use crate::connection::{Connection, Lane};
use crate::error::ClientError;
use crate::offsets::look_up_offset;
use crate::stream::{Reply, Subscription};

/// Answers up to here are copied out of the buffer that they were read into, which they would keep
/// from being freed: it has room for 64 KiB, and they may wait for their consumer for long.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Bytes of one answer of a subscription, where more are read ahead. 1 MiB: a subscription has the
/// next one on its way anyway, and partitions that share a stream take turns.
const ANSWER_BYTES_MAX: u32 = 1 << 20;

const _: () = assert!(ANSWER_BYTES_MAX as usize <= FETCH_BYTES_MAX);

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
    /// Makes room when the consumer has read them.
    pub(super) _unread: Unread,
}

/// Reads the partition until the consumer is dropped or an error cannot be retried.
pub(super) async fn read_ahead(
    settings: Arc<FetchSettings>,
    state: Arc<PartitionState>,
    index: usize,
    fetched: mpsc::UnboundedSender<Fetched>,
) {
    let backoff = settings.cluster.new_backoff();
    // One response is read while the next is on its way.
    let ahead = Ahead::new(settings.bytes_max.saturating_mul(2));
    let mut fetcher = Fetcher { settings, state, backoff, ahead, stale: None, may_subscribe: true };
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
            error = fetcher.read_from(start, seeks, deliver) => {
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
    ahead: Arc<Ahead>,
    /// Version of the metadata that led nowhere.
    stale: Option<u64>,
    /// False once the leader had no place for another subscription.
    may_subscribe: bool,
}

/// Whether it makes sense to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Delivered {
    /// The consumer is there.
    Taken,
    /// The consumer is gone.
    ToNobody,
}

impl Fetcher {
    /// Reads from `start` until an error cannot be retried; none if the consumer is gone.
    async fn read_from(
        &mut self,
        start: Start,
        seeks: u64,
        deliver: impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Option<ClientError> {
        let mut offset = None;
        loop {
            let error = match &mut offset {
                None => match self.resolve(start).await {
                    Ok(found) => {
                        self.note_position(seeks, found);
                        offset = Some(found);
                        continue;
                    }
                    Err(error) => error,
                },
                Some(next) => match self.read(next, &deliver).await {
                    Ok(Delivered::Taken) => continue,
                    Ok(Delivered::ToNobody) => return None,
                    Err(error) => error,
                },
            };
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

    /// Reads on at `next`, which moves with what is delivered: one fetch, or a subscription until it
    /// ends.
    async fn read(
        &mut self,
        next: &mut Offset,
        deliver: &impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Result<Delivered, ClientError> {
        let settings = &*self.settings;
        let cluster = Arc::clone(&settings.cluster);
        let route = cluster.route(&settings.topic_name, self.state.partition, self.stale).await?;
        // Should anything fail from here on, this metadata counts as stale.
        self.stale = Some(route.version);
        if route.topic != settings.topic {
            let message = format!("topic {} was created anew", settings.topic_name);
            return Err(ClientError::broker(ErrorCode::UnknownTopicId, message));
        }
        let connection = cluster.connection(&route).await?;
        match self.subscribes(&connection, &route) {
            true => self.follow(&connection, route, next, deliver).await,
            false => self.fetch(&connection, route, next, deliver).await,
        }
    }

    /// A subscription sends what there is at once, and only the leader's shard has any.
    fn subscribes(&self, connection: &Connection, route: &Route) -> bool {
        let hello = connection.hello();
        self.may_subscribe
            && self.settings.bytes_min <= 1
            && connection.offers_subscriptions()
            && (hello.broker_id, hello.shard) == (route.leader, route.shard)
    }

    /// Takes the answers of a subscription until it ends. However it does, the metadata is looked at
    /// again before the next.
    async fn follow(
        &mut self,
        connection: &Connection,
        route: Route,
        next: &mut Offset,
        deliver: &impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Result<Delivered, ClientError> {
        let Route { topic, partition, leader_epoch, .. } = route;
        let mut granted = Granted::new(&self.ahead);
        let request = Subscribe {
            topic,
            partition,
            leader_epoch,
            offset: *next,
            credit: granted.take_room(),
            bytes_max: self.settings.bytes_max.min(ANSWER_BYTES_MAX),
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        let patience = self.settings.cluster.config().request_timeout;
        let lane = Lane::Fetch(topic, partition);
        let (mut reply, mut subscription) = connection.subscribe(lane, body, patience).await?;
        if reply.header.error_code() == ErrorCode::LimitExceeded {
            tracing::debug!(topic = %self.settings.topic_name, partition = partition.0,
                "no place for a subscription: it is fetched");
            self.may_subscribe = false;
            return Ok(Delivered::Taken);
        }
        loop {
            let more = reply.header.flags.contains(FrameFlags::MORE);
            let body = reply.into_body()?;
            if !more {
                // Nobody here has asked for that.
                return Err(ClientError::ConnectionLost);
            }
            let response = FetchResponse::decode(&body)?;
            let unread = granted.arrived(response.batches.len());
            if self.deliver(&body, &response, unread, next, deliver)? == Delivered::ToNobody {
                return Ok(Delivered::ToNobody);
            }
            reply = next_reply(&mut subscription, &mut granted, &self.ahead).await?;
        }
    }

    /// One fetch.
    async fn fetch(
        &mut self,
        connection: &Connection,
        route: Route,
        next: &mut Offset,
        deliver: &impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Result<Delivered, ClientError> {
        let Route { topic, partition, leader_epoch, .. } = route;
        self.ahead.half_free().await;
        let request = Fetch {
            topic,
            partition,
            leader_epoch,
            offset: *next,
            wait_ms_max: self.settings.wait.as_millis() as u32,
            bytes_min: self.settings.bytes_min,
            bytes_max: self.settings.bytes_max,
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        let config = self.settings.cluster.config();
        let patience = self.settings.wait + config.request_timeout;
        let lane = Lane::Fetch(topic, partition);
        let reply = connection.request(lane, RequestKind::Fetch, body, patience).await?;
        let moved = reply.moved_to().is_some_and(|shard| shard != route.shard)
            && config.route == RouteMode::Owner;
        let body = reply.into_body()?;
        let response = FetchResponse::decode(&body)?;
        let unread = self.ahead.unread(response.batches.len());
        let delivered = self.deliver(&body, &response, unread, next, deliver)?;
        if !moved {
            self.stale = None;
        }
        Ok(delivered)
    }

    /// Checks what came, and hands it to the consumer.
    fn deliver(
        &mut self,
        body: &Bytes,
        response: &FetchResponse<'_>,
        unread: Unread,
        next: &mut Offset,
        deliver: &impl Fn(Result<Batches, ClientError>) -> bool,
    ) -> Result<Delivered, ClientError> {
        self.state.lock().high_watermark = Some(response.head.high_watermark);
        self.backoff.reset();
        let from = *next;
        let Some(end) = check(response.batches, from, self.state.partition)? else {
            return Ok(Delivered::Taken);
        };
        *next = end;
        let bytes = match response.batches.len() <= COPY_BYTES_MAX {
            true => Bytes::copy_from_slice(response.batches),
            false => body.slice_ref(response.batches),
        };
        Ok(match deliver(Ok(Batches { bytes, from, _unread: unread })) {
            true => Delivered::Taken,
            false => Delivered::ToNobody,
        })
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

/// The next answer of a subscription. Meanwhile it is granted what the consumer has made room for.
async fn next_reply(
    subscription: &mut Subscription,
    granted: &mut Granted,
    ahead: &Ahead,
) -> Result<Reply, ClientError> {
    loop {
        tokio::select! {
            biased;
            reply = subscription.next() => return Ok(reply?),
            () = ahead.half_free() => {
                let room = granted.take_room();
                subscription.grant(room).await;
            }
        }
    }
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
