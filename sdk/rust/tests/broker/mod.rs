//! A broker in memory with one topic on loopback: enough to drive the client through faults at
//! will.

mod subscription;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use subscription::Subscription;

use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs};
use rustmq_client::{ClientConfig, Pem, TlsConfig};
use rustmq_protocol::*;
use tokio::sync::Notify;

pub(crate) const TOPIC: &str = "orders";
pub(crate) const PARTITIONS: u32 = 2;
const TOPIC_ID: TopicId = TopicId::from_bytes([7; 16]);

/// What goes wrong with a produce request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is refused with this code.
    Refuse(ErrorCode),
    /// The connection is closed before anything is appended.
    LoseBefore,
    /// The batch is appended and the connection closed without an answer.
    LoseAfter,
    /// The answer says that another shard owns the partition.
    Moved,
    /// It is not answered, and nothing behind it on its stream is read.
    Hang,
    /// Nothing is wrong with it.
    Nothing,
}

#[derive(Default)]
struct State {
    logs: [Vec<Vec<u8>>; PARTITIONS as usize],
    producers: HashMap<(ProducerId, u32), Remembered>,
    producer_next: u64,
    leader_epoch: u32,
    faults: VecDeque<Fault>,
    metadata_requests: u32,
    subscriptions: u32,
    subscriptions_open: u32,
    sent_bytes: u64,
    fetches: u32,
}

/// What is remembered of a producer in a partition: the next sequence, and first sequence and
/// offset of each batch.
#[derive(Default)]
struct Remembered {
    next: u32,
    batches: VecDeque<(u32, Offset)>,
}

/// The running broker; stopped when dropped.
pub(crate) struct Broker {
    endpoint: quinn::Endpoint,
    tls: TlsConfig,
    state: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something was appended, or leadership has changed.
    appended: Notify,
    port: u16,
    /// The newest protocol version that it speaks.
    version_max: u8,
}

/// The way back of a stream, for everybody who answers on it.
type Answers = Arc<tokio::sync::Mutex<quinn::SendStream>>;

impl Broker {
    /// One that knows subscriptions.
    pub(crate) fn start() -> Broker {
        Broker::speaking(2)
    }

    /// One that speaks protocol versions up to this one.
    pub(crate) fn speaking(version_max: u8) -> Broker {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("a key");
        let ca = CertifiedIssuer::self_signed(params, key()).expect("an authority");
        let leaf = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = key();
            let params = CertificateParams::new(names).expect("names");
            (params.signed_by(&key, &ca).expect("a certificate"), key)
        };
        let (cert, cert_key) = leaf(&["127.0.0.1"]);
        let (client, client_key) = leaf(&["client"]);
        let pem = |text: String| Pem::Bytes(text.into_bytes());
        let tls = TlsConfig {
            ca: pem(ca.as_ref().pem()),
            cert: pem(client.pem()),
            key: pem(client_key.serialize_pem()),
            server_name: None,
        };

        let mut roots = RootCertStore::empty();
        roots.add(ca.as_ref().der().clone()).expect("the authority");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::Pkcs8(cert_key.serialize_der().into()),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"rustmq/1".to_vec()];
        let config = QuicServerConfig::try_from(config).expect("a QUIC configuration");
        let config = quinn::ServerConfig::with_crypto(Arc::new(config));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = quinn::Endpoint::server(config, any).expect("a socket");
        let state = Arc::new(Shared {
            state: Mutex::new(State { leader_epoch: 1, ..State::default() }),
            appended: Notify::new(),
            port: endpoint.local_addr().expect("an address").port(),
            version_max,
        });
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&state)));
        Broker { endpoint, tls, state }
    }

    pub(crate) fn client_config(&self) -> ClientConfig {
        let address = format!("127.0.0.1:{}", self.state.port);
        let mut config = ClientConfig::new(vec![address], self.tls.clone());
        config.backoff_min = Duration::from_millis(1);
        config.backoff_max = Duration::from_millis(20);
        config
    }

    /// What goes wrong with the next produce requests.
    pub(crate) fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// Leadership changes: older leader epochs are fenced.
    pub(crate) fn change_leader(&self) {
        self.state.lock().leader_epoch += 1;
        self.state.appended.notify_waiters();
    }

    /// Subscriptions that were opened, and fetches, so far.
    pub(crate) fn subscriptions_and_fetches(&self) -> (u32, u32) {
        let state = self.state.lock();
        (state.subscriptions, state.fetches)
    }

    /// Bytes of batches that were sent to subscriptions.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.state.lock().sent_bytes
    }

    /// Subscriptions that are open.
    pub(crate) fn subscriptions_open(&self) -> u32 {
        self.state.lock().subscriptions_open
    }

    pub(crate) fn metadata_requests(&self) -> u32 {
        self.state.lock().metadata_requests
    }

    /// The values in the log of a partition.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let state = self.state.lock();
        let mut values = Vec::new();
        for batch in &state.logs[partition as usize] {
            for record in records(batch).expect("a batch") {
                let value = record.expect("a record").value.unwrap_or_default();
                values.push(String::from_utf8_lossy(value).into_owned());
            }
        }
        values
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.endpoint.close(quinn::VarInt::from_u32(0), b"stopped");
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }
}

async fn accept(endpoint: quinn::Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(serve(connection.clone(), send, recv, Arc::clone(&shared)));
            }
        });
    }
}

/// Answers the requests of one stream, one after the other.
async fn serve(
    connection: quinn::Connection,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    shared: Arc<Shared>,
) {
    let send: Answers = Arc::new(tokio::sync::Mutex::new(send));
    let mut subscriptions: HashMap<CorrelationId, Arc<Subscription>> = HashMap::new();
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        if recv.read_exact(&mut header).await.is_err() {
            return;
        }
        let header = FrameHeader::decode(&header).expect("the client sends frames");
        let mut body = vec![0; header.body_bytes()];
        if recv.read_exact(&mut body).await.is_err() {
            return;
        }
        match RequestKind::from_u16(header.kind) {
            Some(RequestKind::Subscribe) => {
                let opened = Subscription::open(&shared, &send, header, &body);
                subscriptions.insert(header.correlation, opened);
                continue;
            }
            Some(RequestKind::Credit) => {
                let credit = Credit::decode(&body).expect("a body");
                subscriptions[&header.correlation].credit(credit);
                continue;
            }
            _ => {}
        }
        let Some((header, answer)) = answer(&connection, &shared, header, &body).await else {
            continue;
        };
        if write(&send, header, &answer).await.is_err() {
            return;
        }
    }
}

async fn write(send: &Answers, header: FrameHeader, body: &[u8]) -> Result<(), quinn::WriteError> {
    let mut frame = Vec::new();
    header.encode_frame(&mut frame, |out| out.extend_from_slice(body));
    send.lock().await.write_all(&frame).await
}

/// The header and body of the answer, or none if there is to be no answer.
async fn answer(
    connection: &quinn::Connection,
    shared: &Shared,
    header: FrameHeader,
    body: &[u8],
) -> Option<(FrameHeader, Vec<u8>)> {
    let mut out = Vec::new();
    let ok = header.response(ErrorCode::Ok);
    let result = match RequestKind::from_u16(header.kind).expect("a known kind") {
        RequestKind::Hello => {
            let asked = Hello::decode(body).expect("a body").versions();
            let own = VersionRange { min: 1, max: shared.version_max };
            hello(own.newest_common(asked).expect("a version")).encode(&mut out);
            Ok(ok)
        }
        RequestKind::Metadata => {
            shared.lock().metadata_requests += 1;
            metadata(shared, &Metadata::decode(body).expect("a body")).encode(&mut out);
            Ok(ok)
        }
        RequestKind::InitProducer => {
            let mut state = shared.lock();
            state.producer_next += 1;
            let producer_id = ProducerId(state.producer_next);
            InitProducerResponse { producer_id, producer_epoch: ProducerEpoch(0) }.encode(&mut out);
            Ok(ok)
        }
        RequestKind::Produce => {
            let request = Produce::decode(body).expect("a body");
            let fault = shared.lock().faults.pop_front().unwrap_or(Fault::Nothing);
            let result = match fault {
                Fault::LoseBefore => {
                    connection.close(quinn::VarInt::from_u32(1), b"fault");
                    return None;
                }
                Fault::Hang => std::future::pending().await,
                Fault::Refuse(code) => Err(code),
                Fault::LoseAfter | Fault::Moved | Fault::Nothing => produce(shared, &request),
            };
            if matches!(fault, Fault::LoseAfter) {
                connection.close(quinn::VarInt::from_u32(1), b"fault");
                return None;
            }
            if request.head.acks == Acks::None {
                return None;
            }
            result.map(|response| {
                response.encode(&mut out);
                if matches!(fault, Fault::Moved) { ok.moved_to(ShardId(9)) } else { ok }
            })
        }
        RequestKind::Fetch => {
            let request = Fetch::decode(body).expect("a body");
            shared.lock().fetches += 1;
            fetch(shared, &request, &mut out).await.map(|()| ok)
        }
        RequestKind::ListOffsets => {
            let request = ListOffsets::decode(body).expect("a body");
            let state = shared.lock();
            let log = &state.logs[request.partition.0 as usize];
            let offset = match request.at {
                OffsetAt::Earliest => Offset::ZERO,
                OffsetAt::Latest | OffsetAt::Timestamp(_) => log_end(log),
            };
            let leader_epoch = LeaderEpoch(state.leader_epoch);
            ListOffsetsResponse { offset, timestamp: TimestampMs(-1), leader_epoch }
                .encode(&mut out);
            Ok(ok)
        }
        _ => Err(ErrorCode::UnknownRequest),
    };
    Some(match result {
        Ok(header) => (header, out),
        Err(code) => {
            ErrorBody { message: "refused by the test".to_owned() }.encode(&mut out);
            (header.response(code), out)
        }
    })
}

fn hello(version: u8) -> HelloResponse {
    HelloResponse {
        version,
        cluster_id: [1; 16],
        broker_id: BrokerId(1),
        shard: ShardId(0),
        shard_count: 1,
        flush: FlushMode::Always,
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        record_bytes_max: RECORD_BYTES_DEFAULT as u32,
        producer_batches_in_flight_max: PRODUCER_BATCHES_IN_FLIGHT_MAX,
        idle_timeout_ms: 30_000,
    }
}

fn metadata(shared: &Shared, request: &Metadata) -> MetadataResponse {
    let TopicSelection::ByName(names) = &request.topics else { panic!("the client asks by name") };
    let leader_epoch = LeaderEpoch(shared.lock().leader_epoch);
    let partition = |partition| PartitionInfo {
        partition: PartitionId(partition),
        leader: BrokerId(1),
        shard: ShardId(0),
        leader_epoch,
    };
    let topic = |name: &String| {
        let known = name == TOPIC;
        TopicInfo {
            name: name.clone(),
            id: if known { TOPIC_ID } else { TopicId::ZERO },
            error: if known { ErrorCode::Ok } else { ErrorCode::UnknownTopic },
            config: vec![],
            partitions: if known { (0..PARTITIONS).map(partition).collect() } else { vec![] },
        }
    };
    let shards = vec![ShardEndpoint { shard: ShardId(0), port: shared.port }];
    let host = "127.0.0.1".to_owned();
    MetadataResponse {
        cluster_id: [1; 16],
        brokers: vec![BrokerInfo { id: BrokerId(1), host, port: shared.port, shards }],
        topics: names.iter().map(topic).collect(),
    }
}

fn log_end(log: &[Vec<u8>]) -> Offset {
    let last = log.last().map(|batch| BatchHeader::decode(batch).expect("a batch"));
    last.map_or(Offset::ZERO, |header| Offset(header.last_offset().0 + 1))
}

fn produce(shared: &Shared, request: &Produce<'_>) -> Result<ProduceResponse, ErrorCode> {
    let header = verify(request.batch, RECORD_BYTES_DEFAULT).expect("the client sends batches");
    let mut state = shared.lock();
    if request.head.leader_epoch.0 < state.leader_epoch {
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    let partition = request.head.partition.0;
    let base_offset = log_end(&state.logs[partition as usize]);
    let response = |base_offset| ProduceResponse {
        base_offset,
        log_start_offset: Offset::ZERO,
        append_time: TimestampMs(1),
        flush: FlushMode::Always,
    };
    if header.producer_id != ProducerId::NONE {
        let key = (header.producer_id, partition);
        let remembered = state.producers.entry(key).or_default();
        let sequence = header.base_sequence.0;
        let known = remembered.batches.iter().find(|(known, _)| *known == sequence);
        if let Some((_, offset)) = known {
            return Ok(response(*offset));
        }
        if sequence < remembered.next {
            return Err(ErrorCode::DuplicateSequence);
        }
        if sequence > remembered.next {
            return Err(match remembered.next {
                0 => ErrorCode::UnknownProducerId,
                _ => ErrorCode::OutOfOrderSequence,
            });
        }
        remembered.next += header.record_count;
        remembered.batches.push_back((sequence, base_offset));
        if remembered.batches.len() > PRODUCER_BATCHES_IN_FLIGHT_MAX as usize {
            remembered.batches.pop_front();
        }
    }
    let mut batch = request.batch.to_vec();
    stamp(&mut batch, base_offset, request.head.leader_epoch);
    state.logs[partition as usize].push(batch);
    shared.appended.notify_waiters();
    Ok(response(base_offset))
}

async fn fetch(shared: &Shared, request: &Fetch, out: &mut Vec<u8>) -> Result<(), ErrorCode> {
    let wait = Duration::from_millis(u64::from(request.wait_ms_max));
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let appended = shared.appended.notified();
        {
            let state = shared.lock();
            if request.leader_epoch.0 < state.leader_epoch {
                return Err(ErrorCode::FencedLeaderEpoch);
            }
            let log = &state.logs[request.partition.0 as usize];
            let end = log_end(log);
            if end < request.offset {
                return Err(ErrorCode::OffsetOutOfRange);
            }
            if request.offset < end || deadline <= tokio::time::Instant::now() {
                let last =
                    |batch: &[u8]| BatchHeader::decode(batch).expect("a batch").last_offset();
                let mut wanted = log.iter().skip_while(|batch| last(batch) < request.offset);
                let mut bytes = wanted.next().cloned().unwrap_or_default();
                for batch in wanted {
                    if request.bytes_max as usize <= bytes.len() + batch.len() {
                        break;
                    }
                    bytes.extend_from_slice(batch);
                }
                let head = FetchResponseHead {
                    high_watermark: end,
                    log_start_offset: Offset::ZERO,
                    log_end_offset: end,
                };
                FetchResponse { head, batches: &bytes }.encode(out);
                return Ok(());
            }
        }
        // Whether it was woken or timed out shows above.
        drop(tokio::time::timeout_at(deadline, appended).await);
    }
}
