//! The QUIC settings of a shard's endpoint: limits, connection ids, and who a certificate names.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use rustmq_config::{BrokerConfig, MtuProfile};
use rustmq_protocol::ShardId;
use rustmq_sys::udp::UdpSocket;

use crate::connection_id::ShardConnectionIds;
use crate::endpoint::{Endpoint, EndpointLimits};
use crate::limits::{CONNECTION_WINDOW_BYTES_MIN, HANDSHAKES_IGNORE};
use crate::mtu::Datagrams;
use crate::random;
use crate::shard::Node;

/// The protocol that clients and brokers agree on in the handshake.
pub const ALPN: &[u8] = b"rustmq/1";

/// Memory of a shard's receive buffers, beyond what quinn-proto holds on to.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Bytes of first packets that may wait for admission, over all connections.
const INCOMING_BYTES_MAX: u64 = 4 << 20;

/// Shortest pause between two stateless resets: after a restart every old peer should hear one.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// Builds the endpoint of a shard.
pub(crate) fn endpoint(
    node: &Arc<Node>,
    config: &BrokerConfig,
    shard: ShardId,
    sockets: Vec<UdpSocket>,
) -> Endpoint {
    let limits = EndpointLimits {
        connections_max: config.network.connections_max as usize,
        handshake_timeout: Duration::from_millis(config.network.handshake_timeout_ms),
        handshakes_per_turn: config.network.handshakes_per_turn as usize,
        receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        passes_on: node.bootstrap_is_shared,
    };
    let ids = ShardConnectionIds::new(node.keys.connection_id, shard, node.shard_count);
    let quic = endpoint_config(node, shard, config.network.mtu_profile);
    Endpoint::new(quic, server_config(node, config), ids, sockets, limits)
}

fn endpoint_config(node: &Arc<Node>, shard: ShardId, profile: MtuProfile) -> EndpointConfig {
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &node.keys.reset);
    let mut config = EndpointConfig::new(Arc::new(reset));
    let (key, shards) = (node.keys.connection_id, node.shard_count);
    config.cid_generator(move || Box::new(ShardConnectionIds::new(key, shard, shards)));
    config.min_reset_interval(RESET_INTERVAL);
    let taken = Datagrams::of(profile).taken;
    config.max_udp_payload_size(taken).expect("every profile is between 1,200 and 65,527 bytes");
    // Every random number of a shard comes from one place.
    config.rng_seed(Some(random::bytes()));
    config
}

fn server_config(node: &Arc<Node>, config: &BrokerConfig) -> ServerConfig {
    let crypto = QuicServerConfig::try_from(Arc::clone(&node.tls))
        .expect("the TLS settings were built for TLS 1.3 with AES-128-GCM");
    let token = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&node.keys.token);
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(token));
    server.transport_config(Arc::new(transport(config)));
    server.max_incoming(HANDSHAKES_IGNORE);
    server.incoming_buffer_size_total(INCOMING_BYTES_MAX);
    server
}

fn transport(config: &BrokerConfig) -> TransportConfig {
    let network = &config.network;
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(network.streams_max));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    let idle = VarInt::from_u64(network.idle_timeout_ms).expect("checked: at most ten minutes");
    transport.max_idle_timeout(Some(IdleTimeout::from(idle)));
    let window = |bytes| VarInt::from_u64(bytes).expect("checked: far below 2^62");
    transport.stream_receive_window(window(network.stream_window_bytes));
    // Grows with use, see `Connection::grow_window`.
    transport.receive_window(window(CONNECTION_WINDOW_BYTES_MIN));
    transport.send_window(network.send_window_bytes);
    Datagrams::of(network.mtu_profile).apply(&mut transport);
    transport
}

/// The principal that a certificate names: its first URI, else its first DNS name.
pub(crate) fn principal_name(leaf: &CertificateDer<'_>) -> Result<String, String> {
    let certificate = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let uri = certificate.valid_uri_names().next();
    let name = uri.or_else(|| certificate.valid_dns_names().next());
    name.map(str::to_owned).ok_or_else(|| {
        "the certificate names nobody: it needs a subject alternative name, URI or DNS".to_owned()
    })
}
