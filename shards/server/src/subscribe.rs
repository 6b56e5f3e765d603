//! Subscriptions: batches go to a client as they come, for as long as it gives credit.
//!
//! ```text
//! Subscribe ─▶ queued ◀───────────────────────────── look again ◀──┐
//!                │ serve: what comes next?                         │
//!                ├─ it is in the hot cache ─▶ sent, queued again   │
//!                ├─ it was read ahead ─▶ sent, queued again        │
//!                │       └─ a task reads on, if little is left     │
//!                ├─ on the disk ─▶ read by a task, one answer ─────┤
//!                ├─ nothing ─▶ waits for records, until a flush ───┤
//!                ├─ no credit ─▶ waits for credit ─────────────────┤
//!                └─ the client holds its share ─▶ until it reads ──┘
//! ```
//!
//! One that waits is an entry in a list: it has no task and no timer. One task serves all of a shard
//! that are queued. What comes next is for the engine to say. What has been read ahead of a consumer is
//! dropped when its subscription ends, and never sent without asking the engine.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use quinn_proto::StreamId;
use rustmq_engine::subscription::{Next, TooMuchCredit};
use rustmq_metadata::{Operation, PrincipalId};
use rustmq_protocol::limits::CREDIT_BYTES_MAX;
use rustmq_protocol::requests::subscribe::{CREDIT_BYTES, SUBSCRIBE_BYTES};
use rustmq_protocol::{Credit, ErrorCode, FetchResponseHead, Offset, Subscribe, SubscriptionEnd};
use rustmq_sys::{clock, runtime};

use crate::budget::Charge;
use crate::fetch;
use crate::limits::{
    READ_AHEAD_BYTES, SUBSCRIPTION_BYTES, SUBSCRIPTIONS_PER_CONNECTION_MAX,
    SUBSCRIPTIONS_PER_SLICE_MAX,
};
use crate::metrics::Stage;
use crate::notify::Notify;
use crate::read::{self, Found};
use crate::read_ahead::ReadAhead;
use crate::reply::{RequestError, Response};
use crate::route::Route;
use crate::session::{ReplyTo, Request, Session, Subscriber};
use crate::shard::Shard;

/// One client's standing order for the records of one partition of this shard.
///
/// It begins with a Subscribe that is let in, and ends when the client says so, when its stream or
/// connection ends, or with an error; from then on it is in neither its session nor its partition.
pub(crate) struct Subscription {
    subscriber: Subscriber,
    principal: PrincipalId,
    /// The partition's number.
    tag: u32,
    /// Where it is listed at its partition, and at which place.
    listed_in: Rc<Subscribers>,
    place: Cell<usize>,
    progress: Cell<rustmq_engine::Subscription>,
    state: Cell<State>,
    /// What was read from the disk and not sent; most subscriptions never need it.
    ahead: RefCell<Option<Box<ReadAhead>>>,
    _charge: Charge,
}

/// What a subscription waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be served; it is in the queue.
    Queued,
    /// For a flush that brings records.
    Records,
    /// For the client to give credit.
    Credit,
    /// For the client to take what it was sent; it is held back by its session.
    Client,
    /// For the disk; a task has it.
    Disk,
    /// For nothing any more.
    Ended,
}

// What one is charged as holds it, its reference counts, and its places in four lists.
const _: () = assert!(size_of::<Subscription>() + 16 + 4 * 16 <= SUBSCRIPTION_BYTES);

/// The subscriptions of one partition, in any order.
#[derive(Default)]
pub(crate) struct Subscribers {
    list: RefCell<Vec<Rc<Subscription>>>,
}

/// The subscriptions of a shard that are to be served.
#[derive(Default)]
pub(crate) struct Subscriptions {
    queue: RefCell<VecDeque<Rc<Subscription>>>,
    queued: Notify,
    open: Cell<usize>,
}

/// Serves one Subscribe.
pub(crate) fn subscribe(shard: &Rc<Shard>, request: Request) {
    match check(shard, &request) {
        Ok((progress, tag, head)) => open(shard, request, progress, tag, &head),
        Err(error) => request.refuse(shard, &error),
    }
}

/// May this subscription be opened, for which partition, and where does that begin and end?
fn check(
    shard: &Shard,
    request: &Request,
) -> Result<(rustmq_engine::Subscription, u32, FetchResponseHead), RequestError> {
    let body = request.body.head::<SUBSCRIBE_BYTES>().ok_or(RequestError::TooShort)?;
    if request.body.len() != SUBSCRIBE_BYTES {
        return Err(RequestError::TooLong { bytes_max: SUBSCRIBE_BYTES });
    }
    let ask = Subscribe::decode(&body)?;
    let tag = match shard.route(ask.topic_partition())? {
        Route::Here(tag) => tag,
        // Forwarding each answer would cost a hop for as long as the client stays: it goes there.
        Route::Shard(owner) => return Err(RequestError::Elsewhere { owner }),
    };
    shard.authorize_partition(request.principal, Operation::Read, tag)?;
    if shard.draining() {
        return Err(RequestError::ShuttingDown);
    }
    let client = client_of(request);
    if client.session().subscription(client.subscription_key()).is_some() {
        return Err(RequestError::SubscriptionExists);
    }
    let share = shard.memory.subscriptions.share() / SUBSCRIPTION_BYTES;
    let max = SUBSCRIPTIONS_PER_CONNECTION_MAX.min(share.max(1));
    if max <= client.session().subscription_count() {
        return Err(RequestError::LimitExceeded { what: "subscriptions of one connection", max });
    }
    let partitions = shard.partitions.borrow();
    let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
    partition.check_fetch(ask.leader_epoch, ask.offset)?;
    let progress =
        rustmq_engine::Subscription::open(ask.leader_epoch, ask.offset, ask.credit, ask.bytes_max)?;
    Ok((progress, tag, partition.head()))
}

fn open(
    shard: &Rc<Shard>,
    request: Request,
    progress: rustmq_engine::Subscription,
    tag: u32,
    head: &FetchResponseHead,
) {
    let Request { reply_to: ReplyTo::Client(client), principal, .. } = request else {
        unreachable!("checked");
    };
    let listed_in = match shard.partitions.borrow().get(tag) {
        Some(partition) => Rc::clone(&partition.subscribers),
        None => unreachable!("checked, and nothing came in between"),
    };
    let subscription = Rc::new(Subscription {
        subscriber: client.into_subscriber(),
        principal,
        tag,
        listed_in,
        place: Cell::new(0),
        progress: Cell::new(progress),
        state: Cell::new(State::Records),
        ahead: RefCell::default(),
        _charge: shard.memory.subscriptions.charge(SUBSCRIPTION_BYTES),
    });
    subscription.listed_in.add(Rc::clone(&subscription));
    let subscriber = &subscription.subscriber;
    subscriber.session().add_subscription(subscriber.key(), Rc::clone(&subscription));
    shard.subscriptions.open.set(shard.subscriptions.open.get() + 1);
    subscriber.send(Response::small(&head.encode()));
    subscription.look_again();
}

/// Serves one Credit: it is answered only when it is refused.
pub(crate) fn credit(shard: &Rc<Shard>, request: Request) {
    let granted = (|| {
        let body = request.body.head::<CREDIT_BYTES>().ok_or(RequestError::TooShort)?;
        if request.body.len() != CREDIT_BYTES {
            return Err(RequestError::TooLong { bytes_max: CREDIT_BYTES });
        }
        let credit = Credit::decode(&body)?;
        let client = client_of(&request);
        // One that is not there has ended meanwhile, and the client will hear of it.
        match (client.session().subscription(client.subscription_key()), credit) {
            (Some(subscription), Credit::More { bytes }) => subscription.grant(bytes),
            (Some(subscription), Credit::End) => {
                subscription.end(None);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    })();
    match granted {
        Ok(()) => request.end(shard),
        Err(error) => request.refuse(shard, &error),
    }
}

fn client_of(request: &Request) -> &crate::session::ClientReply {
    match &request.reply_to {
        ReplyTo::Client(client) => client,
        ReplyTo::Shard { .. } => unreachable!("subscriptions are served where they arrive"),
    }
}

/// Ends the subscriptions of a stream: its client has ended its side.
pub(crate) fn end_stream(session: &Session, stream: StreamId) {
    for subscription in session.subscriptions_of(stream) {
        subscription.end(None);
    }
}

/// Forgets the subscriptions of a stream whose answers the client does not want any more.
pub(crate) fn forget_stream(session: &Session, stream: StreamId) {
    for subscription in session.subscriptions_of(stream) {
        subscription.forget();
        session.remove_subscription(subscription.subscriber.key());
    }
}

/// Serves what is queued, for as long as the shard runs.
pub(crate) async fn serve_loop(shard: Rc<Shard>) {
    let subscriptions = &shard.subscriptions;
    loop {
        subscriptions.queued.notified().await;
        let mut served = 0;
        while let Some(next) = subscriptions.take() {
            next.serve(&shard);
            served += 1;
            if served % SUBSCRIPTIONS_PER_SLICE_MAX == 0 || runtime::need_preempt() {
                runtime::yield_now().await;
            }
        }
    }
}

/// Reads one answer from the disk and sends it.
pub(crate) async fn catch_up(shard: Rc<Shard>, subscription: Rc<Subscription>, reserved: Charge) {
    let begun = clock::now();
    let offset = subscription.progress.get().next_offset();
    let found = read::batches(&shard, subscription.tag, offset, reserved.bytes()).await;
    drop(reserved);
    if !subscription.is_ended() {
        match found {
            Ok(found) => {
                shard.metrics.borrow_mut().record(Stage::FetchRead, clock::now() - begun);
                subscription.deliver(&shard, found);
                subscription.read_on(&shard);
            }
            // Memory for reading comes free as others read on, for as long as that takes.
            Err(RequestError::Throttled { retry_after_ms, .. }) => {
                runtime::sleep(Duration::from_millis(u64::from(retry_after_ms))).await;
            }
            Err(error) => subscription.end(Some(&error)),
        }
    }
    subscription.subscriber.session().handle_drained();
    subscription.look_again();
}

/// Reads from the disk what comes after all that was read for a subscription, while that is sent.
pub(crate) async fn read_ahead(shard: Rc<Shard>, subscription: Rc<Subscription>, charge: Charge) {
    let begun = clock::now();
    let from = subscription.read_end();
    let batches = read::ahead(&shard, subscription.tag, from, READ_AHEAD_BYTES).await;
    if subscription.is_ended() {
        return;
    }
    shard.metrics.borrow_mut().record(Stage::FetchRead, clock::now() - begun);
    if let Some(ahead) = subscription.ahead.borrow_mut().as_mut() {
        ahead.handle_read(batches, charge);
    }
    if subscription.state.get() == State::Disk {
        subscription.look_again();
    }
}

impl Subscription {
    /// Sends one answer, or finds out what is waited for.
    fn serve(self: &Rc<Self>, shard: &Rc<Shard>) {
        if let Err(error) = self.try_serve(shard) {
            self.end(Some(&error));
        }
        // What this one leaves may be enough for the next.
        self.subscriber.session().let_one_go();
    }

    fn try_serve(self: &Rc<Self>, shard: &Rc<Shard>) -> Result<(), RequestError> {
        shard.authorize_partition(self.principal, Operation::Read, self.tag)?;
        let progress = self.progress.get();
        let next = {
            let partitions = shard.partitions.borrow();
            let partition = partitions.get(self.tag).ok_or(RequestError::UnknownTopicId)?;
            partition.check_fetch(progress.leader_epoch(), progress.next_offset())?;
            progress.poll_next(partition.engine.high_watermark())
        };
        let bytes_max = match next {
            Next::Send { bytes_max } => bytes_max,
            Next::Records => {
                self.state.set(State::Records);
                return Ok(());
            }
            Next::Credit => {
                self.state.set(State::Credit);
                return Ok(());
            }
        };
        let session = self.subscriber.session();
        if !session.may_hold_more() {
            self.state.set(State::Client);
            session.hold_back(Rc::clone(self));
            return Ok(());
        }
        let reserved = session.reserve_now(bytes_max);
        let (offset, bytes_max) = (progress.next_offset(), reserved.bytes());
        if let Some(found) = read::cached(shard, self.tag, offset, bytes_max) {
            drop(reserved);
            self.deliver(shard, found);
            self.look_again();
            return Ok(());
        }
        let found =
            self.ahead.borrow_mut().as_mut().and_then(|ahead| ahead.take(offset, bytes_max));
        if let Some(found) = found {
            drop(reserved);
            self.deliver(shard, found);
            self.read_on(shard);
            self.look_again();
            return Ok(());
        }
        self.state.set(State::Disk);
        let reads = self.ahead.borrow_mut().as_mut().is_some_and(|ahead| ahead.restart());
        if !reads {
            (shard.spawn_catch_up)(Rc::clone(shard), Rc::clone(self), reserved);
        }
        Ok(())
    }

    /// Has the disk read ahead, if the consumer is going to need it and there is memory to spare.
    fn read_on(self: &Rc<Self>, shard: &Rc<Shard>) {
        let wants_more = self.ahead.borrow().as_ref().is_none_or(|ahead| ahead.wants_more());
        if self.is_ended() || !wants_more {
            return;
        }
        let from = self.read_end();
        let is_on_disk = {
            let partitions = shard.partitions.borrow();
            let Some(partition) = partitions.get(self.tag) else { return };
            from < partition.engine.high_watermark()
                && shard.cache.borrow().from(self.tag, from).is_none()
                && !shard.wal(partition.wal).files.reading_is_pressed()
        };
        if !is_on_disk {
            return;
        }
        if let Some(charge) = self.subscriber.session().reserve_ahead(READ_AHEAD_BYTES) {
            self.ahead.borrow_mut().get_or_insert_default().begin();
            (shard.spawn_read_ahead)(Rc::clone(shard), Rc::clone(self), charge);
        }
    }

    /// One past what has been read for it.
    fn read_end(&self) -> Offset {
        let sent = self.progress.get().next_offset();
        let read = self.ahead.borrow().as_ref().and_then(|ahead| ahead.end_offset());
        read.map_or(sent, |read| read.max(sent))
    }

    fn deliver(&self, shard: &Shard, found: Found) {
        let mut progress = self.progress.get();
        progress.handle_sent(found.end_offset, found.bytes());
        self.progress.set(progress);
        shard.metrics.borrow_mut().counters.bytes_subscribed += found.bytes() as u64;
        match fetch::respond(shard, self.tag, found) {
            Ok(response) => self.subscriber.send(response),
            Err(error) => self.end(Some(&error)),
        }
    }

    fn grant(self: &Rc<Self>, bytes: u32) -> Result<(), RequestError> {
        let mut progress = self.progress.get();
        progress.grant(bytes)?;
        self.progress.set(progress);
        if self.state.get() == State::Credit {
            self.look_again();
        }
        Ok(())
    }

    /// Has it served again; false if it has ended.
    pub(crate) fn look_again(self: &Rc<Self>) -> bool {
        if self.is_ended() {
            return false;
        }
        self.state.set(State::Queued);
        self.shard().subscriptions.put(Rc::clone(self));
        true
    }

    /// Is it over?
    pub(crate) fn is_ended(&self) -> bool {
        self.state.get() == State::Ended
    }

    /// Ends it with an answer: why, if it is an error, and where it would have gone on.
    fn end(&self, why: Option<&RequestError>) {
        if !self.forget() {
            return;
        }
        let subscriber = &self.subscriber;
        subscriber.session().remove_subscription(subscriber.key());
        let offset = self.progress.get().next_offset();
        let message = why.map(ToString::to_string).unwrap_or_default();
        let mut response = Response::encoded(|out| SubscriptionEnd { message, offset }.encode(out));
        response.status = why.map_or(ErrorCode::Ok, RequestError::code);
        if let Some(error) = why {
            self.shard().metrics.borrow_mut().count_refused(error.code());
        }
        subscriber.finish(response);
    }

    /// Ends it without a word; false if it has ended before. Its session is told by the caller.
    pub(crate) fn forget(&self) -> bool {
        if self.state.replace(State::Ended) == State::Ended {
            return false;
        }
        self.ahead.take();
        self.listed_in.remove(self.place.get());
        let open = &self.shard().subscriptions.open;
        open.set(open.get() - 1);
        true
    }

    fn shard(&self) -> &Shard {
        self.subscriber.session().shard()
    }
}

impl Subscribers {
    fn add(&self, subscription: Rc<Subscription>) {
        let mut list = self.list.borrow_mut();
        subscription.place.set(list.len());
        list.push(subscription);
    }

    fn remove(&self, place: usize) {
        let mut list = self.list.borrow_mut();
        let removed = list.swap_remove(place);
        if let Some(moved) = list.get(place) {
            moved.place.set(place);
        }
        drop(list);
        drop(removed);
    }

    /// There are records: those that waited for some are served.
    pub(crate) fn wake_all(&self) {
        for subscription in self.list.borrow().iter() {
            if subscription.state.get() == State::Records {
                subscription.look_again();
            }
        }
    }

    /// Ends every one of them, and says why.
    pub(crate) fn end_all(&self, why: &RequestError) {
        let list = self.list.borrow().clone();
        list.iter().for_each(|subscription| subscription.end(Some(why)));
    }
}

impl Subscriptions {
    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    fn put(&self, subscription: Rc<Subscription>) {
        self.queue.borrow_mut().push_back(subscription);
        self.queued.notify();
    }

    /// The next that has not ended while it was queued.
    fn take(&self) -> Option<Rc<Subscription>> {
        let mut queue = self.queue.borrow_mut();
        std::iter::from_fn(|| queue.pop_front()).find(|next| !next.is_ended())
    }
}

impl From<TooMuchCredit> for RequestError {
    fn from(TooMuchCredit: TooMuchCredit) -> Self {
        let max = CREDIT_BYTES_MAX as usize;
        Self::LimitExceeded { what: "bytes of credit of one subscription", max }
    }
}
