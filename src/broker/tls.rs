//! The TLS settings of the QUIC endpoints: TLS 1.3 alone, and no client without a certificate.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use rustmq_server::tls::ALPN;

use super::certificates::Certificates;

/// The cryptography: AES-128-GCM first, because with the CPU's instructions it costs a shard least
/// for each datagram.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    Arc::new(provider)
}

/// The settings that every shard serves with.
pub(super) fn server_config(certificates: Certificates) -> Result<Arc<ServerConfig>> {
    let Certificates { ca, server, server_key } = certificates;
    let mut roots = RootCertStore::empty();
    roots.add(ca).context("trusting the certificate authority")?;
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .build()
        .context("verifying clients")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server], server_key)
        .context("serving with certs/server.crt")?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A request in early data could be replayed by whoever recorded it.
    config.max_early_data_size = 0;
    // A resumed session takes the certificate as it was verified then: a client would go on when
    // its certificate has expired. So every connection shows one, and it is verified.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::certificates;
    use std::path::Path;
    use std::time::SystemTime;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, ServerConnection};

    fn server(folder: &Path) -> Arc<ServerConfig> {
        let made = certificates::load_or_create(folder, "127.0.0.1", SystemTime::now()).unwrap();
        server_config(made).unwrap()
    }

    fn client(trusts: &Path, shows: Option<&Path>, alpn: &[u8]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(trusts.join("ca.crt")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some(folder) => {
                let chain = CertificateDer::from_pem_file(folder.join("client.crt")).unwrap();
                let key = PrivateKeyDer::from_pem_file(folder.join("client.key")).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    }

    /// A handshake in memory.
    fn handshake(server: &Arc<ServerConfig>, client: ClientConfig) -> Result<(), rustls::Error> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn only_a_client_of_our_authority_with_our_protocol_is_let_in() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (ours.path(), theirs.path());
        let (server, stranger) = (server(ours), server(theirs));
        assert_eq!(handshake(&server, client(ours, Some(ours), ALPN)), Ok(()));
        assert!(handshake(&server, client(ours, None, ALPN)).is_err(), "no certificate");
        assert!(handshake(&server, client(ours, Some(theirs), ALPN)).is_err(), "a stranger's");
        assert!(handshake(&server, client(ours, Some(ours), b"h3")).is_err(), "another protocol");
        assert!(handshake(&stranger, client(ours, Some(theirs), ALPN)).is_err(), "a false server");
    }

    #[test]
    fn quic_takes_the_settings_and_early_data_and_resumption_are_off() {
        let folder = tempfile::tempdir().unwrap();
        let config = server(folder.path());
        assert_eq!(config.max_early_data_size, 0);
        assert_eq!(config.send_tls13_tickets, 0);
        assert!(!config.session_storage.can_cache());
        let suites = &config.crypto_provider().cipher_suites;
        assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert!(suites[0].tls13().and_then(|suite| suite.quic).is_some());
    }
}
