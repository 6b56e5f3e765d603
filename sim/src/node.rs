//! One broker in a modelled world: its shards, and a client beside them on the mesh.
//!
//! Requests go to a shard the way another shard forwards them, whole frames and all, or over a
//! modelled network to its QUIC endpoint: see `quic`. Nothing here runs by itself: [`Node::step`]
//! gives one shard one turn, or moves the clock when none has anything to do.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rustmq_config::BrokerConfig;
use rustmq_protocol::frame::{FrameHeader, RequestKind};
use rustmq_protocol::limits::FETCH_BYTES_MAX;
use rustmq_protocol::{BrokerId, CorrelationId, ErrorCode, ShardEndpoint, ShardId};
use rustmq_server::mesh::{self, Forwarded, MeshPort, Message};
use rustmq_server::metrics::empty_stages;
use rustmq_server::{Body, Node as NodeSetup, NodeKeys, ShardError, ShardSetup, life};
use rustmq_sys::runtime::{Backend, RuntimeConfig};
use rustmq_sys::sim::World;
use rustmq_sys::sim::host::Host;
use rustmq_sys::sim::network::Conditions;
use rustmq_sys::udp::UdpSocket;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::quic::{Wire, address_of};
use crate::tls::Tls;

/// Steps after which a broker that still has not done what it should is stuck: some thousand times
/// what anything takes.
const STEPS_MAX: u64 = 2_000_000;

/// What all lives of a broker have in common.
pub(crate) struct Setup {
    pub(crate) config: Arc<BrokerConfig>,
    pub(crate) tls: Tls,
    /// Clients speak QUIC over a network like this; `None`: their requests reach the shards as those
    /// of other shards do.
    pub(crate) network: Option<Conditions>,
}

/// A running broker. Dropping it is a kill.
pub(crate) struct Node {
    world: World,
    shards: Vec<Shard>,
    /// The client's end of the mesh, where a shard of the next number would be.
    link: MeshPort,
    /// Or its end of the network.
    wire: Option<Wire>,
    control: MeshPort,
    serving: usize,
    /// Sealed segments by shard, as they were scraped.
    scraped: Vec<u64>,
    next_ticket: u64,
    answers: BTreeMap<u64, Answer>,
}

struct Shard {
    host: Host<Result<(), ShardError>>,
    ended: Option<Result<(), ShardError>>,
}

impl Node {
    /// Starts a broker of so many shards on the world's disk. It serves once
    /// [`until_serving`](Self::until_serving) says so.
    pub(crate) fn boot(world: &World, setup: &Rc<Setup>, shard_count: u16) -> Self {
        let mut ports = mesh::build(usize::from(shard_count) + 2).expect("eventfds");
        let control = ports.pop().expect("the control thread's port");
        let link = ports.pop().expect("the client's port");
        let key = |seed: u8| std::array::from_fn(|index| seed ^ index as u8);
        let node = Arc::new(NodeSetup {
            broker: BrokerId(1),
            shard_count,
            advertised_host: "sim".to_owned(),
            bootstrap_port: 9092,
            bootstrap_is_shared: false,
            shards: (0..shard_count)
                .map(|shard| ShardEndpoint { shard: ShardId(shard), port: 9192 + shard })
                .collect(),
            tls: Arc::clone(&setup.tls.server),
            keys: NodeKeys { reset: key(1), token: key(2), connection_id: 3 },
        });
        let shards = ports.into_iter().zip(0..).map(|(port, id)| {
            let runtime = RuntimeConfig::new(Backend::Epoll);
            let setup = ShardSetup {
                id: ShardId(id),
                node: Arc::clone(&node),
                config: Arc::clone(&setup.config),
                sockets: match setup.network {
                    Some(_) => vec![UdpSocket::bind_modelled(address_of(id)).expect("it is free")],
                    None => Vec::new(),
                },
                port,
                runtime,
            };
            let (doorbell, life) = life(setup);
            Shard { host: Host::new(doorbell, life), ended: None }
        });
        let shards = shards.collect();
        let wire = setup.network.map(|conditions| {
            world.network().set_conditions(conditions);
            Wire::new(world, &setup.tls.client, shard_count)
        });
        Self {
            world: world.clone(),
            shards,
            link,
            wire,
            control,
            serving: 0,
            scraped: Vec::new(),
            next_ticket: 0,
            answers: BTreeMap::new(),
        }
    }

    /// Turns until every shard serves; or why it never will.
    pub(crate) fn until_serving(&mut self) -> Result<(), Failure> {
        for _ in 0..STEPS_MAX {
            if self.serving == self.shards.len() {
                return Ok(());
            }
            self.step()?;
        }
        Err(Failure::Stuck { doing: "starting" })
    }

    /// Sends a request to a shard; its ticket.
    pub(crate) fn send(&mut self, to: ShardId, kind: RequestKind, body: Vec<u8>) -> u64 {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(wire) = &mut self.wire {
            self.world.note("request", kind as u64, ticket, body.len() as u64);
            wire.send(usize::from(to.0), kind, ticket, &body);
            return ticket;
        }
        let header = FrameHeader::request(kind, CorrelationId(ticket as u32));
        let header = header.with_body_bytes(body.len());
        self.world.note("request", kind as u64, ticket, body.len() as u64);
        let forwarded = Forwarded {
            origin: ShardId(self.shards.len() as u16),
            ticket,
            header,
            body: Body::from(Bytes::from(body)),
            principal: "sim".to_owned(),
            reserved_bytes: FETCH_BYTES_MAX,
        };
        let to = usize::from(to.0);
        let sender = self.link.senders[to].as_mut().expect("a ring to each shard");
        let pushed = sender.try_push(Message::Forward(Box::new(forwarded)));
        assert!(pushed.is_ok(), "fewer requests are in flight than a ring has places");
        self.link.bells[to].ring();
        ticket
    }

    /// The answer to a request, if it has come.
    pub(crate) fn take_answer(&mut self, ticket: u64) -> Option<Answer> {
        self.answers.remove(&ticket)
    }

    /// Sends a request and turns until it is answered.
    pub(crate) fn ask(
        &mut self,
        to: ShardId,
        kind: RequestKind,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let changes = matches!(kind, RequestKind::CreateTopic | RequestKind::DeleteTopic);
        let mut steps = STEPS_MAX;
        loop {
            let ticket = self.send(to, kind, body.clone());
            let answer = self.await_answer(ticket, &mut steps)?;
            // The connection was lost: what only asks is asked again.
            if answer.code != ErrorCode::Interrupted || changes {
                return Ok(answer);
            }
        }
    }

    /// Turns until a request is answered, so many times at most.
    pub(crate) fn await_answer(&mut self, ticket: u64, steps: &mut u64) -> Result<Answer, Failure> {
        while 0 < *steps {
            if let Some(answer) = self.take_answer(ticket) {
                return Ok(answer);
            }
            *steps -= 1;
            self.step()?;
        }
        Err(Failure::Stuck { doing: "answering" })
    }

    /// The world that it lives in.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// May the disk refuse to read?
    pub(crate) fn reads_may_fail(&self) -> bool {
        self.world.faults().read_error != 0
    }

    /// Segments that every shard has sealed so far, since this start.
    pub(crate) fn segments_sealed(&mut self) -> Result<u64, Failure> {
        self.scraped.clear();
        for shard in 0..self.shards.len() {
            let sender = self.control.senders[shard].as_mut().expect("a ring to each shard");
            let pushed = sender.try_push(Message::Scrape(empty_stages()));
            assert!(pushed.is_ok(), "one scrape is out at a time");
            self.control.bells[shard].ring();
        }
        for _ in 0..STEPS_MAX {
            if self.scraped.len() == self.shards.len() {
                return Ok(self.scraped.iter().sum());
            }
            self.step()?;
        }
        Err(Failure::Stuck { doing: "telling what it has measured" })
    }

    /// One turn of one shard, or the next thing in time. Fails when a shard has ended.
    pub(crate) fn step(&mut self) -> Result<(), Failure> {
        self.turn_of_wire();
        let wants_turn = |shard: &Shard| shard.host.wants_turn();
        let ready = match &self.shards[..] {
            [only] => u64::from(wants_turn(only)),
            all => all.iter().filter(|shard| wants_turn(shard)).count() as u64,
        };
        if ready == 0 {
            let timers = self.shards.iter().filter_map(|shard| shard.host.next_timer_ns());
            let client = self.wire.as_mut().and_then(Wire::next_timer_ns);
            let next = timers.chain(self.world.next_event_ns()).chain(client).min();
            let next = next.ok_or(Failure::Stuck { doing: "waiting for nothing" })?;
            self.world.advance_to(next);
            return Ok(());
        }
        let chosen = if ready == 1 { 0 } else { self.world.choice().below(ready) };
        let shard = match &mut self.shards[..] {
            [only] => only,
            all => {
                let mut waiting = all.iter_mut().filter(|shard| wants_turn(shard));
                waiting.nth(chosen as usize).expect("counted just now")
            }
        };
        if let Some(ended) = shard.host.turn() {
            shard.ended = Some(ended);
        }
        // A turn takes its time, or a clock that stands still would let timers starve others.
        let next = self.world.now_ns() + TURN_NS;
        self.world.advance_to(next);
        self.receive();
        let failed = self.shards.iter_mut().find_map(|shard| shard.ended.take());
        match failed {
            Some(Err(error)) => Err(Failure::Ended { error }),
            Some(Ok(())) => Err(Failure::Stopped),
            None => Ok(()),
        }
    }

    fn turn_of_wire(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        for (ticket, answer) in wire.turn() {
            self.world.note("answer", answer.code as u64, ticket, answer.body.len() as u64);
            self.answers.insert(ticket, answer);
        }
    }

    fn receive(&mut self) {
        for receiver in self.control.receivers.iter_mut().flatten() {
            while let Some(message) = receiver.try_pop() {
                match message {
                    Message::Serving { .. } => self.serving += 1,
                    Message::Scraped(snapshot) => {
                        self.scraped.push(snapshot.counters.segments_sealed);
                    }
                    _ => {}
                }
            }
        }
        for receiver in self.link.receivers.iter_mut().flatten() {
            while let Some(message) = receiver.try_pop() {
                if let Message::Answer(answer) = message {
                    let answered = Answer::of(answer.response);
                    let bytes = answered.body.len() as u64;
                    self.world.note("answer", answered.code as u64, answer.ticket, bytes);
                    self.answers.insert(answer.ticket, answered);
                }
            }
        }
    }
}

/// What a turn of a shard takes: the slice of a busy one.
const TURN_NS: u64 = 2_000;
