//! Records towards a topic.
//!
//! ```text
//!  submit ─► partitioner ─► buffer: growing, sealed ─► window: in flight ─► acknowledged ─► ticket
//!                           (pure, one per partition)         (pure)     ▲
//!                                                      delivery: one task per partition
//! ```
//!
//! - `partitioner`: which partition. - `buffer`: when a batch is sealed. - `window`: order, sending
//!   again, giving up.
//! - `delivery`: the task that carries batches to the leader. - `ticket`: what the program waits
//!   for.

mod buffer;
mod delivery;
mod partitioner;
mod ticket;
mod window;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustmq_protocol::{
    Acks, BATCH_BYTES_MAX, PartitionId, PushError, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX, Record,
    RecordHeader, TimestampMs,
};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, TryAcquireError};

use crate::backoff::random_seed;
use crate::cluster::Cluster;
use crate::error::{ClientError, ConfigError};
use buffer::{BatchLimits, PartitionBuffer};
use delivery::{Partition, init_producer};
use partitioner::Partitioner;
pub use ticket::{RecordMetadata, Ticket};
use window::Window;

/// Bytes that a record holds of the producer's buffer beside its payload: its lengths and its share
/// of bookkeeping.
const RECORD_CHARGE_BYTES: usize = 64;

/// A record to be sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProducerRecord {
    /// What decides the partition and what compaction goes by.
    pub key: Option<Bytes>,
    /// The payload; none is a tombstone.
    pub value: Option<Bytes>,
    /// Names and values beside the payload.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// When it happened; none means now.
    pub timestamp: Option<TimestampMs>,
    /// Where it goes; none means where its key hashes to, or in turn without a key.
    pub partition: Option<PartitionId>,
}

impl ProducerRecord {
    /// A record with this value.
    pub fn value(value: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord { value: Some(value.into()), ..ProducerRecord::default() }
    }

    /// A record without a value: what compaction takes as a deletion of the key.
    pub fn tombstone(key: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord { key: Some(key.into()), ..ProducerRecord::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(self, key: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord { key: Some(key.into()), ..self }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
    ) -> ProducerRecord {
        self.headers.push((key.into(), Some(value.into())));
        self
    }

    /// The same for this partition.
    #[must_use]
    pub fn with_partition(self, partition: PartitionId) -> ProducerRecord {
        ProducerRecord { partition: Some(partition), ..self }
    }

    /// The same with this timestamp.
    #[must_use]
    pub fn with_timestamp(self, timestamp: TimestampMs) -> ProducerRecord {
        ProducerRecord { timestamp: Some(timestamp), ..self }
    }
}

/// How a producer works. The defaults lose nothing and duplicate nothing.
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    acks: Acks,
    batch_bytes: usize,
    batch_records_max: u32,
    linger: Duration,
    in_flight_batches_max: usize,
    idempotent: bool,
    delivery_timeout: Duration,
    buffer_bytes_max: usize,
}

impl ProducerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> ProducerBuilder {
        ProducerBuilder {
            cluster,
            topic,
            acks: Acks::All,
            batch_bytes: 64 << 10,
            batch_records_max: RECORDS_PER_BATCH_MAX,
            linger: Duration::ZERO,
            in_flight_batches_max: 8,
            idempotent: true,
            delivery_timeout: Duration::from_secs(120),
            buffer_bytes_max: 32 << 20,
        }
    }

    /// What must be true of a batch before it is acknowledged. Default [`Acks::All`]. With
    /// [`Acks::None`] nothing is acknowledged and the producer is not idempotent: what may have
    /// arrived when a connection is lost is not sent again, and fails with an error that is not
    /// [definite](ClientError::is_definite).
    #[must_use]
    pub fn acks(self, acks: Acks) -> ProducerBuilder {
        ProducerBuilder { acks, ..self }
    }

    /// Bytes at which a batch is full. Default 64 KiB. A larger record has a batch of its own.
    #[must_use]
    pub fn batch_bytes(self, batch_bytes: usize) -> ProducerBuilder {
        ProducerBuilder { batch_bytes, ..self }
    }

    /// Records at which a batch is full. Default 65,536.
    #[must_use]
    pub fn batch_records_max(self, batch_records_max: u32) -> ProducerBuilder {
        ProducerBuilder { batch_records_max, ..self }
    }

    /// How long a batch that is not full waits for more records while nothing is on its way.
    /// Default none: a record leaves at once, and while it is on its way the next batch gathers.
    #[must_use]
    pub fn linger(self, linger: Duration) -> ProducerBuilder {
        ProducerBuilder { linger, ..self }
    }

    /// Batches of one partition on their way at once. Default 8; the broker may allow fewer.
    #[must_use]
    pub fn in_flight_batches_max(self, in_flight_batches_max: usize) -> ProducerBuilder {
        ProducerBuilder { in_flight_batches_max, ..self }
    }

    /// Whether the broker recognises batches that are sent again. Default true. Without it, a
    /// record may be in the log twice, and out of order, after a failure.
    #[must_use]
    pub fn idempotent(self, idempotent: bool) -> ProducerBuilder {
        ProducerBuilder { idempotent, ..self }
    }

    /// How long a batch is tried before it is given up with [`ClientError::DeliveryTimeout`].
    /// Default 2 minutes.
    #[must_use]
    pub fn delivery_timeout(self, delivery_timeout: Duration) -> ProducerBuilder {
        ProducerBuilder { delivery_timeout, ..self }
    }

    /// Bytes of records that are submitted and not acknowledged, over all partitions. Default 32
    /// MiB. At the limit, [`Producer::submit`] waits.
    #[must_use]
    pub fn buffer_bytes_max(self, buffer_bytes_max: usize) -> ProducerBuilder {
        ProducerBuilder { buffer_bytes_max, ..self }
    }

    /// Looks up the topic, gets a producer id and makes the producer.
    pub async fn build(self) -> Result<Producer, ClientError> {
        self.check()?;
        let hello = *self.cluster.bootstrap().await?.hello();
        let topic = self.cluster.fresh_topic(&self.topic).await?.info;
        let count = topic.partitions.len() as u32;
        if count == 0 {
            return Err(ClientError::NoSuchPartition { partition: PartitionId(0), count });
        }
        let idempotent = self.idempotent && self.acks != Acks::None;
        let id = if idempotent { Some(init_producer(&self.cluster).await?) } else { None };
        let limits = BatchLimits {
            bytes: self.batch_bytes,
            records: self.batch_records_max,
            linger: self.linger,
            delivery_timeout: self.delivery_timeout,
        };
        let allowed = (hello.producer_batches_in_flight_max as usize).max(1);
        let in_flight_max = self.in_flight_batches_max.min(allowed);
        let buffer_bytes = Arc::new(Semaphore::new(self.buffer_bytes_max));
        let topic_name: Arc<str> = self.topic.into();
        let partition = |partition| {
            let window = Window::new(in_flight_max, id, self.cluster.new_backoff());
            let window = if self.acks == Acks::None { window.at_most_once() } else { window };
            Arc::new(Partition {
                cluster: Arc::clone(&self.cluster),
                topic_name: Arc::clone(&topic_name),
                topic: topic.id,
                partition,
                acks: self.acks,
                buffer_bytes: Arc::clone(&buffer_bytes),
                buffer: Mutex::new(PartitionBuffer::new(partition, limits, window)),
                changed: Notify::new(),
                started: AtomicBool::new(false),
                closed: AtomicBool::new(false),
            })
        };
        let partitions = (0..count).map(|index| partition(PartitionId(index))).collect();
        let shared = Shared {
            partitions,
            partitioner: Mutex::new(Partitioner::new(count, random_seed() as u32)),
            buffer_bytes,
            buffer_bytes_max: self.buffer_bytes_max,
            record_bytes_max: (hello.record_bytes_max as usize).min(RECORD_BYTES_MAX),
        };
        Ok(Producer { shared: Arc::new(shared) })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let numbers = [
            ("batch_bytes", self.batch_bytes, 1 << 10, BATCH_BYTES_MAX),
            (
                "batch_records_max",
                self.batch_records_max as usize,
                1,
                RECORDS_PER_BATCH_MAX as usize,
            ),
            ("in_flight_batches_max", self.in_flight_batches_max, 1, 1024),
            ("buffer_bytes_max", self.buffer_bytes_max, 1 << 10, u32::MAX as usize),
        ];
        for (field, value, min, max) in numbers {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::NumberOutOfBounds { field, value, min, max });
            }
        }
        let day = Duration::from_secs(24 * 3600);
        for (field, time, min) in [
            ("linger", self.linger, Duration::ZERO),
            ("delivery_timeout", self.delivery_timeout, Duration::from_millis(1)),
        ] {
            if !(min..=day).contains(&time) {
                return Err(ConfigError::TimeOutOfBounds { field, time });
            }
        }
        Ok(())
    }
}

/// Sends records to a topic. Clones share everything; when the last is dropped, what was submitted
/// is still delivered, as long as the runtime runs.
#[derive(Clone, Debug)]
pub struct Producer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    partitions: Vec<Arc<Partition>>,
    partitioner: Mutex<Partitioner>,
    buffer_bytes: Arc<Semaphore>,
    buffer_bytes_max: usize,
    record_bytes_max: usize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

impl Producer {
    /// Takes a record, waiting while the buffer is full, and returns a future of its fate.
    pub async fn submit(&self, record: ProducerRecord) -> Result<Ticket, ClientError> {
        let (ticket, partition) = self.append(record, || {}).await?;
        partition.wake();
        Ok(ticket)
    }

    /// Sends one record and waits until it is acknowledged.
    pub async fn send(&self, record: ProducerRecord) -> Result<RecordMetadata, ClientError> {
        self.submit(record).await?.await
    }

    /// Sends records and waits until all are acknowledged. Those of one partition go together, as
    /// far as a batch holds them.
    ///
    /// After an error some of the records may be in the log, even if the error is definite about
    /// its own.
    pub async fn send_batch(
        &self,
        records: Vec<ProducerRecord>,
    ) -> Result<Vec<RecordMetadata>, ClientError> {
        let mut tickets = Vec::with_capacity(records.len());
        let mut touched: Vec<Arc<Partition>> = Vec::new();
        let mut failed = None;
        for record in records {
            // Before waiting for room, what is gathered must leave, or the room never comes.
            let before_wait = || touched.drain(..).for_each(|partition| partition.wake());
            match self.append(record, before_wait).await {
                Ok((ticket, partition)) => {
                    if !touched.iter().any(|known| Arc::ptr_eq(known, partition)) {
                        touched.push(Arc::clone(partition));
                    }
                    tickets.push(ticket);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        touched.drain(..).for_each(|partition| partition.wake());
        if let Some(error) = failed {
            return Err(error);
        }
        let mut metadata = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            metadata.push(ticket.await?);
        }
        Ok(metadata)
    }

    /// Sends everything that was submitted before, without lingering, and waits until all of it has
    /// its fate. The error is the first of those; each ticket has its own.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let mut outcomes = Vec::new();
        for partition in &self.shared.partitions {
            let waiting = partition.lock().flush();
            if !waiting.is_empty() {
                partition.wake();
                outcomes.extend(waiting);
            }
        }
        let mut result = Ok(());
        for outcome in outcomes {
            let fate = outcome.wait().await;
            result = result.and(fate);
        }
        result
    }

    /// Flushes, and refuses records from then on, also those of clones.
    pub async fn close(self) -> Result<(), ClientError> {
        self.shared.buffer_bytes.close();
        let result = self.flush().await;
        self.shared.end();
        result
    }

    /// Partitions of the topic.
    pub fn partition_count(&self) -> u32 {
        self.shared.partitions.len() as u32
    }

    async fn append(
        &self,
        record: ProducerRecord,
        before_wait: impl FnOnce(),
    ) -> Result<(Ticket, &Arc<Partition>), ClientError> {
        let shared = &*self.shared;
        let headers: Vec<RecordHeader<'_>> = record
            .headers
            .iter()
            .map(|(key, value)| RecordHeader { key, value: value.as_deref() })
            .collect();
        let checked = Record {
            timestamp: record.timestamp.unwrap_or_else(now_ms),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        let payload_bytes = checked.payload_bytes();
        if payload_bytes > shared.record_bytes_max {
            let max = shared.record_bytes_max;
            return Err(ClientError::RecordTooLarge { bytes: payload_bytes, max });
        }
        if let Some(partition) = record.partition
            && shared.partitions.len() <= partition.0 as usize
        {
            let count = shared.partitions.len() as u32;
            return Err(ClientError::NoSuchPartition { partition, count });
        }
        // A record larger than the buffer may have all of it.
        let charged_bytes = (payload_bytes + RECORD_CHARGE_BYTES).min(shared.buffer_bytes_max);
        let permits = shared.charge(charged_bytes as u32, before_wait).await?;
        let partition = shared.choose(&record);
        let ticket = {
            let mut buffer = partition.lock();
            if partition.closed.load(Ordering::Acquire) {
                return Err(ClientError::Closed);
            }
            buffer.append(&checked, charged_bytes, Instant::now())
        };
        match ticket {
            Ok(ticket) => {
                // Given back by the delivery task, when the batch has its fate.
                permits.forget();
                Ok((ticket, partition))
            }
            Err(PushError::TooManyHeaders { count }) => Err(ClientError::TooManyHeaders { count }),
            Err(PushError::TooLarge { bytes, max }) => {
                Err(ClientError::RecordTooLarge { bytes, max })
            }
            Err(PushError::Full) => unreachable!("a buffer seals a full batch and begins another"),
        }
    }
}

impl Shared {
    /// Waits for room in the buffer.
    async fn charge(
        &self,
        bytes: u32,
        before_wait: impl FnOnce(),
    ) -> Result<SemaphorePermit<'_>, ClientError> {
        match self.buffer_bytes.try_acquire_many(bytes) {
            Ok(permits) => return Ok(permits),
            Err(TryAcquireError::Closed) => return Err(ClientError::Closed),
            Err(TryAcquireError::NoPermits) => before_wait(),
        }
        self.buffer_bytes.acquire_many(bytes).await.map_err(|_| ClientError::Closed)
    }

    fn choose(&self, record: &ProducerRecord) -> &Arc<Partition> {
        let index = match (record.partition, &record.key) {
            (Some(partition), _) => partition.0,
            (None, Some(key)) => self.partitioner().with_key(key),
            (None, None) => {
                let is_empty =
                    |index: u32| self.partitions[index as usize].lock().is_growing_empty();
                self.partitioner().without_key(is_empty)
            }
        };
        &self.partitions[index as usize]
    }

    fn partitioner(&self) -> MutexGuard<'_, Partitioner> {
        self.partitioner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the tasks to end once everything is delivered.
    fn end(&self) {
        for partition in &self.partitions {
            // Release: pairs with Acquire in the task, which then sees every record appended
            // before.
            partition.closed.store(true, Ordering::Release);
            partition.changed.notify_one();
        }
    }
}

fn now_ms() -> TimestampMs {
    // A clock before 1970 is no reason to lose a record.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
