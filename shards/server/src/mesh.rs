//! Messages between the threads of one process.
//!
//! There is one bounded ring for each ordered pair of threads, and one doorbell for each thread.
//! Shards are numbered from 0; the control thread comes after the last one.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use hdrhistogram::Histogram;
use rustmq_metadata::{Command, Image, PrincipalId, WalUuid};
use rustmq_protocol::frame::FrameHeader;
use rustmq_protocol::{ShardId, TopicId};
use rustmq_sys::channel::{self, Receiver, Sender};
use rustmq_sys::clock;
use rustmq_sys::doorbell::{Bell, Doorbell};
use rustmq_sys::runtime::{self, Class};
use rustmq_sys::udp::DatagramMeta;

use crate::body::Body;
use crate::limits::{
    FORWARDED_MAX, MESH_RING_DATAGRAMS, MESH_RING_MESSAGES, RETRY_AFTER_MEMORY_MS,
};
use crate::metrics::{ShardSnapshot, Stage};
use crate::reply::{RequestError, Response};
use crate::session::{ClientReply, ReplyTo, Request};
use crate::shard::Shard;
use crate::{catalogue, metrics, session};

/// What one thread tells another.
pub enum Message {
    /// Shard 0 → shard: the metadata to begin with, and the WALs that are yours.
    Boot(Box<Boot>),
    /// Shard → shard 0: recovered, and ready to serve once all are.
    Booted {
        /// The shard that is ready.
        shard: ShardId,
    },
    /// Shard 0 → shard: every shard is ready, so serve.
    Serve,
    /// A request whose partition is yours.
    Forward(Box<Forwarded>),
    /// What became of a request that you forwarded.
    Answer(Box<Answer>),
    /// A request that you forwarded is done and gets no answer.
    Ended {
        /// Your name for the request.
        ticket: u64,
    },
    /// A datagram of a connection of yours, which came to another shard's socket.
    Datagram(Box<PassedOn>),
    /// Shard 0 → shard: a durable command; apply it.
    Install {
        /// The command.
        command: Arc<Command>,
        /// To be repeated in [`Message::Installed`].
        ticket: u64,
    },
    /// Shard → shard 0: applied.
    Installed {
        /// The ticket of the command.
        ticket: u64,
    },
    /// Shard 0 → shard: which of these deleted topics do your segments still name?
    Named {
        /// Deleted topics.
        topics: Vec<TopicId>,
        /// To be repeated in the answer.
        ticket: u64,
    },
    /// Shard → shard 0: these.
    StillNamed {
        /// The deleted topics that a segment names.
        topics: Vec<TopicId>,
        /// The ticket of the question.
        ticket: u64,
    },
    /// Control → shard: send what you measured, and go on in these empty histograms.
    Scrape(Vec<Histogram<u64>>),
    /// Shard → control: what it measured. No bell is rung for it.
    Scraped(Box<ShardSnapshot>),
    /// Shard → control: serving now.
    Serving {
        /// The shard.
        shard: ShardId,
    },
    /// A shard to the control thread: what is wrong with its disk now; empty: nothing any more.
    Trouble {
        /// The shard.
        shard: ShardId,
        /// For people.
        trouble: Vec<String>,
    },
    /// Control → shard: answer what is in flight, write a clean end, and stop.
    Drain,
}

/// What shard 0 hands to each shard at start.
pub struct Boot {
    /// The metadata, with this start already in it.
    pub image: Image,
    /// Which shard owns each WAL.
    pub owners: BTreeMap<WalUuid, ShardId>,
}

/// A request on its way to the shard that owns its partition.
pub struct Forwarded {
    /// Where the client is connected.
    pub origin: ShardId,
    /// The origin's name for the request.
    pub ticket: u64,
    /// As it arrived.
    pub header: FrameHeader,
    /// As it arrived, in the origin's receive buffers.
    pub body: Body,
    /// Who asks.
    pub principal: String,
    /// Bytes that the origin keeps free for batches in the answer; 0 if it need not.
    pub reserved_bytes: usize,
}

/// A datagram on its way to the shard whose connection it is for.
pub struct PassedOn {
    /// As the socket that it came to told; of this datagram alone.
    pub meta: DatagramMeta,
    /// The datagram, in the receive buffers of the shard that it came to.
    pub datagram: BytesMut,
}

/// The answer to a forwarded request.
pub struct Answer {
    /// The origin's name for the request.
    pub ticket: u64,
    /// What the client is told.
    pub response: Response,
}

/// One thread's end of the mesh.
pub struct MeshPort {
    /// The doorbell that others ring.
    pub doorbell: Doorbell,
    /// Rings to the other threads, by number; `None` at our own.
    pub senders: Vec<Option<Sender<Message>>>,
    /// Rings from the other threads, by number; `None` at our own.
    pub receivers: Vec<Option<Receiver<Message>>>,
    /// The doorbells of all threads, by number.
    pub bells: Vec<Bell>,
}

/// Builds the rings and doorbells of `threads` threads that all know each other.
pub fn build(threads: usize) -> std::io::Result<Vec<MeshPort>> {
    let doorbells = (0..threads).map(|_| Doorbell::new()).collect::<std::io::Result<Vec<_>>>()?;
    let bells: Vec<Bell> = doorbells.iter().map(Doorbell::bell).collect();
    let mut ports: Vec<MeshPort> = doorbells
        .into_iter()
        .map(|doorbell| MeshPort {
            doorbell,
            senders: (0..threads).map(|_| None).collect(),
            receivers: (0..threads).map(|_| None).collect(),
            bells: bells.clone(),
        })
        .collect();
    for from in 0..threads {
        for to in 0..threads {
            if from != to {
                let (sender, receiver) = channel::channel(MESH_RING_MESSAGES);
                ports[from].senders[to] = Some(sender);
                ports[to].receivers[from] = Some(receiver);
            }
        }
    }
    Ok(ports)
}

/// A shard's side of the mesh.
///
/// Invariant: messages to one thread leave in the order in which they were sent. What does not fit
/// into a ring waits in a queue of ours; each kind of message that can queue is bounded elsewhere:
/// forwarded requests by [`FORWARDED_MAX`], answers by the requests they answer, the rest by the
/// number of shards.
pub(crate) struct Mesh {
    state: RefCell<State>,
    bells: Vec<Bell>,
    own: usize,
    control: usize,
}

struct State {
    senders: Vec<Option<Sender<Message>>>,
    receivers: Vec<Option<Receiver<Message>>>,
    overflow: Vec<VecDeque<Message>>,
    forwarded: BTreeMap<u64, Waiting>,
    next_ticket: u64,
}

/// A request that another shard works on.
struct Waiting {
    client: ClientReply,
    since: Instant,
    owner: ShardId,
    /// The work belongs to a partition, so the client should go to the owner next time.
    moved: bool,
}

impl Mesh {
    /// The mesh as this thread sees it.
    pub(crate) fn new(
        senders: Vec<Option<Sender<Message>>>,
        receivers: Vec<Option<Receiver<Message>>>,
        bells: Vec<Bell>,
    ) -> Self {
        let overflow = senders.iter().map(|_| VecDeque::new()).collect();
        let forwarded = BTreeMap::new();
        let control = bells.len() - 1;
        let own = senders.iter().position(Option::is_none);
        let own = own.expect("a thread has no ring to itself");
        let state = State { senders, receivers, overflow, forwarded, next_ticket: 0 };
        Self { state: RefCell::new(state), bells, own, control }
    }

    /// Sends to a shard.
    pub(crate) fn send(&self, to: ShardId, message: Message) {
        self.push(usize::from(to.0), message);
    }

    /// Hands a datagram to the shard whose connection it is for. Returns false, and the datagram is
    /// lost, when that shard has [`MESH_RING_DATAGRAMS`] messages of ours or more to look at: QUIC sends
    /// again what is lost, and everything else that a shard is told must find room.
    pub(crate) fn pass_on(&self, owner: ShardId, passed: PassedOn) -> bool {
        let to = usize::from(owner.0);
        let mut state = self.state.borrow_mut();
        let State { senders, overflow, .. } = &mut *state;
        let sender = senders[to].as_mut().expect("no thread sends to itself");
        let waiting = MESH_RING_MESSAGES - sender.free();
        if MESH_RING_DATAGRAMS <= waiting || !overflow[to].is_empty() {
            return false;
        }
        let pushed = sender.try_push(Message::Datagram(Box::new(passed))).is_ok();
        self.bells[to].ring();
        pushed
    }

    /// Sends to the control thread.
    pub(crate) fn send_control(&self, message: Message) {
        self.push(self.control, message);
    }

    /// Leaves a message for the control thread, which looks for it by itself: to wake a thread takes
    /// longer than to make most messages.
    pub(crate) fn leave_for_control(&self, message: Message) {
        self.leave(self.control, message);
    }

    fn push(&self, to: usize, message: Message) {
        self.leave(to, message);
        self.bells[to].ring();
    }

    fn leave(&self, to: usize, message: Message) {
        let mut state = self.state.borrow_mut();
        let State { senders, overflow, .. } = &mut *state;
        let sender = senders[to].as_mut().expect("no thread sends to itself");
        let queue = &mut overflow[to];
        if queue.is_empty() {
            if let Err(message) = sender.try_push(message) {
                queue.push_back(message);
            }
        } else {
            queue.push_back(message);
        }
        if !queue.is_empty() {
            // Whoever receives here also moves the queue, so it must not sleep.
            self.bells[self.own].ring();
        }
    }

    /// Hands a request to the shard that owns its partition, or refuses it when too many are out.
    pub(crate) fn forward(&self, shard: &Shard, owner: ShardId, request: Request, moved: bool) {
        let principal = shard.principal_name(request.principal);
        let Request { header, body, principal: id, arrived, reply_to } = request;
        let client = match reply_to {
            ReplyTo::Client(client) => client,
            // The origin's picture was older than ours; the owner is never more than one hop away.
            other => {
                let request = Request { header, body, principal: id, arrived, reply_to: other };
                return request.refuse(shard, &RequestError::UnknownTopicId);
            }
        };
        let reserved_bytes = client.reserved_bytes();
        let ticket = {
            let mut state = self.state.borrow_mut();
            if FORWARDED_MAX <= state.forwarded.len() {
                drop(state);
                let what = "too many requests are being forwarded";
                let retry_after_ms = RETRY_AFTER_MEMORY_MS;
                let error = RequestError::Throttled { what, retry_after_ms };
                shard.metrics.borrow_mut().count_refused(error.code());
                return client.send(error.response(), None);
            }
            state.next_ticket += 1;
            let ticket = state.next_ticket;
            let since = clock::now();
            state.forwarded.insert(ticket, Waiting { client, since, owner, moved });
            ticket
        };
        let origin = shard.id;
        let forwarded = Forwarded { origin, ticket, header, body, principal, reserved_bytes };
        self.send(owner, Message::Forward(Box::new(forwarded)));
    }

    /// Requests that other shards work on for us.
    pub(crate) fn forwarded(&self) -> usize {
        self.state.borrow().forwarded.len()
    }

    fn receive(&self, out: &mut Vec<(usize, Message)>) {
        let mut state = self.state.borrow_mut();
        for (from, receiver) in state.receivers.iter_mut().enumerate() {
            let Some(receiver) = receiver else { continue };
            while let Some(message) = receiver.try_pop() {
                out.push((from, message));
            }
        }
        let State { senders, overflow, .. } = &mut *state;
        for (to, queue) in overflow.iter_mut().enumerate() {
            if let Some(sender) = &mut senders[to]
                && !queue.is_empty()
            {
                sender.push_batch(queue);
                self.bells[to].ring();
            }
        }
    }

    fn has_overflow(&self) -> bool {
        self.state.borrow().overflow.iter().any(|queue| !queue.is_empty())
    }

    fn ended(&self, ticket: u64) {
        // Dropped outside of the borrow: it gives the client's place in flight back.
        let waiting = self.state.borrow_mut().forwarded.remove(&ticket);
        drop(waiting);
    }

    fn answered(&self, shard: &Shard, answer: Answer) {
        let waiting = self.state.borrow_mut().forwarded.remove(&answer.ticket);
        let waiting = waiting.expect("an answer belongs to a request that we forwarded");
        shard.metrics.borrow_mut().record(Stage::Forward, clock::now() - waiting.since);
        waiting.client.send(answer.response, waiting.moved.then_some(waiting.owner));
    }
}

/// Receives messages for as long as the shard runs.
pub(crate) async fn receive_loop(shard: Rc<Shard>) {
    let mut messages = Vec::new();
    loop {
        match shard.mesh.has_overflow() {
            // A full ring has no bell of its own: look again in the next turn.
            true => runtime::yield_now().await,
            false => runtime::doorbell_rung().await,
        }
        shard.mesh.receive(&mut messages);
        for (_, message) in messages.drain(..) {
            handle(&shard, message);
        }
    }
}

fn handle(shard: &Rc<Shard>, message: Message) {
    match message {
        Message::Forward(forwarded) => {
            let Forwarded { origin, ticket, header, body, principal, reserved_bytes } = *forwarded;
            let reply_to = ReplyTo::Shard { shard: origin, ticket, reserved_bytes };
            let arrived = clock::now();
            let principal: PrincipalId = shard.intern_name(&principal);
            session::dispatch(shard, Request { header, body, principal, arrived, reply_to });
        }
        Message::Datagram(passed) => shard.endpoint.handle_passed_on(*passed),
        Message::Ended { ticket } => shard.mesh.ended(ticket),
        Message::Answer(answer) => shard.mesh.answered(shard, *answer),
        Message::Install { command, ticket } => {
            shard.install(&command);
            shard.mesh.send(ShardId(0), Message::Installed { ticket });
        }
        Message::Named { topics, ticket } => {
            let topics = shard.named_topics(topics);
            shard.mesh.send(ShardId(0), Message::StillNamed { topics, ticket });
        }
        Message::Scrape(empty) => {
            runtime::spawn(Class::Background, metrics::scrape(Rc::clone(shard), empty));
        }
        Message::Boot(boot) => shard.boot.put(*boot),
        Message::Serve => shard.may_serve.notify(),
        Message::Drain => shard.drain.notify(),
        message @ (Message::Booted { .. }
        | Message::Installed { .. }
        | Message::StillNamed { .. }) => catalogue::handle(shard, message),
        Message::Scraped(_) | Message::Serving { .. } | Message::Trouble { .. } => {
            unreachable!("only the control thread is told this");
        }
    }
}
