//! How large datagrams get, by the profile of the network.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig};

use crate::config::MtuProfile;

/// The datagrams of a profile, in bytes of UDP payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Datagrams {
    /// What a connection begins with.
    first: u16,
    /// The largest that it tries.
    largest: u16,
    /// The largest that it takes from a broker.
    taken: u16,
    /// What a round trip is taken for before one was measured.
    initial_rtt: Duration,
    /// The buffers asked of the kernel, each way; none: those that every socket has.
    pub(crate) socket_buffer_bytes: Option<usize>,
}

/// quinn sends ten datagrams in one train, and one train is at most 65,507 bytes: with larger ones the
/// kernel would refuse whole trains.
const LARGEST_SENT: u16 = 6500;
const _: () = assert!(10 * LARGEST_SENT as u32 <= 65_507);

/// The largest datagram that IP carries.
const LARGEST: u16 = 65_507;

/// Datagrams that a connection may have under way before anything is acknowledged: of the largest, so
/// that the window never is smaller than a datagram, which would keep it shut for good. For those of an
/// Ethernet frame it is what RFC 9002, section 7.2, allows.
const INITIAL_WINDOW_DATAGRAMS: u64 = 10;

/// Buffers of a socket for large datagrams, as far as the host allows: several windows of them.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

impl Datagrams {
    /// Those of a profile.
    pub(crate) fn of(profile: MtuProfile) -> Datagrams {
        let ms = Duration::from_millis;
        let (first, largest, taken) = match profile {
            MtuProfile::Internet => (1200, 1452, 1472),
            MtuProfile::Datacentre => (1452, LARGEST_SENT, 8952),
            MtuProfile::Loopback => (1452, LARGEST_SENT, LARGEST),
        };
        let (initial_rtt, socket_buffer_bytes) = match profile {
            // A first packet that a starting broker missed is sent again after a third of a second, not
            // after a whole one.
            MtuProfile::Internet => (ms(100), None),
            MtuProfile::Datacentre | MtuProfile::Loopback => (ms(1), Some(SOCKET_BUFFER_BYTES)),
        };
        Datagrams { first, largest, taken, initial_rtt, socket_buffer_bytes }
    }

    /// Settles how connections send.
    pub(crate) fn apply(&self, transport: &mut TransportConfig) {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.largest);
        let mut congestion = CubicConfig::default();
        congestion.initial_window(self.initial_window());
        transport
            .initial_mtu(self.first)
            .mtu_discovery_config(Some(discovery))
            .initial_rtt(self.initial_rtt)
            .congestion_controller_factory(Arc::new(congestion));
    }

    /// The settings of a socket that receives them.
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(self.taken).expect("between 1,200 and 65,527");
        config
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_DATAGRAMS * u64::from(self.largest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_datagrams_fit_one_train_and_the_initial_window() {
        for profile in [MtuProfile::Internet, MtuProfile::Datacentre, MtuProfile::Loopback] {
            let datagrams = Datagrams::of(profile);
            assert!(1200 <= datagrams.first && datagrams.first <= datagrams.largest);
            assert!(10 * u32::from(datagrams.largest) <= 65_507);
            assert!(10 * u64::from(datagrams.largest) <= datagrams.initial_window());
            assert_eq!(datagrams.endpoint().get_max_udp_payload_size(), u64::from(datagrams.taken));
        }
    }
}
