//! The operators' interface: probes and metrics over plain HTTP, on the loopback address alone.
//!
//! It runs as tasks of the control thread and reads only.

mod connections;
mod hdr;
mod metrics;

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

/// Every shard serves.
async fn readyz(State(source): State<Source>) -> Response {
    let status = source.control.status();
    let code = match status {
        Status::Serving => StatusCode::OK,
        Status::Starting { .. } | Status::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{status}\n")).into_response()
}

async fn metrics(State(source): State<Source>) -> Response {
    let Some(scrape) = source.control.scrape().await else { return busy() };
    let ready = source.control.status() == Status::Serving;
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

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let first = Admin::bind(0).unwrap();
        assert!(first.address().ip().is_loopback());
        let port = first.address().port();
        let error = format!("{:#}", Admin::bind(port).err().unwrap());
        assert!(error.contains(&port.to_string()) && error.contains("--admin-port"), "{error}");
    }
}
