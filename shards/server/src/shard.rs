//! The shard: what one core owns.

mod life;
mod open;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustmq_config::BrokerConfig;
use rustmq_config::choice::FlushPolicy as FlushOption;
use rustmq_engine::HotCache;
use rustmq_metadata::{Image, Operation, PrincipalId, Principals, Resource, WalUuid, authorize};
use rustmq_protocol::{BrokerId, FlushMode, ShardEndpoint, ShardId, TopicId};
use rustmq_sys::buffer::{Buffer, BufferPool};
use rustmq_sys::runtime::{self, Class, RuntimeConfig, TaskPool};
use rustmq_sys::udp::UdpSocket;
use rustmq_wal::{BlockBuilder, DIRECTORY_CAPACITY_MIN, WalId};

use crate::budget::{Charge, ClientMemory};
use crate::catalogue::Catalogue;
use crate::endpoint::Endpoint;
use crate::error::ShardError;
use crate::flushed::Cached;
use crate::mesh::{Boot, Mesh, MeshPort};
use crate::metrics::{Gauges, Metrics, ShardSnapshot};
use crate::notify::{Notify, Slot};
use crate::partitions::Partitions;
use crate::reply::{RequestError, Response, SMALL_BODY_BYTES};
use crate::session::{self, Request};
use crate::subscribe::{self, Subscription, Subscriptions};
use crate::wal_writer::{Ticket, WalWriter};
use crate::{fetch, produce, tls};

pub use self::life::{life, run};

/// What a shard's thread is given at start.
pub struct ShardSetup {
    /// The shard's number.
    pub id: ShardId,
    /// What all shards of the broker share.
    pub node: Arc<Node>,
    /// The checked configuration.
    pub config: Arc<BrokerConfig>,
    /// The shard's own socket first, then the one on the port of the first contact, if it serves that.
    pub sockets: Vec<UdpSocket>,
    /// Its end of the mesh.
    pub port: MeshPort,
    /// How its runtime runs.
    pub runtime: RuntimeConfig,
}

/// What all shards of a broker agree on.
pub struct Node {
    /// The broker's number in the cluster.
    pub broker: BrokerId,
    /// How many shards it has.
    pub shard_count: u16,
    /// The host that clients are told to use.
    pub advertised_host: String,
    /// The port of the first contact.
    pub bootstrap_port: u16,
    /// Every shard serves it, with a socket of its own; otherwise shard 0 does alone.
    pub bootstrap_is_shared: bool,
    /// The port of each shard.
    pub shards: Vec<ShardEndpoint>,
    /// Certificates, and who may connect.
    pub tls: Arc<rustls::ServerConfig>,
    /// Keys that outlive a restart.
    pub keys: NodeKeys,
}

/// Secrets of the broker's QUIC endpoints. They are kept, so that a restarted broker can tell the
/// peers of its past life that their connections are gone.
#[derive(Clone)]
pub struct NodeKeys {
    /// Signs stateless resets.
    pub reset: [u8; 64],
    /// Protects Retry and address tokens.
    pub token: [u8; 64],
    /// Tags connection ids.
    pub connection_id: u64,
}

/// What one core owns. Everything in it is touched by this core's thread alone.
///
/// It begins with [`run`], serves once every shard has recovered, and ends when it was drained or
/// an error made it unsafe to go on. No borrow of a cell is held across an await.
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) node: Arc<Node>,
    pub(crate) config: Arc<BrokerConfig>,
    pub(crate) endpoint: Endpoint,
    pub(crate) memory: ClientMemory,
    pub(crate) mesh: Mesh,
    pub(crate) partitions: RefCell<Partitions>,
    pub(crate) cache: RefCell<HotCache<Cached>>,
    pub(crate) image: RefCell<Image>,
    /// The shard that owns each WAL of this broker.
    pub(crate) owners: RefCell<BTreeMap<WalUuid, ShardId>>,
    pub(crate) metrics: RefCell<Metrics>,
    /// Shard 0 alone writes the catalogue.
    pub(crate) catalogue: Option<Catalogue>,
    pub(crate) boot: Slot<Boot>,
    pub(crate) may_serve: Notify,
    pub(crate) drain: Notify,
    pub(crate) spawn_produce: SpawnRequest,
    pub(crate) spawn_fetch: SpawnRequest,
    pub(crate) spawn_catch_up: SpawnCatchUp,
    pub(crate) spawn_read_ahead: SpawnCatchUp,
    pub(crate) subscriptions: Subscriptions,
    wals: RefCell<Vec<Rc<WalWriter>>>,
    principals: RefCell<Principals>,
    scratch: RefCell<Vec<u8>>,
    /// For each deleted topic, and each WAL, the last block that may name it.
    pub(crate) deleted: RefCell<BTreeMap<TopicId, Vec<Ticket>>>,
    /// What is wrong with the disk now, as the control thread was told.
    pub(crate) trouble: RefCell<Vec<String>>,
    /// The catalogue's files were deleted beneath the broker.
    pub(crate) catalogue_lost: Cell<bool>,
    /// A client has left since housekeeping looked: fetches of its may still wait.
    pub(crate) session_ended: Cell<bool>,
    draining: Cell<bool>,
    failure: Slot<ShardError>,
}

/// Starts a request's task in recycled memory.
pub(crate) type SpawnRequest = Box<dyn Fn(Rc<Shard>, Request)>;

/// Starts the task that reads for a subscription, in recycled memory.
pub(crate) type SpawnCatchUp = Box<dyn Fn(Rc<Shard>, Rc<Subscription>, Charge)>;

impl Shard {
    fn new(
        id: ShardId,
        node: Arc<Node>,
        config: Arc<BrokerConfig>,
        sockets: Vec<UdpSocket>,
        mesh: Mesh,
    ) -> Self {
        let produce_pool = TaskPool::new(Class::Foreground);
        let fetch_pool = TaskPool::new(Class::Fetch);
        let catch_up_pool = TaskPool::new(Class::Fetch);
        let read_ahead_pool = TaskPool::new(Class::Fetch);
        Self {
            id,
            endpoint: tls::endpoint(&node, &config, id, sockets),
            memory: ClientMemory::new(&config.network),
            mesh,
            partitions: RefCell::default(),
            cache: RefCell::new(HotCache::new(config.cache.hot_bytes as usize)),
            image: RefCell::new(Image::new()),
            owners: RefCell::default(),
            metrics: RefCell::new(Metrics::new()),
            catalogue: (id == ShardId(0)).then(Catalogue::new),
            boot: Slot::new(),
            may_serve: Notify::default(),
            drain: Notify::default(),
            spawn_produce: Box::new(move |shard, request| {
                produce_pool.spawn(session::task(produce::produce(shard, request)));
            }),
            spawn_fetch: Box::new(move |shard, request| {
                fetch_pool.spawn(session::task(fetch::fetch(shard, request)));
            }),
            spawn_catch_up: Box::new(move |shard, subscription, reserved| {
                catch_up_pool.spawn(subscribe::catch_up(shard, subscription, reserved));
            }),
            spawn_read_ahead: Box::new(move |shard, subscription, charge| {
                read_ahead_pool.spawn(subscribe::read_ahead(shard, subscription, charge));
            }),
            subscriptions: Subscriptions::default(),
            wals: RefCell::default(),
            principals: RefCell::new(Principals::new()),
            scratch: RefCell::new(Vec::with_capacity(SMALL_BODY_BYTES)),
            deleted: RefCell::default(),
            trouble: RefCell::default(),
            catalogue_lost: Cell::new(false),
            session_ended: Cell::new(false),
            draining: Cell::new(false),
            failure: Slot::new(),
            node,
            config,
        }
    }

    /// Which of these deleted topics do segments here still name?
    pub(crate) fn named_topics(&self, mut topics: Vec<TopicId>) -> Vec<TopicId> {
        let wals = self.wals.borrow();
        // What was put before the deletion may be on its way to a segment that does not name it yet.
        let on_its_way = |topic: &TopicId| {
            let deleted = self.deleted.borrow();
            let Some(tickets) = deleted.get(topic) else { return false };
            wals.iter().zip(tickets).any(|(wal, ticket)| !wal.is_durable(*ticket))
        };
        topics.retain(|topic| {
            on_its_way(topic)
                || wals
                    .iter()
                    .any(|wal| wal.files.is_rotating() || wal.files.segments().names(*topic))
        });
        topics
    }

    /// Ends the shard, and with it the process: it is no longer safe to go on.
    pub(crate) fn fail(&self, error: ShardError) {
        self.failure.put(error);
    }

    /// Is the shard about to stop?
    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// The shard's WALs.
    pub(crate) fn wals(&self) -> Vec<Rc<WalWriter>> {
        self.wals.borrow().clone()
    }

    /// How many WALs the shard has.
    pub(crate) fn wal_count(&self) -> usize {
        self.wals.borrow().len()
    }

    /// The WAL with this index.
    pub(crate) fn wal(&self, index: usize) -> Rc<WalWriter> {
        Rc::clone(&self.wals.borrow()[index])
    }

    /// The index of a WAL that lives here.
    pub(crate) fn wal_index(&self, id: WalId) -> usize {
        let found = self.wals.borrow().iter().position(|wal| wal.files.id() == id);
        found.expect("a WAL that was dealt to this shard was opened at start")
    }

    /// The WAL to which a partition appends.
    pub(crate) fn wal_of(&self, tag: u32) -> Result<Rc<WalWriter>, RequestError> {
        let partitions = self.partitions.borrow();
        let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
        Ok(self.wal(partition.wal))
    }

    /// A page or two for a block without records, outside of the pool that consumers can pin.
    pub(crate) fn mark_buffer(&self) -> Buffer {
        let bytes = BlockBuilder::region_bytes_for(0, DIRECTORY_CAPACITY_MIN);
        let pool = BufferPool::new(bytes, bytes);
        pool.try_get(bytes).expect("a pool of its own has room for one buffer")
    }

    /// Memory for blocks. When none is left, the oldest of the hot cache makes room.
    pub(crate) fn block_buffer(&self, pool: &BufferPool, bytes: usize) -> Option<Buffer> {
        loop {
            if let Some(buffer) = pool.try_get(bytes.max(pool.buffer_bytes())) {
                return Some(buffer);
            }
            if !self.cache.borrow_mut().evict_block() {
                return None;
            }
        }
    }

    /// What the acknowledgements of this broker promise.
    pub(crate) fn flush_mode(&self) -> FlushMode {
        match self.config.wal.flush {
            FlushOption::Always => FlushMode::Always,
            FlushOption::Interval => {
                FlushMode::Interval { ms: self.config.wal.flush_interval_ms as u32 }
            }
        }
    }

    /// A short answer, encoded without an allocation.
    pub(crate) fn small_response(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Response {
        let mut scratch = self.scratch.borrow_mut();
        scratch.clear();
        encode(&mut scratch);
        Response::small(&scratch)
    }

    /// Answers a request with its outcome.
    pub(crate) fn finish(&self, request: Request, outcome: Result<Response, RequestError>) {
        match outcome {
            Ok(response) => request.answer(self, response),
            Err(error) => request.refuse(self, &error),
        }
    }

    /// May this principal do this?
    pub(crate) fn authorize(
        &self,
        principal: PrincipalId,
        operation: Operation,
        resource: Resource<'_>,
    ) -> Result<(), RequestError> {
        let decision = authorize(&self.principals.borrow(), principal, operation, resource);
        match decision.is_allowed() {
            true => Ok(()),
            false => Err(RequestError::NotAuthorized { why: decision.to_string() }),
        }
    }

    /// May this principal do this to the topic of a partition that lives here?
    pub(crate) fn authorize_partition(
        &self,
        principal: PrincipalId,
        operation: Operation,
        tag: u32,
    ) -> Result<(), RequestError> {
        let partitions = self.partitions.borrow();
        let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
        self.authorize(principal, operation, Resource::Topic(&partition.topic_name))
    }

    /// The number of the principal that a certificate names.
    pub(crate) fn intern_principal(
        &self,
        leaf: &CertificateDer<'_>,
    ) -> Result<PrincipalId, String> {
        let name = tls::principal_name(leaf)?;
        self.principals.borrow_mut().intern(&name).map_err(|error| error.to_string())
    }

    /// The number of a principal that another shard admitted. One more than can be numbered is
    /// nobody, and may do nothing.
    pub(crate) fn intern_name(&self, name: &str) -> PrincipalId {
        self.principals.borrow_mut().intern(name).unwrap_or(PrincipalId(u32::MAX))
    }

    /// The name behind a number.
    pub(crate) fn principal_name(&self, id: PrincipalId) -> String {
        self.principals.borrow().name(id).unwrap_or_default().to_owned()
    }

    /// A number that tells producers apart, for the group commit.
    pub(crate) fn producer_key(&self, request: &Request) -> u64 {
        request.reply_to.key()
    }

    /// What is measured, but for the histograms.
    pub(crate) fn snapshot(&self) -> ShardSnapshot {
        let metrics = self.metrics.borrow();
        let wals = self.wals.borrow();
        let gauges = Gauges {
            partitions: self.partitions.borrow().len() as u64,
            connections: self.endpoint.connections_open() as u64,
            wal_segments: wals.iter().map(|wal| wal.files.segments().live().len() as u64).sum(),
            wal_bytes: wals.iter().map(|wal| wal.files.live_bytes()).sum(),
            cache_bytes: self.cache.borrow().bytes_used() as u64,
            buffer_bytes: wals.iter().map(|wal| wal.buffer_bytes() as u64).sum(),
            request_bytes: self.memory.requests.used() as u64,
            answer_bytes: self.memory.answers.used() as u64,
            read_ahead_bytes: self.memory.read_ahead.used() as u64,
            window_bytes: self.memory.windows.used() as u64,
            handshakes: self.endpoint.handshakes() as u64,
            subscriptions: self.subscriptions.open() as u64,
            forwarded: self.mesh.forwarded() as u64,
            stalled_ms: wals.iter().map(|wal| wal.files.stalled_ms()).max().unwrap_or_default(),
            lost_files: wals.iter().map(|wal| wal.files.lost_files() as u64).sum::<u64>()
                + u64::from(self.catalogue_lost.get()),
        };
        let mut counters = metrics.counters.clone();
        counters.wal_bytes_read = wals.iter().map(|wal| wal.files.read_bytes()).sum();
        ShardSnapshot {
            shard: self.id,
            stages: Vec::new(),
            counters,
            endpoint: self.endpoint.counters(),
            gauges,
            runtime: runtime::stats(),
        }
    }
}
