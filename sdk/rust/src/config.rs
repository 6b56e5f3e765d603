//! What a client is told: addresses, certificates, times.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustmq_protocol::STRING_BYTES_MAX;

use crate::error::{ClientError, ConfigError};

/// The address on which a broker listens unless it is told otherwise.
const ADDRESS_DEFAULT: &str = "127.0.0.1:9092";

/// How a client reaches a cluster. Make one with [`ClientConfig::new`] or
/// [`ClientConfig::from_dev_dir`] and change fields.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of brokers; they are tried in order until one answers.
    pub bootstrap: Vec<String>,
    /// Certificates.
    pub tls: TlsConfig,
    /// What the client calls itself, for the broker's logs and metrics.
    pub client_name: String,
    /// How long to wait for the answer to a request; a long poll has its wait on top. Default 10 s.
    pub request_timeout: Duration,
    /// How long to wait for a connection to one address. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a connection may be silent before it counts as lost; keep-alives are sent three
    /// times as often. Default 30 s, as the broker's `network.idle_timeout_ms`; the lower of both holds,
    /// and where the broker's is below a third of this one, a connection at rest is closed and dialled
    /// again when it is needed.
    ///
    /// Whoever waits for an answer does not wait for so long: after [`Self::request_timeout`] the
    /// connection is given up. It is consumers at the end of their partitions that take a broker whose
    /// host is gone for a quiet one until then; one that was started again tells them at their next
    /// keep-alive. Keep-alives are what a client at rest costs the broker, so lower it where ten
    /// seconds matter more than that.
    pub idle_timeout: Duration,
    /// The first pause before trying again. Default 20 ms.
    pub backoff_min: Duration,
    /// The longest pause before trying again. Default 2 s.
    pub backoff_max: Duration,
    /// Where requests for a partition are sent.
    pub route: RouteMode,
    /// The network between this client and its brokers. Default: any.
    pub mtu_profile: MtuProfile,
    /// Whether the client looks for answers before its thread sleeps. Default: it does not.
    pub poll: PollMode,
}

/// What a client does while there is nothing to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PollMode {
    /// Its thread sleeps, as soon as it has nothing else to do: least processor time.
    #[default]
    Sleep,
    /// It looks for answers again and again, between whatever else the runtime has to do, for as long as
    /// that has paid off lately and 500 µs at most; then it sleeps. A request that is answered within
    /// that time is answered sooner by what a wake-up costs, 5 to 50 µs, and takes up to a whole
    /// core. For programs that wait for one answer at a time and have a core to spare.
    Adaptive,
}

/// The network between a client and its brokers: how large datagrams may get. Each side finds out what
/// the path takes, up to its own profile and to what the other's takes (`network.mtu_profile` of a
/// broker). Larger ones cost less time for each byte; a profile that does not fit costs a few probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MtuProfile {
    /// Any: up to 1,452 bytes, an Ethernet frame.
    #[default]
    Internet,
    /// One with short ways, where Ethernet frames pass: up to 6,500 bytes sent and 8,952, a jumbo frame,
    /// received.
    Datacentre,
    /// The same host: up to 6,500 bytes sent and 65,507 received.
    Loopback,
}

/// Where requests for a partition are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RouteMode {
    /// To the shard that leads it.
    #[default]
    Owner,
    /// All over the connection to the bootstrap address; the broker forwards them. For a client
    /// behind a proxy that knows only one address.
    Bootstrap,
}

/// Whom the client believes and how it proves who it is. There is no way to turn verification off.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificates of the authorities that sign brokers.
    pub ca: Pem,
    /// The client's certificate, followed by intermediate ones.
    pub cert: Pem,
    /// The key of the client's certificate.
    pub key: Pem,
    /// The name that a broker's certificate must have; none means the host that is dialled.
    pub server_name: Option<String>,
}

/// Text in PEM format.
#[derive(Clone)]
pub enum Pem {
    /// In a file, read when the client connects.
    File(PathBuf),
    /// In memory.
    Bytes(Vec<u8>),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
            // It may be a key.
            Pem::Bytes(_) => f.write_str("Bytes(..)"),
        }
    }
}

impl Pem {
    pub(crate) fn read(&self) -> Result<Vec<u8>, ConfigError> {
        match self {
            Pem::Bytes(bytes) => Ok(bytes.clone()),
            Pem::File(path) => std::fs::read(path)
                .map_err(|error| ConfigError::File { path: path.clone(), kind: error.kind() }),
        }
    }
}

impl ClientConfig {
    /// The defaults with these addresses and certificates.
    pub fn new(bootstrap: Vec<String>, tls: TlsConfig) -> ClientConfig {
        ClientConfig {
            bootstrap,
            tls,
            client_name: "rustmq-client".to_owned(),
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            route: RouteMode::Owner,
            mtu_profile: MtuProfile::Internet,
            poll: PollMode::Sleep,
        }
    }

    /// The address and the certificates that a broker in development mode has put into its data
    /// directory.
    pub fn from_dev_dir(data_dir: impl AsRef<Path>) -> Result<ClientConfig, ClientError> {
        let data_dir = data_dir.as_ref();
        let path = data_dir.join("address");
        let address = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                ADDRESS_DEFAULT.to_owned()
            }
            Err(error) => return Err(ConfigError::File { path, kind: error.kind() }.into()),
        };
        let certs = data_dir.join("certs");
        let tls = TlsConfig {
            ca: Pem::File(certs.join("ca.crt")),
            cert: Pem::File(certs.join("client.crt")),
            key: Pem::File(certs.join("client.key")),
            server_name: None,
        };
        Ok(ClientConfig::new(vec![address], tls))
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.bootstrap.is_empty() {
            return Err(ConfigError::NoBootstrap);
        }
        for address in &self.bootstrap {
            split_address(address)?;
        }
        if self.client_name.len() > STRING_BYTES_MAX {
            return Err(ConfigError::ClientNameTooLong { bytes: self.client_name.len() });
        }
        for (field, time) in [
            ("request_timeout", self.request_timeout),
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("backoff_min", self.backoff_min),
        ] {
            if time < Duration::from_millis(1) || Duration::from_secs(24 * 3600) < time {
                return Err(ConfigError::TimeOutOfBounds { field, time });
            }
        }
        if self.backoff_max < self.backoff_min {
            return Err(ConfigError::TimeOutOfBounds {
                field: "backoff_max",
                time: self.backoff_max,
            });
        }
        Ok(())
    }
}

/// Takes `host:port` apart; the host may be an IPv6 address in brackets.
pub(crate) fn split_address(address: &str) -> Result<(&str, u16), ConfigError> {
    let invalid = || ConfigError::Address { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(invalid)?,
        None if host.contains(':') => return Err(invalid()),
        None => host,
    };
    if host.is_empty() { Err(invalid()) } else { Ok((host, port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        let pem = || Pem::Bytes(b"secret".to_vec());
        let tls = TlsConfig { ca: pem(), cert: pem(), key: pem(), server_name: None };
        ClientConfig::new(vec!["localhost:9092".to_owned()], tls)
    }

    #[test]
    fn addresses_are_taken_apart_at_the_last_colon() {
        assert_eq!(split_address("localhost:9092").unwrap(), ("localhost", 9092));
        assert_eq!(split_address("[::1]:1").unwrap(), ("::1", 1));
        for address in ["", "localhost", ":1", "a:b", "a:70000", "::1:9", "[::1:9", "[]:9"] {
            assert!(split_address(address).is_err(), "{address}");
        }
    }

    #[test]
    fn the_defaults_pass_and_nonsense_is_named() {
        assert!(config().check().is_ok());
        let no_bootstrap = ClientConfig { bootstrap: vec![], ..config() };
        assert!(matches!(no_bootstrap.check(), Err(ConfigError::NoBootstrap)));
        let no_time = ClientConfig { request_timeout: Duration::ZERO, ..config() };
        let error = no_time.check().unwrap_err();
        assert!(error.to_string().starts_with("request_timeout"), "{error}");
        let swapped = ClientConfig { backoff_max: Duration::from_millis(1), ..config() };
        assert!(swapped.check().is_err());
    }

    #[test]
    fn keys_in_memory_are_not_printed() {
        assert!(!format!("{:?}", config()).contains("115"), "no bytes of a key");
    }
}
