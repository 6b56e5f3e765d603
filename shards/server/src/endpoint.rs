//! Datagrams in, datagrams out: one QUIC endpoint per shard.
//!
//! quinn-proto holds the protocol's state and does no I/O; this file moves bytes between it and the
//! shard's sockets. One turn is: read trains of datagrams, hand each datagram to its connection,
//! let every connection that changed read, answer and send, then work on the requests that came
//! out whole.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, Incoming, ServerConfig, Transmit, VarInt,
};
use rustmq_protocol::ShardId;
use rustmq_sys::alloc::{Tag, within};
use rustmq_sys::clock;
use rustmq_sys::runtime::{self, Class};
use rustmq_sys::udp::{self, DatagramMeta, ReceiveBuffers, UdpSocket};

use crate::admission::{Admission, Handshake, Verdict};
use crate::connection::{Connection, Outlet};
use crate::connection_id::ShardConnectionIds;
use crate::limits::{
    GOODBYE_MS, LINGER_MS, LINGER_MS_MAX, RECEIVES_PER_TURN_MAX, UDP_PAYLOAD_BYTES_MAX,
    WATCHED_AT_ONCE,
};
use crate::mesh::PassedOn;
use crate::metrics::EndpointCounters;
use crate::notify::Notify;
use crate::session::{self, Request};
use crate::shard::Shard;

/// Application close code: the broker is shutting down; connect again later or elsewhere.
pub const CLOSE_DRAINING: u32 = 1;
/// Application close code: the handshake was good but the peer is not admitted.
pub const CLOSE_NOT_ADMITTED: u32 = 2;
/// Application close code: the handshake took too long.
pub const CLOSE_HANDSHAKE_TIMEOUT: u32 = 3;
/// Application close code: the peer did not get on: half a frame, no Hello, or answers not read.
pub const CLOSE_STALLED: u32 = 4;

/// The QUIC endpoint of a shard.
///
/// Lives on its shard's core. Its tasks: one per socket that reads, one that serves connections with
/// something to send, one for timers, one for sockets that refused. None holds a borrow across an await.
pub(crate) struct Endpoint {
    state: RefCell<State>,
    /// Connections that changed since they were last driven, each at most once.
    dirty: RefCell<VecDeque<ConnectionHandle>>,
    /// Something is dirty, and no driver is running.
    wake_driver: Notify,
    /// The earliest deadline moved forward.
    wake_timer: Notify,
    /// A socket refused a datagram.
    wake_writer: Notify,
    sockets: Vec<UdpSocket>,
    draining: Cell<bool>,
}

/// What the endpoint's limits are; from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointLimits {
    pub(crate) connections_max: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) handshakes_per_turn: usize,
    pub(crate) receive_buffer_bytes: usize,
    /// What comes to the shared socket and is another shard's is handed to it: every shard has one.
    pub(crate) passes_on: bool,
}

struct State {
    quic: quinn_proto::Endpoint,
    connections: Vec<Option<Box<Connection>>>,
    open: usize,
    /// Tells our connection ids from others.
    ids: ShardConnectionIds,
    admission: Admission,
    /// Handshakes begun since the last turn, and those that wait for a later one.
    begun: usize,
    waiting: VecDeque<Waiting>,
    counters: EndpointCounters,
    timers: BTreeSet<(Instant, usize)>,
    /// Buffers of sent datagrams, for the next ones.
    spare: SendBuffers,
    /// Requests that came out of this turn.
    requests: Vec<Request>,
    limits: EndpointLimits,
}

/// A first packet that was let in, and waits for its turn.
struct Waiting {
    incoming: Incoming,
    socket: usize,
    handshake: Handshake,
}

/// The socket on the port of the first contact; before it, there is only the shard's own.
const SHARED_SOCKET: usize = 1;

/// In place of a connection's number among the timers: strangers that wait may be looked after.
const ADMISSION_TIMER: usize = usize::MAX;

/// Buffers kept for sending; more are freed.
const SPARE_BUFFERS_MAX: usize = 256;
/// Room for the largest GSO train.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

impl Endpoint {
    /// An endpoint on `sockets`, the first of which is the shard's own.
    pub(crate) fn new(
        config: quinn_proto::EndpointConfig,
        server: ServerConfig,
        ids: ShardConnectionIds,
        sockets: Vec<UdpSocket>,
        limits: EndpointLimits,
    ) -> Self {
        let may_discover_mtu = sockets.iter().all(|socket| !socket.may_fragment());
        let server = Some(Arc::new(server));
        let quic = quinn_proto::Endpoint::new(Arc::new(config), server, may_discover_mtu, None);
        Self {
            state: RefCell::new(State {
                quic,
                connections: Vec::new(),
                open: 0,
                ids,
                admission: Admission::new(clock::now()),
                begun: 0,
                waiting: VecDeque::new(),
                counters: EndpointCounters::default(),
                timers: BTreeSet::new(),
                spare: SendBuffers::default(),
                requests: Vec::new(),
                limits,
            }),
            dirty: RefCell::default(),
            wake_driver: Notify::default(),
            wake_timer: Notify::default(),
            wake_writer: Notify::default(),
            sockets,
            draining: Cell::new(false),
        }
    }

    /// Begins to serve: spawns the tasks that drive the endpoint.
    pub(crate) fn start(shard: &Rc<Shard>) {
        let sockets = shard.endpoint.sockets.len();
        if 0 < sockets {
            let bytes = shard.endpoint.state.borrow().limits.receive_buffer_bytes;
            let buffers = Rc::new(RefCell::new(ReceiveBuffers::new(bytes)));
            for index in 0..sockets {
                let reading = receive_loop(Rc::clone(shard), index, Rc::clone(&buffers));
                runtime::spawn(Class::Foreground, reading);
            }
        }
        runtime::spawn(Class::Foreground, drive_loop(Rc::clone(shard)));
        runtime::spawn(Class::Foreground, timer_loop(Rc::clone(shard)));
        runtime::spawn(Class::Foreground, write_loop(Rc::clone(shard)));
    }

    /// A connection has something to say or to read.
    pub(crate) fn mark_dirty(&self, handle: ConnectionHandle) {
        self.dirty.borrow_mut().push_back(handle);
        self.wake_driver.notify();
    }

    /// A datagram for a connection of ours came to another shard's socket on the shared port.
    pub(crate) fn handle_passed_on(&self, passed: PassedOn) {
        let PassedOn { meta, datagram } = passed;
        let mut state = self.state.borrow_mut();
        state.handle_datagram(self, SHARED_SOCKET, clock::now(), &meta, datagram);
        self.wake_driver.notify();
    }

    /// Connections that are open, handshakes included.
    pub(crate) fn connections_open(&self) -> usize {
        self.state.borrow().open
    }

    /// Handshakes that are not over.
    pub(crate) fn handshakes(&self) -> usize {
        self.state.borrow().admission.handshakes()
    }

    /// What became of the endpoint's connections so far.
    pub(crate) fn counters(&self) -> EndpointCounters {
        self.state.borrow().counters
    }

    /// Closes those of the connections from `place` on that do not get on; see [`Connection::stalled`].
    /// Says where to go on: none, when all have been looked at.
    pub(crate) fn close_stalled(&self, shard: &Shard, place: usize, now: Instant) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        let State { connections, counters, .. } = &mut *state;
        let next = place + WATCHED_AT_ONCE;
        for connection in connections.iter_mut().skip(place).take(WATCHED_AT_ONCE).flatten() {
            let Some(stall) = connection.stalled(shard, now) else { continue };
            let peer = connection.quic.remote_address();
            tracing::debug!(%peer, why = stall.reason(), "connection closed");
            counters.count_stall(stall);
            let code = VarInt::from_u32(CLOSE_STALLED);
            connection.quic.close(now, code, Bytes::from_static(stall.reason().as_bytes()));
            connection.end();
            mark(&mut self.dirty.borrow_mut(), connection);
            self.wake_driver.notify();
        }
        (next < connections.len()).then_some(next)
    }

    /// Is every request answered, and every answer with the transport?
    fn is_quiet(&self) -> bool {
        self.state.borrow().connections.iter().flatten().all(|connection| connection.is_quiet())
    }

    /// Lets go of every connection without a word. For the end of the shard's life: nothing drives
    /// the endpoint any more.
    pub(crate) fn forget_all(&self) {
        // Only a panic ends a life in the middle of a turn; then there is nothing to clean up for.
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        for mut connection in state.connections.iter_mut().filter_map(Option::take) {
            connection.end();
        }
        state.requests.clear();
    }

    /// Takes no new connection, tells every peer goodbye, and keeps the sockets long enough for
    /// them to hear it.
    pub(crate) async fn close(shard: &Rc<Shard>) {
        shard.endpoint.draining.set(true);
        // What is answered must leave before the goodbye, which ends every stream.
        let patience = clock::now() + Duration::from_millis(LINGER_MS_MAX);
        while !shard.endpoint.is_quiet() && clock::now() < patience {
            runtime::sleep(Duration::from_millis(LINGER_MS)).await;
        }
        runtime::sleep(Duration::from_millis(LINGER_MS)).await;
        let now = clock::now();
        {
            let mut state = shard.endpoint.state.borrow_mut();
            for connection in state.connections.iter_mut().flatten() {
                let reason = Bytes::from_static(b"the broker is shutting down");
                connection.quic.close(now, VarInt::from_u32(CLOSE_DRAINING), reason);
                shard.endpoint.dirty.borrow_mut().push_back(connection.handle);
            }
        }
        drive(shard);
        runtime::sleep(Duration::from_millis(GOODBYE_MS)).await;
    }
}

async fn receive_loop(shard: Rc<Shard>, index: usize, buffers: Rc<RefCell<ReceiveBuffers>>) {
    loop {
        let socket = &shard.endpoint.sockets[index];
        socket.readable().await;
        let mut more = true;
        let mut reads = 0;
        while more && reads < RECEIVES_PER_TURN_MAX {
            more = receive(&shard, index, &mut buffers.borrow_mut());
            reads += 1;
            if runtime::need_preempt() {
                break;
            }
        }
        drive(&shard);
        if more {
            runtime::yield_now().await;
        }
    }
}

/// Reads once from a socket. Returns false when nothing was there.
fn receive(shard: &Rc<Shard>, index: usize, buffers: &mut ReceiveBuffers) -> bool {
    let endpoint = &shard.endpoint;
    let mut state = endpoint.state.borrow_mut();
    let passes_on = index == SHARED_SOCKET && state.limits.passes_on;
    let now = clock::refresh();
    let received = endpoint.sockets[index].recv_trains(buffers, |meta, mut train| {
        while !train.is_empty() {
            let bytes = meta.stride.clamp(1, train.len());
            let datagram = train.split_to(bytes);
            if passes_on && let Some(owner) = state.ids.other_owner(&datagram) {
                state.pass_on(shard, owner, meta, datagram);
            } else {
                state.handle_datagram(endpoint, index, now, &meta, datagram);
            }
        }
    });
    match received {
        Ok(count) => 0 < count,
        Err(error) => {
            tracing::warn!(%error, "reading from the UDP socket failed");
            false
        }
    }
}

async fn drive_loop(shard: Rc<Shard>) {
    loop {
        shard.endpoint.wake_driver.notified().await;
        drive(&shard);
        // Those who have more to send are not the only ones.
        runtime::yield_now().await;
    }
}

async fn timer_loop(shard: Rc<Shard>) {
    loop {
        let next = shard.endpoint.state.borrow().timers.first().map(|(deadline, _)| *deadline);
        match next {
            None => shard.endpoint.wake_timer.notified().await,
            Some(deadline) => {
                let earlier = shard.endpoint.wake_timer.notified();
                if crate::notify::before(deadline, earlier).await.is_some() {
                    continue;
                }
            }
        }
        shard.endpoint.state.borrow_mut().fire_timers(&shard.endpoint, clock::now());
        drive(&shard);
    }
}

/// Waits for a socket that refused a datagram, then lets the connections try again.
async fn write_loop(shard: Rc<Shard>) {
    loop {
        shard.endpoint.wake_writer.notified().await;
        for socket in &shard.endpoint.sockets {
            socket.writable().await;
        }
        let handles: Vec<_> = {
            let state = shard.endpoint.state.borrow();
            let open = state.connections.iter().flatten();
            open.filter(|c| c.refused.is_some()).map(|c| c.handle).collect()
        };
        for handle in handles {
            shard.endpoint.mark_dirty(handle);
        }
    }
}

/// Serves every dirty connection, then the requests that came out of them.
fn drive(shard: &Rc<Shard>) {
    let endpoint = &shard.endpoint;
    let mut requests = {
        let mut state = endpoint.state.borrow_mut();
        let now = clock::now();
        state.accept_waiting(endpoint);
        let count = endpoint.dirty.borrow().len();
        for _ in 0..count {
            let Some(handle) = endpoint.dirty.borrow_mut().pop_front() else {
                break;
            };
            state.drive(shard, handle, now);
        }
        std::mem::take(&mut state.requests)
    };
    for request in requests.drain(..) {
        session::dispatch(shard, request);
    }
    endpoint.state.borrow_mut().requests = requests;
}

impl State {
    fn handle_datagram(
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
        let begun = stranger.then(clock::refresh);
        let mut buffer = self.spare.take();
        let ecn = EcnCodepoint::from_bits(meta.ecn);
        let event = within(Tag::Quic, || {
            self.quic.handle(now, meta.remote, meta.local_ip, ecn, datagram, &mut buffer)
        });
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(Some(connection)) = self.connections.get_mut(handle.0) {
                    within(Tag::Quic, || connection.quic.handle_event(event));
                    connection.socket = socket;
                    mark(&mut endpoint.dirty.borrow_mut(), connection);
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
    fn pass_on(&mut self, shard: &Shard, owner: ShardId, meta: DatagramMeta, datagram: BytesMut) {
        let len = datagram.len();
        let meta = DatagramMeta { stride: len, len, ..meta };
        match shard.mesh.pass_on(owner, PassedOn { meta, datagram }) {
            true => self.counters.passed_on += 1,
            false => self.counters.passed_on_lost += 1,
        }
    }

    /// Accepts a new connection, asks it to prove its address, or does not answer at all.
    fn admit(
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
    fn accept_waiting(&mut self, endpoint: &Endpoint) {
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

    fn fire_timers(&mut self, endpoint: &Endpoint, now: Instant) {
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
    fn drive(&mut self, shard: &Rc<Shard>, handle: ConnectionHandle, now: Instant) {
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

fn mark(dirty: &mut VecDeque<ConnectionHandle>, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push_back(connection.handle);
    }
}

/// Buffers to build trains of datagrams in, used again and again.
#[derive(Default)]
struct SendBuffers(Vec<Vec<u8>>);

impl SendBuffers {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(SEND_BUFFER_BYTES))
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// The socket that a connection sends through, and buffers to build datagrams in.
struct SocketOutlet<'a> {
    socket: &'a UdpSocket,
    buffers: &'a mut SendBuffers,
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
fn send(socket: &UdpSocket, transmit: &Transmit, buffer: &[u8]) -> bool {
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
