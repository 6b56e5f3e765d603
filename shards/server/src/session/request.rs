//! A request on its way through the broker, and where its answers go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use quinn_proto::StreamId;
use rustmq_metadata::PrincipalId;
use rustmq_protocol::frame::FrameHeader;
use rustmq_protocol::{CorrelationId, ShardId};

use super::{Session, wake_starved};
use crate::body::Body;
use crate::budget::Charge;
use crate::limits::{REQUEST_BYTES, REQUEST_TASK_BYTES};
use crate::mesh::{Answer, Message};
use crate::reply::{RequestError, Response};
use crate::shard::Shard;

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
        /// Bytes that it keeps free for batches in the answer.
        reserved_bytes: usize,
    },
}

/// A client's place in flight: taken when the request is read, given back when this is dropped.
pub(crate) struct ClientReply {
    session: Rc<Session>,
    stream: StreamId,
    header: FrameHeader,
    /// More answers come than the one that this gives: the stream stays open for them.
    goes_on: Cell<bool>,
    /// The request's bytes, and what working on it takes.
    charge: Charge,
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
    /// A whole frame arrived: it takes a place in flight.
    pub(crate) fn request(
        self: &Rc<Self>,
        stream: StreamId,
        header: FrameHeader,
        body: Body,
        now: Instant,
    ) -> Request {
        self.in_flight.set(self.in_flight.get() + 1);
        let bytes = REQUEST_BYTES + body.len();
        let reply_to = ReplyTo::Client(ClientReply {
            session: Rc::clone(self),
            stream,
            header,
            goes_on: Cell::new(false),
            charge: self.shard.memory.requests.charge_to(&self.request_bytes, bytes),
            reserved: RefCell::default(),
        });
        Request { header, body, principal: self.principal, arrived: now, reply_to }
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

    /// Bytes kept free for the answer.
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.reserved.borrow().as_ref().map_or(0, Charge::bytes)
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
        // Before those are woken who look whether there is memory again.
        self.charge.set(0);
        let session = &self.session;
        session.in_flight.set(session.in_flight.get() - 1);
        wake_starved(&session.shard);
        if !self.goes_on.get() {
            session.finish_request(self.stream);
        }
        session.resume();
    }
}

/// The task of a request: no larger than what a request is charged as allows.
pub(crate) fn task<F: Future<Output = ()>>(future: F) -> F {
    const { assert!(size_of::<F>() <= REQUEST_TASK_BYTES) };
    future
}

impl ReplyTo {
    /// Waits until a large answer may be made for a client of this shard, and gives how large it may
    /// be: at most `bytes`. A client that does not read costs no more than its share. The place is
    /// given back with [`Self::give_back`], or with the request. The shard that forwarded a request
    /// has reserved for it, and said how much.
    pub(crate) async fn reserve(&self, bytes: usize) -> usize {
        let client = match self {
            Self::Client(client) => client,
            Self::Shard { reserved_bytes, .. } => return bytes.min(*reserved_bytes),
        };
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
            ReplyTo::Shard { shard: origin, ticket, .. } => {
                let answer = Answer { ticket, response };
                shard.mesh.send(origin, Message::Answer(Box::new(answer)));
            }
        }
    }

    /// Ends a request that gets no answer.
    pub(crate) fn end(self, shard: &Shard) {
        if let ReplyTo::Shard { shard: origin, ticket, .. } = self.reply_to {
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
