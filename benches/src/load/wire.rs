//! Frames on a QUIC stream, with nothing in between: what the fastest client would do.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use quinn::{Connection, Endpoint, ReadExactError, RecvStream, SendStream};
use rustmq_protocol::frame::{PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN};
use rustmq_protocol::requests::produce::{PRODUCE_HEAD_BYTES, PRODUCE_RESPONSE_BYTES};
use rustmq_protocol::{
    Acks, CorrelationId, CreateTopic, CreateTopicResponse, ErrorBody, ErrorCode,
    FRAME_HEADER_BYTES, FrameFlags, FrameHeader, Hello, HelloResponse, InitProducer,
    InitProducerResponse, Metadata, MetadataResponse, PartitionId, ProduceHead, ProducerEpoch,
    ProducerId, ProducerStamp, RequestKind, Sequence, TopicId, TopicSelection, stamp_producer,
};

use crate::fixtures;

/// Bytes of the answer to a produce request, header included.
pub const ANSWER_BYTES: usize = FRAME_HEADER_BYTES + PRODUCE_RESPONSE_BYTES;

/// The longest that a produce request of a measurement may take.
const TIMEOUT_MS: u32 = 30_000;

/// Opens a connection to the broker or to the echo server.
pub async fn connect(endpoint: &Endpoint, address: SocketAddr) -> Result<Connection> {
    endpoint
        .connect(address, "localhost")?
        .await
        .with_context(|| format!("connecting to {address}"))
}

/// One bidirectional stream.
#[derive(Debug)]
pub struct Link {
    /// The way there.
    pub sender: LinkSender,
    /// The way back.
    pub receiver: LinkReceiver,
}

/// Requests leave here.
#[derive(Debug)]
pub struct LinkSender {
    stream: SendStream,
}

/// Answers come in here.
#[derive(Debug)]
pub struct LinkReceiver {
    stream: RecvStream,
    body: Vec<u8>,
}

impl Link {
    /// Opens a stream. The peer hears of it with the first request.
    pub async fn open(connection: &Connection) -> Result<Link> {
        let (send, recv) = connection.open_bi().await?;
        Ok(Link {
            sender: LinkSender { stream: send },
            receiver: LinkReceiver { stream: recv, body: Vec::new() },
        })
    }

    /// Opens a stream and says hello to a broker: from then on it takes requests.
    pub async fn to_broker(connection: &Connection) -> Result<Link> {
        let mut link = Link::open(connection).await?;
        let body = link.call(RequestKind::Hello, |out| hello().encode(out)).await?;
        HelloResponse::decode(body)?;
        Ok(link)
    }

    /// One request and its answer's body.
    pub async fn call(
        &mut self,
        kind: RequestKind,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<&[u8]> {
        self.send(kind, encode).await?;
        self.receiver.receive().await?.context("the stream ended before the answer")?;
        Ok(&self.receiver.body)
    }

    /// One request; its answer is taken elsewhere.
    pub async fn send(
        &mut self,
        kind: RequestKind,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let mut frame = Vec::new();
        header_of(kind).encode_frame(&mut frame, encode);
        self.sender.send(&frame).await
    }

    /// A new producer id.
    pub async fn init_producer(&mut self) -> Result<ProducerStamp> {
        let body = self.call(RequestKind::InitProducer, |out| InitProducer {}.encode(out)).await?;
        let response = InitProducerResponse::decode(body)?;
        Ok(ProducerStamp {
            id: response.producer_id,
            epoch: response.producer_epoch,
            base_sequence: Sequence(0),
        })
    }

    /// Creates a topic; one that exists already is an error.
    pub async fn create_topic(&mut self, name: &str, partitions: u32) -> Result<TopicId> {
        let ask = CreateTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: 1,
            config: Vec::new(),
        };
        let body = self.call(RequestKind::CreateTopic, |out| ask.encode(out)).await?;
        Ok(CreateTopicResponse::decode(body)?.id)
    }

    /// Where the brokers and the partitions of a topic are.
    pub async fn metadata(&mut self, topic: &str) -> Result<MetadataResponse> {
        let ask = Metadata { topics: TopicSelection::ByName(vec![topic.to_owned()]) };
        let body = self.call(RequestKind::Metadata, |out| ask.encode(out)).await?;
        Ok(MetadataResponse::decode(body)?)
    }
}

impl LinkSender {
    /// Hands a frame to QUIC.
    pub async fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.stream.write_all(frame).await.context("sending a request")
    }

    /// No request follows.
    pub fn finish(&mut self) -> Result<()> {
        self.stream.finish().context("ending the stream")
    }
}

impl LinkReceiver {
    /// The body of the last answer.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The next answer's header, or `None` at the end of the stream. An answer that is no success is
    /// an error: a measurement has nothing to hide.
    pub async fn receive(&mut self) -> Result<Option<FrameHeader>> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        match self.stream.read_exact(&mut bytes).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(error).context("receiving an answer"),
        }
        let header = FrameHeader::decode(&bytes)?;
        ensure!(header.flags.contains(FrameFlags::RESPONSE), "the peer sent a request");
        self.body.resize(header.body_bytes(), 0);
        self.stream.read_exact(&mut self.body).await.context("receiving an answer's body")?;
        match header.error_code() {
            ErrorCode::Ok => Ok(Some(header)),
            code => {
                let message = ErrorBody::decode(&self.body).map(|body| body.message);
                bail!("the broker answers {}: {}", code.name(), message.unwrap_or_default())
            }
        }
    }
}

/// The header of a request. The broker is of the same build, so Hello agrees on the newest version.
fn header_of(kind: RequestKind) -> FrameHeader {
    let header = FrameHeader::request(kind, CorrelationId(0));
    match kind {
        RequestKind::Hello => header,
        _ => header.in_version(PROTOCOL_VERSION_MAX),
    }
}

fn hello() -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION_MAX,
        client_name: "load".to_owned(),
    }
}

/// What a broker is sent first.
pub fn hello_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    header_of(RequestKind::Hello).encode_frame(&mut frame, |out| hello().encode(out));
    frame
}

/// Where batches go.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Topic, partition, epoch and what is asked of an acknowledgement.
    pub head: ProduceHead,
    /// The partition's shard.
    pub address: SocketAddr,
}

impl Target {
    /// A target that the echo server takes: it does not look at it.
    pub fn echo(address: SocketAddr) -> Target {
        let head = ProduceHead {
            topic: TopicId::from_bytes([1; 16]),
            partition: PartitionId(0),
            leader_epoch: rustmq_protocol::LeaderEpoch(0),
            acks: Acks::All,
            timeout_ms: TIMEOUT_MS,
        };
        Target { head, address }
    }

    /// Every partition of a topic, with the address of its shard.
    pub fn of_topic(metadata: &MetadataResponse, host: SocketAddr) -> Result<Vec<Target>> {
        let topic = metadata.topics.first().context("the topic is not in the metadata")?;
        ensure!(topic.error == ErrorCode::Ok, "the topic: {}", topic.error.name());
        let target = |partition: &rustmq_protocol::PartitionInfo| {
            let leader = metadata.brokers.iter().find(|broker| broker.id == partition.leader);
            let shards = &leader.context("a partition has no leader")?.shards;
            let endpoint = shards.iter().find(|endpoint| endpoint.shard == partition.shard);
            let port = endpoint.context("a shard has no endpoint")?.port;
            let head = ProduceHead {
                topic: topic.id,
                partition: partition.partition,
                leader_epoch: partition.leader_epoch,
                acks: Acks::All,
                timeout_ms: TIMEOUT_MS,
            };
            Ok(Target { head, address: SocketAddr::new(host.ip(), port) })
        };
        topic.partitions.iter().map(target).collect()
    }
}

/// A produce request that is sent again and again, each time as the producer's next batch.
#[derive(Debug, Clone)]
pub struct ProduceFrame {
    bytes: Vec<u8>,
    header: FrameHeader,
    producer: ProducerStamp,
    record_count: u32,
}

/// The producer of requests to the echo server.
pub const NO_BROKER: ProducerStamp =
    ProducerStamp { id: ProducerId(0), epoch: ProducerEpoch(0), base_sequence: Sequence(0) };

impl ProduceFrame {
    /// A batch of `record_count` records with values of `value_bytes`.
    pub fn new(
        target: &Target,
        producer: ProducerStamp,
        record_count: usize,
        value_bytes: usize,
    ) -> ProduceFrame {
        let batch = fixtures::batch(record_count, value_bytes);
        let header =
            header_of(RequestKind::Produce).with_body_bytes(PRODUCE_HEAD_BYTES + batch.len());
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&target.head.encode());
        bytes.extend_from_slice(&batch);
        ProduceFrame { bytes, header, producer, record_count: record_count as u32 }
    }

    /// The producer's next batch, and the correlation that its answer will have.
    pub fn next_batch(&mut self) -> (CorrelationId, &[u8]) {
        let next = CorrelationId(self.header.correlation.0.wrapping_add(1));
        (next, self.next_batch_as(next))
    }

    /// The producer's next batch, whose answer will have this correlation.
    pub fn next_batch_as(&mut self, correlation: CorrelationId) -> &[u8] {
        self.header.correlation = correlation;
        let (header, body) = self.bytes.split_at_mut(FRAME_HEADER_BYTES);
        header.copy_from_slice(&self.header.encode());
        stamp_producer(&mut body[PRODUCE_HEAD_BYTES..], self.producer);
        if self.producer.id != ProducerId::NONE {
            let sequence = self.producer.base_sequence.0;
            self.producer.base_sequence = Sequence(sequence.wrapping_add(self.record_count));
        }
        &self.bytes
    }

    /// The batch that [`next_batch`](Self::next_batch) gave last, with its header.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Records of each batch.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes of each batch.
    pub fn batch_bytes(&self) -> usize {
        self.bytes.len() - FRAME_HEADER_BYTES - PRODUCE_HEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_protocol::{Produce, verify};

    #[test]
    fn each_frame_is_the_producers_next_batch() {
        let target = Target::echo("127.0.0.1:1".parse().unwrap());
        let mut frame = ProduceFrame::new(&target, NO_BROKER, 10, 100);
        for index in 0..3 {
            let (correlation, bytes) = frame.next_batch();
            assert_eq!(correlation, CorrelationId(index + 1));
            let header = FrameHeader::decode(bytes.first_chunk().unwrap()).unwrap();
            assert_eq!(header.length as usize, bytes.len());
            let produce = Produce::decode(&bytes[FRAME_HEADER_BYTES..]).unwrap();
            let batch = verify(produce.batch, 1 << 20).unwrap();
            assert_eq!(batch.base_sequence, Sequence(10 * index));
        }
    }
}
