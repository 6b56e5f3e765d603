//! The task that delivers the batches of one partition: carries effects of the buffer to the leader
//! and answers back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustmq_protocol::{
    Acks, ErrorCode, InitProducerResponse, PartitionId, ProduceHead, ProduceResponse,
    ProducerEpoch, ProducerId, RequestKind, TopicId,
};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout_at;

use super::buffer::{PartitionBuffer, Sealed};
use super::ticket::BatchAck;
use super::window::{GivenUp, WindowEffect};
use crate::cluster::{Cluster, Route};
use crate::config::RouteMode;
use crate::connection::{Connection, Lane};
use crate::error::ClientError;
use crate::stream::{Answer, Reply, ReplyTo, Request, RequestLost, RequestStream};

/// One partition of a producer: shared by the handle, which appends, and the task, which delivers.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) cluster: Arc<Cluster>,
    pub(super) topic_name: Arc<str>,
    pub(super) topic: TopicId,
    pub(super) partition: PartitionId,
    pub(super) acks: Acks,
    /// Bytes that records may hold; a charge is given back when the batch has its fate.
    pub(super) buffer_bytes: Arc<Semaphore>,
    pub(super) buffer: Mutex<PartitionBuffer>,
    /// The handle has changed something.
    pub(super) changed: Notify,
    /// Set once, by the first record: the task runs.
    pub(super) started: AtomicBool,
    /// The handle is gone: the task ends when everything is delivered.
    pub(super) closed: AtomicBool,
}

impl Partition {
    pub(super) fn lock(&self) -> MutexGuard<'_, PartitionBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task if it does not run, and tells it to look.
    pub(super) fn wake(self: &Arc<Self>) {
        // Relaxed: the flag only picks who starts the task; the lock of the buffer orders what the
        // task sees.
        if !self.started.swap(true, Ordering::Relaxed) {
            tokio::spawn(deliver(Arc::clone(self)));
        }
        self.changed.notify_one();
    }

    fn give_up(&self, batches: impl IntoIterator<Item = GivenUp<Sealed>>) {
        let (topic, partition) = (&self.topic_name, self.partition.0);
        for (sealed, error) in batches {
            let definite = error.is_definite();
            tracing::warn!(%topic, partition, %error, definite, "batch given up");
            self.buffer_bytes.add_permits(sealed.charged_bytes);
            sealed.outcome.set(Err(error));
        }
    }

    fn acknowledge(&self, sealed: Sealed, ack: BatchAck) {
        self.buffer_bytes.add_permits(sealed.charged_bytes);
        sealed.outcome.set(Ok(ack));
    }
}

/// The way to the leader that the task found last.
struct Link {
    // Kept while its stream is used: dropping the last handle closes the connection.
    connection: Arc<Connection>,
    stream: Arc<RequestStream>,
    route: Route,
}

struct Delivery {
    partition: Arc<Partition>,
    link: Option<Link>,
    /// Version of the metadata that led nowhere.
    stale: Option<u64>,
    answers_in: mpsc::UnboundedSender<(u64, Result<Answer, RequestLost>)>,
    answers: mpsc::UnboundedReceiver<(u64, Result<Answer, RequestLost>)>,
    /// When something was last sent on a quiet way or last answered.
    progress_at: Instant,
}

async fn deliver(partition: Arc<Partition>) {
    let (answers_in, answers) = mpsc::unbounded_channel();
    let mut delivery = Delivery {
        partition,
        link: None,
        stale: None,
        answers_in,
        answers,
        progress_at: Instant::now(),
    };
    while delivery.step().await {}
}

impl Delivery {
    /// Carries out one effect, or waits. False once there will be nothing more to do.
    async fn step(&mut self) -> bool {
        let now = Instant::now();
        let (effect, in_flight) = {
            let mut buffer = self.partition.lock();
            self.partition.give_up(std::iter::from_fn(|| buffer.window.poll_expired(now)));
            let effect = buffer.poll_effect(now);
            // Under the lock: whoever appends later sees that the partition is closed.
            if buffer.is_empty() && self.partition.closed.load(Ordering::Acquire) {
                return false;
            }
            (effect, buffer.window.in_flight_count())
        };
        match effect {
            WindowEffect::Send { attempt, bytes } => {
                self.send(attempt, bytes, in_flight).await;
            }
            WindowEffect::NewProducer => self.renew_producer().await,
            WindowEffect::Wait(until) => self.wait(until, in_flight).await,
        }
        true
    }

    async fn send(&mut self, attempt: u64, batch: Bytes, in_flight: usize) {
        // A way that is not found in time is given up with the batch.
        let deadline = self.partition.lock().window.expiry().unwrap_or_else(Instant::now);
        let found = match timeout_at(deadline.into(), self.find_link(in_flight)).await {
            Ok(found) => found,
            Err(_) => Err(ClientError::RequestTimeout),
        };
        if let Err(error) = found {
            return self.handle_unsent(attempt, error);
        }
        let Some(link) = &self.link else { return };
        // Nothing else is looked at meanwhile, so it waits no longer than what is on its way may
        // take.
        let until = self.overdue_at(in_flight - 1).map_or(deadline, |at| at.min(deadline));
        let room = match timeout_at(until.into(), link.stream.room()).await {
            Ok(Ok(room)) => room,
            Ok(Err(lost)) => {
                self.stale = Some(link.route.version);
                return self.handle_unsent(attempt, lost.into());
            }
            Err(_) => return self.handle_unsent(attempt, ClientError::RequestTimeout),
        };
        let partition = &self.partition;
        let head = ProduceHead {
            topic: link.route.topic,
            partition: link.route.partition,
            leader_epoch: link.route.leader_epoch,
            acks: partition.acks,
            timeout_ms: partition.cluster.config().request_timeout.as_millis() as u32,
        };
        let request = Request {
            subscription: None,
            kind: RequestKind::Produce,
            head: head.encode().to_vec(),
            payload: batch,
            answered: partition.acks != Acks::None,
            reply: ReplyTo::many(attempt, self.answers_in.clone()),
        };
        room.send(request);
        if in_flight == 1 {
            self.progress_at = Instant::now();
        }
    }

    /// Keeps the link, or makes a new one if it is broken. Only the first batch on its way may
    /// change it, as batches on two ways could overtake one another.
    async fn find_link(&mut self, in_flight: usize) -> Result<(), ClientError> {
        let usable = self.link.as_ref().is_some_and(|link| {
            !link.stream.is_closed()
                && !link.connection.is_closed()
                && Some(link.route.version) != self.stale
        });
        if usable || (self.link.is_some() && in_flight > 1) {
            return Ok(());
        }
        if let Some(link) = self.link.take() {
            self.stale = Some(link.route.version);
        }
        let partition = &self.partition;
        let route =
            partition.cluster.route(&partition.topic_name, partition.partition, self.stale).await?;
        if route.topic != partition.topic {
            let message = format!("topic {} was created anew", partition.topic_name);
            return Err(ClientError::broker(ErrorCode::UnknownTopicId, message));
        }
        // Should the connection fail, the metadata that led to it counts as stale.
        self.stale = Some(route.version);
        let connection = partition.cluster.connection(&route).await?;
        let stream = connection.stream(Lane::Produce(route.topic, route.partition)).await?;
        self.stale = None;
        self.link = Some(Link { connection, stream, route });
        Ok(())
    }

    async fn renew_producer(&mut self) {
        let deadline = self.partition.lock().window.expiry().unwrap_or_else(Instant::now);
        let result = match timeout_at(deadline.into(), init_producer(&self.partition.cluster)).await
        {
            Ok(result) => result,
            Err(_) => Err(ClientError::RequestTimeout),
        };
        let now = Instant::now();
        let given_up = {
            let mut buffer = self.partition.lock();
            match result {
                Ok((id, epoch)) => {
                    let (topic, partition) =
                        (&self.partition.topic_name, self.partition.partition.0);
                    tracing::debug!(%topic, partition, producer = id.0, "new producer id");
                    buffer.window.handle_producer(id, epoch);
                    None
                }
                Err(error) => buffer.window.handle_no_producer(error, now),
            }
        };
        self.partition.give_up(given_up);
    }

    async fn wait(&mut self, until: Option<Instant>, in_flight: usize) {
        let overdue_at = self.overdue_at(in_flight);
        let wake_at = until.into_iter().chain(overdue_at).min();
        // An hour stands for ever: waking up once an hour costs nothing.
        let wake_at = wake_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            Some((attempt, answer)) = self.answers.recv() => {
                self.progress_at = Instant::now();
                self.handle_answer(attempt, answer);
                // Answers that are there already are taken before anything is sent.
                while let Ok((attempt, answer)) = self.answers.try_recv() {
                    self.handle_answer(attempt, answer);
                }
            }
            () = self.partition.changed.notified() => {}
            () = tokio::time::sleep_until(wake_at.into()) => {
                if overdue_at.is_some_and(|overdue_at| overdue_at <= Instant::now()) {
                    self.handle_overdue();
                }
            }
        }
    }

    /// When an answer must have come, with so many batches on their way.
    fn overdue_at(&self, in_flight: usize) -> Option<Instant> {
        // The broker answers TIMEOUT by itself; an answer that is overdue by half as much again is
        // not coming.
        let patience = self.partition.cluster.config().request_timeout.mul_f64(1.5);
        (in_flight > 0).then(|| self.progress_at + patience)
    }

    fn handle_overdue(&mut self) {
        let (topic, partition) = (&self.partition.topic_name, self.partition.partition.0);
        tracing::debug!(%topic, partition, "no answer from the leader");
        self.mark_stale();
        if let Some(link) = &self.link {
            link.connection.abandon();
        }
        let error = ClientError::RequestTimeout;
        let given_up = self.partition.lock().window.handle_all_lost(&error, Instant::now());
        self.partition.give_up(given_up);
    }

    fn handle_answer(&mut self, attempt: u64, answer: Result<Answer, RequestLost>) {
        match answer {
            Ok(Answer::Frame(reply)) => self.handle_reply(attempt, reply),
            Ok(Answer::Written) => {
                self.handle_acked(attempt, BatchAck::NONE);
            }
            Err(RequestLost { written }) => {
                self.mark_stale();
                let (error, now) = (ClientError::ConnectionLost, Instant::now());
                if written {
                    let given_up = self.partition.lock().window.handle_lost(attempt, error, now);
                    self.partition.give_up(given_up);
                } else {
                    self.handle_unsent(attempt, error);
                }
            }
        }
    }

    fn handle_reply(&mut self, attempt: u64, reply: Reply) {
        if let Some(shard) = reply.moved_to()
            && self.partition.cluster.config().route == RouteMode::Owner
            && self.link.as_ref().is_some_and(|link| link.route.shard != shard)
        {
            // The answer counts; what follows goes to the owner once nothing is under way here.
            self.mark_stale();
            self.partition.lock().window.drain();
        }
        let code = reply.header.error_code();
        match reply.into_body().and_then(|body| Ok(ProduceResponse::decode(&body)?)) {
            Ok(response) => {
                let ack = BatchAck {
                    base_offset: Some(response.base_offset),
                    timestamp: response.append_time,
                    flush: Some(response.flush),
                };
                self.handle_acked(attempt, ack);
            }
            Err(ClientError::Broker { message, retry_after, .. }) => {
                self.handle_refused(attempt, code, message, retry_after);
            }
            Err(error) => {
                // The broker has done something, but what it says cannot be read.
                let code = ErrorCode::Internal;
                self.handle_refused(attempt, code, error.to_string(), Duration::ZERO);
            }
        }
    }

    fn handle_acked(&self, attempt: u64, ack: BatchAck) {
        let acked = self.partition.lock().window.handle_acked(attempt);
        if let Some(sealed) = acked {
            self.partition.acknowledge(sealed, ack);
        }
    }

    fn handle_refused(
        &mut self,
        attempt: u64,
        code: ErrorCode,
        message: String,
        retry_after: Duration,
    ) {
        if matches!(
            code,
            ErrorCode::NotLeader
                | ErrorCode::FencedLeaderEpoch
                | ErrorCode::UnknownLeaderEpoch
                | ErrorCode::ShuttingDown
                | ErrorCode::Interrupted
        ) {
            self.mark_stale();
        }
        let now = Instant::now();
        let given_up = {
            let window = &mut self.partition.lock().window;
            window.handle_refused(attempt, code, message, retry_after, now)
        };
        self.partition.give_up(given_up);
    }

    fn handle_unsent(&self, attempt: u64, error: ClientError) {
        let given_up = self.partition.lock().window.handle_unsent(attempt, error, Instant::now());
        self.partition.give_up(given_up);
    }

    /// The metadata behind the link is out of date: the next batch that may, asks for fresh
    /// metadata.
    fn mark_stale(&mut self) {
        if let Some(link) = &self.link {
            self.stale = Some(link.route.version);
        }
    }
}

/// Gets a producer id from the cluster.
pub(super) async fn init_producer(
    cluster: &Cluster,
) -> Result<(ProducerId, ProducerEpoch), ClientError> {
    // An id that was handed out and lost on the way is no loss.
    let body = cluster.read(RequestKind::InitProducer, Vec::new()).await?;
    let response = InitProducerResponse::decode(&body)?;
    Ok((response.producer_id, response.producer_epoch))
}
