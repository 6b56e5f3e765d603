//! Connections that do nothing: what they cost a broker beside those that work.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use quinn::{Connection, Endpoint};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::tls;
use super::wire::{self, Link};
use rustmq_sys::cpu;

/// Handshakes at once: what they are sent fits into a socket's buffer of the usual size.
const HANDSHAKES: usize = 16;

/// As the Rust client has it: it shows that it is alive every 10 s.
const SILENCE: Duration = Duration::from_secs(30);

/// Attempts at one connection. Some packets are lost when thousands come at once.
const ATTEMPTS: usize = 3;

/// A client that holds connections to one broker, on a thread and a socket of its own. Each has said
/// Hello on a stream that stays open, and shows that it is alive.
#[derive(Debug)]
pub(super) struct Crowd {
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

/// So many connections are wanted, and where to say when there are.
type Ask = (usize, oneshot::Sender<Result<()>>);

impl Crowd {
    /// A crowd of nobody.
    pub(super) fn new(address: SocketAddr, certs: &Path, core: Option<usize>) -> Result<Crowd> {
        let (asks, mut asked) = mpsc::channel::<Ask>(1);
        let certs = certs.to_owned();
        let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn(move || {
            if let Some(core) = core {
                // Elsewhere it takes time from the broker, and the figures say so.
                drop(cpu::pin_current(core));
            }
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let mut held = Held { address, certs, endpoint: None, members: Vec::new() };
                while let Some((count, done)) = asked.recv().await {
                    // Whoever asked may have given up.
                    drop(done.send(held.hold(count).await));
                }
                held.leave().await;
            });
        })?;
        Ok(Crowd { asks: Some(asks), thread: Some(thread) })
    }

    /// Returns when the crowd has this many connections.
    pub(super) fn hold(&self, count: usize) -> Result<()> {
        let (done, waiting) = oneshot::channel();
        let asks = self.asks.as_ref().context("the crowd has left")?;
        asks.blocking_send((count, done)).map_err(|_| anyhow!("the crowd's thread has ended"))?;
        waiting.blocking_recv().context("the crowd's thread has ended")?
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was an error before.
            drop(thread.join());
        }
    }
}

async fn join(endpoint: &Endpoint, address: SocketAddr) -> Result<(Connection, Link)> {
    let connection = wire::connect(endpoint, address).await?;
    let link = Link::to_broker(&connection).await?;
    Ok((connection, link))
}

struct Held {
    address: SocketAddr,
    certs: PathBuf,
    endpoint: Option<Endpoint>,
    members: Vec<(Connection, Link)>,
}

impl Held {
    async fn hold(&mut self, count: usize) -> Result<()> {
        for (connection, _) in self.members.drain(count.min(self.members.len())..) {
            connection.close(0u32.into(), b"enough");
        }
        if self.members.len() < count && self.endpoint.is_none() {
            let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            endpoint.set_default_client_config(tls::idle_client(&self.certs, SILENCE)?);
            self.endpoint = Some(endpoint);
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let mut coming = JoinSet::new();
        let mut missing = count.saturating_sub(self.members.len());
        while 0 < missing || !coming.is_empty() {
            while 0 < missing && coming.len() < HANDSHAKES {
                missing -= 1;
                let (endpoint, address) = (endpoint.clone(), self.address);
                coming.spawn(async move {
                    let mut attempt = 1;
                    loop {
                        match join(&endpoint, address).await {
                            Err(_) if attempt < ATTEMPTS => attempt += 1,
                            joined => return joined,
                        }
                    }
                });
            }
            if let Some(member) = coming.join_next().await {
                self.members.push(member.context("a handshake panicked")??);
            }
        }
        match self.members.iter().find_map(|(connection, _)| connection.close_reason()) {
            Some(reason) => Err(anyhow!(reason).context("a connection of the crowd is gone")),
            None => Ok(()),
        }
    }

    async fn leave(self) {
        if let Some(endpoint) = self.endpoint {
            drop(self.members);
            endpoint.close(0u32.into(), b"done");
            endpoint.wait_idle().await;
        }
    }
}
