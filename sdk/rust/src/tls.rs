//! QUIC and TLS as a client of RustMQ uses them.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, RootCertStore};

use crate::config::{ClientConfig, Pem, TlsConfig};
use crate::error::ConfigError;
use crate::mtu::Datagrams;

/// What both sides name in the TLS handshake.
const ALPN: &[u8] = b"rustmq/1";

/// Bytes that one stream takes before the application has read them. 1 MiB: one fetch response of
/// the usual size.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Bytes that all streams of a connection take together. 8 MiB: eight partitions at full speed.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The configuration of every connection of a client.
pub(crate) fn quic_config(config: &ClientConfig) -> Result<quinn::ClientConfig, ConfigError> {
    let tls = tls_config(&config.tls)?;
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|error| ConfigError::Tls { field: "cert", reason: error.to_string() })?;
    let mut quic = quinn::ClientConfig::new(Arc::new(quic));
    let mut transport = transport(config.idle_timeout)?;
    Datagrams::of(config.mtu_profile).apply(&mut transport);
    quic.transport_config(Arc::new(transport));
    Ok(quic)
}

fn transport(idle_timeout: Duration) -> Result<TransportConfig, ConfigError> {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(idle_timeout)
        .map_err(|_| ConfigError::TimeOutOfBounds { field: "idle_timeout", time: idle_timeout })?;
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(idle_timeout / 3))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    Ok(transport)
}

fn tls_config(tls: &TlsConfig) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &tls.ca)? {
        roots.add(certificate).map_err(|error| invalid("ca", error))?;
    }
    let chain = certificates("cert", &tls.cert)?;
    let key =
        PrivateKeyDer::from_pem_slice(&tls.key.read()?).map_err(|error| invalid("key", error))?;
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| invalid("cert", error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| invalid("cert", error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// AES-128-GCM first: half the rounds of AES-256 on the path that touches every byte.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(
    field: &'static str,
    pem: &Pem,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let bytes = pem.read()?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| invalid(field, error))?;
    if certificates.is_empty() {
        return Err(ConfigError::Tls { field, reason: "there is no certificate in it".to_owned() });
    }
    Ok(certificates)
}

fn invalid(field: &'static str, error: impl ToString) -> ConfigError {
    ConfigError::Tls { field, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_128_is_offered_first_and_the_others_remain() {
        let provider = provider();
        let first = provider.cipher_suites.first().unwrap().suite();
        assert_eq!(first, CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(provider.cipher_suites.len(), aws_lc_rs::default_provider().cipher_suites.len());
    }

    #[test]
    fn certificates_from_memory_are_accepted_and_garbage_is_named() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let cert = || Pem::Bytes(made.cert.pem().into_bytes());
        let key = Pem::Bytes(made.signing_key.serialize_pem().into_bytes());
        let tls = TlsConfig { ca: cert(), cert: cert(), key, server_name: None };
        let config = ClientConfig::new(vec!["localhost:1".to_owned()], tls.clone());
        assert!(quic_config(&config).is_ok());

        let garbage = || Pem::Bytes(b"garbage".to_vec());
        for (field, tls) in [
            ("ca", TlsConfig { ca: garbage(), ..tls.clone() }),
            ("cert", TlsConfig { cert: garbage(), ..tls.clone() }),
            ("key", TlsConfig { key: garbage(), ..tls }),
        ] {
            let error = tls_config(&tls).unwrap_err();
            assert!(matches!(error, ConfigError::Tls { field: named, .. } if named == field));
        }
    }
}
