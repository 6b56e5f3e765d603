//! One bidirectional stream: a task that writes requests and a task that reads answers.
//!
//! Requests are pipelined. Many small ones that wait together leave in one write. Whatever happens
//! to the stream, every request gets exactly one answer: the frame, or [`RequestLost`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use rustmq_protocol::{
    CorrelationId, ErrorCode, FRAME_HEADER_BYTES, FrameFlags, FrameHeader, RequestKind, ShardId,
};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

use crate::error::ClientError;

/// Requests that wait to be written to one stream. At the limit [`RequestStream::submit`] waits.
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

    fn answer(mut self, answer: Answer) {
        self.send(Ok(answer));
    }

    fn send(&mut self, result: Result<Answer, RequestLost>) {
        // Whoever does not wait any longer does not want to know.
        match self.destination.take() {
            Some(Destination::One(sender)) => drop(sender.send(result)),
            Some(Destination::Many(number, sender)) => drop(sender.send((number, result))),
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
    /// Starts both tasks.
    pub(crate) fn start(send: SendStream, recv: RecvStream) -> RequestStream {
        let (queue, requests) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let waiting = Arc::new(Waiting { replies: Mutex::new(Some(HashMap::new())) });
        tokio::spawn(write_requests(requests, send, Arc::clone(&waiting)));
        tokio::spawn(read_answers(recv, Arc::clone(&waiting)));
        RequestStream { queue, waiting }
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

    fn close(&self) {
        let replies = self.lock().take();
        // Outside the lock: the waiters are woken here.
        drop(replies);
    }
}

async fn write_requests(
    mut requests: mpsc::Receiver<Request>,
    mut send: SendStream,
    waiting: Arc<Waiting>,
) {
    let mut correlation = CorrelationId(0);
    let mut together = Vec::with_capacity(REQUESTS_PER_WRITE_MAX);
    let mut unanswered = Vec::new();
    let mut chunks = Vec::new();
    let mut small = BytesMut::new();
    while requests.recv_many(&mut together, REQUESTS_PER_WRITE_MAX).await > 0 {
        for mut request in together.drain(..) {
            request.reply.written = true;
            correlation = CorrelationId(correlation.0.wrapping_add(1));
            let body_bytes = request.head.len() + request.payload.len();
            let header =
                FrameHeader::request(request.kind, correlation).with_body_bytes(body_bytes);
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

async fn read_answers(mut recv: RecvStream, waiting: Arc<Waiting>) {
    match read_until_end(&mut recv, &waiting).await {
        ReadEnd::Closed(error) => tracing::debug!(%error, "stream from the broker ended"),
        ReadEnd::Malformed(error) => tracing::warn!(%error, "broker sent a malformed frame"),
        ReadEnd::NotAResponse => tracing::warn!("broker sent a frame that is no response"),
    }
    // It fails if the stream is closed already.
    drop(recv.stop(quinn::VarInt::from_u32(0)));
    waiting.close();
}

async fn read_until_end(recv: &mut RecvStream, waiting: &Waiting) -> ReadEnd {
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
            // Nobody waits any longer for an answer that came after its time.
            if let Some(reply) = waiting.remove(header.correlation) {
                reply.answer(Answer::Frame(Reply { header, body }));
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
