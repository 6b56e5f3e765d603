//! Datagrams between the addresses of a modelled world: late, lost, twice and out of order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use bytes::BytesMut;

use super::choice::Choice;
use super::{Due, World, entered};
use crate::runtime::DriverToken;
use crate::udp::{DatagramMeta, Transmit};

/// Datagrams that wait in a socket; more are lost, as in a kernel.
const QUEUE_MAX: usize = 4096;

/// Datagrams of one train to send.
pub(crate) const SEGMENTS_MAX: usize = 8;

/// A bound socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketId(u32);

/// How the network treats datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Nanoseconds under way: from, to. What is sent later may arrive earlier.
    pub delay_ns: (u64, u64),
    /// Lost out of 1,000.
    pub lost: u64,
    /// Delivered twice out of 1,000.
    pub twice: u64,
}

/// A datagram on its way.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) ecn: u8,
}

/// The modelled network. Begins with one that loses nothing and takes 20 to 80 µs.
pub struct Network {
    conditions: Conditions,
    sockets: BTreeMap<SocketId, Socket>,
    by_address: BTreeMap<SocketAddr, SocketId>,
    next: u32,
    /// Datagrams that were lost, by choice or because nobody was there.
    lost: u64,
    /// Datagrams that were sent twice.
    twice: u64,
    delivered: u64,
}

struct Socket {
    address: SocketAddr,
    queue: VecDeque<Packet>,
    watched: Option<(u64, DriverToken)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            conditions: Conditions { delay_ns: (20_000, 80_000), lost: 0, twice: 0 },
            sockets: BTreeMap::new(),
            by_address: BTreeMap::new(),
            next: 3,
            lost: 0,
            twice: 0,
            delivered: 0,
        }
    }
}

impl Network {
    /// Changes how datagrams are treated from now on.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Datagrams delivered so far, copies included.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Datagrams lost so far, and those of which there were two.
    pub fn lost_and_twice(&self) -> (u64, u64) {
        (self.lost, self.twice)
    }

    fn bind(&mut self, address: SocketAddr) -> Option<SocketId> {
        if self.by_address.contains_key(&address) {
            return None;
        }
        let id = SocketId(self.next);
        self.next += 1;
        self.by_address.insert(address, id);
        self.sockets.insert(id, Socket { address, queue: VecDeque::new(), watched: None });
        Some(id)
    }

    fn close(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.remove(&id) {
            self.by_address.remove(&socket.address);
        }
    }

    fn receive(&mut self, id: SocketId) -> Option<Packet> {
        self.sockets.get_mut(&id)?.queue.pop_front()
    }

    pub(super) fn watch(&mut self, id: SocketId, runtime: u64, token: DriverToken) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.watched = Some((runtime, token));
        }
    }

    pub(super) fn unwatch(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.watched = None;
        }
    }

    /// A datagram is there; who watches its socket.
    pub(super) fn arrive(&mut self, packet: Packet) -> Option<(u64, DriverToken)> {
        let id = self.by_address.get(&packet.to);
        let socket = id.and_then(|id| self.sockets.get_mut(id));
        match socket.filter(|socket| socket.queue.len() < QUEUE_MAX) {
            None => {
                self.lost += 1;
                None
            }
            Some(socket) => {
                self.delivered += 1;
                socket.queue.push_back(packet);
                socket.watched
            }
        }
    }

    fn fates(&mut self, choice: &mut Choice) -> Vec<u64> {
        let Conditions { delay_ns: (from, to), lost, twice } = self.conditions;
        if choice.chance(lost, 1_000) {
            self.lost += 1;
            return Vec::new();
        }
        let copies = if choice.chance(twice, 1_000) { 2 } else { 1 };
        self.twice += copies - 1;
        (0..copies).map(|_| choice.between(from, to)).collect()
    }
}

/// A socket of the modelled network that its thread has entered, open until it is dropped. Whoever
/// has no runtime looks by itself for what has arrived.
#[derive(Debug)]
pub struct ModelledSocket {
    id: SocketId,
    address: SocketAddr,
}

impl ModelledSocket {
    /// Binds to `address` of the world that this thread has entered.
    ///
    /// # Errors
    /// The address is taken, or no world was entered.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let world = entered().ok_or(io::ErrorKind::NetworkDown)?;
        let id = world.network().bind(address).ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self { id, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.id.0.cast_signed()
    }

    /// Gives up to `max` datagrams that have arrived to `take`; how many there were.
    pub fn receive(&self, max: usize, mut take: impl FnMut(DatagramMeta, BytesMut)) -> usize {
        let Some(world) = entered() else { return 0 };
        for count in 0..max {
            let Some(packet) = world.network().receive(self.id) else { return count };
            let len = packet.bytes.len();
            let local_ip = Some(self.address.ip());
            let meta =
                DatagramMeta { remote: packet.from, local_ip, ecn: packet.ecn, stride: len, len };
            take(meta, BytesMut::from(&packet.bytes[..]));
        }
        max
    }

    /// Sends a datagram or a train of them; the network may lose it.
    pub fn send(&self, transmit: &Transmit<'_>) {
        let Some(world) = entered() else { return };
        let bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(bytes) {
            world.send(self.address, transmit.destination, datagram, transmit.ecn);
        }
    }
}

impl Drop for ModelledSocket {
    fn drop(&mut self) {
        if let Some(world) = entered() {
            world.network().close(self.id);
        }
    }
}

impl SocketId {
    pub(crate) fn of(descriptor: RawFd) -> Self {
        Self(descriptor.cast_unsigned())
    }
}

impl World {
    /// Sends one datagram.
    fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8], ecn: u8) {
        let delays = {
            let mut choice = self.choice();
            self.network().fates(&mut choice)
        };
        self.note("send", u64::from(to.port()), bytes.len() as u64, delays.len() as u64);
        for delay in delays {
            let packet = Packet { from, to, bytes: bytes.to_vec(), ecn };
            self.schedule(delay, Due::Arrives { packet });
        }
    }
}
