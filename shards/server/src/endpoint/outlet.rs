//! The way out: buffers for trains of datagrams, and the sockets that take them.

use quinn_proto::Transmit;
use rustmq_sys::udp::{self, UdpSocket};

use crate::connection::Outlet;
use crate::limits::UDP_PAYLOAD_BYTES_MAX;

/// Buffers kept for sending; more are freed.
const SPARE_BUFFERS_MAX: usize = 256;
/// Room for the largest GSO train.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Buffers to build trains of datagrams in, used again and again.
#[derive(Default)]
pub(super) struct SendBuffers(Vec<Vec<u8>>);

impl SendBuffers {
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(SEND_BUFFER_BYTES))
    }

    pub(super) fn give(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// The socket that a connection sends through, and buffers to build datagrams in.
pub(super) struct SocketOutlet<'a> {
    pub(super) socket: &'a UdpSocket,
    pub(super) buffers: &'a mut SendBuffers,
}

impl Outlet for SocketOutlet<'_> {
    fn buffer(&mut self) -> Vec<u8> {
        self.buffers.take()
    }

    fn send(&mut self, transmit: &Transmit, buffer: &[u8]) -> bool {
        send(self.socket, transmit, buffer)
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        self.buffers.give(buffer);
    }
}

/// Sends one train. Returns false when the socket's buffer is full.
pub(super) fn send(socket: &UdpSocket, transmit: &Transmit, buffer: &[u8]) -> bool {
    debug_assert!(transmit.size <= UDP_PAYLOAD_BYTES_MAX, "a train fits one send");
    let datagrams = udp::Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
        contents: &buffer[..transmit.size],
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    };
    match socket.try_send(&datagrams) {
        Ok(sent) => sent,
        Err(error) => {
            // QUIC treats it as a lost datagram and sends again.
            tracing::warn!(%error, destination = %transmit.destination, "sending failed");
            true
        }
    }
}
