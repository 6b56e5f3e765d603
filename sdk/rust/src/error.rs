//! The one error type of the client.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use rustmq_protocol::{
    BatchError, DecodeError, ErrorBody, ErrorCode, FrameError, HEADERS_PER_RECORD_MAX, Offset,
    PartitionId, STRING_BYTES_MAX, ThrottledBody, TopicNameError,
};

/// Why something did not succeed.
///
/// Two questions decide what a caller does: [`ClientError::is_retriable`] and
/// [`ClientError::is_definite`]. Producers and consumers have already retried what can be retried,
/// within their time, before they report an error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration cannot work.
    Config(ConfigError),
    /// No connection to a broker.
    Connect {
        /// `host:port` that was dialled.
        address: String,
        /// What happened.
        error: ConnectError,
    },
    /// The connection was lost before the answer came.
    ConnectionLost,
    /// The answer did not come in time.
    RequestTimeout,
    /// The broker refused or failed.
    Broker {
        /// Its code.
        code: ErrorCode,
        /// Its message about this request; may be empty.
        message: String,
        /// True if nothing has happened for certain, in this attempt and all before it.
        definite: bool,
        /// With `THROTTLED`, the shortest pause that the broker asks for; else zero.
        retry_after: Duration,
    },
    /// The records were not acknowledged within the delivery timeout.
    DeliveryTimeout {
        /// True if they are certainly not in the log.
        definite: bool,
        /// What the last attempt failed with.
        last: Option<Box<ClientError>>,
    },
    /// The answer does not have its layout.
    Malformed(DecodeError),
    /// The answer does not begin with the header of a frame.
    MalformedFrame(FrameError),
    /// A batch came damaged out of the broker or has a layout that this client does not read.
    Batch {
        /// Of which partition.
        partition: PartitionId,
        /// At which fetch offset.
        offset: Offset,
        /// What is wrong with it.
        error: BatchError,
    },
    /// The record is larger than the broker takes.
    RecordTooLarge {
        /// Bytes of key, value and headers.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The record has more headers than allowed.
    TooManyHeaders {
        /// How many.
        count: usize,
    },
    /// The topic has no such partition.
    NoSuchPartition {
        /// Which was asked for.
        partition: PartitionId,
        /// How many there are.
        count: u32,
    },
    /// The name cannot be that of a topic.
    TopicName(TopicNameError),
    /// A configuration key or value of a topic is too long.
    TextTooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// The broker speaks no protocol version that this client speaks.
    UnsupportedVersion {
        /// The oldest that it speaks.
        min: u8,
        /// The newest that it speaks.
        max: u8,
    },
    /// The producer or client was closed before.
    Closed,
}

/// Why a configuration cannot work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// There is no address to dial.
    NoBootstrap,
    /// An address is not `host:port`.
    Address {
        /// What it is.
        address: String,
    },
    /// A file cannot be read.
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        kind: ErrorKind,
    },
    /// A certificate or key is not usable.
    Tls {
        /// Which: `ca`, `cert` or `key`.
        field: &'static str,
        /// What the TLS library says about it.
        reason: String,
    },
    /// The name of the client is too long.
    ClientNameTooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// A time is zero, too long, or a maximum lies below its minimum.
    TimeOutOfBounds {
        /// Which.
        field: &'static str,
        /// What it is.
        time: Duration,
    },
    /// A size or count is outside its bounds.
    NumberOutOfBounds {
        /// Which.
        field: &'static str,
        /// What it is.
        value: usize,
        /// The least allowed.
        min: usize,
        /// The greatest allowed.
        max: usize,
    },
    /// No UDP socket could be opened.
    Socket {
        /// Why.
        kind: ErrorKind,
    },
}

/// Why a connection could not be made.
#[derive(Clone, Debug)]
pub enum ConnectError {
    /// The host has no address.
    Resolve(ErrorKind),
    /// The connection could not be begun.
    Start(quinn::ConnectError),
    /// The handshake failed, or the connection was lost during it.
    Handshake(quinn::ConnectionError),
    /// It took too long.
    TimedOut,
    /// The broker belongs to another cluster than the first that was dialled.
    OtherCluster,
    /// The metadata names no such broker, or the partition has no leader at present.
    NoLeader,
}

impl ClientError {
    pub(crate) fn broker(code: ErrorCode, message: String) -> ClientError {
        let definite = code.is_definite();
        ClientError::Broker { code, message, definite, retry_after: Duration::ZERO }
    }

    /// The error in the body of a response whose code is not OK.
    pub(crate) fn answered(code: ErrorCode, body: &[u8]) -> ClientError {
        if code == ErrorCode::Throttled
            && let Ok(ThrottledBody { message, retry_after_ms }) = ThrottledBody::decode(body)
        {
            let retry_after = Duration::from_millis(u64::from(retry_after_ms));
            return ClientError::Broker { code, message, definite: true, retry_after };
        }
        // A message that cannot be read takes nothing from what the code says.
        let message = ErrorBody::decode(body).map(|body| body.message);
        ClientError::broker(code, message.unwrap_or_default())
    }

    /// The shortest pause before the same call is tried again, as the broker asked; zero if it did
    /// not.
    pub fn retry_after(&self) -> Duration {
        match self {
            ClientError::Broker { retry_after, .. } => *retry_after,
            _ => Duration::ZERO,
        }
    }

    /// True if the same call can succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            ClientError::Connect { error: ConnectError::OtherCluster, .. } => false,
            ClientError::Connect { .. }
            | ClientError::ConnectionLost
            | ClientError::RequestTimeout
            | ClientError::DeliveryTimeout { .. } => true,
            ClientError::Broker { code, .. } => code.is_retriable(),
            _ => false,
        }
    }

    /// True if the call certainly had no effect. If not, records may be in the log, or a topic may
    /// be created.
    pub fn is_definite(&self) -> bool {
        match self {
            ClientError::Broker { definite, .. }
            | ClientError::DeliveryTimeout { definite, .. } => *definite,
            ClientError::ConnectionLost
            | ClientError::RequestTimeout
            | ClientError::Malformed(_)
            | ClientError::MalformedFrame(_) => false,
            _ => true,
        }
    }

    /// The code of the broker, if it was the broker that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Broker { code, .. } => Some(*code),
            ClientError::DeliveryTimeout { last: Some(last), .. } => last.code(),
            _ => None,
        }
    }
}

impl From<ConfigError> for ClientError {
    fn from(error: ConfigError) -> ClientError {
        ClientError::Config(error)
    }
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> ClientError {
        ClientError::Malformed(error)
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Config(error) => error.fmt(f),
            ClientError::Connect { address, error } => {
                write!(f, "connecting to {address}: {error}")
            }
            ClientError::ConnectionLost => {
                f.write_str("the connection was lost before the answer came")
            }
            ClientError::RequestTimeout => f.write_str("the answer did not come in time"),
            ClientError::Broker { code, message, .. } if message.is_empty() => {
                write!(f, "{code}: {}", code.meaning())
            }
            ClientError::Broker { code, message, .. } => write!(f, "{code}: {message}"),
            ClientError::DeliveryTimeout { definite, last } => {
                let fate = if *definite { "are not in the log" } else { "may be in the log" };
                write!(f, "not acknowledged within the delivery timeout; the records {fate}")?;
                match last {
                    Some(last) => write!(f, "; the last attempt: {last}"),
                    None => Ok(()),
                }
            }
            ClientError::Malformed(error) => write!(f, "the answer cannot be read: {error}"),
            ClientError::MalformedFrame(error) => write!(f, "the answer cannot be read: {error}"),
            ClientError::Batch { partition, offset, error } => {
                write!(
                    f,
                    "the batch fetched from partition {partition} at offset {offset}: {error}"
                )
            }
            ClientError::RecordTooLarge { bytes, max } => {
                write!(f, "a record of {bytes} bytes, at most {max} are allowed")
            }
            ClientError::TooManyHeaders { count } => {
                write!(
                    f,
                    "a record with {count} headers, at most {HEADERS_PER_RECORD_MAX} are allowed"
                )
            }
            ClientError::NoSuchPartition { partition, count } => {
                write!(f, "partition {partition}, the topic has {count}")
            }
            ClientError::TopicName(error) => error.fmt(f),
            ClientError::TextTooLong { bytes } => {
                write!(f, "a text of {bytes} bytes, at most {STRING_BYTES_MAX} are allowed")
            }
            ClientError::UnsupportedVersion { min, max } => {
                write!(
                    f,
                    "the broker speaks protocol versions {min} to {max}, this client speaks others"
                )
            }
            ClientError::Closed => f.write_str("closed before"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ClientError::DeliveryTimeout { last: Some(last), .. } => Some(last.as_ref()),
            _ => None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NoBootstrap => {
                f.write_str("bootstrap is empty, at least one host:port is needed")
            }
            ConfigError::Address { address } => write!(f, "{address:?} is not host:port"),
            ConfigError::File { path, kind } => write!(f, "reading {}: {kind}", path.display()),
            ConfigError::Tls { field, reason } => write!(f, "tls {field}: {reason}"),
            ConfigError::ClientNameTooLong { bytes } => {
                write!(f, "client_name has {bytes} bytes, at most {STRING_BYTES_MAX} are allowed")
            }
            ConfigError::TimeOutOfBounds { field, time } => {
                write!(f, "{field} is {time:?}, outside of 1 ms to 24 h or below its minimum")
            }
            ConfigError::NumberOutOfBounds { field, value, min, max } => {
                write!(f, "{field} is {value}, from {min} to {max} are allowed")
            }
            ConfigError::Socket { kind } => write!(f, "opening a UDP socket: {kind}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Resolve(kind) => write!(f, "the host has no address: {kind}"),
            ConnectError::Start(error) => error.fmt(f),
            ConnectError::Handshake(error) => error.fmt(f),
            ConnectError::TimedOut => f.write_str("it took too long"),
            ConnectError::OtherCluster => f.write_str("the broker belongs to another cluster"),
            ConnectError::NoLeader => {
                f.write_str("the partition has no leader that can be dialled")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_may_be_retried_and_says_nothing_about_the_effect() {
        let error = ClientError::ConnectionLost;
        assert!(error.is_retriable() && !error.is_definite());
    }

    #[test]
    fn the_brokers_code_decides() {
        let error = ClientError::broker(ErrorCode::NotLeader, String::new());
        assert!(error.is_retriable() && error.is_definite());
        let error = ClientError::broker(ErrorCode::Timeout, String::new());
        assert!(error.is_retriable() && !error.is_definite());
        let error = ClientError::broker(ErrorCode::RecordTooLarge, "too large".to_owned());
        assert!(!error.is_retriable() && error.is_definite());
        assert_eq!(error.to_string(), "RECORD_TOO_LARGE: too large");
        assert_eq!(error.code(), Some(ErrorCode::RecordTooLarge));
    }
}
