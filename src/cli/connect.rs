//! How every command that talks to a broker finds it and proves who it is.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use rustmq_client::{
    Client, ClientConfig, ClientError, MtuProfile, Pem, PollMode, RouteMode, TlsConfig,
};

/// Where a broker listens unless it is told otherwise.
const ADDRESS_DEFAULT: &str = "127.0.0.1:9092";

/// The broker to talk to; without any of these, the one that runs in ./rustmq-data.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// Data directory of a broker on this host: its address and certificates
    #[arg(long, value_name = "DIR", env = "RUSTMQ_DATA_DIR", default_value = "./rustmq-data")]
    data_dir: PathBuf,
    /// Address of a broker
    #[arg(long, value_name = "HOST:PORT", env = "RUSTMQ_CONNECT")]
    connect: Option<String>,
    /// Certificates of the authority that signs brokers, in PEM
    #[arg(long, value_name = "FILE", env = "RUSTMQ_CA")]
    ca: Option<PathBuf>,
    /// Certificate of this client, in PEM
    #[arg(long, value_name = "FILE", env = "RUSTMQ_CERT")]
    cert: Option<PathBuf>,
    /// Key of that certificate, in PEM
    #[arg(long, value_name = "FILE", env = "RUSTMQ_KEY")]
    key: Option<PathBuf>,
    /// Network between here and the broker: how large datagrams may get
    #[arg(long, value_enum, env = "RUSTMQ_MTU_PROFILE", default_value = "internet")]
    mtu_profile: MtuProfileArg,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum MtuProfileArg {
    /// Any: up to 1452 bytes
    Internet,
    /// Short ways, where Ethernet frames pass: up to 6500 bytes sent, 8952 received
    Datacentre,
    /// The same host: up to 6500 bytes sent, 65507 received
    Loopback,
}

impl From<MtuProfileArg> for MtuProfile {
    fn from(profile: MtuProfileArg) -> MtuProfile {
        match profile {
            MtuProfileArg::Internet => MtuProfile::Internet,
            MtuProfileArg::Datacentre => MtuProfile::Datacentre,
            MtuProfileArg::Loopback => MtuProfile::Loopback,
        }
    }
}

impl ConnectArgs {
    /// A connected client.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.client_by(RouteMode::Owner).await
    }

    /// A connected client that sends its requests this way.
    pub(crate) async fn client_by(&self, route: RouteMode) -> anyhow::Result<Client> {
        self.connect(route, PollMode::Sleep).await
    }

    /// A connected client that does this while it waits.
    pub(crate) async fn client_that_waits(&self, poll: PollMode) -> anyhow::Result<Client> {
        self.connect(RouteMode::Owner, poll).await
    }

    async fn connect(&self, route: RouteMode, poll: PollMode) -> anyhow::Result<Client> {
        let mut config = ClientConfig::new(vec![self.address()?], self.tls()?);
        config.client_name = concat!("rustmq ", env!("CARGO_PKG_VERSION")).to_owned();
        config.route = route;
        config.poll = poll;
        config.mtu_profile = self.mtu_profile.into();
        let connected = Client::connect(config).await;
        connected.map_err(|error| match error {
            ClientError::Connect { .. } => anyhow::Error::from(error)
                .context("no broker was reached; start one with `rustmq dev` or give --connect"),
            error => error.into(),
        })
    }

    fn address(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.connect {
            return Ok(address.clone());
        }
        let path = self.data_dir.join("address");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            // A broker that is not running leaves none; connecting will say so.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(ADDRESS_DEFAULT.to_owned()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn tls(&self) -> anyhow::Result<TlsConfig> {
        let certs = self.data_dir.join("certs");
        let pem = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => read_pem(path),
            None => read_pem(&certs.join(name)),
        };
        Ok(TlsConfig {
            ca: pem(&self.ca, "ca.crt")?,
            cert: pem(&self.cert, "client.crt")?,
            key: pem(&self.key, "client.key")?,
            server_name: None,
        })
    }
}

fn read_pem(path: &Path) -> anyhow::Result<Pem> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Pem::Bytes(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "reading certs {}: no such file; start a broker with `rustmq dev` \
             or give --ca, --cert and --key",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("reading certs {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(data_dir: &str) -> ConnectArgs {
        let (connect, ca, cert, key) = (None, None, None, None);
        let mtu_profile = MtuProfileArg::Internet;
        ConnectArgs { data_dir: data_dir.into(), connect, ca, cert, key, mtu_profile }
    }

    #[test]
    fn without_certificates_the_error_says_where_they_come_from() {
        let error = args("/nowhere").tls().unwrap_err().to_string();
        assert_eq!(
            error,
            "reading certs /nowhere/certs/ca.crt: no such file; start a broker with `rustmq dev` \
             or give --ca, --cert and --key"
        );
    }

    #[test]
    fn the_address_given_wins_and_there_is_a_default() {
        assert_eq!(args("/nowhere").address().unwrap(), ADDRESS_DEFAULT);
        let given = ConnectArgs { connect: Some("h:1".to_owned()), ..args("/nowhere") };
        assert_eq!(given.address().unwrap(), "h:1");
    }
}
