//! Certificates that a broker has to refuse, and what tells them from the one it takes.

use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// The name of the authority that a broker in development mode makes.
const DEV_CA_NAME: &str = "RustMQ dev CA";

/// An authority that signs what it is asked to.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The broker's own.
    pub(crate) fn of_broker(data_dir: &Path) -> Result<Authority> {
        let key = std::fs::read_to_string(data_dir.join("certs/ca.key"))?;
        Ok(Authority::with_key(KeyPair::from_pem(&key)?))
    }

    /// Another one, of the same name.
    pub(crate) fn foreign() -> Result<Authority> {
        Ok(Authority::with_key(KeyPair::generate()?))
    }

    /// A certificate of a client and its key, in PEM, after `change`.
    pub(crate) fn sign(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<(String, String)> {
        let mut params = client()?;
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn with_key(key: KeyPair) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(DEV_CA_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Authority { issuer: Issuer::new(params, key) }
    }
}

/// A certificate for a client that nobody signed but itself, and its key.
pub(crate) fn self_signed() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((client()?.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// What a client's certificate says when nothing is wrong with it.
fn client() -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("a client");
    params.subject_alt_names = vec![SanType::URI("rustmq:client/dev".try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
