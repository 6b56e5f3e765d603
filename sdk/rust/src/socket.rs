//! The socket of a client. It is quinn's on tokio, except that it can look for datagrams for a while
//! before it lets its thread sleep, and that it sends longer trains than it is handed.
//!
//! ```text
//!  connections ─► try_send ─┬─ a full train: kept ─► more of the same, or `send_kept`, a task ─► kernel
//!                           └─ anything else ──────────────────────────────────────────────────► kernel
//! ```

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::config::PollMode;
use crate::looking::{Looking, Next};
use crate::train::{Handed, Train};

/// A socket that one endpoint receives from and all its connections send from.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    io: UdpSocket,
    state: UdpSocketState,
    /// The kernel had no room for what was sent last. It only saves asking: whoever sends is told anyway.
    is_full: AtomicBool,
    /// None: it sleeps at once.
    looking: Option<Mutex<Looking>>,
    train: Mutex<Train>,
    /// The train has begun, or the socket is gone.
    begun: Arc<Notify>,
}

impl ClientSocket {
    /// Starts the task that ends with the socket.
    pub(crate) fn open(socket: std::net::UdpSocket, poll: PollMode) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        let looking = match poll {
            PollMode::Sleep => None,
            PollMode::Adaptive => Some(Mutex::default()),
        };
        let train = Mutex::new(Train::new(state.max_gso_segments()));
        let begun = Arc::new(Notify::new());
        let (io, is_full) = (UdpSocket::from_std(socket)?, AtomicBool::new(false));
        let socket = Arc::new(ClientSocket {
            io,
            state,
            is_full,
            looking,
            train,
            begun: Arc::clone(&begun),
        });
        tokio::spawn(send_kept(Arc::downgrade(&socket), begun));
        Ok(socket)
    }

    /// Comes back once the runtime has nothing else to do, if that is worth it. On its way it asks the
    /// kernel for news, without waiting for them.
    fn look_again(&self, context: &mut Context<'_>) {
        let Some(looking) = &self.looking else { return };
        if lock(looking).handle_empty(Instant::now()) == Next::Look {
            // Polled once, it leaves this task to be woken then, and that stays when it is dropped.
            let _ = pin!(tokio::task::yield_now()).poll(context);
        }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent =
            self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), transmit));
        if sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    /// Sends what waits. It goes on waiting if the kernel has no room for it.
    fn send_train(&self, train: &mut Train) -> io::Result<()> {
        let Some(transmit) = train.transmit() else { return Ok(()) };
        self.send(&transmit)?;
        train.clear();
        Ok(())
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        self.begun.notify_one();
    }
}

/// Sends the trains that nothing follows: once every connection has had its turn and none has added
/// anything.
async fn send_kept(socket: Weak<ClientSocket>, begun: Arc<Notify>) {
    loop {
        begun.notified().await;
        let mut seen = 0;
        loop {
            let Some(socket) = socket.upgrade() else { return };
            let bytes = lock(&socket.train).len();
            if bytes == 0 {
                break;
            }
            if bytes == seen {
                let sent = socket.send_train(&mut lock(&socket.train));
                match sent {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        // If that fails, sending does so too.
                        drop(socket.io.writable().await);
                        continue;
                    }
                    _ => break,
                }
            }
            seen = bytes;
            drop(socket);
            tokio::task::yield_now().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncUdpSocket for ClientSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut train = lock(&self.train);
        let is_new = train.len() == 0;
        match train.push(transmit) {
            Handed::Kept => {
                if is_new {
                    self.begun.notify_one();
                }
                Ok(())
            }
            // They are taken either way: what the kernel has no room for now waits.
            Handed::Last => match self.send_train(&mut train) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.begun.notify_one();
                    Ok(())
                }
                sent => sent,
            },
            Handed::Other => {
                self.send_train(&mut train)?;
                drop(train);
                self.send(transmit)
            }
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.io.poll_recv_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.look_again(context);
                    return Poll::Pending;
                }
            }
            let received = self
                .io
                .try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas));
            match received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                received => {
                    if let Some(looking) = &self.looking {
                        lock(looking).handle_datagrams(Instant::now());
                    }
                    return Poll::Ready(received);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Waits until the socket takes datagrams again, for one connection.
struct Writable {
    socket: Arc<ClientSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() && !self.socket.is_full.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let socket = Arc::clone(&self.socket);
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let writable = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        self.socket.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(writable)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const DATAGRAM_BYTES: usize = 100;

    fn open(poll: PollMode) -> (Arc<ClientSocket>, UdpSocket) {
        let bind = || std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = bind();
        peer.set_nonblocking(true).unwrap();
        (ClientSocket::open(bind(), poll).unwrap(), UdpSocket::from_std(peer).unwrap())
    }

    fn send(socket: &ClientSocket, to: &UdpSocket, datagrams: u8) {
        let contents: Vec<u8> =
            (0..datagrams).flat_map(|number| [number; DATAGRAM_BYTES]).collect();
        let transmit = Transmit {
            destination: to.local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: (1 < datagrams).then_some(DATAGRAM_BYTES),
            src_ip: None,
        };
        socket.try_send(&transmit).unwrap();
    }

    async fn received(peer: &UdpSocket, datagrams: u8) -> Vec<u8> {
        let mut numbers = Vec::new();
        for _ in 0..datagrams {
            let mut bytes = [0; DATAGRAM_BYTES + 1];
            assert_eq!(peer.recv(&mut bytes).await.unwrap(), DATAGRAM_BYTES);
            numbers.push(bytes[0]);
        }
        numbers
    }

    #[tokio::test]
    async fn what_is_kept_is_sent_in_order_once_nothing_follows() {
        let (socket, peer) = open(PollMode::Sleep);
        if socket.max_transmit_segments() < 30 {
            // This kernel takes datagrams one by one.
            return;
        }
        send(&socket, &peer, 10);
        send(&socket, &peer, 10);
        assert_eq!(lock(&socket.train).len(), 20 * DATAGRAM_BYTES);
        let twice: Vec<u8> = (0..10).chain(0..10).collect();
        assert_eq!(received(&peer, 20).await, twice);

        send(&socket, &peer, 10);
        send(&socket, &peer, 1);
        assert_eq!(lock(&socket.train).len(), 0, "a shorter one ends the train");
        assert_eq!(received(&peer, 11).await.last(), Some(&0));
    }

    #[tokio::test]
    async fn datagrams_are_received_while_it_looks_and_after_it_slept() {
        for poll in [PollMode::Sleep, PollMode::Adaptive] {
            let (socket, peer) = open(poll);
            let (mut bytes, mut metas) = ([0; 2000], [RecvMeta::default()]);
            for number in 0..20 {
                let to = socket.local_addr().unwrap();
                let receive = std::future::poll_fn(|context| {
                    socket.poll_recv(context, &mut [IoSliceMut::new(&mut bytes)], &mut metas)
                });
                let (received, sent) = tokio::join!(receive, async {
                    tokio::task::yield_now().await;
                    peer.send_to(&[number], to).await
                });
                assert_eq!((received.unwrap(), sent.unwrap()), (1, 1));
                assert_eq!((metas[0].len, bytes[0]), (1, number));
            }
        }
    }
}
