//! Certificates and settings of both sides of the modelled network.
//!
//! Ed25519 keys and fixed numbers: what a handshake sends has the same sizes every time.

use std::sync::Arc;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, TransportConfig};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use rustmq_server::tls::ALPN;

/// The name in every certificate.
pub(crate) const NAME: &str = "sim";

/// What brokers and clients of all seeds have in common; making it costs more than using it.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: ClientConfig,
}

impl Tls {
    /// Settings in which each side asks for the other's certificate.
    pub(crate) fn new() -> Self {
        let provider = Arc::new(provider());
        let (broker, broker_key) = certificate();
        let (client, client_key) = certificate();
        let roots = |certificate: &CertificateDer<'static>| {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.clone()).expect("a certificate made just now");
            Arc::new(roots)
        };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots(&client), Arc::clone(&provider));
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("TLS 1.3 is known")
            .with_client_cert_verifier(verifier.build().expect("there is a root"))
            .with_single_cert(vec![broker.clone()], broker_key)
            .expect("the key belongs to the certificate");
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut settings = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("TLS 1.3 is known")
            .with_root_certificates(roots(&broker))
            .with_client_auth_cert(vec![client], client_key)
            .expect("the key belongs to the certificate");
        settings.alpn_protocols = vec![ALPN.to_vec()];
        // A handshake that begins with what is left of another one has other sizes.
        settings.resumption = rustls::client::Resumption::disabled();
        let settings = QuicClientConfig::try_from(settings).expect("AES-128-GCM is among them");
        let mut client = ClientConfig::new(Arc::new(settings));
        client.transport_config(Arc::new(TransportConfig::default()));
        Self { server: Arc::new(server), client }
    }
}

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new([NAME.to_owned()]).expect("a name");
    params.serial_number = Some(SerialNumber::from(1));
    let certificate = params.self_signed(&key).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key in PKCS 8");
    (certificate.der().clone(), key)
}

fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_other = |suite: CipherSuite| suite != CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| is_other(suite.suite()));
    provider
}
