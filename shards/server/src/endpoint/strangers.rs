//! First packets: who is let in, who must prove an address first, and who waits for a turn.

use std::time::Instant;

use quinn_proto::Incoming;
use rustmq_sys::clock;

use super::outlet::send;
use super::{ADMISSION_TIMER, Endpoint, State, mark};
use crate::admission::{Handshake, Verdict};
use crate::connection::Connection;

/// A first packet that was let in, and waits for its turn.
pub(super) struct Waiting {
    incoming: Incoming,
    socket: usize,
    handshake: Handshake,
}

impl State {
    /// Accepts a new connection, asks it to prove its address, or does not answer at all.
    pub(super) fn admit(
        &mut self,
        endpoint: &Endpoint,
        socket: usize,
        incoming: Incoming,
        buffer: &mut Vec<u8>,
    ) {
        let (source, proved) =
            (incoming.remote_address().ip(), incoming.remote_address_validated());
        let has_place = !endpoint.draining.get() && self.open < self.limits.connections_max;
        match self.admission.decide(source, proved, has_place) {
            Verdict::Refuse => {
                self.counters.refused += 1;
                let refusal = self.quic.refuse(incoming, buffer);
                send(&endpoint.sockets[socket], &refusal, buffer);
            }
            Verdict::Ignore => {
                self.counters.ignored += 1;
                self.quic.ignore(incoming);
            }
            Verdict::Retry => match self.quic.retry(incoming, buffer) {
                Ok(retry) => {
                    self.counters.retried += 1;
                    send(&endpoint.sockets[socket], &retry, buffer);
                }
                Err(error) => self.quic.ignore(error.into_incoming()),
            },
            Verdict::Accept => {
                let handshake = self.admission.begin(source, proved);
                self.waiting.push_back(Waiting { incoming, socket, handshake });
                endpoint.wake_driver.notify();
            }
        }
    }

    /// Begins handshakes that were let in: so many a turn, and while strangers have time.
    pub(super) fn accept_waiting(&mut self, endpoint: &Endpoint) {
        self.begun = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            let now = clock::refresh();
            if !self.admission.has_time(now) {
                self.waiting.push_front(waiting);
                self.timers.insert((self.admission.next_time(now), ADMISSION_TIMER));
                endpoint.wake_timer.notify();
                return;
            }
            if self.limits.handshakes_per_turn <= self.begun {
                self.waiting.push_front(waiting);
                endpoint.wake_driver.notify();
                return;
            }
            let mut buffer = self.spare.take();
            self.accept(endpoint, now, waiting, &mut buffer);
            self.spare.give(buffer);
            self.admission.spend(clock::refresh() - now);
        }
    }

    fn accept(
        &mut self,
        endpoint: &Endpoint,
        now: Instant,
        waiting: Waiting,
        buffer: &mut Vec<u8>,
    ) {
        let Waiting { incoming, socket, handshake } = waiting;
        self.begun += 1;
        match self.quic.accept(incoming, now, buffer, None) {
            Ok((handle, quic)) => {
                self.counters.begun += 1;
                let deadline = now + self.limits.handshake_timeout;
                let mut connection =
                    Box::new(Connection::new(handle, quic, socket, handshake, deadline));
                mark(&mut endpoint.dirty.borrow_mut(), &mut connection);
                if self.connections.len() <= handle.0 {
                    self.connections.resize_with(handle.0 + 1, || None);
                }
                self.connections[handle.0] = Some(connection);
                self.open += 1;
            }
            Err(error) => {
                self.admission.end(handshake);
                if let Some(response) = error.response {
                    send(&endpoint.sockets[socket], &response, buffer);
                }
            }
        }
    }
}
