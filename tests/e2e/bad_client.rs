//! Peers that are refused in the handshake, each told why, and the broker serves on.

use anyhow::{Result, ensure};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

use crate::support::broker::{Backend, Broker, Node};
use crate::support::certificates::{Authority, self_signed};
use crate::support::cli::Cli;
use crate::support::raw::{self, Identity};
use crate::support::{client, machine};

/// What a peer shows must be refused with these words; then the broker is well.
fn refused(
    show: impl FnOnce(&Node) -> Result<Option<(String, String)>>,
    words: &str,
) -> Result<()> {
    let certificate = |node: &Node| Ok(Identity { certificate: show(node)?, alpn: b"rustmq/1" });
    refused_as(certificate, words)
}

fn refused_as(show: impl FnOnce(&Node) -> Result<Identity>, words: &str) -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let mut broker: Broker = node.start()?;
    let identity = show(&node)?;
    let said = client::runtime()?.block_on(raw::refusal(node.data_dir(), &identity))?;
    ensure!(said.contains(words), "the peer was told {said:?}, expected {words:?}");
    ensure!(broker.is_running()?, "the broker ended");
    Cli::new(node.data_dir()).check_health("after")?;
    broker.stop()
}

#[test]
fn a_client_without_a_certificate_is_refused() -> Result<()> {
    refused(|_| Ok(None), "sent no certificates")
}

#[test]
fn a_client_with_a_self_signed_certificate_is_refused() -> Result<()> {
    refused(|_| self_signed().map(Some), "UnknownIssuer")
}

#[test]
fn a_client_of_a_foreign_authority_of_the_same_name_is_refused() -> Result<()> {
    // Its name leads to the broker's own authority, whose key has not signed it.
    refused(|_| Authority::foreign()?.sign(|_| {}).map(Some), "BadSignature")
}

#[test]
fn a_client_with_an_expired_certificate_is_refused() -> Result<()> {
    let expired = |node: &Node| {
        let signed = Authority::of_broker(node.data_dir())?
            .sign(|params| params.not_after = date_time_ymd(2021, 1, 1))?;
        Ok(Some(signed))
    };
    refused(expired, "expired")
}

#[test]
fn a_client_whose_certificate_is_not_valid_yet_is_refused() -> Result<()> {
    let future = |node: &Node| {
        let signed = Authority::of_broker(node.data_dir())?
            .sign(|params| params.not_before = date_time_ymd(2110, 1, 1))?;
        Ok(Some(signed))
    };
    refused(future, "not valid yet")
}

#[test]
fn a_client_with_a_certificate_for_servers_is_refused() -> Result<()> {
    let server = |node: &Node| {
        let signed = Authority::of_broker(node.data_dir())?.sign(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })?;
        Ok(Some(signed))
    };
    refused(server, "client authentication")
}

#[test]
fn a_client_whose_certificate_names_nobody_is_refused() -> Result<()> {
    let nameless = |node: &Node| {
        let signed = Authority::of_broker(node.data_dir())?.sign(|params| {
            params.subject_alt_names.clear();
            params.distinguished_name = rcgen::DistinguishedName::new();
        })?;
        Ok(Some(signed))
    };
    refused(nameless, "name")
}

#[test]
fn a_client_of_another_protocol_is_refused() -> Result<()> {
    let other = |node: &Node| {
        let identity = Identity::of_dev_client(node.data_dir())?;
        Ok(Identity { alpn: b"h3", ..identity })
    };
    refused_as(other, "known protocol")
}

#[test]
fn a_certificate_of_the_brokers_authority_is_taken() -> Result<()> {
    // The other tests would pass with a broker that refuses everybody.
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let certificate = Some(Authority::of_broker(node.data_dir())?.sign(|_| {})?);
    let identity = Identity { certificate, alpn: b"rustmq/1" };
    client::runtime()?.block_on(async {
        let (_endpoint, connected) = raw::dial(node.data_dir(), &identity).await?;
        let (mut send, mut receive) = connected?.open_bi().await?;
        let mut hello = Vec::new();
        raw::hello(1, 1, &mut hello);
        send.write_all(&hello).await?;
        let mut header = [0; 16];
        client::bounded("an answer", receive.read_exact(&mut header)).await??;
        anyhow::Ok(())
    })?;
    broker.stop()
}
