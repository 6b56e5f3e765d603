//! One turn of the endpoint's state: a datagram to its connection, what a connection then does, and
//! what is due by time.

use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::{ConnectionHandle, DatagramEvent, EcnCodepoint, VarInt};
use rustmq_protocol::ShardId;
use rustmq_sys::alloc::{Tag, within};
use rustmq_sys::clock;
use rustmq_sys::udp::DatagramMeta;

use super::outlet::{SocketOutlet, send};
use super::{CLOSE_HANDSHAKE_TIMEOUT, Endpoint, State, mark};
use crate::mesh::PassedOn;
use crate::shard::Shard;

impl State {
    /// Hands a datagram to its connection, or looks at a stranger while there is time for one.
    pub(super) fn handle_datagram(
        &mut self,
        endpoint: &Endpoint,
        socket: usize,
        now: Instant,
        meta: &DatagramMeta,
        datagram: BytesMut,
    ) {
        let stranger = self.ids.is_stranger(&datagram);
        if stranger && !self.admission.has_time(now) {
            self.counters.dropped += 1;
            return;
        }
        let mut begun = stranger.then(clock::refresh);
        let mut buffer = self.spare.take();
        let ecn = EcnCodepoint::from_bits(meta.ecn);
        let event = within(Tag::Quic, || {
            self.quic.handle(now, meta.remote, meta.local_ip, ecn, datagram, &mut buffer)
        });
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(Some(connection)) = self.connections.get_mut(handle.0) {
                    // It is no stranger any more, and not in either.
                    let is_handshaking = connection.handshake.is_some();
                    if is_handshaking && !self.admission.may_go_on(now) {
                        self.counters.dropped += 1;
                    } else {
                        if is_handshaking {
                            begun = begun.or_else(|| Some(clock::refresh()));
                        }
                        within(Tag::Quic, || connection.quic.handle_event(event));
                        connection.socket = socket;
                        mark(&mut endpoint.dirty.borrow_mut(), connection);
                    }
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.admit(endpoint, socket, incoming, &mut buffer);
            }
            Some(DatagramEvent::Response(transmit)) => {
                send(&endpoint.sockets[socket], &transmit, &buffer);
            }
            None => {}
        }
        self.spare.give(buffer);
        if let Some(begun) = begun {
            self.admission.spend(clock::refresh() - begun);
        }
    }

    /// Hands a datagram to the shard whose connection it is for. The kernel looks at one datagram of a
    /// train, and at addresses alone where it cannot look closer, so some come to the wrong socket.
    pub(super) fn pass_on(
        &mut self,
        shard: &Shard,
        owner: ShardId,
        meta: DatagramMeta,
        datagram: BytesMut,
    ) {
        let len = datagram.len();
        let meta = DatagramMeta { stride: len, len, ..meta };
        match shard.mesh.pass_on(owner, PassedOn { meta, datagram }) {
            true => self.counters.passed_on += 1,
            false => self.counters.passed_on_lost += 1,
        }
    }

    /// Lets the connections act whose deadline has passed, and gives up handshakes that took too long.
    pub(super) fn fire_timers(&mut self, endpoint: &Endpoint, now: Instant) {
        while let Some((deadline, index)) = self.timers.first().copied() {
            if now < deadline {
                break;
            }
            self.timers.pop_first();
            let Some(Some(connection)) = self.connections.get_mut(index) else {
                continue;
            };
            connection.deadline = None;
            if connection.dirty {
                // First what has arrived: it may have changed the path, and with it what is due.
                continue;
            }
            if connection.quic.is_handshaking() && connection.handshake_deadline <= now {
                self.counters.timed_out += 1;
                let reason = Bytes::from_static(b"the handshake took too long");
                connection.quic.close(now, VarInt::from_u32(CLOSE_HANDSHAKE_TIMEOUT), reason);
            } else {
                within(Tag::Quic, || connection.quic.handle_timeout(now));
            }
            mark(&mut endpoint.dirty.borrow_mut(), connection);
        }
    }

    /// Lets one connection read, answer and send.
    pub(super) fn drive(&mut self, shard: &Rc<Shard>, handle: ConnectionHandle, now: Instant) {
        let endpoint = &shard.endpoint;
        let Some(Some(connection)) = self.connections.get_mut(handle.0) else {
            return;
        };
        connection.dirty = false;
        let begun = connection.handshake.map(|_| clock::refresh());
        connection.serve(shard, now, &mut self.requests);
        if connection.take_worked() {
            self.admission.handle_work(now);
        }
        if !connection.quic.is_handshaking()
            && let Some(handshake) = connection.handshake.take()
        {
            self.admission.end(handshake);
            self.counters.done += u64::from(!connection.quic.is_closed());
        }
        let mut drained = false;
        let mut again = false;
        while let Some(event) = within(Tag::Quic, || connection.quic.poll_endpoint_events()) {
            drained |= event.is_drained();
            if let Some(event) = within(Tag::Quic, || self.quic.handle_event(handle, event)) {
                within(Tag::Quic, || connection.quic.handle_event(event));
                again = true;
            }
        }
        let socket = &endpoint.sockets[connection.socket];
        let mut outlet = SocketOutlet { socket, buffers: &mut self.spare };
        again |= connection.wants_turn();
        again |= connection.transmit(now, socket.max_gso_segments(), &mut outlet);
        self.counters.path_mtu = self.counters.path_mtu.max(connection.quic.current_mtu());
        if let Some(begun) = begun {
            self.admission.spend(clock::refresh() - begun);
        }
        if connection.refused.is_some() {
            endpoint.wake_writer.notify();
        } else if again {
            mark(&mut endpoint.dirty.borrow_mut(), connection);
            endpoint.wake_driver.notify();
        }
        if drained {
            self.forget(handle);
            return;
        }
        let deadline = match connection.quic.poll_timeout() {
            Some(at) if connection.quic.is_handshaking() => {
                Some(at.min(connection.handshake_deadline))
            }
            other => other,
        };
        if connection.deadline != deadline {
            if let Some(old) = connection.deadline.take() {
                self.timers.remove(&(old, handle.0));
            }
            if let Some(at) = deadline {
                let first = self.timers.first().is_none_or(|(earliest, _)| at < *earliest);
                self.timers.insert((at, handle.0));
                if first {
                    endpoint.wake_timer.notify();
                }
            }
            connection.deadline = deadline;
        }
    }

    fn forget(&mut self, handle: ConnectionHandle) {
        let Some(mut connection) = self.connections[handle.0].take() else {
            return;
        };
        if let Some(deadline) = connection.deadline.take() {
            self.timers.remove(&(deadline, handle.0));
        }
        connection.end();
        if let Some(handshake) = connection.handshake.take() {
            self.admission.end(handshake);
        }
        self.open -= 1;
    }
}
