//! Peers that are refused in the handshake, each told why, and the broker serves on.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
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
fn a_client_whose_certificate_expires_is_refused_when_it_comes_back() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let broker = node.start()?;
    let authority = Authority::of_broker(node.data_dir())?;
    let said = client::runtime()?.block_on(async {
        let (config, expires_at) = admitted_for_a_while(&node, &authority).await?;
        // A second of the certificate's clock is over when the next has begun.
        while SystemTime::now() < expires_at + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        raw::refusal_with(node.data_dir(), config).await
    })?;
    ensure!(said.contains("expired"), "the peer was told {said:?}");
    broker.stop()
}

/// Settings of a client that was let in with a certificate that ends soon, and when that is.
async fn admitted_for_a_while(
    node: &Node,
    authority: &Authority,
) -> Result<(quinn::ClientConfig, SystemTime)> {
    // On a machine that hangs, the first may be over before the client has come.
    for seconds in [3, 12, 48] {
        let expires_at = SystemTime::now() + Duration::from_secs(seconds);
        let since_1970 = expires_at.duration_since(UNIX_EPOCH)?;
        let not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970.as_secs());
        let certificate = Some(authority.sign(|params| params.not_after = not_after)?);
        let identity = Identity { certificate, alpn: b"rustmq/1" };
        let config = raw::client_as(node.data_dir(), &identity)?;
        let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
        match raw::Raw::greeted_from(&endpoint, node.data_dir(), config.clone()).await {
            Ok(_) => return Ok((config, expires_at)),
            Err(error) => ensure!(expires_at <= SystemTime::now(), "not let in: {error:#}"),
        }
    }
    bail!("no certificate lasted until its client had come")
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
