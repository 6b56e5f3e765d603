//! The certificates of the broker under test, as its client and as the echo server use them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{TransportConfig, VarInt};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, RootCertStore};

use super::mtu::{Mtu, Sender};

/// The protocol named in the handshake.
const ALPN: &[u8] = b"rustmq/1";

/// Bytes on the way to a reader: enough that the window never is what is measured.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// A client with a certificate of the authority in `certs`, which sends datagrams of a profile.
pub fn client(certs: &Path, mtu: Mtu, sender: Sender) -> Result<quinn::ClientConfig> {
    let mut transport = transport();
    mtu.apply(&mut transport, sender);
    client_with(certs, transport)
}

/// The same client at rest: so much silence ends a connection, and a third of that passes between two
/// signs of life.
pub fn idle_client(certs: &Path, silence_max: Duration) -> Result<quinn::ClientConfig> {
    let mut transport = transport();
    transport.max_idle_timeout(Some(silence_max.try_into().context("too long a silence")?));
    transport.keep_alive_interval(Some(silence_max / 3));
    client_with(certs, transport)
}

fn client_with(certs: &Path, transport: TransportConfig) -> Result<quinn::ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(certs)?)
        .with_client_auth_cert(
            vec![certificate(certs, "client.crt")?],
            key(certs, "client.key")?,
        )?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A server that admits the same clients as the broker: TLS in both directions.
pub fn server(certs: &Path) -> Result<quinn::ServerConfig> {
    let tls = QuicServerConfig::try_from(server_tls(certs)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

/// The TLS of such a server.
pub fn server_tls(certs: &Path) -> Result<rustls::ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(certs)?.into(), provider())
        .build()
        .context("verifying clients")?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate(certs, "server.crt")?], key(certs, "server.key")?)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(tls)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// AES-128-GCM first, as the broker and the SDK have it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

fn roots(certs: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(certs, "ca.crt")?)?;
    Ok(roots)
}

fn certificate(certs: &Path, name: &str) -> Result<CertificateDer<'static>> {
    let path = certs.join(name);
    let pem = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    CertificateDer::from_pem_slice(&pem)
        .with_context(|| format!("understanding {}", path.display()))
}

fn key(certs: &Path, name: &str) -> Result<PrivateKeyDer<'static>> {
    let path = certs.join(name);
    let pem = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    PrivateKeyDer::from_pem_slice(&pem).with_context(|| format!("understanding {}", path.display()))
}
