//! One QUIC connection to one shard, opened by `Hello`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustmq_protocol::{
    DecodeError, ErrorCode, Hello, HelloResponse, PartitionId, RequestKind, TopicId,
    UnsupportedVersionBody, VersionRange,
};
use tokio::time::timeout;

use crate::error::{ClientError, ConnectError};
use crate::stream::{Answer, Reply, ReplyTo, Request, RequestStream, Subscription};

/// Streams for batches on their way in. Partitions share them.
const PRODUCE_STREAMS: u32 = 16;

/// Streams for long polls and subscriptions. More, as a broker may answer a stream in order: a poll
/// that waits then holds up those behind it.
const FETCH_STREAMS: u32 = 40;

// With the control stream they stay below what a broker allows.
const _: () =
    assert!(1 + PRODUCE_STREAMS + FETCH_STREAMS <= rustmq_protocol::STREAMS_PER_CONNECTION_MAX);

/// Which data stream a request about a partition takes. A partition keeps to one, so that its
/// batches arrive in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Produce(TopicId, PartitionId),
    Fetch(TopicId, PartitionId),
}

impl Lane {
    /// The place of the stream among the data streams.
    fn index(self) -> usize {
        // Partitions of one topic are spread evenly, whatever the id of the topic.
        let spread = |topic: TopicId, partition: PartitionId, streams: u32| {
            let [.., a, b, c, d] = *topic.as_bytes();
            u32::from_le_bytes([a, b, c, d]).wrapping_add(partition.0) % streams
        };
        match self {
            Lane::Produce(topic, partition) => spread(topic, partition, PRODUCE_STREAMS) as usize,
            Lane::Fetch(topic, partition) => {
                (PRODUCE_STREAMS + spread(topic, partition, FETCH_STREAMS)) as usize
            }
        }
    }
}

/// A connection whose `Hello` was answered. Closed when the last handle is dropped.
///
/// Data streams are opened when a lane is first used; `None` until then.
#[derive(Debug)]
pub(crate) struct Connection {
    quic: quinn::Connection,
    hello: HelloResponse,
    /// What Hello agreed on, for all streams.
    version: Arc<AtomicU8>,
    control: RequestStream,
    data: Mutex<Vec<Option<Arc<RequestStream>>>>,
}

impl Connection {
    /// Dials and says hello.
    pub(crate) async fn open(
        endpoint: &quinn::Endpoint,
        address: SocketAddr,
        server_name: &str,
        client_name: &str,
    ) -> Result<Connection, OpenError> {
        let connecting = endpoint
            .connect(address, server_name)
            .map_err(|error| OpenError::Connect(ConnectError::Start(error)))?;
        let handshake = |error| OpenError::Connect(ConnectError::Handshake(error));
        let quic = connecting.await.map_err(handshake)?;
        let (send, recv) = quic.open_bi().await.map_err(handshake)?;
        let version = Arc::new(AtomicU8::new(VersionRange::SUPPORTED.min));
        let control = RequestStream::start(send, recv, Arc::clone(&version));
        let hello =
            say_hello(&control, client_name).await.map_err(|error| match quic.close_reason() {
                // The reason why the broker closed says more than that it did.
                Some(reason) if matches!(error, ClientError::ConnectionLost) => {
                    OpenError::Connect(ConnectError::Handshake(reason))
                }
                _ => OpenError::Hello(error),
            })?;
        let streams = (PRODUCE_STREAMS + FETCH_STREAMS) as usize;
        let data = Mutex::new(std::iter::repeat_with(|| None).take(streams).collect());
        version.store(hello.version, Ordering::Relaxed);
        Ok(Connection { quic, hello, version, control, data })
    }

    /// What the broker said about itself.
    pub(crate) fn hello(&self) -> &HelloResponse {
        &self.hello
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some() || self.control.is_closed()
    }

    /// Sends a request over the control stream and waits for the answer.
    pub(crate) async fn control(
        &self,
        kind: RequestKind,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<Bytes, ClientError> {
        self.wait_for(&self.control, kind, body, wait).await?.into_body()
    }

    /// Sends a request over a lane and waits for the answer.
    pub(crate) async fn request(
        &self,
        lane: Lane,
        kind: RequestKind,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<Reply, ClientError> {
        let stream = self.stream(lane).await?;
        self.wait_for(&stream, kind, body, wait).await
    }

    /// Does the broker know subscriptions?
    pub(crate) fn offers_subscriptions(&self) -> bool {
        RequestKind::Subscribe.version_min() <= self.hello.version
    }

    /// Subscribes over a lane, and waits for the first answer, which says whether others follow.
    pub(crate) async fn subscribe(
        &self,
        lane: Lane,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<(Reply, Subscription), ClientError> {
        let mut subscription = self.stream(lane).await?.subscribe(body).await;
        match timeout(wait, subscription.next()).await {
            Ok(first) => Ok((first?, subscription)),
            Err(_) => {
                self.abandon();
                Err(ClientError::RequestTimeout)
            }
        }
    }

    /// The stream of a lane, opened if it is not.
    pub(crate) async fn stream(&self, lane: Lane) -> Result<Arc<RequestStream>, ClientError> {
        let index = lane.index();
        if let Some(stream) = self.open_stream(index) {
            return Ok(stream);
        }
        let (send, recv) = self.quic.open_bi().await.map_err(|_| ClientError::ConnectionLost)?;
        // Another task may have opened the same lane meanwhile. All of them must use one stream, so
        // the first wins and this one is finished unused.
        if let Some(stream) = self.open_stream(index) {
            return Ok(stream);
        }
        let stream = Arc::new(RequestStream::start(send, recv, Arc::clone(&self.version)));
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        data[index] = Some(Arc::clone(&stream));
        Ok(stream)
    }

    /// Gives the connection up: a broker answers in time, so one that does not is gone, even if
    /// QUIC does not know yet.
    pub(crate) fn abandon(&self) {
        self.quic.close(quinn::VarInt::from_u32(0), b"no answer");
    }

    async fn wait_for(
        &self,
        stream: &RequestStream,
        kind: RequestKind,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<Reply, ClientError> {
        match timeout(wait, answer(stream, kind, body)).await {
            Ok(result) => result,
            Err(_) => {
                self.abandon();
                Err(ClientError::RequestTimeout)
            }
        }
    }

    fn open_stream(&self, index: usize) -> Option<Arc<RequestStream>> {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        data[index].as_ref().filter(|stream| !stream.is_closed()).cloned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.quic.close(quinn::VarInt::from_u32(0), b"client closed");
    }
}

/// Why a connection was not opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    Connect(ConnectError),
    Hello(ClientError),
}

async fn say_hello(
    control: &RequestStream,
    client_name: &str,
) -> Result<HelloResponse, ClientError> {
    let hello = Hello {
        version_min: VersionRange::SUPPORTED.min,
        version_max: VersionRange::SUPPORTED.max,
        client_name: client_name.to_owned(),
    };
    let mut body = Vec::new();
    hello.encode(&mut body);
    // The caller bounds the whole of opening by its connect timeout.
    let reply = answer(control, RequestKind::Hello, body).await?;
    if reply.header.error_code() == ErrorCode::UnsupportedVersion {
        let body = UnsupportedVersionBody::decode(&reply.body)?;
        return Err(ClientError::UnsupportedVersion {
            min: body.supported.min,
            max: body.supported.max,
        });
    }
    let response = HelloResponse::decode(&reply.into_body()?)?;
    if !VersionRange::SUPPORTED.contains(response.version) {
        let value = u64::from(response.version);
        return Err(DecodeError::UnknownValue { field: "version", value }.into());
    }
    Ok(response)
}

async fn answer(
    stream: &RequestStream,
    kind: RequestKind,
    head: Vec<u8>,
) -> Result<Reply, ClientError> {
    let (reply, answer) = ReplyTo::one();
    let payload = Bytes::new();
    stream.submit(Request { kind, subscription: None, head, payload, answered: true, reply }).await;
    match answer.await {
        Ok(Ok(Answer::Frame(reply))) => Ok(reply),
        Ok(Ok(Answer::Written) | Err(_)) | Err(_) => Err(ClientError::ConnectionLost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_a_topic_spread_over_all_streams_and_never_mix_directions() {
        let topic = TopicId::from_bytes([0xfe; 16]);
        let mut produce: Vec<usize> =
            (0..PRODUCE_STREAMS).map(|p| Lane::Produce(topic, PartitionId(p)).index()).collect();
        produce.sort_unstable();
        assert_eq!(produce, (0..PRODUCE_STREAMS as usize).collect::<Vec<_>>());
        assert!(PRODUCE_STREAMS as usize <= Lane::Fetch(topic, PartitionId(3)).index());
    }
}
