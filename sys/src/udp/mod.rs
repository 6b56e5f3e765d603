//! UDP in trains: one system call carries up to 64 datagrams of one size to a peer, or from it.
//!
//! ```text
//!   train = | datagram of stride bytes | datagram | datagram | last, perhaps shorter |
//! ```
//!
//! Segmentation and coalescing are done by the kernel (GSO, GRO), congestion marks and the local
//! address come along. Receiving copies nothing: see [`ReceiveBuffers`].

mod receive;
mod share;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use bytes::BytesMut;
use quinn_udp::{EcnCodepoint, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

pub use receive::{RECEIVE_BUFFER_BYTES, ReceiveBuffers, TRAINS_MAX};
pub use share::Steering;

use crate::runtime::Readiness;

/// 65507 bytes: what fits into one send, a train included; more is refused by the kernel.
pub const TRAIN_BYTES_MAX: usize = 65_507;

/// A bound socket. Made on any thread, then used by one runtime; dropped on that thread.
#[derive(Debug)]
pub struct UdpSocket {
    link: Link,
    readiness: Readiness,
}

/// What datagrams go through.
#[derive(Debug)]
enum Link {
    Kernel(std::net::UdpSocket, UdpSocketState),
    #[cfg(feature = "sim")]
    Modelled(crate::sim::network::ModelledSocket),
}

/// Where a train came from, and its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramMeta {
    /// The sender.
    pub remote: SocketAddr,
    /// Our address that it was sent to, if the kernel tells.
    pub local_ip: Option<IpAddr>,
    /// The two congestion bits of the IP header; 0: the sender does not take part.
    pub ecn: u8,
    /// The length of every datagram but the last, which may be shorter. Never 0.
    pub stride: usize,
    /// The length of all datagrams together.
    pub len: usize,
}

/// Datagrams to send, to one peer.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// The peer.
    pub destination: SocketAddr,
    /// The two congestion bits of the IP header; 0: we do not take part.
    pub ecn: u8,
    /// One datagram, or a train of them.
    pub contents: &'a [u8],
    /// The length of every datagram of a train but the last. None: one datagram.
    pub segment_size: Option<usize>,
    /// The address of ours to send from. None: the kernel chooses.
    pub src_ip: Option<IpAddr>,
}

impl UdpSocket {
    /// Binds to `address`, for this process alone. The unspecified IPv6 address takes IPv4 too.
    /// The kernel's buffers are set to `buffer_bytes` each way, or to what it allows
    /// (`net.core.rmem_max`, `net.core.wmem_max`): see [`buffer_bytes`](Self::buffer_bytes).
    ///
    /// Alone even where others would share the address: see [`share`](Self::share).
    pub fn bind(address: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        Self::bind_as(address, buffer_bytes, false)
    }

    fn bind_as(address: SocketAddr, buffer_bytes: usize, shares: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.set_recv_buffer_size(buffer_bytes)?;
        socket.set_send_buffer_size(buffer_bytes)?;
        force_buffers(&socket, buffer_bytes);
        if shares {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        let socket = std::net::UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { link: Link::Kernel(socket, state), readiness: Readiness::default() })
    }

    /// Binds to `address` of the world that this thread has entered.
    #[cfg(feature = "sim")]
    pub fn bind_modelled(address: SocketAddr) -> io::Result<Self> {
        let socket = crate::sim::network::ModelledSocket::bind(address)?;
        Ok(Self { link: Link::Modelled(socket), readiness: Readiness::default() })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.link {
            Link::Kernel(socket, _) => socket.local_addr(),
            #[cfg(feature = "sim")]
            Link::Modelled(socket) => Ok(socket.address()),
        }
    }

    fn descriptor(&self) -> RawFd {
        match &self.link {
            Link::Kernel(socket, _) => socket.as_raw_fd(),
            #[cfg(feature = "sim")]
            Link::Modelled(socket) => socket.descriptor(),
        }
    }

    /// What the kernel granted as (receive, send) buffers.
    pub fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        match &self.link {
            Link::Kernel(socket, state) => {
                let receive = state.recv_buffer_size(UdpSockRef::from(socket))?;
                let send = state.send_buffer_size(UdpSockRef::from(socket))?;
                // The kernel counts its own overhead in and doubles what was asked for.
                Ok((receive / 2, send / 2))
            }
            #[cfg(feature = "sim")]
            Link::Modelled(_) => Ok((usize::MAX, usize::MAX)),
        }
    }

    /// The most datagrams in one train to send now: 1 where the device cannot segment. May fall.
    pub fn max_gso_segments(&self) -> usize {
        match &self.link {
            Link::Kernel(_, state) => state.max_gso_segments(),
            #[cfg(feature = "sim")]
            Link::Modelled(_) => crate::sim::network::SEGMENTS_MAX,
        }
    }

    /// Whether the network may cut datagrams in pieces: then their size must not be probed.
    pub fn may_fragment(&self) -> bool {
        match &self.link {
            Link::Kernel(_, state) => state.may_fragment(),
            #[cfg(feature = "sim")]
            Link::Modelled(_) => false,
        }
    }

    /// Waits until there may be something to receive.
    pub async fn readable(&self) {
        poll_fn(|context| self.readiness.poll_readable(self.descriptor(), context)).await;
    }

    /// Waits until a send that was refused may succeed.
    pub async fn writable(&self) {
        poll_fn(|context| self.readiness.poll_writable(self.descriptor(), context)).await;
    }

    /// Receives up to [`TRAINS_MAX`] trains with one system call, gives each to `take`, and returns
    /// how many there were; 0: nothing is waiting, and [`readable`](Self::readable) will tell.
    ///
    /// Bytes of a train handed out in place keep its whole buffer busy; whoever keeps few of them
    /// for long copies them out.
    pub fn recv_trains(
        &self,
        buffers: &mut ReceiveBuffers,
        mut take: impl FnMut(DatagramMeta, BytesMut),
    ) -> io::Result<usize> {
        if !self.readiness.may_read() {
            return Ok(0);
        }
        let (socket, state) = match &self.link {
            Link::Kernel(socket, state) => (socket, state),
            #[cfg(feature = "sim")]
            Link::Modelled(socket) => {
                let count = socket.receive(TRAINS_MAX, take);
                if count < TRAINS_MAX {
                    self.readiness.clear_readable();
                }
                return Ok(count);
            }
        };
        match buffers.receive(state, socket, &mut take) {
            Ok((count, room)) => {
                // Fewer than asked for: nothing more was there at that moment, and whatever comes
                // later makes a new edge.
                if count < room {
                    self.readiness.clear_readable();
                }
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readiness.clear_readable();
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends one datagram or train. False: the kernel's buffer is full, nothing was sent, and
    /// [`writable`](Self::writable) tells when to try again. What the network or the peer refuses
    /// counts as sent and lost, which the protocol above repairs.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<bool> {
        let datagrams = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: EcnCodepoint::from_bits(transmit.ecn),
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        let (socket, state) = match &self.link {
            Link::Kernel(socket, state) => (socket, state),
            #[cfg(feature = "sim")]
            Link::Modelled(socket) => {
                socket.send(transmit);
                return Ok(true);
            }
        };
        match state.try_send(UdpSockRef::from(socket), &datagrams) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readiness.clear_writable();
                Ok(false)
            }
            Err(error) if is_loss(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.readiness.forget();
    }
}

/// Errors that say that this datagram is lost, and nothing about the socket.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMSGSIZE
                | libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EPERM
                | libc::EACCES
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EINVAL
                | libc::EIO
        )
    )
}

/// Past the limits of `net.core`, for a process that may; any other keeps what it has.
fn force_buffers(socket: &Socket, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: reads one integer.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            )
        };
    }
}
