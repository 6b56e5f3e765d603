//! The first request on a connection. Its layout is the same in every protocol version.

use crate::codec::{DecodeError, Reader, put_text};
use crate::frame::VersionRange;
use crate::ids::{BrokerId, ShardId};
use crate::limits::STRING_BYTES_MAX;

/// Opens a connection: the first request on its first stream, before any other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The oldest protocol version that the client speaks.
    pub version_min: u8,
    /// The newest protocol version that the client speaks.
    pub version_max: u8,
    /// What the client calls itself, for logs and metrics.
    pub client_name: String,
}

impl Hello {
    /// The versions that the client speaks.
    pub fn versions(&self) -> VersionRange {
        VersionRange { min: self.version_min, max: self.version_max }
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.version_min, self.version_max]);
        put_text(out, &self.client_name);
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<Hello, DecodeError> {
        let mut reader = Reader::new(bytes);
        let hello = Hello {
            version_min: reader.u8()?,
            version_max: reader.u8()?,
            client_name: reader.text(STRING_BYTES_MAX)?.to_owned(),
        };
        reader.finish()?;
        Ok(hello)
    }
}

/// Who answers, in which version, and what may be asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HelloResponse {
    /// The protocol version of everything that follows on this connection.
    pub version: u8,
    /// The cluster; a client that knows another one is at the wrong address.
    pub cluster_id: [u8; 16],
    /// The broker.
    pub broker_id: BrokerId,
    /// The shard that serves this connection.
    pub shard: ShardId,
    /// Shards of the broker.
    pub shard_count: u16,
    /// When records are on disk.
    pub flush: FlushMode,
    /// Bytes of the largest frame that the broker takes.
    pub frame_bytes_max: u32,
    /// Bytes of key, value and headers of the largest record that any topic takes.
    pub record_bytes_max: u32,
    /// Batches that one producer may have in flight to one partition.
    pub producer_batches_in_flight_max: u32,
    /// Milliseconds without a packet after which the connection is dropped.
    pub idle_timeout_ms: u32,
}

impl HelloResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.version);
        out.extend_from_slice(&self.cluster_id);
        out.extend_from_slice(&self.broker_id.0.to_le_bytes());
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        out.extend_from_slice(&self.shard_count.to_le_bytes());
        out.extend_from_slice(&self.flush.to_bytes());
        out.extend_from_slice(&self.frame_bytes_max.to_le_bytes());
        out.extend_from_slice(&self.record_bytes_max.to_le_bytes());
        out.extend_from_slice(&self.producer_batches_in_flight_max.to_le_bytes());
        out.extend_from_slice(&self.idle_timeout_ms.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<HelloResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = HelloResponse {
            version: reader.u8()?,
            cluster_id: *reader.array()?,
            broker_id: BrokerId(reader.u32()?),
            shard: ShardId(reader.u16()?),
            shard_count: reader.u16()?,
            flush: FlushMode::read(&mut reader)?,
            frame_bytes_max: reader.u32()?,
            record_bytes_max: reader.u32()?,
            producer_batches_in_flight_max: reader.u32()?,
            idle_timeout_ms: reader.u32()?,
        };
        reader.finish()?;
        Ok(response)
    }
}

/// When acknowledged records are on disk. Eight bytes: `u8` mode, three of zero, `u32`
/// milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushMode {
    /// Before they are acknowledged. Mode 0.
    Always,
    /// Up to an interval after they are acknowledged: a crash of the host may lose them. Mode 1.
    Interval {
        /// The interval in milliseconds.
        ms: u32,
    },
}

impl FlushMode {
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let (mode, ms) = match self {
            FlushMode::Always => (0, 0),
            FlushMode::Interval { ms } => (1, ms),
        };
        let [m0, m1, m2, m3] = u32::to_le_bytes(ms);
        [mode, 0, 0, 0, m0, m1, m2, m3]
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<FlushMode, DecodeError> {
        let mode = reader.u8()?;
        reader.padding::<3>()?;
        match (mode, reader.u32()?) {
            (0, 0) => Ok(FlushMode::Always),
            (0, _) => Err(DecodeError::PaddingNotZero),
            (1, ms) => Ok(FlushMode::Interval { ms }),
            _ => Err(DecodeError::UnknownValue { field: "flush mode", value: u64::from(mode) }),
        }
    }
}
