//! The certificates of a broker that has no others: its own authority, and one leaf each for the
//! server and for the clients of this host.
//!
//! ```text
//!   certs/ca.key ── signs ──▶ ca.crt, server.crt, client.crt
//!   certs/server.key          certs/client.key
//! ```
//!
//! A key is made once and stays. A certificate is made again from its key when it is missing, when
//! it ends within [`RENEWAL`], when it belongs to another authority or key, or when the host that
//! clients are told has changed. Keys are written before certificates, so a crash in between leaves
//! something that the next start completes. A file that cannot be read is never overwritten.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustmq_sys::random::fill_random;

use super::{files, tls};

/// The principal of the client certificate, as a URI.
pub(super) const CLIENT_URI: &str = "rustmq:client/dev";

const CA_NAME: &str = "RustMQ dev CA";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority lasts. Ten years: longer than a development directory.
const CA_VALIDITY: Duration = DAY.saturating_mul(3650);

/// How long a leaf lasts.
const LEAF_VALIDITY: Duration = DAY.saturating_mul(365);

/// A leaf that ends sooner than this is made again at start.
const RENEWAL: Duration = DAY.saturating_mul(30);

/// Certificates begin this long before they are made, for hosts whose clock is behind.
const BACKDATED: Duration = DAY;

/// What the broker serves with and whom it trusts.
pub(super) struct Certificates {
    /// The one authority whose clients may connect.
    pub(super) ca: CertificateDer<'static>,
    /// The server's certificate.
    pub(super) server: CertificateDer<'static>,
    /// Its key.
    pub(super) server_key: PrivateKeyDer<'static>,
}

/// Reads the certificates in `folder`; makes those that are missing or near their end.
pub(super) fn load_or_create(
    folder: &Path,
    advertised_host: &str,
    now: SystemTime,
) -> Result<Certificates> {
    files::create_private_dir(folder)?;
    let authority = Authority::load_or_create(folder, now)?;
    let (server, server_key) = authority.leaf(&Leaf::server(advertised_host)?, now)?;
    authority.leaf(&Leaf::client()?, now)?;
    let server_key = PrivateKeyDer::try_from(server_key.serialize_der())
        .map_err(|error| anyhow!("the server's key: {error}"))?;
    Ok(Certificates { ca: authority.certificate, server, server_key })
}

/// The authority, and its key if it is still here.
struct Authority {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    key: Option<KeyPair>,
}

/// A certificate that the authority is to give.
struct Leaf {
    name: &'static str,
    usage: ExtendedKeyUsagePurpose,
    names: Vec<SanType>,
    /// The server's: the host that clients are told.
    host: Option<ServerName<'static>>,
}

impl Leaf {
    fn server(advertised_host: &str) -> Result<Self> {
        let host = ServerName::try_from(advertised_host.to_owned()).map_err(|_| {
            anyhow!("broker.advertised_host = {advertised_host:?} is no host name or IP address")
        })?;
        let mut names = vec![
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        let advertised = match &host {
            ServerName::IpAddress(address) => SanType::IpAddress((*address).into()),
            _ => SanType::DnsName(advertised_host.try_into()?),
        };
        if !names.contains(&advertised) {
            names.push(advertised);
        }
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        Ok(Self { name: "server", usage, names, host: Some(host) })
    }

    fn client() -> Result<Self> {
        let names = vec![SanType::URI(CLIENT_URI.try_into()?)];
        Ok(Self { name: "client", usage: ExtendedKeyUsagePurpose::ClientAuth, names, host: None })
    }
}

impl Authority {
    fn load_or_create(folder: &Path, now: SystemTime) -> Result<Self> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        let (certificate, key) = match (read_certificate(&certificate_path)?, read_key(&key_path)?)
        {
            (Some(certificate), Some(key)) => {
                ensure!(
                    belongs(&certificate, &key, &certificate_path)?,
                    "{} does not belong to {}: restore both from a copy, or remove both and \
                     every certificate is made anew",
                    key_path.display(),
                    certificate_path.display()
                );
                (certificate, Some(key))
            }
            // Enough for as long as no leaf has to be made.
            (Some(certificate), None) => (certificate, None),
            (None, key) => {
                let key = match key {
                    Some(key) => key,
                    None => create_key(&key_path)?,
                };
                let params = dated(authority_params(), now, CA_VALIDITY)?;
                let certificate = params.self_signed(&key)?;
                files::replace(&certificate_path, &certificate.pem())?;
                (certificate.der().clone(), Some(key))
            }
        };
        Ok(Self { folder: folder.to_owned(), certificate, key })
    }

    /// The leaf as it is on disk, or a new one in its place.
    fn leaf(&self, leaf: &Leaf, now: SystemTime) -> Result<(CertificateDer<'static>, KeyPair)> {
        let certificate_path = self.folder.join(format!("{}.crt", leaf.name));
        let key_path = self.folder.join(format!("{}.key", leaf.name));
        let key = read_key(&key_path)?;
        if let (Some(certificate), Some(key)) = (read_certificate(&certificate_path)?, &key)
            && belongs(&certificate, key, &certificate_path)?
            && self.check(leaf, &certificate, now).is_ok()
            && self.check(leaf, &certificate, now + RENEWAL).is_ok()
        {
            let key = key_copy(key)?;
            return Ok((certificate, key));
        }
        let Some(authority_key) = &self.key else {
            bail!(
                "{} has to be made again, and the authority's key {} is missing: restore it from \
                 a copy, or remove {} and every certificate is made anew",
                certificate_path.display(),
                self.folder.join("ca.key").display(),
                self.folder.display()
            );
        };
        let key = match key {
            Some(key) => key,
            None => create_key(&key_path)?,
        };
        let params = dated(leaf_params(leaf), now, LEAF_VALIDITY)?;
        let issuer = Issuer::new(authority_params(), key_copy(authority_key)?);
        let certificate = params.signed_by(&key, &issuer)?;
        self.check(leaf, certificate.der(), now).with_context(|| {
            format!(
                "{} was not made by `rustmq dev`: remove {} and every certificate is made anew",
                self.folder.join("ca.crt").display(),
                self.folder.display()
            )
        })?;
        files::replace(&certificate_path, &certificate.pem())?;
        Ok((certificate.der().clone(), key))
    }

    /// Would a peer that trusts this authority accept the leaf at this time?
    fn check(
        &self,
        leaf: &Leaf,
        certificate: &CertificateDer<'static>,
        at: SystemTime,
    ) -> Result<(), rustls::Error> {
        let at = UnixTime::since_unix_epoch(since_epoch(at));
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = tls::provider();
        match &leaf.host {
            Some(host) => {
                let parsed = ParsedCertificate::try_from(certificate)?;
                let algorithms = provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms)?;
                verify_server_name(&parsed, host)
            }
            None => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
                verifier.verify_client_cert(certificate, &[], at).map(drop)
            }
        }
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(leaf: &Leaf) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("RustMQ dev {}", leaf.name));
    params.subject_alt_names = leaf.names.clone();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![leaf.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Gives the certificate its time and a number of its own.
fn dated(
    mut params: CertificateParams,
    now: SystemTime,
    validity: Duration,
) -> Result<CertificateParams> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(now).saturating_sub(BACKDATED);
    params.not_after = epoch + since_epoch(now) + validity;
    let mut serial = [0; 16];
    fill_random(&mut serial).context("asking the system for random numbers")?;
    // Serial numbers are positive, and their first byte is not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn read_certificate(path: &Path) -> Result<Option<CertificateDer<'static>>> {
    let Some(pem) = files::read(path)? else { return Ok(None) };
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| damaged(path, "certificate", &error))?;
    ParsedCertificate::try_from(&certificate)
        .map_err(|error| damaged(path, "certificate", &error))?;
    Ok(Some(certificate))
}

fn read_key(path: &Path) -> Result<Option<KeyPair>> {
    let Some(pem) = files::read(path)? else { return Ok(None) };
    KeyPair::from_pem(&pem).map(Some).map_err(|error| damaged(path, "private key", &error))
}

fn create_key(path: &Path) -> Result<KeyPair> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making a key")?;
    files::replace(path, &key.serialize_pem())?;
    Ok(key)
}

/// Keys are not `Clone`, so that copying one is seen.
fn key_copy(key: &KeyPair) -> Result<KeyPair> {
    KeyPair::try_from(key.serialized_der()).context("copying a key")
}

fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair, path: &Path) -> Result<bool> {
    let parsed = ParsedCertificate::try_from(certificate)
        .map_err(|error| damaged(path, "certificate", &error))?;
    Ok(parsed.subject_public_key_info().as_ref() == key.subject_public_key_info())
}

fn damaged(path: &Path, what: &str, error: &dyn std::fmt::Display) -> anyhow::Error {
    let remedy = match path.ends_with("ca.key") {
        true => "remove it and ca.crt, and every certificate is made anew at the next start",
        false => "remove it, and a new one is made at the next start",
    };
    anyhow!(
        "{} holds no readable {what} ({error}): restore it from a copy, or {remedy}",
        path.display()
    )
}

#[cfg(test)]
mod tests;
