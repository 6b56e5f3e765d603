//! The UDP sockets of all shards, and the files that tell programs where they are.
//!
//! Sockets are bound in the order of shards before any shard starts, and none is closed before the
//! process ends: the kernel knows those on the shared port by their order. Each port is taken for this
//! process alone before it is shared among its shards, so two brokers on the same ports collide at
//! start and not later.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, io};

use anyhow::{Context, Result};
use rustmq_config::BrokerConfig;
use rustmq_config::options::SHARD_PORT_OFFSET;
use rustmq_protocol::{ShardEndpoint, ShardId};
use rustmq_server::CONNECTION_ID_BYTES;
use rustmq_sys::udp::{Steering, UdpSocket};

use super::files;

/// The bound sockets.
pub(super) struct Sockets {
    /// The port of the first contact.
    pub(super) bootstrap_port: u16,
    /// Who serves it.
    pub(super) bootstrap: Bootstrap,
    /// The port of each shard.
    pub(super) shards: Vec<ShardEndpoint>,
    /// What each shard serves: its own socket, and the one of the first contact if it serves that.
    pub(super) by_shard: Vec<Vec<UdpSocket>>,
}

/// Who serves the port of the first contact.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bootstrap {
    /// The only shard.
    OnlyShard,
    /// Every shard. The kernel brings datagrams to the shard that the connection id names.
    Steered,
    /// Every shard. The kernel goes by addresses, and shards hand datagrams to one another. For tests.
    NotSteered,
    /// Shard 0, because the kernel does not let the others.
    FirstShard {
        /// What the kernel said.
        why: String,
    },
}

impl Bootstrap {
    /// Does every shard have a socket there?
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Steered | Self::NotSteered)
    }
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyShard => write!(f, "served by the only shard"),
            Self::Steered => write!(f, "served by every shard"),
            Self::NotSteered => write!(f, "served by every shard, by address (test.steering)"),
            Self::FirstShard { why } => {
                write!(f, "served by shard 0 alone: the kernel does not share the port ({why})")
            }
        }
    }
}

impl Sockets {
    /// Binds the first contact's socket, then that of each shard.
    pub(super) fn bind(config: &BrokerConfig, shard_count: u16) -> Result<Self> {
        let (listen, port) = (config.broker.listen, config.broker.port);
        let buffer_bytes = usize::try_from(config.network.socket_buffer_bytes)
            .context("network.socket_buffer_bytes")?;
        let bind = |port: u16, what: &str| {
            let address = SocketAddr::new(listen, port);
            let socket = bind_once_free(address, buffer_bytes)
                .map_err(|error| explain(error, address, what))?;
            let bound = socket.local_addr().with_context(|| format!("binding {address}"))?;
            anyhow::Ok((socket, bound.port()))
        };
        let (first_contact, bootstrap_port) = bind(port, "first contact")?;
        let (mut shards, mut by_shard) = (Vec::new(), Vec::new());
        for shard in 0..shard_count {
            let port = match port {
                0 => 0,
                // The configuration leaves room for the ports of all shards.
                port => port.saturating_add(SHARD_PORT_OFFSET).saturating_add(shard),
            };
            let (socket, port) = bind(port, &format!("shard {shard}"))?;
            shards.push(ShardEndpoint { shard: ShardId(shard), port });
            by_shard.push(vec![socket]);
        }
        let (bootstrap, others) = share(config, &first_contact, &by_shard, buffer_bytes);
        for (sockets, shared) in by_shard.iter_mut().zip([first_contact].into_iter().chain(others))
        {
            sockets.push(shared);
        }
        Ok(Self { bootstrap_port, bootstrap, shards, by_shard })
    }
}

/// Further sockets on the port of the first contact, one for each shard but the first, if the kernel
/// allows it. Where it does not steer, shard 0 alone is better than all: a client whose address changes
/// stays with its shard.
fn share(
    config: &BrokerConfig,
    first: &UdpSocket,
    by_shard: &[Vec<UdpSocket>],
    buffer_bytes: usize,
) -> (Bootstrap, Vec<UdpSocket>) {
    let others = by_shard.len().saturating_sub(1);
    if others == 0 {
        return (Bootstrap::OnlyShard, Vec::new());
    }
    let (steering, bootstrap) = match config.test.steering {
        true => {
            let id_bytes = CONNECTION_ID_BYTES;
            (Steering::ByConnectionId { id_bytes }, Bootstrap::Steered)
        }
        false => (Steering::ByAddress, Bootstrap::NotSteered),
    };
    match first.share(others, steering, buffer_bytes) {
        Ok(sockets) => (bootstrap, sockets),
        Err(error) => (Bootstrap::FirstShard { why: error.to_string() }, Vec::new()),
    }
}

/// How long a port may stay taken before it counts as another program's. 1 s: the kernel takes down
/// the io_uring of a broker that was killed, and with it the sockets, some 10 ms after the process
/// is gone, and a supervisor may be faster.
const PORT_WAIT: Duration = Duration::from_secs(1);

/// Between two attempts to take a port.
const PORT_PAUSE: Duration = Duration::from_millis(5);

fn bind_once_free(address: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        match UdpSocket::bind(address, buffer_bytes) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(PORT_PAUSE);
            }
            bound => return bound,
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn host_and_port(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

fn explain(error: io::Error, address: SocketAddr, what: &str) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program, perhaps a broker, has this port: stop it, or choose other ports with \
             --port (broker.port; shard i has port + 100 + i; 0 takes any free ports)"
        }
        io::ErrorKind::AddrNotAvailable => {
            "broker.listen is no address of this host: take one that it has, or 0.0.0.0"
        }
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up (broker.port)",
        _ => "see broker.listen and broker.port",
    };
    anyhow::Error::new(error).context(format!("binding UDP {address} ({what}): {advice}"))
}

/// The files `address` and `admin-address`, which are there while the broker serves.
pub(super) struct AddressFiles {
    clients: PathBuf,
    admin: PathBuf,
}

impl AddressFiles {
    /// Removes what a broker that was killed left behind.
    pub(super) fn cleared(data_dir: &Path) -> Result<Self> {
        let files =
            Self { clients: data_dir.join("address"), admin: data_dir.join("admin-address") };
        files.remove()?;
        Ok(files)
    }

    /// Says where the broker is. Whoever finds `address` finds `admin-address` too. A full disk is no
    /// reason not to serve: the screen says it as well.
    pub(super) fn write(&self, clients: &str, admin: &str) -> Result<()> {
        for (path, address) in [(&self.admin, admin), (&self.clients, clients)] {
            match files::publish(path, &format!("{address}\n")) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    let file = path.display();
                    tracing::warn!(%file, "the disk is full: clients have to be told --connect");
                    self.remove()?;
                }
                written => written.with_context(|| format!("writing {}", path.display()))?,
            }
        }
        Ok(())
    }

    /// Removes both.
    pub(super) fn remove(&self) -> Result<()> {
        files::remove(&self.clients)?;
        files::remove(&self.admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(port: u16) -> BrokerConfig {
        let set = format!("broker.port={port}");
        BrokerConfig::load(None, std::iter::empty(), &[set]).unwrap()
    }

    #[test]
    fn port_zero_takes_free_ports_and_every_shard_serves_the_first_contact() {
        let sockets = Sockets::bind(&config(0), 3).unwrap();
        let counts: Vec<_> = sockets.by_shard.iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 2, 2]);
        assert_eq!(sockets.bootstrap, Bootstrap::Steered);
        let port = |shard: usize, index: usize| {
            sockets.by_shard[shard][index].local_addr().unwrap().port()
        };
        for (index, endpoint) in sockets.shards.iter().enumerate() {
            assert_eq!(port(index, 1), sockets.bootstrap_port);
            assert_eq!(endpoint.shard, ShardId(index as u16));
            assert_eq!(endpoint.port, port(index, 0));
        }
    }

    #[test]
    fn two_brokers_on_one_port_collide_and_the_port_is_named() {
        for shards in [1, 3] {
            let first = Sockets::bind(&config(0), shards).unwrap();
            let taken = first.bootstrap_port;
            // The configuration keeps ports this high for shards.
            if 65_372 < taken {
                return;
            }
            let error = format!("{:#}", Sockets::bind(&config(taken), shards).err().unwrap());
            assert!(error.contains(&taken.to_string()), "{error}");
            assert!(error.contains("--port"), "{error}");
        }
    }

    #[test]
    fn an_ipv6_host_has_brackets() {
        assert_eq!(host_and_port("::1", 9092), "[::1]:9092");
        assert_eq!(host_and_port("127.0.0.1", 9092), "127.0.0.1:9092");
        assert_eq!(host_and_port("broker.example", 9092), "broker.example:9092");
    }

    #[test]
    fn what_a_killed_broker_left_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let files = AddressFiles::cleared(dir.path()).unwrap();
        files.write("127.0.0.1:9092", "127.0.0.1:9642").unwrap();
        let text = std::fs::read_to_string(dir.path().join("address")).unwrap();
        assert_eq!(text, "127.0.0.1:9092\n");
        AddressFiles::cleared(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
