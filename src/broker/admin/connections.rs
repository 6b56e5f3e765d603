//! A listener that has so many connections and no more, and keeps none that does not get on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections of operators at once. Past it new ones wait in the kernel's queue: whoever opens
/// many takes no descriptors from the broker.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take from one step to the next; past it it is closed, and its place is
/// free. 10 s: a scrape waits 2 s for a shard that is silent, on a machine that is slow as well.
const STEP_WAIT: Duration = Duration::from_secs(10);

/// Accepts while fewer than [`CONNECTIONS_MAX`] are open.
pub(super) struct BoundedListener {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

/// A connection that counts. Its steps are: it is accepted, a request begins, bytes of the answer
/// are taken. The rest of a request is none, or a byte now and then would keep the place.
pub(super) struct Connection {
    stream: TcpStream,
    /// [`STEP_WAIT`] after the last step.
    overdue: Pin<Box<Sleep>>,
    /// A request has begun, of whose answer nothing is taken.
    asked: bool,
    _counted: OwnedSemaphorePermit,
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let counted = Arc::clone(&self.free).acquire_owned().await;
        let counted = counted.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let overdue = Box::pin(sleep(STEP_WAIT));
        (Connection { stream, overdue, asked: false, _counted: counted }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connection {
    fn step(&mut self) {
        self.overdue.as_mut().reset(Instant::now() + STEP_WAIT);
    }

    /// Waits for as long as a step may take.
    fn poll_overdue<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.overdue.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_overdue(context);
        }
        if !self.asked {
            self.asked = true;
            self.step();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_pending() {
            return self.poll_overdue(context);
        }
        self.asked = false;
        self.step();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
