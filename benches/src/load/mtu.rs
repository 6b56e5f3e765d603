//! How large datagrams get: as the broker's profiles have it, on both sides and in the references.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::CubicConfig;
use quinn_proto::{EndpointConfig, MtuDiscoveryConfig, TransportConfig};

/// A profile of `network.mtu_profile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtu {
    /// Up to 1,452 bytes: QUIC's own defaults.
    #[default]
    Internet,
    /// Up to 65,507 bytes, which the loopback takes.
    Loopback,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// quinn-proto on the shards' runtime, as the broker.
    ByHand,
    /// quinn, which sends ten datagrams in one train, and a train has 65,507 bytes at most: as the Rust
    /// client.
    Quinn,
}

/// The largest datagram that IP carries.
const LARGEST: u16 = 65_507;

/// As the Rust client has it.
const LARGEST_OF_QUINN: u16 = 6_500;

impl Mtu {
    /// The largest datagram that a sender comes to, if the other side takes it.
    pub fn largest(self, sender: Sender) -> u16 {
        match (self, sender) {
            (Mtu::Internet, _) => 1_452,
            (Mtu::Loopback, Sender::ByHand) => LARGEST,
            (Mtu::Loopback, Sender::Quinn) => LARGEST_OF_QUINN,
        }
    }

    /// Settles how connections send.
    pub fn apply(self, transport: &mut TransportConfig, sender: Sender) {
        if self == Mtu::Internet {
            return;
        }
        let largest = self.largest(sender);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(largest);
        let mut congestion = CubicConfig::default();
        congestion.initial_window(10 * u64::from(largest));
        transport
            .initial_mtu(1_452)
            .mtu_discovery_config(Some(discovery))
            .initial_rtt(Duration::from_millis(1))
            .congestion_controller_factory(Arc::new(congestion));
    }

    /// The settings of a socket that receives them.
    pub fn endpoint(self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        if self == Mtu::Loopback {
            config.max_udp_payload_size(LARGEST).expect("a size that QUIC allows");
        }
        config
    }
}
