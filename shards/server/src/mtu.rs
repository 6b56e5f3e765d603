//! How large datagrams get, and what follows from it: the profiles of `network.mtu_profile`.
//!
//! | | begins with | finds out | takes | initial window | round trip before one is measured |
//! |---|---|---|---|---|---|
//! | internet | 1,200 | 1,452 | 1,472 | 14,520 | 333 ms |
//! | datacentre | 1,452 | 8,952 | 8,952 | 89,520 | 1 ms |
//! | loopback | 1,452 | 65,507 | 65,507 | 655,070 | 1 ms |
//!
//! Bytes of UDP payload. No connection begins with more than an Ethernet frame takes, so that a profile
//! that does not fit costs a few probes and no connection; and it only finds out what its peer takes as
//! well. 1,452 and 8,952 fill frames of 1,500 and 9,000 bytes with IPv6.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::CubicConfig;
use quinn_proto::{MtuDiscoveryConfig, TransportConfig};
use rustmq_config::MtuProfile;
use rustmq_sys::udp::{RECEIVE_BUFFER_BYTES, TRAIN_BYTES_MAX};

use crate::limits::{CONNECTION_WINDOW_BYTES_MIN, UDP_PAYLOAD_BYTES_MAX};

/// The datagrams of a profile, in bytes of UDP payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagrams {
    /// What a connection begins with.
    pub(crate) first: u16,
    /// The largest that it tries.
    pub(crate) largest: u16,
    /// The largest that it takes from a peer.
    pub(crate) taken: u16,
    /// What a round trip is taken for before one was measured.
    initial_rtt: Duration,
}

/// Datagrams that a connection may have under way before anything is acknowledged: of the largest, so
/// that the window never is smaller than a datagram, which would keep it shut for good. For those of an
/// Ethernet frame it is what RFC 9002, section 7.2, allows.
const INITIAL_WINDOW_DATAGRAMS: u64 = 10;

/// The largest datagram that IP carries.
const LARGEST: u16 = UDP_PAYLOAD_BYTES_MAX as u16;

// Whatever the profile, one datagram fits a buffer to receive it in, one send, and the credit that every
// connection begins with.
const _: () = assert!(UDP_PAYLOAD_BYTES_MAX <= RECEIVE_BUFFER_BYTES);
const _: () = assert!(UDP_PAYLOAD_BYTES_MAX <= TRAIN_BYTES_MAX);
const _: () = assert!(UDP_PAYLOAD_BYTES_MAX as u64 <= CONNECTION_WINDOW_BYTES_MIN);
const _: () = assert!(UDP_PAYLOAD_BYTES_MAX <= u16::MAX as usize);

impl Datagrams {
    /// Those of a profile.
    pub(crate) fn of(profile: MtuProfile) -> Self {
        let ms = Duration::from_millis;
        let (first, largest, taken, initial_rtt) = match profile {
            MtuProfile::Internet => (1200, 1452, 1472, ms(333)),
            MtuProfile::Datacentre => (1452, 8952, 8952, ms(1)),
            MtuProfile::Loopback => (1452, LARGEST, LARGEST, ms(1)),
        };
        Self { first, largest, taken, initial_rtt }
    }

    /// What is kept of a datagram for longer is copied if it is less than this, half of the largest that
    /// comes: a peer that pads its datagrams cannot have more than twice of what it sends kept.
    pub(crate) fn worth_keeping(&self) -> usize {
        usize::from(self.taken) / 2
    }

    /// Settles how a connection sends.
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

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_DATAGRAMS * u64::from(self.largest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_of_the_largest_datagrams_fit_the_initial_window() {
        for profile in [MtuProfile::Internet, MtuProfile::Datacentre, MtuProfile::Loopback] {
            let datagrams = Datagrams::of(profile);
            assert!(1200 <= datagrams.first && datagrams.first <= datagrams.largest);
            assert!(datagrams.largest <= datagrams.taken, "two of one profile reach the largest");
            assert!(10 * u64::from(datagrams.largest) <= datagrams.initial_window());
        }
    }
}
