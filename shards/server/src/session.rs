//! One client: who it is, what it may have in flight, and where its requests go.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use quinn_proto::{ConnectionHandle, StreamId};
use rustls::pki_types::CertificateDer;
use rustmq_metadata::PrincipalId;
use rustmq_protocol::frame::{FrameFlags, FrameHeader, RequestKind, VersionRange};
use rustmq_protocol::{CorrelationId, ShardId};
use rustmq_sys::clock;

use crate::body::Body;
use crate::budget::Charge;
use crate::limits::{
    ANSWER_BYTES_MIN, REQUESTS_IN_FLIGHT_MAX, RETRY_AFTER_MEMORY_MS, SMALL_FRAME_BYTES,
    UNSENT_BYTES_MAX,
};
use crate::mesh::{Answer, Message};
use crate::notify::WaitList;
use crate::reply::{Reply, RequestError, Response};
use crate::shard::Shard;
use crate::subscribe::Subscription;
use crate::{catalogue, hello, metadata, offsets, subscribe};

/// One admitted client on one connection.
///
/// Lives on the shard that accepted the connection. It begins when the handshake and the admission
/// are done and ends with the connection; answers that come later are dropped.
pub(crate) struct Session {
    handle: ConnectionHandle,
    principal: PrincipalId,
    shard: Rc<Shard>,
    /// The protocol version agreed by Hello.
    version: Cell<Option<u8>>,
    outbox: RefCell<VecDeque<(StreamId, Reply)>>,
    /// Streams of the requests that were done since the connection was last driven.
    done: RefCell<VecDeque<StreamId>>,
    unsent_bytes: Cell<usize>,
    /// Bytes of its requests that are not answered.
    request_bytes: Arc<AtomicUsize>,
    /// Bytes of its answers that it has not acknowledged, and of those that fetches may be about to
    /// add.
    answer_bytes: Arc<AtomicUsize>,
    reserved_bytes: Arc<AtomicUsize>,
    /// Bytes that are read ahead for its subscriptions.
    ahead_bytes: Arc<AtomicUsize>,
    /// Bytes of all answers so far, and of those that it has acknowledged.
    answered_bytes: Cell<u64>,
    acknowledged_bytes: Cell<u64>,
    /// When it last acknowledged something, or had nothing to acknowledge.
    progress_at: Cell<Instant>,
    /// When it was let in.
    admitted_at: Instant,
    /// What it has subscribed to, by the request that began it.
    subscriptions: RefCell<BTreeMap<SubscriptionKey, Rc<Subscription>>>,
    /// Those of them that wait until more answers may be made for it, and ended ones among them.
    held_back: RefCell<VecDeque<Rc<Subscription>>>,
    drained: WaitList,
    in_flight: Cell<usize>,
    paused: Cell<bool>,
    /// The connection is queued to be driven.
    queued: Cell<bool>,
    ended: Cell<bool>,
}

/// One request, whoever sent it here.
pub(crate) struct Request {
    pub(crate) header: FrameHeader,
    pub(crate) body: Body,
    pub(crate) principal: PrincipalId,
    /// When its last byte arrived at this process.
    pub(crate) arrived: Instant,
    pub(crate) reply_to: ReplyTo,
}

/// Where the answer goes. Dropping it without an answer frees the request's place all the same.
pub(crate) enum ReplyTo {
    /// To a client of this shard.
    Client(ClientReply),
    /// To the shard that forwarded the request.
    Shard {
        /// The shard that the client is connected to.
        shard: ShardId,
        /// Its name for the request.
        ticket: u64,
    },
}

/// A client's place in flight: taken when the request is read, given back when this is dropped.
pub(crate) struct ClientReply {
    session: Rc<Session>,
    stream: StreamId,
    header: FrameHeader,
    /// More answers come than the one that this gives: the stream stays open for them.
    goes_on: Cell<bool>,
    /// The request's bytes.
    _charge: Charge,
    /// Bytes kept free for the answer.
    reserved: RefCell<Option<Charge>>,
}

/// The request that began a subscription: its stream, and its number there.
pub(crate) type SubscriptionKey = (StreamId, CorrelationId);

/// Where the answers of a subscription go. It takes no place in flight, but its stream stays open
/// until [`Self::finish`].
pub(crate) struct Subscriber {
    session: Rc<Session>,
    stream: StreamId,
    /// Of the request that began it.
    header: FrameHeader,
}

impl Session {
    /// The admission after every handshake: turns the peer's certificate into a principal, or
    /// says why the peer may not come in.
    pub(crate) fn admit(
        shard: &Rc<Shard>,
        handle: ConnectionHandle,
        quic: &quinn_proto::Connection,
        now: Instant,
    ) -> Result<Rc<Self>, String> {
        let identity = quic.crypto_session().peer_identity();
        let chain = identity
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or("the peer sent no certificate; this broker requires one")?;
        let leaf = chain.first().ok_or("the peer's certificate chain is empty")?;
        let principal = shard.intern_principal(leaf)?;
        Ok(Rc::new(Self {
            handle,
            principal,
            shard: Rc::clone(shard),
            version: Cell::new(None),
            outbox: RefCell::default(),
            done: RefCell::default(),
            unsent_bytes: Cell::new(0),
            request_bytes: Arc::default(),
            answer_bytes: Arc::default(),
            reserved_bytes: Arc::default(),
            ahead_bytes: Arc::default(),
            answered_bytes: Cell::new(0),
            acknowledged_bytes: Cell::new(0),
            progress_at: Cell::new(now),
            admitted_at: now,
            subscriptions: RefCell::default(),
            held_back: RefCell::default(),
            drained: WaitList::default(),
            in_flight: Cell::new(0),
            paused: Cell::new(false),
            queued: Cell::new(false),
            ended: Cell::new(false),
        }))
    }

    /// A whole frame arrived: it takes a place in flight.
    pub(crate) fn request(
        self: &Rc<Self>,
        stream: StreamId,
        header: FrameHeader,
        body: Body,
        now: Instant,
    ) -> Request {
        self.in_flight.set(self.in_flight.get() + 1);
        let reply_to = ReplyTo::Client(ClientReply {
            session: Rc::clone(self),
            stream,
            header,
            goes_on: Cell::new(false),
            _charge: self.shard.memory.requests.charge_to(&self.request_bytes, body.len()),
            reserved: RefCell::default(),
        });
        Request { header, body, principal: self.principal, arrived: now, reply_to }
    }

    /// Queues bytes for a stream.
    pub(crate) fn send(&self, stream: StreamId, reply: Reply) {
        if self.ended.get() {
            return;
        }
        self.unsent_bytes.set(self.unsent_bytes.get() + reply.len());
        self.outbox.borrow_mut().push_back((stream, reply));
        self.wake();
    }

    /// Waits until an answer of up to `bytes` may be made, and keeps them free: as many of them as
    /// the client's share allows.
    async fn reserve(&self, bytes: usize) -> Charge {
        self.drained.until(|| (self.may_hold_more() || self.ended.get()).then_some(())).await;
        self.reserve_now(bytes)
    }

    /// Keeps bytes free for an answer: as many of `bytes` as the client's share allows. The caller
    /// has asked whether it may hold more.
    pub(crate) fn reserve_now(&self, bytes: usize) -> Charge {
        let answers = &self.shard.memory.answers;
        let bytes = bytes.min(answers.share().max(ANSWER_BYTES_MIN));
        answers.charge_to(&self.reserved_bytes, bytes)
    }

    /// Takes memory for reading ahead, if the client may have more of it.
    pub(crate) fn reserve_ahead(&self, bytes: usize) -> Option<Charge> {
        let budget = &self.shard.memory.read_ahead;
        let held = self.ahead_bytes.load(Ordering::Relaxed);
        (held + bytes <= budget.share()).then(|| budget.charge_to(&self.ahead_bytes, bytes))
    }

    fn charge_answer(&self, bytes: usize) -> Charge {
        self.answered_bytes.set(self.answered_bytes.get() + bytes as u64);
        self.shard.memory.answers.charge_to(&self.answer_bytes, bytes)
    }

    /// May answers be made for this client beyond those that it has not acknowledged? One always may.
    pub(crate) fn may_hold_more(&self) -> bool {
        let held =
            self.answer_bytes.load(Ordering::Relaxed) + self.reserved_bytes.load(Ordering::Relaxed);
        self.unsent_bytes.get() < UNSENT_BYTES_MAX
            && (held == 0 || held < self.shard.memory.answers.share())
    }

    /// The next queued answer, for the connection to write.
    pub(crate) fn take_reply(&self) -> Option<(StreamId, Reply)> {
        self.outbox.borrow_mut().pop_front()
    }

    /// `bytes` of answers were handed to the transport.
    pub(crate) fn handle_sent(&self, bytes: usize) {
        self.unsent_bytes.set(self.unsent_bytes.get() - bytes);
        self.handle_drained();
        self.resume();
    }

    /// The peer's acknowledgements were taken in: what it no longer holds is free for others.
    pub(crate) fn handle_acknowledged(&self, now: Instant) {
        let held = self.answer_bytes.load(Ordering::Relaxed);
        let acknowledged = self.answered_bytes.get() - held as u64;
        if acknowledged != self.acknowledged_bytes.replace(acknowledged) {
            self.progress_at.set(now);
            self.handle_drained();
        }
    }

    /// The client holds less than before: those who wait for that look again.
    pub(crate) fn handle_drained(&self) {
        self.drained.wake_all();
        self.let_one_go();
    }

    /// Lets the next subscription go on that waits for the client; it lets the next one go in turn.
    pub(crate) fn let_one_go(&self) {
        while self.may_hold_more() {
            let Some(next) = self.held_back.borrow_mut().pop_front() else { return };
            if next.look_again() {
                return;
            }
        }
    }

    /// Keeps a subscription until the client holds less.
    pub(crate) fn hold_back(&self, subscription: Rc<Subscription>) {
        let mut held_back = self.held_back.borrow_mut();
        // Those that have ended meanwhile are not counted among the open ones.
        if 2 * (self.subscriptions.borrow().len() + 1) < held_back.len() {
            held_back.retain(|held| !held.is_ended());
        }
        held_back.push_back(subscription);
    }

    /// How many subscriptions are open.
    pub(crate) fn subscription_count(&self) -> usize {
        self.subscriptions.borrow().len()
    }

    /// The subscription that a request began.
    pub(crate) fn subscription(&self, key: SubscriptionKey) -> Option<Rc<Subscription>> {
        self.subscriptions.borrow().get(&key).cloned()
    }

    /// A subscription is open.
    pub(crate) fn add_subscription(&self, key: SubscriptionKey, subscription: Rc<Subscription>) {
        let before = self.subscriptions.borrow_mut().insert(key, subscription);
        assert!(before.is_none(), "one subscription for each request");
    }

    /// A subscription has ended.
    pub(crate) fn remove_subscription(&self, key: SubscriptionKey) {
        self.subscriptions.borrow_mut().remove(&key);
    }

    /// The subscriptions that a stream carries.
    pub(crate) fn subscriptions_of(&self, stream: StreamId) -> Vec<Rc<Subscription>> {
        let range = (stream, CorrelationId(0))..=(stream, CorrelationId(u32::MAX));
        let subscriptions = self.subscriptions.borrow();
        subscriptions.range(range).map(|(_, subscription)| Rc::clone(subscription)).collect()
    }

    /// Since when the client has not acknowledged anything of what it was sent; `None` if all is
    /// acknowledged.
    pub(crate) fn unread_since(&self) -> Option<Instant> {
        (0 < self.answer_bytes.load(Ordering::Relaxed)).then(|| self.progress_at.get())
    }

    /// The shard that it is connected to.
    pub(crate) fn shard(&self) -> &Shard {
        &self.shard
    }

    /// When the client was let in.
    pub(crate) fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    /// May another of its requests be read?
    pub(crate) fn may_read(&self) -> bool {
        let held = self.request_bytes.load(Ordering::Relaxed);
        self.in_flight.get() < REQUESTS_IN_FLIGHT_MAX
            && self.unsent_bytes.get() < UNSENT_BYTES_MAX
            && (held == 0 || held < self.shard.memory.requests.share())
    }

    /// The stream of a request that was answered, or that gets no answer.
    pub(crate) fn take_done(&self) -> Option<StreamId> {
        self.done.borrow_mut().pop_front()
    }

    /// Requests that are not answered yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Bytes of answers that the transport has not taken yet.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes.get()
    }

    /// Reading has stopped at a limit: wake the connection once it is under again.
    pub(crate) fn pause(&self) {
        self.paused.set(true);
    }

    /// Has reading stopped at a limit?
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// The connection is being driven now.
    pub(crate) fn driven(&self) {
        self.queued.set(false);
    }

    /// None of the connection's frames will get whole any more.
    pub(crate) fn finished_frames(&self) {
        self.shard.memory.finished(self.handle);
        wake_starved(&self.shard);
    }

    /// The connection is gone.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        self.outbox.borrow_mut().clear();
        self.done.borrow_mut().clear();
        let subscriptions = self.subscriptions.take();
        for subscription in subscriptions.values() {
            subscription.forget();
        }
        self.held_back.borrow_mut().clear();
        self.drained.wake_all();
        self.shard.session_ended.set(true);
    }

    /// The version that Hello agreed on, if it came.
    pub(crate) fn version(&self) -> Option<u8> {
        self.version.get()
    }

    /// Hello agreed on a version.
    pub(crate) fn set_version(&self, version: u8) {
        self.version.set(Some(version));
    }

    /// A request was answered, or gets no answer.
    fn finish_request(&self, stream: StreamId) {
        if !self.ended.get() {
            self.done.borrow_mut().push_back(stream);
            self.wake();
        }
    }

    /// Sends an answer, for which the client is charged.
    fn answer(&self, stream: StreamId, header: FrameHeader, response: Response) {
        let mut reply = Reply::frame(header, response);
        if self.answer_bytes.load(Ordering::Relaxed) == 0 {
            // From now on there is something to acknowledge.
            self.progress_at.set(clock::now());
        }
        reply.charge(|bytes| self.charge_answer(bytes));
        self.send(stream, reply);
    }

    fn resume(&self) {
        if self.paused.get() && self.may_read() {
            self.paused.set(false);
            self.wake();
        }
    }

    fn wake(&self) {
        if !self.queued.replace(true) {
            self.shard.endpoint.mark_dirty(self.handle);
        }
    }
}

impl ClientReply {
    /// Answers the client. `moved` names the owner when another shard did the work.
    pub(crate) fn send(&self, response: Response, moved: Option<ShardId>) {
        let header = self.header.response(response.status);
        let header = match moved {
            Some(owner) => header.moved_to(owner),
            None => header,
        };
        self.session.answer(self.stream, header, response);
    }

    /// The session of the client.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// What the subscription that this request begins, or speaks of, is known by.
    pub(crate) fn subscription_key(&self) -> SubscriptionKey {
        (self.stream, self.header.correlation)
    }

    /// Turns the request into where the answers of a subscription go.
    pub(crate) fn into_subscriber(self) -> Subscriber {
        self.goes_on.set(true);
        let session = Rc::clone(&self.session);
        Subscriber { session, stream: self.stream, header: self.header }
    }

    fn give_back(&self) {
        if self.reserved.take().is_some() {
            self.session.handle_drained();
        }
    }
}

impl Subscriber {
    /// Sends an answer that others will follow.
    pub(crate) fn send(&self, response: Response) {
        let header = self.header.response(response.status).with_more();
        self.session.answer(self.stream, header, response);
    }

    /// Sends the last answer.
    pub(crate) fn finish(&self, response: Response) {
        let header = self.header.response(response.status);
        self.session.answer(self.stream, header, response);
        self.session.finish_request(self.stream);
    }

    /// The session of the client.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// What the subscription is known by.
    pub(crate) fn key(&self) -> SubscriptionKey {
        (self.stream, self.header.correlation)
    }
}

impl Drop for ClientReply {
    fn drop(&mut self) {
        self.give_back();
        let session = &self.session;
        session.in_flight.set(session.in_flight.get() - 1);
        wake_starved(&session.shard);
        if !self.goes_on.get() {
            session.finish_request(self.stream);
        }
        session.resume();
    }
}

/// Connections that wait for memory look again: a request has given its own back, or time has passed.
pub(crate) fn wake_starved(shard: &Shard) {
    while let Some(connection) = shard.memory.take_starved() {
        shard.endpoint.mark_dirty(connection);
    }
}

impl ReplyTo {
    /// Waits until a large answer may be made for a client of this shard, and gives how large it may
    /// be: at most `bytes`. A client that does not read costs no more than its share. The place is
    /// given back with [`Self::give_back`], or with the request. The shard that forwarded a request
    /// has reserved for it.
    pub(crate) async fn reserve(&self, bytes: usize) -> usize {
        let Self::Client(client) = self else { return bytes };
        let reserved = client.session.reserve(bytes).await;
        let bytes = reserved.bytes();
        client.reserved.replace(Some(reserved));
        bytes
    }

    /// The answer is made, or there is none yet.
    pub(crate) fn give_back(&self) {
        if let Self::Client(client) = self {
            client.give_back();
        }
    }

    /// Has the client gone, so that no answer will be read?
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Client(client) => client.session.ended.get(),
            Self::Shard { .. } => false,
        }
    }

    /// A number that tells those who wait for answers apart.
    pub(crate) fn key(&self) -> u64 {
        match self {
            Self::Client(client) => client.session.handle.0 as u64,
            Self::Shard { shard, .. } => u64::MAX - u64::from(shard.0),
        }
    }
}

impl Request {
    /// Answers the request, wherever it came from.
    pub(crate) fn answer(self, shard: &Shard, response: Response) {
        match self.reply_to {
            ReplyTo::Client(client) => client.send(response, None),
            ReplyTo::Shard { shard: origin, ticket } => {
                let answer = Answer { ticket, response };
                shard.mesh.send(origin, Message::Answer(Box::new(answer)));
            }
        }
    }

    /// Ends a request that gets no answer.
    pub(crate) fn end(self, shard: &Shard) {
        if let ReplyTo::Shard { shard: origin, ticket } = self.reply_to {
            shard.mesh.send(origin, Message::Ended { ticket });
        }
    }

    /// Refuses the request.
    pub(crate) fn refuse(self, shard: &Shard, error: &RequestError) {
        shard.metrics.borrow_mut().count_refused(error.code());
        match (&self.reply_to, error) {
            (ReplyTo::Client(client), RequestError::Elsewhere { owner }) => {
                client.send(error.response(), Some(*owner));
            }
            _ => self.answer(shard, error.response()),
        }
    }
}

/// Hands a request to the function that serves its kind.
pub(crate) fn dispatch(shard: &Rc<Shard>, request: Request) {
    let kind = match check(shard, &request) {
        Ok(kind) => kind,
        Err(error) => return request.refuse(shard, &error),
    };
    match kind {
        RequestKind::Hello => hello::hello(shard, request),
        RequestKind::Produce => (shard.spawn_produce)(Rc::clone(shard), request),
        RequestKind::Fetch => (shard.spawn_fetch)(Rc::clone(shard), request),
        RequestKind::ListOffsets => offsets::spawn(shard, request),
        RequestKind::Subscribe => subscribe::subscribe(shard, request),
        RequestKind::Credit => subscribe::credit(shard, request),
        RequestKind::Metadata => metadata::metadata(shard, request),
        RequestKind::ListTopics => metadata::list_topics(shard, request),
        RequestKind::CreateTopic | RequestKind::DeleteTopic | RequestKind::InitProducer => {
            catalogue::spawn(shard, request);
        }
    }
}

/// Is this frame one that may come now, in the version agreed?
fn check(shard: &Shard, request: &Request) -> Result<RequestKind, RequestError> {
    let header = &request.header;
    let kind = RequestKind::from_u16(header.kind)
        .ok_or(RequestError::UnknownRequest { kind: header.kind })?;
    if header.flags != FrameFlags::NONE {
        return Err(RequestError::UnexpectedFlags { flags: header.flags.bits() });
    }
    let ReplyTo::Client(client) = &request.reply_to else {
        return Ok(kind);
    };
    // Small requests have a quarter more: whoever says Hello or asks for metadata gets in.
    let requests = &shard.memory.requests;
    let is_small = request.body.len() <= SMALL_FRAME_BYTES;
    if requests.is_exceeded() && !(is_small && requests.used() < requests.bytes_max() * 5 / 4) {
        let what = "too many bytes of requests are being worked on";
        return Err(RequestError::Throttled { what, retry_after_ms: RETRY_AFTER_MEMORY_MS });
    }
    match client.session().version() {
        None if kind != RequestKind::Hello => Err(RequestError::HelloRequired),
        // Hello has the same layout in every version, and always the first in its header.
        _ if kind == RequestKind::Hello => Ok(kind),
        Some(version) if version != header.version => Err(RequestError::UnsupportedVersion {
            supported: VersionRange { min: version, max: version },
        }),
        Some(version) if version < kind.version_min() => {
            Err(RequestError::UnknownRequest { kind: header.kind })
        }
        _ => Ok(kind),
    }
}
