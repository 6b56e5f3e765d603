//! What a client knows about its cluster: metadata, and one connection per shard, dialled when
//! first needed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use rustmq_protocol::{
    BrokerId, BrokerInfo, ErrorCode, LeaderEpoch, Metadata, MetadataResponse, PartitionId,
    RequestKind, ShardId, TOPIC_NAME_BYTES_MAX, TopicId, TopicInfo, TopicNameError, TopicSelection,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use crate::backoff::{Backoff, random_seed};
use crate::config::{ClientConfig, PollMode, RouteMode, split_address};
use crate::connection::{Connection, OpenError};
use crate::error::{ClientError, ConfigError, ConnectError};
use crate::mtu::Datagrams;
use crate::socket::ClientSocket;
use crate::tls::quic_config;

/// Attempts of a call that may be made again without harm: reading metadata, topics, offsets.
const READ_ATTEMPTS_MAX: u32 = 5;

/// Shared by the client and all its producers and consumers; closes its connections when the last
/// is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    config: ClientConfig,
    endpoint: quinn::Endpoint,
    bootstrap: Slot,
    shards: Mutex<HashMap<(BrokerId, ShardId), Arc<Slot>>>,
    view: Mutex<View>,
    /// Held while metadata is asked for, so that many partitions ask once.
    refreshing: tokio::sync::Mutex<()>,
}

/// The metadata seen last.
#[derive(Debug, Default)]
struct View {
    cluster_id: Option<[u8; 16]>,
    brokers: HashMap<BrokerId, BrokerInfo>,
    topics: HashMap<String, TopicView>,
    version: u64,
}

/// A topic as of one answer to a metadata request.
#[derive(Clone, Debug)]
pub(crate) struct TopicView {
    pub(crate) info: Arc<TopicInfo>,
    /// Counts the answers: a higher one is fresher.
    pub(crate) version: u64,
}

/// Where requests for a partition go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) topic: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) leader: BrokerId,
    pub(crate) shard: ShardId,
    pub(crate) leader_epoch: LeaderEpoch,
    /// Of the metadata that it is from.
    pub(crate) version: u64,
}

impl Cluster {
    /// Checks the configuration and dials the first bootstrap address that answers.
    pub(crate) async fn connect(config: ClientConfig) -> Result<Cluster, ClientError> {
        config.check()?;
        let mut endpoint = open_endpoint(Datagrams::of(config.mtu_profile), config.poll)?;
        endpoint.set_default_client_config(quic_config(&config)?);
        let cluster = Cluster {
            config,
            endpoint,
            bootstrap: Slot::default(),
            shards: Mutex::default(),
            view: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
        };
        cluster.bootstrap().await?;
        Ok(cluster)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(crate) fn new_backoff(&self) -> Backoff {
        Backoff::new(self.config.backoff_min, self.config.backoff_max, random_seed())
    }

    /// The connection for metadata, topics and producer ids.
    pub(crate) async fn bootstrap(&self) -> Result<Arc<Connection>, ClientError> {
        self.bootstrap.get(async || self.dial_bootstrap().await).await
    }

    /// Sends a request over the bootstrap connection, once.
    pub(crate) async fn control(
        &self,
        kind: RequestKind,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let connection = self.bootstrap().await?;
        connection.control(kind, body, self.config.request_timeout).await
    }

    /// Sends a request that changes nothing over the bootstrap connection, again and again if that
    /// may help.
    pub(crate) async fn read(
        &self,
        kind: RequestKind,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let mut backoff = self.new_backoff();
        let mut attempt = 1;
        loop {
            match self.control(kind, body.clone()).await {
                Err(error) if error.is_retriable() && attempt < READ_ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, ?kind, "request is repeated");
                    tokio::time::sleep(backoff.pause_after(&error)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Asks for the metadata of some topics. Brokers come with it.
    pub(crate) async fn metadata(
        &self,
        topics: TopicSelection,
    ) -> Result<MetadataResponse, ClientError> {
        let mut body = Vec::new();
        Metadata { topics }.encode(&mut body);
        Ok(MetadataResponse::decode(&self.read(RequestKind::Metadata, body).await?)?)
    }

    /// The topic, fresher than the version `stale` if one is given.
    pub(crate) async fn topic(
        &self,
        name: &str,
        stale: Option<u64>,
    ) -> Result<TopicView, ClientError> {
        if let Some(view) = self.known_topic(name, stale) {
            return Ok(view);
        }
        check_topic_name_length(name)?;
        let _refreshing = self.refreshing.lock().await;
        // Who held the lock before may have asked for the same.
        if let Some(view) = self.known_topic(name, stale) {
            return Ok(view);
        }
        let response = self.metadata(TopicSelection::ByName(vec![name.to_owned()])).await?;
        let mut view = self.view();
        view.version += 1;
        view.brokers = response.brokers.into_iter().map(|broker| (broker.id, broker)).collect();
        view.topics.remove(name);
        let version = view.version;
        let Some(info) = response.topics.into_iter().find(|topic| topic.name == name) else {
            return Err(ClientError::broker(ErrorCode::UnknownTopic, String::new()));
        };
        if info.error != ErrorCode::Ok {
            return Err(ClientError::broker(info.error, format!("topic {name}")));
        }
        let topic = TopicView { info: Arc::new(info), version };
        view.topics.insert(name.to_owned(), topic.clone());
        Ok(topic)
    }

    /// The topic as it is now: it may have been created anew since it was last looked at.
    pub(crate) async fn fresh_topic(&self, name: &str) -> Result<TopicView, ClientError> {
        self.forget_topic(name);
        self.topic(name, None).await
    }

    /// Where requests for a partition go, by metadata fresher than the version `stale` if one is
    /// given.
    pub(crate) async fn route(
        &self,
        name: &str,
        partition: PartitionId,
        stale: Option<u64>,
    ) -> Result<Route, ClientError> {
        let TopicView { info, version } = self.topic(name, stale).await?;
        let Some(found) = info.partitions.iter().find(|info| info.partition == partition) else {
            let count = info.partitions.len() as u32;
            return Err(ClientError::NoSuchPartition { partition, count });
        };
        Ok(Route {
            topic: info.id,
            partition,
            leader: found.leader,
            shard: found.shard,
            leader_epoch: found.leader_epoch,
            version,
        })
    }

    /// The connection that requests for a partition take.
    pub(crate) async fn connection(&self, route: &Route) -> Result<Arc<Connection>, ClientError> {
        if self.config.route == RouteMode::Bootstrap {
            return self.bootstrap().await;
        }
        let slot = {
            let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(shards.entry((route.leader, route.shard)).or_default())
        };
        slot.get(async || {
            let (host, port) = self.endpoint_of(route)?;
            self.dial(&host, port).await
        })
        .await
    }

    /// Forgets a topic, so that the next look is a fresh one.
    pub(crate) fn forget_topic(&self, name: &str) {
        self.view().topics.remove(name);
    }

    /// Closes every connection and waits until the brokers have been told.
    pub(crate) async fn close(&self) {
        self.endpoint.close(quinn::VarInt::from_u32(0), b"client closed");
        self.endpoint.wait_idle().await;
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_topic(&self, name: &str, stale: Option<u64>) -> Option<TopicView> {
        let view = self.view();
        let topic = view.topics.get(name)?;
        stale.is_none_or(|stale| stale < topic.version).then(|| topic.clone())
    }

    fn endpoint_of(&self, route: &Route) -> Result<(String, u16), ClientError> {
        let view = self.view();
        let broker = view.brokers.get(&route.leader);
        let shard =
            broker.and_then(|broker| broker.shards.iter().find(|at| at.shard == route.shard));
        match (broker, shard) {
            (Some(broker), Some(shard)) => Ok((broker.host.clone(), shard.port)),
            _ => {
                let address = format!("broker {} shard {}", route.leader, route.shard);
                Err(ClientError::Connect { address, error: ConnectError::NoLeader })
            }
        }
    }

    async fn dial_bootstrap(&self) -> Result<Connection, ClientError> {
        let mut last = ClientError::Config(ConfigError::NoBootstrap);
        for address in &self.config.bootstrap {
            let (host, port) = split_address(address)?;
            match self.dial(host, port).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    tracing::debug!(%error, "bootstrap address does not answer");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Connection, ClientError> {
        let failed = |error| ClientError::Connect { address: format!("{host}:{port}"), error };
        let server_name = self.config.tls.server_name.as_deref().unwrap_or(host);
        let opening = async {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
                .await
                .map_err(|error| OpenError::Connect(ConnectError::Resolve(error.kind())))?
                .collect();
            let mut last = ConnectError::Resolve(std::io::ErrorKind::NotFound);
            for address in addresses {
                let name = &self.config.client_name;
                match Connection::open(&self.endpoint, address, server_name, name).await {
                    Err(OpenError::Connect(error)) => last = error,
                    result => return result,
                }
            }
            Err(OpenError::Connect(last))
        };
        let connection = match timeout(self.config.connect_timeout, opening).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(OpenError::Connect(error))) => return Err(failed(error)),
            Ok(Err(OpenError::Hello(error))) => return Err(error),
            Err(_) => return Err(failed(ConnectError::TimedOut)),
        };
        let hello = connection.hello();
        let first = *self.view().cluster_id.get_or_insert(hello.cluster_id);
        if first != hello.cluster_id {
            return Err(failed(ConnectError::OtherCluster));
        }
        let (broker, shard, flush) = (hello.broker_id.0, hello.shard.0, hello.flush);
        tracing::debug!(host, port, broker, shard, ?flush, "connected");
        Ok(connection)
    }
}

/// Names that no topic can have never reach the wire, where text is bounded.
pub(crate) fn check_topic_name_length(name: &str) -> Result<(), ClientError> {
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(ClientError::TopicName(TopicNameError::TooLong { bytes: name.len() }));
    }
    Ok(())
}

/// A socket for IPv6 and IPv4, or for IPv4 alone where the host has no IPv6.
fn open_endpoint(datagrams: Datagrams, poll: PollMode) -> Result<quinn::Endpoint, ConfigError> {
    let open = |any: SocketAddr| {
        let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
        if any.is_ipv6() {
            // Where it is refused, hosts are reached by one of the two at least.
            let _ = socket.set_only_v6(false);
        }
        if let Some(bytes) = datagrams.socket_buffer_bytes {
            // The host may give less.
            let _ = socket.set_recv_buffer_size(bytes);
            let _ = socket.set_send_buffer_size(bytes);
        }
        socket.bind(&any.into())?;
        let socket = ClientSocket::open(socket.into(), poll)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        quinn::Endpoint::new_with_abstract_socket(datagrams.endpoint(), None, socket, runtime)
    };
    let opened = open((Ipv6Addr::UNSPECIFIED, 0).into());
    let opened = opened.or_else(|_| open((Ipv4Addr::UNSPECIFIED, 0).into()));
    opened.map_err(|error| ConfigError::Socket { kind: error.kind() })
}

/// The connection to one shard, dialled by whoever needs it first.
#[derive(Debug, Default)]
struct Slot {
    state: tokio::sync::Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    connection: Option<Arc<Connection>>,
    failed: Option<(Instant, ClientError)>,
}

impl Slot {
    async fn get(
        &self,
        dial: impl AsyncFnOnce() -> Result<Connection, ClientError>,
    ) -> Result<Arc<Connection>, ClientError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        // A dial that failed while this caller waited for the lock is its failure too; otherwise a
        // hundred partitions would wait for a hundred timeouts one after the other.
        if let Some((at, error)) = &state.failed
            && asked <= *at
        {
            return Err(error.clone());
        }
        state.connection = None;
        match dial().await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                state.connection = Some(Arc::clone(&connection));
                state.failed = None;
                Ok(connection)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}
