//! One bidirectional stream: a task that writes requests and a task that reads answers.
//!
//! Requests are pipelined. Many small ones that wait together leave in one write. Whatever happens
//! to the stream, every request gets exactly one answer: the frame, or [`RequestLost`]. A
//! subscription gets as many as it has, and one of these two as its last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use rustmq_protocol::{
    CorrelationId, Credit, ErrorCode, FRAME_HEADER_BYTES, FrameFlags, FrameHeader, RequestKind,
    ShardId,
};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use crate::error::ClientError;

/// Requests that wait to be written to one stream. At the limit [`RequestStream::room`] and
/// [`RequestStream::submit`] wait.
const REQUESTS_QUEUED_MAX: usize = 256;

/// Requests that leave in one write.
const REQUESTS_PER_WRITE_MAX: usize = 64;

/// Payloads up to here are copied next to their head: cheaper than a chunk of their own in the send
/// buffer.
const PAYLOAD_COPY_BYTES_MAX: usize = 4096;

/// Bytes to make room for at a time. 64 KiB: one train of datagrams.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Room that is worth a read. Below it a new buffer is made, as the answers in the old one are
/// still in use.
const READ_ROOM_BYTES_MIN: usize = 4 << 10;

/// A request on its way to the wire.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kind: RequestKind,
    /// Of the subscription that it is about; other requests get a number of their own.
    pub(crate) subscription: Option<CorrelationId>,
    /// The body, up to where the payload begins.
    pub(crate) head: Vec<u8>,
    /// The rest of the body; empty for most kinds.
    pub(crate) payload: Bytes,
    /// False if the broker will not answer; then it is [`Answer::Written`].
    pub(crate) answered: bool,
    pub(crate) reply: ReplyTo,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The broker answered.
    Frame(Reply),
    /// No answer was asked for, and the request was handed to QUIC.
    Written,
}

/// An answer of the broker.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: FrameHeader,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body, or the error that the broker answered with.
    pub(crate) fn into_body(self) -> Result<Bytes, ClientError> {
        match self.header.error_code() {
            ErrorCode::Ok => Ok(self.body),
            code => Err(ClientError::answered(code, &self.body)),
        }
    }

    /// The shard that owns the partition, if the request was forwarded to it.
    pub(crate) fn moved_to(&self) -> Option<ShardId> {
        self.header.flags.contains(FrameFlags::MOVED).then_some(self.header.shard)
    }
}

/// The stream ended before the answer came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestLost {
    /// False if nothing of the request was handed to QUIC: then the broker has not seen it.
    pub(crate) written: bool,
}

impl From<RequestLost> for ClientError {
    fn from(_lost: RequestLost) -> ClientError {
        ClientError::ConnectionLost
    }
}

/// Where an answer goes. Dropped unanswered, it reports the request as lost.
#[derive(Debug)]
pub(crate) struct ReplyTo {
    destination: Option<Destination>,
    written: bool,
}

#[derive(Debug)]
enum Destination {
    One(oneshot::Sender<Result<Answer, RequestLost>>),
    // Holds at most as many answers as its owner has requests in flight.
    Many(u64, mpsc::UnboundedSender<(u64, Result<Answer, RequestLost>)>),
    // Holds at most as many bytes as its owner has granted.
    Subscription(mpsc::UnboundedSender<Result<Answer, RequestLost>>),
}

impl ReplyTo {
    /// To one waiter.
    pub(crate) fn one() -> (ReplyTo, oneshot::Receiver<Result<Answer, RequestLost>>) {
        let (sender, receiver) = oneshot::channel();
        (ReplyTo { destination: Some(Destination::One(sender)), written: false }, receiver)
    }

    /// To a task that has many requests in flight and knows them by number.
    pub(crate) fn many(
        number: u64,
        sender: mpsc::UnboundedSender<(u64, Result<Answer, RequestLost>)>,
    ) -> ReplyTo {
        ReplyTo { destination: Some(Destination::Many(number, sender)), written: false }
    }

    /// Hands on an answer that others follow. False if it is not wanted any more: then no other is
    /// handed on.
    fn answer_more(&mut self, reply: Reply) -> bool {
        let Some(Destination::Subscription(sender)) = &self.destination else { return true };
        let wanted = sender.send(Ok(Answer::Frame(reply))).is_ok();
        if !wanted {
            self.destination = None;
        }
        wanted
    }

    fn answer(mut self, answer: Answer) {
        self.send(Ok(answer));
    }

    fn send(&mut self, result: Result<Answer, RequestLost>) {
        // Whoever does not wait any longer does not want to know.
        match self.destination.take() {
            Some(Destination::One(sender)) => drop(sender.send(result)),
            Some(Destination::Many(number, sender)) => drop(sender.send((number, result))),
            Some(Destination::Subscription(sender)) => drop(sender.send(result)),
            None => {}
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.send(Err(RequestLost { written: self.written }));
    }
}

/// The handle of a stream. When the last one is dropped, the stream is finished after its last
/// answer.
#[derive(Debug)]
pub(crate) struct RequestStream {
    queue: mpsc::Sender<Request>,
    waiting: Arc<Waiting>,
}

impl RequestStream {
    /// Starts both tasks. Requests other than `Hello` have this version.
    pub(crate) fn start(
        send: SendStream,
        recv: RecvStream,
        version: Arc<AtomicU8>,
    ) -> RequestStream {
        let (queue, requests) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let waiting = Arc::new(Waiting { replies: Mutex::new(Some(HashMap::new())) });
        tokio::spawn(write_requests(requests, send, version, Arc::clone(&waiting)));
        tokio::spawn(read_answers(recv, queue.downgrade(), Arc::clone(&waiting)));
        RequestStream { queue, waiting }
    }

    /// Subscribes, with this body.
    pub(crate) async fn subscribe(self: Arc<Self>, body: Vec<u8>) -> Subscription {
        let (sender, answers) = mpsc::unbounded_channel();
        let reply =
            ReplyTo { destination: Some(Destination::Subscription(sender)), written: false };
        let (kind, payload) = (RequestKind::Subscribe, Bytes::new());
        let request =
            Request { kind, subscription: None, head: body, payload, answered: true, reply };
        self.submit(request).await;
        Subscription { stream: self, answers, number: None }
    }

    /// Waits until there is room for a request, which is then handed over by sending it there.
    pub(crate) async fn room(&self) -> Result<mpsc::Permit<'_, Request>, RequestLost> {
        self.queue.reserve().await.map_err(|_| RequestLost { written: false })
    }

    /// Hands over a request. The answer goes where the request says, even if the stream is closed.
    pub(crate) async fn submit(&self, request: Request) {
        // A request that is not taken is dropped, and so reported as lost.
        drop(self.queue.send(request).await);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed() || self.waiting.lock().is_none()
    }
}

/// A subscription. Dropped before its last answer, it tells the broker that no more is wanted.
#[derive(Debug)]
pub(crate) struct Subscription {
    stream: Arc<RequestStream>,
    answers: mpsc::UnboundedReceiver<Result<Answer, RequestLost>>,
    /// Known from the first answer until the last.
    number: Option<CorrelationId>,
}

impl Subscription {
    /// The next answer; it says whether others follow.
    pub(crate) async fn next(&mut self) -> Result<Reply, RequestLost> {
        match self.answers.recv().await {
            Some(Ok(Answer::Frame(reply))) => {
                let more = reply.header.flags.contains(FrameFlags::MORE);
                self.number = more.then_some(reply.header.correlation);
                Ok(reply)
            }
            other => {
                self.number = None;
                Err(match other {
                    Some(Err(lost)) => lost,
                    _ => RequestLost { written: true },
                })
            }
        }
    }

    /// Lets the broker send so many bytes more. Nothing before the first answer.
    pub(crate) async fn grant(&self, bytes: u32) {
        if let Some(number) = self.number {
            self.stream.submit(credit(number, Credit::More { bytes })).await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // If there is no room, or it has no number yet, its next answer finds that nobody waits.
            drop(self.stream.queue.try_send(credit(number, Credit::End)));
        }
    }
}

fn credit(number: CorrelationId, credit: Credit) -> Request {
    let mut head = Vec::new();
    credit.encode(&mut head);
    Request {
        kind: RequestKind::Credit,
        subscription: Some(number),
        head,
        payload: Bytes::new(),
        answered: false,
        reply: ReplyTo { destination: None, written: false },
    }
}

/// Who waits for which correlation id; `None` once the stream is closed.
#[derive(Debug)]
struct Waiting {
    replies: Mutex<Option<HashMap<CorrelationId, ReplyTo>>>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<CorrelationId, ReplyTo>>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, correlation: CorrelationId, reply: ReplyTo) {
        if let Some(replies) = self.lock().as_mut() {
            replies.insert(correlation, reply);
        }
    }

    fn remove(&self, correlation: CorrelationId) -> Option<ReplyTo> {
        self.lock().as_mut()?.remove(&correlation)
    }

    /// Hands on an answer that others follow. False the first time that nobody wants it.
    fn answer_more(&self, reply: Reply) -> bool {
        let mut replies = self.lock();
        let waiter = replies.as_mut().and_then(|all| all.get_mut(&reply.header.correlation));
        waiter.is_none_or(|waiter| waiter.answer_more(reply))
    }

    fn close(&self) {
        let replies = self.lock().take();
        // Outside the lock: the waiters are woken here.
        drop(replies);
    }
}

async fn write_requests(
    mut requests: mpsc::Receiver<Request>,
    mut send: SendStream,
    version: Arc<AtomicU8>,
    waiting: Arc<Waiting>,
) {
    let mut last = CorrelationId(0);
    let mut together = Vec::with_capacity(REQUESTS_PER_WRITE_MAX);
    let mut unanswered = Vec::new();
    let mut chunks = Vec::new();
    let mut small = BytesMut::new();
    while requests.recv_many(&mut together, REQUESTS_PER_WRITE_MAX).await > 0 {
        for mut request in together.drain(..) {
            request.reply.written = true;
            let correlation = request.subscription.unwrap_or_else(|| {
                last = CorrelationId(last.0.wrapping_add(1));
                last
            });
            let body_bytes = request.head.len() + request.payload.len();
            let header =
                FrameHeader::request(request.kind, correlation).with_body_bytes(body_bytes);
            let header = match request.kind {
                RequestKind::Hello => header,
                // Whoever asks has the answer to Hello, and with it this value.
                _ => header.in_version(version.load(Ordering::Relaxed)),
            };
            small.extend_from_slice(&header.encode());
            small.extend_from_slice(&request.head);
            if request.payload.len() <= PAYLOAD_COPY_BYTES_MAX {
                small.extend_from_slice(&request.payload);
            } else {
                chunks.push(small.split().freeze());
                chunks.push(request.payload);
            }
            if request.answered {
                waiting.insert(correlation, request.reply);
            } else {
                unanswered.push(request.reply);
            }
        }
        if !small.is_empty() {
            chunks.push(small.split().freeze());
        }
        if let Err(error) = send.write_all_chunks(&mut chunks).await {
            tracing::debug!(%error, "stream to the broker cannot be written");
            waiting.close();
            return;
        }
        chunks.clear();
        for reply in unanswered.drain(..) {
            reply.answer(Answer::Written);
        }
    }
    // It fails if the stream is closed already.
    drop(send.finish());
}

/// Why reading ended.
enum ReadEnd {
    Closed(std::io::Error),
    Malformed(rustmq_protocol::FrameError),
    NotAResponse,
}

async fn read_answers(
    mut recv: RecvStream,
    queue: mpsc::WeakSender<Request>,
    waiting: Arc<Waiting>,
) {
    match read_until_end(&mut recv, &queue, &waiting).await {
        ReadEnd::Closed(error) => tracing::debug!(%error, "stream from the broker ended"),
        ReadEnd::Malformed(error) => tracing::warn!(%error, "broker sent a malformed frame"),
        ReadEnd::NotAResponse => tracing::warn!("broker sent a frame that is no response"),
    }
    // It fails if the stream is closed already.
    drop(recv.stop(quinn::VarInt::from_u32(0)));
    waiting.close();
}

async fn read_until_end(
    recv: &mut RecvStream,
    queue: &mpsc::WeakSender<Request>,
    waiting: &Waiting,
) -> ReadEnd {
    let mut buffer = BytesMut::new();
    loop {
        let mut missing = FRAME_HEADER_BYTES;
        while let Some(bytes) = buffer.first_chunk() {
            let header = match FrameHeader::decode(bytes) {
                Ok(header) => header,
                Err(error) => return ReadEnd::Malformed(error),
            };
            if !header.flags.contains(FrameFlags::RESPONSE) {
                return ReadEnd::NotAResponse;
            }
            let frame_bytes = header.length as usize;
            if buffer.len() < frame_bytes {
                missing = frame_bytes - buffer.len();
                break;
            }
            let mut frame = buffer.split_to(frame_bytes);
            let body = frame.split_off(FRAME_HEADER_BYTES).freeze();
            let reply = Reply { header, body };
            if header.flags.contains(FrameFlags::MORE) {
                if !waiting.answer_more(reply)
                    && let Some(queue) = queue.upgrade()
                {
                    // If there is no room it is sent until the credit is used up.
                    drop(queue.try_send(credit(header.correlation, Credit::End)));
                }
                continue;
            }
            // Nobody waits any longer for an answer that came after its time.
            if let Some(waiter) = waiting.remove(header.correlation) {
                waiter.answer(Answer::Frame(reply));
            }
        }
        if buffer.capacity() - buffer.len() < missing.max(READ_ROOM_BYTES_MIN) {
            buffer.reserve(missing.max(READ_BUFFER_BYTES));
        }
        match recv.read_buf(&mut buffer).await {
            Ok(0) => return ReadEnd::Closed(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return ReadEnd::Closed(error),
        }
    }
}
