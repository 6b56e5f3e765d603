//! A QUIC client that sends what no SDK would.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustmq_client::TopicInfo;
use rustmq_protocol::{
    Acks, BatchBuilder, CorrelationId, Credit, ErrorBody, ErrorCode, Fetch, FrameHeader, Hello,
    HelloResponse, InitProducerResponse, Offset, Produce, ProduceHead, ProducerEpoch, ProducerId,
    ProducerStamp, Record, RequestKind, Subscribe, TimestampMs,
};
use tokio::time::timeout;

use super::client;

/// The longest that an answer is waited for.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Bytes of a frame's header.
const HEADER_BYTES: usize = rustmq_protocol::FRAME_HEADER_BYTES;

/// What the client shows of itself.
pub(crate) struct Identity {
    /// The certificate chain, leaf first, and the key, all in PEM; none shows nothing.
    pub(crate) certificate: Option<(String, String)>,
    /// The protocol it asks for.
    pub(crate) alpn: &'static [u8],
}

impl Identity {
    /// The certificate and protocol that a broker in development mode expects.
    pub(crate) fn of_dev_client(data_dir: &Path) -> Result<Identity> {
        let certs = data_dir.join("certs");
        let read = |name| std::fs::read_to_string(certs.join(name));
        Ok(Identity {
            certificate: Some((read("client.crt")?, read("client.key")?)),
            alpn: b"rustmq/1",
        })
    }
}

/// A connection with one open stream.
pub(crate) struct Raw {
    // Keeps the socket open.
    endpoint: Endpoint,
    pub(crate) connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

/// An answer: its header and its body.
pub(crate) type Answer = (FrameHeader, Vec<u8>);

/// Dials the broker. TLS 1.3 lets a client believe that it is connected before its certificate was
/// looked at, so success means little: [`refusal`] waits for what the broker says.
pub(crate) async fn dial(
    data_dir: &Path,
    identity: &Identity,
) -> Result<(Endpoint, Result<Connection, ConnectionError>)> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let connected =
        dial_from(&endpoint, address(data_dir)?, client_as(data_dir, identity)?).await?;
    Ok((endpoint, connected))
}

/// Dials from a socket that several connections may share.
async fn dial_from(
    endpoint: &Endpoint,
    address: SocketAddr,
    config: ClientConfig,
) -> Result<Result<Connection, ConnectionError>> {
    let connecting = endpoint.connect_with(config, address, "localhost")?;
    let connected = timeout(ANSWER_WAIT, connecting).await;
    connected.context("neither connected nor refused")
}

/// Where the broker in this directory is found.
pub(crate) fn address(data_dir: &Path) -> Result<SocketAddr> {
    Ok(std::fs::read_to_string(data_dir.join("address"))?.trim().parse()?)
}

/// The settings of a client that the broker lets in.
pub(crate) fn good_client(data_dir: &Path) -> Result<ClientConfig> {
    client_as(data_dir, &Identity::of_dev_client(data_dir)?)
}

/// A client that says that it is there for as long as it is connected.
pub(crate) fn tenacious_client(data_dir: &Path) -> Result<ClientConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(100)));
    let mut config = good_client(data_dir)?;
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Dials the broker, which has to refuse; what it said.
pub(crate) async fn refusal(data_dir: &Path, identity: &Identity) -> Result<String> {
    refusal_with(data_dir, client_as(data_dir, identity)?).await
}

/// The same with these settings, and what they remember of connections before.
pub(crate) async fn refusal_with(data_dir: &Path, config: ClientConfig) -> Result<String> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let error = match dial_from(&endpoint, address(data_dir)?, config).await? {
        Err(error) => error,
        Ok(connection) => timeout(ANSWER_WAIT, connection.closed())
            .await
            .context("the broker let the client in")?,
    };
    ensure!(!matches!(error, ConnectionError::TimedOut), "the broker did not say why: {error}");
    Ok(error.to_string())
}

impl Raw {
    /// Connects and opens a stream.
    pub(crate) async fn connect(data_dir: &Path) -> Result<Raw> {
        Raw::connect_with(data_dir, good_client(data_dir)?).await
    }

    /// Connects with these settings and opens a stream.
    pub(crate) async fn connect_with(data_dir: &Path, config: ClientConfig) -> Result<Raw> {
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        Raw::connect_from(&endpoint, address(data_dir)?, config).await
    }

    /// Connects from a socket that several share, with these settings, and says hello.
    pub(crate) async fn greeted_from(
        endpoint: &Endpoint,
        data_dir: &Path,
        config: ClientConfig,
    ) -> Result<Raw> {
        Raw::greeted_at(endpoint, address(data_dir)?, config).await
    }

    /// Connects to this port of a broker, from a socket that several share, and says hello.
    pub(crate) async fn greeted_at(
        endpoint: &Endpoint,
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Raw> {
        let mut raw = Raw::connect_from(endpoint, address, config).await?;
        raw.say_hello(1).await?;
        Ok(raw)
    }

    async fn connect_from(
        endpoint: &Endpoint,
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Raw> {
        let connection = dial_from(endpoint, address, config).await??;
        let (send, receive) = connection.open_bi().await?;
        Ok(Raw { endpoint: endpoint.clone(), connection, send, receive })
    }

    /// Another stream of the same connection.
    pub(crate) async fn stream(&self) -> Result<Raw> {
        let (send, receive) = self.connection.open_bi().await?;
        let (endpoint, connection) = (self.endpoint.clone(), self.connection.clone());
        Ok(Raw { endpoint, connection, send, receive })
    }

    /// Connects and says hello.
    pub(crate) async fn greeted(data_dir: &Path) -> Result<Raw> {
        let mut raw = Raw::connect(data_dir).await?;
        raw.say_hello(1).await?;
        Ok(raw)
    }

    /// Connects, with these settings, and agrees on the version of subscriptions.
    pub(crate) async fn subscriber_with(data_dir: &Path, config: ClientConfig) -> Result<Raw> {
        let mut raw = Raw::connect_with(data_dir, config).await?;
        raw.say_hello(RequestKind::Subscribe.version_min()).await?;
        Ok(raw)
    }

    /// Connects and agrees on the version of subscriptions.
    pub(crate) async fn subscriber(data_dir: &Path) -> Result<Raw> {
        Raw::subscriber_with(data_dir, good_client(data_dir)?).await
    }

    async fn say_hello(&mut self, version: u8) -> Result<()> {
        let mut frame = Vec::new();
        hello(version, version, &mut frame);
        let (header, body) = self.ask_bytes(&frame).await?;
        ensure!(header.error_code() == ErrorCode::Ok, "hello: {header:?}");
        ensure!(HelloResponse::decode(&body)?.version == version, "another version");
        Ok(())
    }

    /// A producer id of its own.
    pub(crate) async fn producer_id(&mut self) -> Result<(ProducerId, ProducerEpoch)> {
        let (header, body) = self.ask(RequestKind::InitProducer, |_| {}).await?;
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        let answer = InitProducerResponse::decode(&body)?;
        Ok((answer.producer_id, answer.producer_epoch))
    }

    /// Sends a well-formed frame with this body and takes the answer.
    pub(crate) async fn ask(
        &mut self,
        kind: RequestKind,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Answer> {
        let mut frame = Vec::new();
        FrameHeader::request(kind, CorrelationId(7)).encode_frame(&mut frame, body);
        self.ask_bytes(&frame).await
    }

    /// Sends bytes and takes the answer.
    pub(crate) async fn ask_bytes(&mut self, bytes: &[u8]) -> Result<Answer> {
        self.send(bytes).await?;
        self.answer().await
    }

    /// Its two halves, to be used at once; the connection lives as long as either.
    pub(crate) fn split(self) -> (SendHalf, ReceiveHalf) {
        let Raw { endpoint, connection, send, receive } = self;
        let keep = (endpoint, connection);
        (SendHalf { send, _keep: keep.clone() }, ReceiveHalf { receive, _keep: keep })
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = timeout(ANSWER_WAIT, self.send.write_all(bytes)).await;
        Ok(sent.context("the broker does not read")??)
    }

    /// Takes the next answer.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        read_answer(&mut self.receive).await
    }

    /// Sends bytes that have to be refused with this code; the message.
    pub(crate) async fn refused(&mut self, bytes: &[u8], code: ErrorCode) -> Result<String> {
        let (header, body) = self.ask_bytes(bytes).await?;
        message(code, &header, &body)
    }

    /// Ends our side of the stream and waits until the broker has ended its own.
    pub(crate) async fn until_finished(mut self) -> Result<()> {
        self.send.finish()?;
        self.until_ended().await
    }

    /// Ends our side of the stream.
    pub(crate) fn finish(&mut self) -> Result<()> {
        Ok(self.send.finish()?)
    }

    /// Tells the broker that no answer is wanted on this stream any more.
    pub(crate) fn stop(&mut self) -> Result<()> {
        Ok(self.receive.stop(0_u32.into())?)
    }

    /// Waits until the broker ends the stream or the connection.
    pub(crate) async fn until_ended(mut self) -> Result<()> {
        let mut rest = [0; 1024];
        let ended = async { while let Ok(Some(_)) = self.receive.read(&mut rest).await {} };
        timeout(ANSWER_WAIT, ended).await.context("the stream stays open")
    }
}

/// The half of a stream that sends.
pub(crate) struct SendHalf {
    send: SendStream,
    _keep: (Endpoint, Connection),
}

impl SendHalf {
    /// Sends bytes; waits as long as the broker does not take them.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.send.write_all(bytes).await?)
    }

    /// Nothing more is sent.
    pub(crate) fn finish(&mut self) -> Result<()> {
        Ok(self.send.finish()?)
    }
}

/// The half of a stream that receives.
pub(crate) struct ReceiveHalf {
    receive: RecvStream,
    _keep: (Endpoint, Connection),
}

impl ReceiveHalf {
    /// Takes the next answer.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        read_answer(&mut self.receive).await
    }
}

async fn read_answer(receive: &mut RecvStream) -> Result<Answer> {
    let answer = async {
        let mut header = [0; HEADER_BYTES];
        receive.read_exact(&mut header).await?;
        let header = FrameHeader::decode(&header)?;
        let mut body = vec![0; header.body_bytes()];
        receive.read_exact(&mut body).await?;
        Ok::<Answer, anyhow::Error>((header, body))
    };
    timeout(ANSWER_WAIT, answer).await.context("no answer")?
}

/// The frame that opens a connection, for these versions.
pub(crate) fn hello(version_min: u8, version_max: u8, out: &mut Vec<u8>) {
    let hello = Hello { version_min, version_max, client_name: "raw".to_owned() };
    FrameHeader::request(RequestKind::Hello, CorrelationId(0))
        .encode_frame(out, |out| hello.encode(out));
}

/// A fetch from a partition, of up to `bytes_max`, that waits for nothing.
pub(crate) fn fetch(
    topic: &TopicInfo,
    partition: u32,
    offset: u64,
    bytes_max: u32,
) -> Result<Fetch> {
    let info = topic.partitions.get(partition as usize).context("the partition")?;
    Ok(Fetch {
        topic: topic.id,
        partition: info.partition,
        leader_epoch: info.leader_epoch,
        offset: Offset(offset),
        wait_ms_max: 0,
        bytes_min: 1,
        bytes_max,
    })
}

/// The frame of this fetch.
pub(crate) fn frame_of(fetch: &Fetch) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameHeader::request(RequestKind::Fetch, CorrelationId(2))
        .encode_frame(&mut frame, |out| fetch.encode(out));
    frame
}

/// The frame of a fetch from a partition, of up to `bytes_max`.
pub(crate) fn fetch_frame(
    topic: &TopicInfo,
    partition: u32,
    offset: u64,
    bytes_max: u32,
) -> Result<Vec<u8>> {
    Ok(frame_of(&fetch(topic, partition, offset, bytes_max)?))
}

/// The request of a subscription, with this credit, in answers of up to `bytes_max`.
pub(crate) fn subscribe(
    topic: &TopicInfo,
    partition: u32,
    offset: u64,
    credit: u32,
    bytes_max: u32,
) -> Result<Subscribe> {
    let info = topic.partitions.get(partition as usize).context("the partition")?;
    let (topic, partition, leader_epoch) = (topic.id, info.partition, info.leader_epoch);
    let offset = Offset(offset);
    Ok(Subscribe { topic, partition, leader_epoch, offset, credit, bytes_max })
}

/// The frame that opens a subscription under this number.
pub(crate) fn subscribe_frame(correlation: u32, subscribe: &Subscribe) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameHeader::request(RequestKind::Subscribe, CorrelationId(correlation))
        .encode_frame(&mut frame, |out| subscribe.encode(out));
    frame
}

/// The frame that says how the subscription of this number goes on.
pub(crate) fn credit_frame(correlation: u32, credit: Credit) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameHeader::request(RequestKind::Credit, CorrelationId(correlation))
        .encode_frame(&mut frame, |out| credit.encode(out));
    frame
}

/// A topic as its broker describes it.
pub(crate) async fn topic(data_dir: &Path, name: &str) -> Result<TopicInfo> {
    let client = client::connect(data_dir).await?;
    let topic = client::bounded("metadata", client.describe_topic(name)).await??;
    client.close().await;
    Ok(topic)
}

/// A batch of these values, of up to 1 MiB.
pub(crate) fn batch(values: &[&str], producer: ProducerStamp) -> Vec<u8> {
    batch_up_to(1 << 20, values, producer)
}

/// A batch of one value, of up to 16 MiB.
pub(crate) fn batch_of(value: &str) -> Vec<u8> {
    batch_up_to(rustmq_protocol::RECORD_BYTES_MAX, &[value], ProducerStamp::NONE)
}

fn batch_up_to(bytes_max: usize, values: &[&str], producer: ProducerStamp) -> Vec<u8> {
    let mut builder = BatchBuilder::new(bytes_max);
    for value in values {
        let record = Record {
            timestamp: TimestampMs(1_700_000_000_000),
            key: None,
            value: Some(value.as_bytes()),
            headers: &[],
        };
        builder.try_push(&record).expect("a batch holds a few values");
    }
    builder.finish(producer).to_vec()
}

/// A produce request for a partition, acknowledged when it is durable.
pub(crate) fn produce_frame(topic: &TopicInfo, partition: u32, batch: &[u8]) -> Result<Vec<u8>> {
    let info = topic.partitions.get(partition as usize).context("the partition")?;
    let head = ProduceHead {
        topic: topic.id,
        partition: info.partition,
        leader_epoch: info.leader_epoch,
        acks: Acks::All,
        timeout_ms: 10_000,
    };
    let mut frame = Vec::new();
    let produce = Produce { head, batch };
    FrameHeader::request(RequestKind::Produce, CorrelationId(1))
        .encode_frame(&mut frame, |out| produce.encode(out));
    Ok(frame)
}

/// The message of an answer that has to have this code.
pub(crate) fn message(code: ErrorCode, header: &FrameHeader, body: &[u8]) -> Result<String> {
    let found = header.error_code();
    if found == ErrorCode::Ok {
        bail!("answered OK, expected {code}");
    }
    let message = ErrorBody::decode(body)?.message;
    ensure!(found == code, "answered {found}: {message:?}, expected {code}");
    ensure!(!message.is_empty(), "{code} without a word");
    Ok(message)
}

/// The settings of a client with this identity.
pub(crate) fn client_as(data_dir: &Path, identity: &Identity) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(data_dir.join("certs/ca.crt"))? {
        roots.add(ca?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match &identity.certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
            builder.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
        }
    };
    config.alpn_protocols = vec![identity.alpn.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}
