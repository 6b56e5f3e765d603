//! The operators' interface: probes and metrics over plain HTTP, on the loopback address alone.
//!
//! It runs as tasks of the control thread and reads only.

mod connections;
mod hdr;
pub(super) mod metrics;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::control::{ControlHandle, Scrape, Status};
use connections::BoundedListener;

/// The bound socket of the interface.
pub(super) struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// What requests are answered from.
#[derive(Clone)]
struct Source {
    control: ControlHandle,
    started: Instant,
    started_at: SystemTime,
}

impl Admin {
    /// Binds to the port of the loopback address; 0 takes any free one.
    pub(super) fn bind(port: u16) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).with_context(|| {
            format!(
                "binding TCP {address} (admin): if another program has this port, stop it, or \
                 choose another with --admin-port (admin.port; 0 takes any free one)"
            )
        })?;
        let address = listener.local_addr().context("asking for the admin port")?;
        Ok(Self { listener, address })
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves in the current runtime, for as long as that lasts.
    pub(super) fn serve(self, control: ControlHandle) -> Result<()> {
        let serving = || format!("serving the admin interface on {}", self.address);
        self.listener.set_nonblocking(true).with_context(serving)?;
        let listener = tokio::net::TcpListener::from_std(self.listener).with_context(serving)?;
        let source = Source { control, started: Instant::now(), started_at: SystemTime::now() };
        let server = axum::serve(BoundedListener::new(listener), router(source));
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the admin interface ended");
            }
        });
        Ok(())
    }
}

fn router(source: Source) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/metrics/hdr/{name}", get(hdr))
        .fallback(unknown)
        .with_state(source)
}

/// The control thread turns.
async fn livez() -> &'static str {
    "alive\n"
}

/// Every shard serves, and its disk answers.
async fn readyz(State(source): State<Source>) -> Response {
    let status = source.control.status();
    let trouble = source.control.trouble();
    if status == Status::Serving && !trouble.is_empty() {
        let text = format!("not ready: {}\n", trouble.join("; "));
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let code = match status {
        Status::Serving => StatusCode::OK,
        Status::Starting { .. } | Status::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{status}\n")).into_response()
}

async fn metrics(State(source): State<Source>) -> Response {
    let Some(scrape) = source.control.scrape().await else { return busy() };
    let ready = source.control.status() == Status::Serving && source.control.trouble().is_empty();
    let text = metrics::encode(&scrape, ready, source.started.elapsed());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn hdr(State(source): State<Source>, Path(name): Path<String>) -> Response {
    let Some(stage) = hdr::stage(&name) else {
        let known = format!("no histogram {name:?}; there are: {}\n", hdr::names().join(" "));
        return (StatusCode::NOT_FOUND, known).into_response();
    };
    let Some(scrape): Option<Arc<Scrape>> = source.control.scrape().await else { return busy() };
    match hdr::encode(&scrape, stage, source.started_at, source.started.elapsed()) {
        Ok(log) => log.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn unknown() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there are: /livez /readyz /metrics /metrics/hdr/{name}\n")
}

fn busy() -> Response {
    let text = "too many scrapes wait for the shards, or the broker ends\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::control::tests::{block_on, control};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn request(address: SocketAddr, what: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let first = Admin::bind(0).unwrap();
        assert!(first.address().ip().is_loopback());
        let port = first.address().port();
        let error = format!("{:#}", Admin::bind(port).err().unwrap());
        assert!(error.contains(&port.to_string()) && error.contains("--admin-port"), "{error}");
    }

    #[test]
    fn probes_follow_the_shards_and_strange_requests_are_refused() {
        block_on(async {
            let (mut control, mut shards) = control(1);
            let admin = Admin::bind(0).unwrap();
            let address = admin.address();
            admin.serve(control.handle()).unwrap();
            let answer = request(address, "GET /readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.ends_with("starting: 0 of 1 shards serve\n"), "{answer}");
            assert!(request(address, "GET /livez").await.starts_with("HTTP/1.1 200"));

            shards.serve();
            control.until_serving().await.unwrap();
            assert!(request(address, "GET /readyz").await.starts_with("HTTP/1.1 200"));

            for path in ["/", "/metrics/", "/metrics/hdr", "/livez/x"] {
                let answer = request(address, &format!("GET {path}")).await;
                assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
            }
            let answer = request(address, "GET /metrics/hdr/nothing").await;
            assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("wal_flush"), "{answer}");
            assert!(request(address, "POST /metrics").await.starts_with("HTTP/1.1 405"));
        });
    }

    #[test]
    fn metrics_without_a_control_thread_are_refused() {
        block_on(async {
            let (control, _shards) = control(1);
            let admin = Admin::bind(0).unwrap();
            let address = admin.address();
            admin.serve(control.handle()).unwrap();
            drop(control);
            for path in ["/metrics", "/metrics/hdr/produce"] {
                let answer = request(address, &format!("GET {path}")).await;
                assert!(answer.starts_with("HTTP/1.1 503"), "{path}: {answer}");
            }
        });
    }
}
