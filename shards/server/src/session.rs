//! One client: who it is, what it may have in flight, and where its requests go.

mod dispatch;
mod request;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use quinn_proto::{ConnectionHandle, StreamId};
use rustls::pki_types::CertificateDer;
use rustmq_metadata::PrincipalId;
use rustmq_protocol::CorrelationId;
use rustmq_protocol::frame::FrameHeader;
use rustmq_sys::clock;

use crate::budget::Charge;
use crate::limits::{ANSWER_BYTES_MIN, REQUESTS_IN_FLIGHT_MAX, UNSENT_BYTES_MAX};
use crate::notify::WaitList;
use crate::reply::{Reply, Response};
use crate::shard::Shard;
use crate::subscribe::Subscription;

pub(crate) use self::dispatch::dispatch;
pub(crate) use self::request::{ClientReply, ReplyTo, Request, Subscriber, SubscriptionKey, task};

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

/// Connections that wait for memory look again: a request has given its own back, or time has passed.
pub(crate) fn wake_starved(shard: &Shard) {
    while let Some(connection) = shard.memory.take_starved() {
        shard.endpoint.mark_dirty(connection);
    }
}
